"""Wheels of an image: which ones exactly (for the lock), and the files themselves (for the wheelhouse).

uv resolves, with the indexes, proxies and certificates of the user's pip; the files are downloaded from where the
indexes say they are. The lock gets names, versions, file names and hashes: no address of an index.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from rwkvflow.base.errors import FetchError, LockError
from rwkvflow.base.files import clear_errors, remove
from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.lock import LockedWheel
from rwkvflow.documents.lock_text import requirements_text
from rwkvflow.net.download import OtherBytes
from rwkvflow.net.packages.package_index import Distribution, best_wheel, download, files_of, wheels_of
from rwkvflow.net.packages.pip_settings import PipSettings, settings_of_environment
from rwkvflow.net.packages.target import GLIBC, Target
from rwkvflow.net.packages.uv import Unresolvable, resolve
from rwkvflow.net.partial import alone

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
WITHOUT_TORCH = frozenset(
    {"ziglang", "cmake", "ninja", "numpy", "safetensors", "tokenizers", "pyrwkv-tokenizer", "gguf"}
)
_CUDA = re.compile(r"(nvidia|cuda|pytorch-triton)-.*|triton|nvidia")


def resolve_wheels(
    python: str,
    platform: str,
    requirements: Sequence[str],
    *,
    constraints: Iterable[LockedWheel] = (),
    glibc: int = GLIBC,
    cancel: threading.Event | None = None,
) -> list[LockedWheel]:
    """All wheels that `requirements` need on a platform, dependencies included, sorted by name.

    A torch without a local part means its CPU build where one can be found; a CUDA build of several GB is never
    taken unless its local part (+cu126) is named. `constraints` are versions to keep where they still fit.
    `glibc` is the minor version that is sure to be there. Raises LockError where there is no such set of wheels.
    """
    target, settings = Target(python, platform, glibc), settings_of_environment()
    parsed = [_requirement(text) for text in requirements]
    if not parsed:
        return []
    kept = [f"{wheel.name}=={wheel.version}" for wheel in constraints]
    torch = next((item for item in parsed if canonicalize_name(item.name) == "torch"), None)
    small = []
    if torch is not None:
        parsed[parsed.index(torch)] = torch = _build_of_torch(torch, target, settings, cancel)
    elif not {canonicalize_name(item.name) for item in parsed} <= WITHOUT_TORCH:
        small = _small_torch(target, settings, cancel)
    problem = ""
    for limits in [kept + small, small] if kept else [small]:
        try:
            rows = resolve(target, [str(item) for item in parsed], _compatible(limits, parsed), settings, cancel)
        except Unresolvable as error:
            problem = str(error)
            continue
        _check_torch({name for name, _, _ in rows}, parsed, torch, target)
        found = [_locked(*row, target, settings, cancel) for row in rows]
        return sorted(found, key=lambda wheel: wheel.name)
    raise _explained(target, parsed, problem, settings, cancel)


def download_wheels(
    wheels: Sequence[LockedWheel],
    *,
    python: str,
    platform: str,
    destination: Path,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Bring the files of `wheels` into a folder; those that are there with the right hash are kept.

    Raises LockError for a lock that names no proper wheels, FetchError where the indexes do not have them (any
    more), StoreError for a full disk, Interrupted.
    """
    target = Target(python, platform)
    requirements_text(wheels)  # refuses names and versions that are none
    for wheel in wheels:
        _check_name(wheel)
    with clear_errors("downloading wheels"):
        destination.mkdir(parents=True, exist_ok=True)
        missing = [wheel for wheel in dict.fromkeys(wheels) if not _right(destination / wheel.filename, wheel)]
        if not missing:
            return
        settings = settings_of_environment()
        with alone(destination / ".wheels", cancel):
            for stale in destination.glob(".incoming-*"):  # of an older rwkvflow that was killed
                remove(stale)
            for wheel in missing:
                if on_line is not None:
                    on_line(f"downloading {wheel.filename}")
                _download(wheel, target, destination, settings, cancel)


def _download(
    wheel: LockedWheel, target: Target, destination: Path, settings: PipSettings, cancel: threading.Event | None
) -> None:
    """Bring one wheel from the place that has it; one that lists it with the lock's hash is asked first."""
    files = [file for file in files_of(wheel.name, settings, cancel) if file.filename == wheel.filename]
    files.sort(key=lambda file: file.sha256 != wheel.sha256)
    if not files:
        raise FetchError(
            f"the package indexes no longer have {wheel.filename} for Python {target.python} on {target.platform}",
            remedy="check the indexes of pip's configuration (pip.conf, PIP_*), or make the lock again: "
            "`rwkvflow lock`",
        )
    if files[0].sha256 not in (None, wheel.sha256):
        raise _another(wheel)
    try:
        download(files[0], destination / wheel.filename, settings, sha256=wheel.sha256, cancel=cancel)
    except OtherBytes as error:
        raise _another(wheel) from error


def _another(wheel: LockedWheel) -> FetchError:
    return FetchError(
        f"{wheel.filename} of the package index is not the one in the lock (sha256 {wheel.sha256})",
        remedy="it was replaced or tampered with on the way; `rwkvflow lock` if you trust the new one",
    )


def _requirement(text: str) -> Requirement:
    try:
        parsed = Requirement(text)
    except InvalidRequirement as error:
        raise LockError(f"{text!r} is no requirement such as tokenizers==0.20.3") from error
    if parsed.url is not None:
        raise LockError(f"{text!r}: a wheel comes from the package index by name and version")
    return parsed


def _build_of_torch(
    torch: Requirement, target: Target, settings: PipSettings, cancel: threading.Event | None
) -> Requirement:
    """torch==2.13.0 as torch==2.13.0+cpu where there is such a build. Looks at names only: downloads are large."""
    pins = list(torch.specifier)
    if len(pins) != 1 or pins[0].operator != "==" or "*" in pins[0].version:
        raise LockError(f"{torch}: torch needs one exact version", remedy='write e.g. torch: "2.13.0"')
    wanted = Version(pins[0].version)
    there = wheels_of("torch", settings, target, cancel)
    if not any(torch.specifier.contains(version, prereleases=True) for version in there):
        raise _no_torch(torch, target, settings, cancel)
    if wanted.local is not None or not target.platform.startswith("linux-"):
        return torch
    if Version(f"{wanted}+cpu") in there:
        return Requirement(f"torch=={wanted}+cpu")
    if target.platform == "linux-x86_64":  # a build without a local part is the one for CUDA there
        raise _only_for_gpus(str(wanted), target)
    return Requirement(f"torch==={wanted}")


def _compatible(limits: Sequence[str], wanted: Sequence[Requirement]) -> list[str]:
    """Those versions to keep that the requirements still allow."""
    named = {canonicalize_name(item.name): item.specifier for item in wanted}
    return [line for line in limits if _allowed(Requirement(line), named)]


def _allowed(limit: Requirement, named: Mapping[NormalizedName, SpecifierSet]) -> bool:
    wanted = named.get(canonicalize_name(limit.name))
    pins = [pin.version for pin in limit.specifier if pin.operator == "=="]
    return wanted is None or all(wanted.contains(version, prereleases=True) for version in pins)


def _locked(
    name: str,
    version: str,
    files: Sequence[Distribution],
    target: Target,
    settings: PipSettings,
    cancel: threading.Event | None,
) -> LockedWheel:
    """What was resolved as the lock has it; a wheel whose hash no index tells is downloaded to know it."""
    best = best_wheel(files, target)
    if best is None:
        raise LockError(f"{name} {version} has no wheel for Python {target.python} on {target.platform}")
    sha256 = best.sha256
    if sha256 is None:
        with tempfile.TemporaryDirectory(prefix="rwkvflow-wheel-") as folder:
            sha256 = download(best, Path(folder) / best.filename, settings, sha256=None, cancel=cancel)
    wheel = LockedWheel(name=name, version=version, filename=best.filename, sha256=sha256)
    _check_name(wheel)
    return wheel


def _small_torch(target: Target, settings: PipSettings, cancel: threading.Event | None) -> list[str]:
    """A constraint that keeps uv from downloading a GPU build only to see what it depends on."""
    if not target.platform.startswith("linux-"):
        return []
    small = [version for version in wheels_of("torch", settings, target, cancel) if version.local == "cpu"]
    return [f"torch=={max(small)}"] if small else ["torch<0"]


def _check_torch(names: set[str], wanted: Sequence[Requirement], torch: Requirement | None, target: Target) -> None:
    if torch is None and "torch" in names:
        raise _needs_torch(wanted)
    if torch is not None and "+" not in str(torch.specifier) and any(map(_CUDA.fullmatch, names)):
        raise _only_for_gpus(str(torch.specifier).lstrip("="), target)


def _needs_torch(wanted: Sequence[Requirement]) -> LockError:
    return LockError(
        f"one of {', '.join(map(str, wanted))} needs PyTorch",
        remedy='name its version in the image, e.g. torch: "2.13.0"',
    )


def _only_for_gpus(version: str, target: Target) -> LockError:
    return LockError(
        f"torch {version} for Python {target.python} on {target.platform} can only be found as a build for GPUs, "
        "which is several GB",
        remedy="let pip find PyTorch's CPU builds (extra-index-url or find-links in pip's configuration; pytorch.org "
        f'names the index), or ask for the GPU build by its local part, e.g. torch: "{version}+cu126"',
    )


def _explained(
    target: Target, wanted: Sequence[Requirement], text: str, settings: PipSettings, cancel: threading.Event | None
) -> LockError:
    """Why there is no set of wheels."""
    named = any(canonicalize_name(item.name) == "torch" for item in wanted)
    if not named and re.search(r"\btorch\b", text):  # the constraint of _small_torch
        return _needs_torch(wanted)
    for item in wanted:
        found = wheels_of(item.name, settings, target, cancel)
        if not any(item.specifier.contains(version, prereleases=True) for version in found):
            offered = f"it has {', '.join(map(str, found[-8:]))}" if found else "it has none at all"
            return LockError(
                f"no wheel for Python {target.python} on {target.platform} fits {item}; {offered}",
                remedy="change the requirement, or the image's python",
            )
    remedy = "change the requirements of the image"
    if settings.constraints:
        remedy += ", or the constraint in pip's own configuration"
    return LockError(f"no set of wheels fits {', '.join(map(str, wanted))}: {text}", remedy=remedy)


def _no_torch(torch: Requirement, target: Target, settings: PipSettings, cancel: threading.Event | None) -> LockError:
    others = [Target(python, target.platform) for python in PYTHONS if python != target.python]
    with ThreadPoolExecutor(max_workers=3) as pool:
        here, *there = pool.map(lambda one: wheels_of("torch", settings, one, cancel), [target, *others])
    pythons = [
        other.python
        for other, found in zip(others, there, strict=True)
        if any(torch.specifier.contains(version, prereleases=True) for version in found)
    ]
    name = str(torch.specifier).removeprefix("==")
    newest = ", ".join(map(str, here[-10:]))
    has = f"that Python has torch {newest}" if here else "that Python has no torch at all"
    with_it = f"torch {name} has wheels for Python {', '.join(pythons)}" if pythons else f"no Python has torch {name}"
    return LockError(
        f"there is no wheel of torch {name} for Python {target.python} on {target.platform}: {has}; {with_it}",
        remedy="choose a python and a torch that go together",
    )


def _check_name(wheel: LockedWheel) -> None:
    """A lock may come from anywhere: its file names become paths."""
    try:
        name, version, _, _ = parse_wheel_filename(wheel.filename)
        fits = name == canonicalize_name(wheel.name) and version == Version(wheel.version)
    except (InvalidWheelFilename, InvalidVersion, ValueError):
        fits = False
    if not fits or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl", wheel.filename):
        raise LockError(
            f"the lock's wheel {wheel.name} {wheel.version} cannot be in a file named {wheel.filename!r}",
            remedy="make the lock again: `rwkvflow lock`",
        )


def _right(path: Path, wheel: LockedWheel) -> bool:
    return path.is_file() and file_digest(path) == f"sha256:{wheel.sha256}"
