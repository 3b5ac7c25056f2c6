"""A base image from Debian packages, for sites without a registry: a reproducible tar, imported into the engine.

The same packages give the same tar, and its sha256 is the digest of the image's only layer. The tar is kept below
<root>/bases and can be carried to another machine, where it gives the same image.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base import process
from rwkvflow.base.errors import EnvironmentMissing, StepFailed, UsageError
from rwkvflow.base.files import clear_errors, locked, remove
from rwkvflow.base.hashing import file_digest
from rwkvflow.base.machine import EXCLUSIVE
from rwkvflow.documents.lock import LockedBase
from rwkvflow.documents.names import SUITES
from rwkvflow.sandbox.base import OnLine
from rwkvflow.sandbox.daemon import connect, plain_errors
from rwkvflow.sandbox.image.base_image import local_image, root_digest
from rwkvflow.sandbox.image.base_names import check_packages, default_tag
from rwkvflow.sandbox.image.dockerfile import ENVIRONMENT, split_reference

if TYPE_CHECKING:
    import docker

# python3 in full: python3-minimal cannot import numpy. The libraries are what the wheels expect of every Linux.
PACKAGES = ("python3", "libstdc++6", "libgomp1", "zlib1g")
LEFT_OUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")
KEPT = ("/usr/share/doc/*/copyright",)
# What a package's installation leaves that names this machine or this moment.
TRACES = (
    "var/log/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*",
    "var/cache/ldconfig/aux-cache", "etc/machine-id", "etc/hostname", "etc/resolv.conf", "var/lib/dpkg/*-old",
    "var/cache/debconf/*-old", "tmp/*", "dev/*",
)  # fmt: skip
TIME_LIMIT_S = 1800
_WORD = re.compile(r"^[a-z][a-z0-9-]*$")
_MIRROR = re.compile(r"^(https?://|file:/|copy:/)[^\s\"'|;&$`]+$")


def bootstrap_image(
    suite: str = "bookworm",
    *,
    root: Path,
    packages: Sequence[str] = (),
    tag: str | None = None,
    mirror: str | None = None,
    refresh: bool = False,
    client: docker.DockerClient | None = None,
    on_line: OnLine = lambda line: None,
    cancel: threading.Event | None = None,
) -> LockedBase:
    """Make the tar (or take the one kept below `root`/bases unless `refresh`) and import it as `tag`.

    `packages` are further ones of Debian's, such as mesa-vulkan-drivers, which brings Vulkan without a GPU.
    Raises UsageError for an unknown suite, a bad mirror or what is no package, EnvironmentMissing without mmdebstrap,
    debootstrap or a Docker engine, StepFailed with the tool's last lines.
    """
    reference = tag or default_tag(suite, packages)
    split_reference(reference)
    client = client or connect()  # before 30 seconds of work, not after
    tar = base_tar(suite, root=root, packages=packages, mirror=mirror, refresh=refresh, on_line=on_line, cancel=cancel)
    return import_base(tar, reference, client, suite=suite, on_line=on_line)


def base_tar(
    suite: str,
    *,
    root: Path,
    packages: Sequence[str] = (),
    mirror: str | None = None,
    refresh: bool = False,
    on_line: OnLine = lambda line: None,
    cancel: threading.Event | None = None,
) -> Path:
    """The root file system as a tar, made where it is not there yet; the same bytes for the same packages."""
    if suite not in SUITES or not _WORD.fullmatch(suite):
        raise UsageError(f"unknown Debian release {suite!r}; there are {', '.join(SUITES)}")
    check_packages(packages)
    further = sorted(set(packages) - set(PACKAGES))
    if mirror is not None and not _MIRROR.fullmatch(mirror):
        raise UsageError(f"{mirror!r} is no mirror", remedy="name it like http://mirror.example/debian")
    bases = root / "bases"
    with clear_errors(f"base image {suite}"):
        bases.mkdir(parents=True, exist_ok=True)
        target = bases / f"{'_'.join((suite, *further))}-{platform.machine().lower()}.tar"
        with locked(bases / f"{target.name}.lock", EXCLUSIVE):
            if target.exists() and not refresh:
                on_line(f"taking the root file system that was made before ({target})")
                return target
            scratch = Path(tempfile.mkdtemp(prefix=f".{suite}-", dir=bases))
            try:
                scratch.chmod(0o755)  # apt reads in it as a user of its own
                _make(_Wanted(suite, (*PACKAGES, *further), mirror), scratch, on_line, cancel or threading.Event())
                (scratch / "base.tar").rename(target)
            finally:
                remove(scratch)
    return target


def import_base(
    tar: Path,
    reference: str,
    client: docker.DockerClient,
    *,
    suite: str = "",
    on_line: OnLine = lambda line: None,
) -> LockedBase:
    """Import a root file system as an image with one layer. Raises StepFailed where the engine made another of it."""
    name, label, _ = split_reference(reference)
    digest = file_digest(tar)
    present = local_image(reference, client)
    if present is None or root_digest(present) != digest:
        on_line(f"importing {reference}")
        labels = f'LABEL org.rwkvflow.base="{suite or "tar"}" org.opencontainers.image.title="rwkvflow base image"'
        with plain_errors(f"importing {reference}"):
            client.api.import_image_from_file(
                str(tar),
                repository=name,
                tag=label or "latest",
                changes=["ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", labels],
            )
        present = local_image(reference, client)
    if present is None or root_digest(present) != digest:
        raise StepFailed(
            f"the engine did not import {reference} as it is", remedy="check its free space: docker system df"
        )
    return LockedBase(reference=reference, digest=digest, kind="local")


def tools() -> list[str]:
    """The bootstrap programs that are here, the one that is taken first."""
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    return [tool for tool in ("mmdebstrap", "debootstrap") if shutil.which(tool, path=path)]


@dataclass(frozen=True)
class _Wanted:
    suite: str
    packages: tuple[str, ...]
    mirror: str | None


def _make(wanted: _Wanted, scratch: Path, on_line: OnLine, cancel: threading.Event) -> None:
    there = tools()
    if "mmdebstrap" in there:
        return _call(_mmdebstrap(wanted, scratch), scratch, on_line, cancel)
    if "debootstrap" in there and os.getuid() == 0:
        folder = scratch / "root"
        _call(_debootstrap(wanted, folder), scratch, on_line, cancel)
        _trim(folder)
        return _call(_tar(folder, scratch / "base.tar"), scratch, on_line, cancel)
    missing = "debootstrap needs root" if there else "neither mmdebstrap nor debootstrap is installed"
    raise EnvironmentMissing(
        f"a base image cannot be made here: {missing}",
        remedy="apt-get install mmdebstrap, or name a registry's image in `image.base`, such as python:3.11-slim",
    )


def _mmdebstrap(wanted: _Wanted, scratch: Path) -> list[str]:
    argv = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--include={','.join(wanted.packages)}"]
    argv += [f"--mode={'root' if os.getuid() == 0 else 'unshare'}", '--aptopt=APT::Install-Recommends "false"']
    # As in `apt-get -o`: without it a mirror that does not answer ends well, with old lists.
    argv += ['--aptopt=APT::Update::Error-Mode "any"', '--aptopt=Acquire::Retries "3"']
    # Else it depends on the rights of a folder of this machine which user apt makes its own folders with.
    argv += ['--aptopt=APT::Sandbox::User "root"']
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    argv += [f"--dpkgopt=path-include={pattern}" for pattern in KEPT]
    argv += [wanted.suite, str(scratch / "base.tar")]
    return [*argv, *([wanted.mirror] if wanted.mirror else [])]


def _debootstrap(wanted: _Wanted, folder: Path) -> list[str]:
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(wanted.packages)}", wanted.suite, str(folder)]
    return [*argv, *([wanted.mirror] if wanted.mirror else [])]


def _trim(root: Path) -> None:
    """Remove what --path-exclude would have kept out, and every trace of this machine and this moment."""
    for pattern in LEFT_OUT:
        for path in sorted(root.glob(pattern.lstrip("/"))):
            if pattern != "/usr/share/doc/*":
                remove(path)
                continue
            for item in sorted(path.rglob("*"), reverse=True) if path.is_dir() else ():
                if item.name != "copyright":
                    with contextlib.suppress(OSError):
                        item.rmdir() if item.is_dir() and not item.is_symlink() else item.unlink()
    for pattern in TRACES:
        for path in sorted(root.glob(pattern)):
            remove(path)


def _tar(root: Path, target: Path) -> list[str]:
    argv = ["tar", "--create", "--file", str(target), "--directory", str(root), "--sort=name", "--numeric-owner"]
    argv += [f"--mtime=@{ENVIRONMENT['SOURCE_DATE_EPOCH']}", "--clamp-mtime", "--format=gnu", "--one-file-system"]
    return [*argv, "."]


def _call(argv: list[str], scratch: Path, on_line: OnLine, cancel: threading.Event) -> None:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment = {**ENVIRONMENT, **proxies, "PATH": path, "HOME": str(scratch), "TMPDIR": str(scratch)}
    environment |= {"LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = process.run(argv, env=environment, timeout=TIME_LIMIT_S, on_line=on_line, cancel=cancel)
    if done.cancelled:
        raise StepFailed(f"{argv[0]}: cancelled")
    if done.timed_out:
        raise StepFailed(f"{argv[0]}: took longer than {TIME_LIMIT_S} s", remedy="name a nearer mirror with --mirror")
    if done.exit_code:
        raise StepFailed(
            f"{argv[0]} ended with {done.exit_code}\n{done.tail}",
            remedy="check that the mirror can be reached and has the packages, or name another one with --mirror",
        )
