"""Wheels of an image: which ones exactly (for the lock), and the files themselves (for the wheelhouse).

pip does both, with the user's own indexes, proxies and certificates. The lock gets names, versions, file names and
hashes: no address of an index.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from rwkvflow.base.errors import FetchError, LockError, StoreError
from rwkvflow.base.files import clear_errors, remove, sync
from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.lock import LockedWheel
from rwkvflow.documents.lock_text import requirements_text
from rwkvflow.net.partial import alone
from rwkvflow.net.pip import Ran, Target, run_pip, versions

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
WITHOUT_TORCH = frozenset(
    {"pip", "ziglang", "cmake", "ninja", "numpy", "safetensors", "tokenizers", "pyrwkv-tokenizer", "gguf"}
)
_CUDA = re.compile(r"(nvidia|cuda|pytorch-triton)-.*|triton|nvidia")


def resolve_wheels(
    python: str,
    platform: str,
    requirements: Sequence[str],
    *,
    constraints: Iterable[LockedWheel] = (),
    cancel: threading.Event | None = None,
) -> list[LockedWheel]:
    """All wheels that `requirements` need on a platform, dependencies included, sorted by name.

    A torch without a local part means its CPU build where one can be found; a CUDA build of several GB is never
    taken unless its local part (+cu126) is named. `constraints` are versions to keep where they still fit.
    Raises LockError where there is no such set of wheels.
    """
    target = Target(python, platform)
    parsed = [_requirement(text) for text in requirements]
    if not parsed:
        return []
    kept = [f"{wheel.name}=={wheel.version}" for wheel in constraints]
    torch = next((item for item in parsed if canonicalize_name(item.name) == "torch"), None)
    small = []
    if torch is not None:
        parsed[parsed.index(torch)] = torch = _build_of_torch(torch, target, cancel)
    elif not {canonicalize_name(item.name) for item in parsed} <= WITHOUT_TORCH:
        small = _small_torch(target, cancel)
    ran = Ran(False)
    for limits in [kept + small, small] if kept else [small]:
        rows, ran = _report(target, parsed, limits, cancel)
        if rows is not None:
            _check_torch(rows, parsed, torch, target)
            return sorted((_locked(row, target, cancel) for row in rows), key=lambda wheel: wheel.name)
    raise _explained(target, parsed, ran, cancel)


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
    for wheel in wheels:
        _check_name(wheel)
    with clear_errors("downloading wheels"):
        destination.mkdir(parents=True, exist_ok=True)
        missing = [wheel for wheel in wheels if not _right(destination / wheel.filename, wheel)]
        if not missing:
            return
        with alone(destination / ".wheels", cancel):
            for stale in destination.glob(".incoming-*"):  # of a process that was killed
                remove(stale)
            for batch in _batches(missing):
                _download(batch, target, destination, on_line, cancel)


def _batches(wheels: Iterable[LockedWheel]) -> list[list[LockedWheel]]:
    """pip takes each name once; two roles of an image may need a package in two versions."""
    batches: list[dict[str, LockedWheel]] = []
    for wheel in dict.fromkeys(wheels):
        batch = next((batch for batch in batches if wheel.name not in batch), None)
        if batch is None:
            batches.append(batch := {})
        batch[wheel.name] = wheel
    return [list(batch.values()) for batch in batches]


def _download(
    missing: Sequence[LockedWheel],
    target: Target,
    destination: Path,
    on_line: Callable[[str], None] | None,
    cancel: threading.Event | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=destination) as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text(requirements_text(missing), encoding="utf-8")
        arrived = Path(folder) / "wheels"
        arguments = ["--no-deps", "--require-hashes", *target.options, "-r", str(listed), "-d", str(arrived)]
        ran = run_pip(target, ["download", *arguments], scratch=Path(folder), on_line=on_line, cancel=cancel)
        if not ran.ok:
            raise _download_problem(ran)
        for wheel in missing:
            _place(wheel, arrived, destination)


def _requirement(text: str) -> Requirement:
    try:
        parsed = Requirement(text)
    except InvalidRequirement as error:
        raise LockError(f"{text!r} is no requirement such as tokenizers==0.20.3") from error
    if parsed.url is not None:
        raise LockError(f"{text!r}: a wheel comes from the package index by name and version")
    return parsed


def _build_of_torch(torch: Requirement, target: Target, cancel: threading.Event | None) -> Requirement:
    """torch==2.13.0 as torch==2.13.0+cpu where there is such a build. Looks at names only: downloads are large."""
    pins = list(torch.specifier)
    if len(pins) != 1 or pins[0].operator != "==" or "*" in pins[0].version:
        raise LockError(f"{torch}: torch needs one exact version", remedy='write e.g. torch: "2.13.0"')
    wanted = Version(pins[0].version)
    there = [_version(text) for text in versions("torch", target, cancel)]
    if not any(torch.specifier.contains(version, prereleases=True) for version in there):
        raise _no_torch(torch, target, cancel)
    if wanted.local is not None or not target.platform.startswith("linux-"):
        return torch
    if Version(f"{wanted}+cpu") in there:
        return Requirement(f"torch=={wanted}+cpu")
    if target.platform == "linux-x86_64":  # a build without a local part is the one for CUDA there
        raise _only_for_gpus(str(wanted), target)
    return Requirement(f"torch==={wanted}")


def _report(
    target: Target, wanted: Sequence[Requirement], limits: Sequence[str], cancel: threading.Event | None
) -> tuple[list[dict[str, Any]] | None, Ran]:
    """What pip would install, as its installation report lists it; None where it cannot."""
    with tempfile.TemporaryDirectory(prefix="rwkvflow-pip-") as folder:
        report, limit_file = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        arguments = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        arguments += ["--target", str(Path(folder) / "none"), *target.options]
        if limits:
            named = {canonicalize_name(item.name): item.specifier for item in wanted}
            kept = [line for line in limits if _compatible(Requirement(line), named)]
            limit_file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            arguments += ["-c", str(limit_file)]
        ran = run_pip(target, [*arguments, *map(str, wanted)], cancel=cancel)
        if not ran.ok:
            return None, ran
        rows: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return rows, ran


def _compatible(limit: Requirement, named: Mapping[NormalizedName, SpecifierSet]) -> bool:
    """Whether a version to keep is one that the requirements still allow."""
    wanted = named.get(canonicalize_name(limit.name))
    pins = [pin.version for pin in limit.specifier if pin.operator == "=="]
    return wanted is None or all(wanted.contains(version, prereleases=True) for version in pins)


def _locked(row: dict[str, Any], target: Target, cancel: threading.Event | None) -> LockedWheel:
    """A row of pip's report as the lock has it. The address is used for the hash of local files, then forgotten."""
    info, metadata = row["download_info"], row["metadata"]
    address = urlsplit(info["url"])
    filename = unquote(address.path).rsplit("/", 1)[-1]
    if not filename.endswith(".whl") or "archive_info" not in info:
        raise LockError(f"{metadata['name']}: pip chose {filename}, which is not a wheel")
    sha256 = (info["archive_info"].get("hashes") or {}).get("sha256")
    if sha256 is None and address.scheme == "file":
        sha256 = file_digest(Path(url2pathname(address.path))).removeprefix("sha256:")
    if sha256 is None:
        sha256 = _hash_of(metadata["name"], metadata["version"], target, cancel)
    wheel = LockedWheel(
        name=canonicalize_name(metadata["name"]), version=metadata["version"], filename=filename, sha256=sha256
    )
    _check_name(wheel)
    return wheel


def _hash_of(name: str, version: str, target: Target, cancel: threading.Event | None) -> str:
    """For indexes that tell no sha256: download the wheel to know it."""
    with tempfile.TemporaryDirectory(prefix="rwkvflow-pip-") as folder:
        arguments = ["download", "--no-deps", "--quiet", *target.options, "-d", folder, f"{name}=={version}"]
        ran = run_pip(target, arguments, cancel=cancel)
        found = list(Path(folder).glob("*.whl"))
        if not ran.ok or len(found) != 1:
            raise LockError(f"{name} {version} cannot be downloaded to know its hash: {ran.errors}")
        return file_digest(found[0]).removeprefix("sha256:")


def _small_torch(target: Target, cancel: threading.Event | None) -> list[str]:
    """A constraint that keeps pip from downloading a GPU build only to see what it depends on."""
    if not target.platform.startswith("linux-"):
        return []
    small = [version for version in map(_version, versions("torch", target, cancel)) if version.local == "cpu"]
    return [f"torch=={max(small)}"] if small else ["torch<0"]


def _check_torch(
    rows: Sequence[dict[str, Any]], wanted: Sequence[Requirement], torch: Requirement | None, target: Target
) -> None:
    names = {canonicalize_name(row["metadata"]["name"]) for row in rows}
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


def _explained(target: Target, wanted: Sequence[Requirement], ran: Ran, cancel: threading.Event | None) -> LockError:
    """Why pip found no set of wheels."""
    text = "\n".join(ran.lines)
    named = any(canonicalize_name(item.name) == "torch" for item in wanted)
    if "(constraint) torch" in text and not named:  # that of _small_torch
        return _needs_torch(wanted)
    if lacking := re.search(r"No matching distribution found for ([A-Za-z0-9._-]+)", text):
        found = versions(lacking[1], target, cancel)
        offered = f"it has {', '.join(found[-8:])}" if found else "it has none at all"
        return LockError(
            f"no wheel for Python {target.python} on {target.platform} fits {_named(lacking[1], wanted)}; {offered}",
            remedy="change the requirement, or the image's python",
        )
    remedy = None
    if "ResolutionImpossible" in text:
        remedy = "change the requirements of the image"
        if "(constraint)" in text:
            remedy += ", or the constraint in pip's own configuration"
    return LockError(f"pip cannot resolve {', '.join(map(str, wanted))}: {ran.errors}", remedy=remedy)


def _no_torch(torch: Requirement, target: Target, cancel: threading.Event | None) -> LockError:
    others = [Target(python, target.platform) for python in PYTHONS if python != target.python]
    with ThreadPoolExecutor(max_workers=3) as pool:
        here, *there = pool.map(lambda one: versions("torch", one, cancel), [target, *others])
    pythons = [
        other.python
        for other, found in zip(others, there, strict=True)
        if any(torch.specifier.contains(_version(version), prereleases=True) for version in found)
    ]
    name = str(torch.specifier).removeprefix("==")
    has = f"that Python has torch {', '.join(here[-10:])}" if here else "that Python has no torch at all"
    with_it = f"torch {name} has wheels for Python {', '.join(pythons)}" if pythons else f"no Python has torch {name}"
    return LockError(
        f"there is no wheel of torch {name} for Python {target.python} on {target.platform}: {has}; {with_it}",
        remedy="choose a python and a torch that go together",
    )


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def _named(name: str, wanted: Sequence[Requirement]) -> str:
    for item in wanted:
        if canonicalize_name(item.name) == canonicalize_name(name):
            return str(item)
    return name


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


def _place(wheel: LockedWheel, arrived: Path, destination: Path) -> None:
    for path in sorted(arrived.glob("*.whl")):
        if canonicalize_name(path.name.split("-", 1)[0]) == wheel.name and _right(path, wheel):
            sync(path)
            path.rename(destination / wheel.filename)
            return
    raise FetchError(
        f"{wheel.filename}: what pip brought is not the file of the lock (sha256 {wheel.sha256})",
        remedy="`rwkvflow lock`, after a look at why it changed",
    )


def _download_problem(ran: Ran) -> FetchError | StoreError:
    text = "\n".join(ran.lines)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return StoreError(
            "downloading wheels: no space left on the disk of the store",
            remedy="free some space, `rwkvflow cache gc`, or name another place with RWKVFLOW_STORE",
        )
    if "DO NOT MATCH THE HASHES" in text:
        return FetchError(
            f"a wheel of the index is not the one in the lock: {ran.errors}",
            remedy="it was replaced or tampered with on the way; `rwkvflow lock` if you trust the new one",
        )
    if "No matching distribution" in text:
        return FetchError(
            f"pip's indexes no longer have a wheel of the lock: {ran.errors}",
            remedy="check pip's configuration (`pip config list`), or make the lock again: `rwkvflow lock`",
        )
    return FetchError(
        f"pip cannot download the wheels: {ran.errors}", remedy="check the network and pip's configuration"
    )
