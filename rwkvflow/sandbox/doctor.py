"""What this machine has and lacks, with the remedy for each. Looks only; changes nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.base.machine import total_memory
from rwkvflow.sandbox.daemon import in_container, platform_of
from rwkvflow.sandbox.host import host_platform
from rwkvflow.sandbox.image.bootstrap import tools
from rwkvflow.sandbox.isolation.walls import walls
from rwkvflow.sandbox.pythons import installed

GIB = 1 << 30
ENOUGH_DISK = 5 * GIB  # an image with torch, its wheels, and a small model in eight formats
ENOUGH_MEMORY = 2 * GIB  # the largest tensor of a 14B model as F32, twice
# What some commands need besides: modules, what for, and the extra that brings them; None: rwkvflow itself does.
PACKAGES: tuple[tuple[str, tuple[str, ...], str, str | None], ...] = (
    ("tokenizers", ("tokenizers", "rwkv"), "a tokenizer.json, and World's vocabulary", None),
    ("s3", ("s3fs",), "s3://", "s3"),
    ("signing", ("model_signing", "cryptography", "OpenSSL"), "signatures and keys", "sign"),
    ("serving", ("starlette", "uvicorn", "llguidance", "prometheus_client"), "serve", "serve"),
    ("dask", ("distributed", "cryptography"), "--executor dask", "dask"),
)
KNOWN = ("linux-x86_64", "linux-aarch64", "macos-arm64", "macos-x86_64")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `missing` is what no run can do without; `warn` what some runs need."""

    name: str
    status: Literal["ok", "warn", "missing"]
    message: str
    remedy: str | None = None


def examine(store: Path) -> list[Check]:
    """All checks, in the order in which a person would look. `store` need not exist yet."""
    found = [_python(), _platform(), *_container(), *_docker(), _bootstrap(), _pythons(), _walls(), _uv()]
    return [*found, *map(_package, PACKAGES), _disk(store), _memory(), _token()]


def _python() -> Check:
    return Check("python", "ok", ".".join(map(str, sys.version_info[:3])))


def _platform() -> Check:
    found = host_platform()
    if found in KNOWN:
        return Check("platform", "ok", found)
    return Check("platform", "warn", f"{found} has no wheels for the host sandbox", "use --sandbox docker")


def _container() -> list[Check]:
    """Inside of one, folders have two names, and the walls are those that its engine lets a process put up."""
    if not in_container():
        return []
    remedy = "what an engine outside of it is to see must be mounted here under its own path"
    return [Check("container", "ok", "this is a container", remedy)]


def _uv() -> Check:
    from rwkvflow.net.packages.uv import find_uv

    try:
        return Check("uv", "ok", f"{find_uv()} resolves wheels")
    except RwkvflowError as error:
        return Check("uv", "missing", error.message, error.remedy)


def _package(item: tuple[str, tuple[str, ...], str, str | None]) -> Check:
    """An extra that is not there is no fault: the message says what for it would be needed."""
    name, modules, what, extra = item
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if not absent:
        return Check(name, "ok", f"{what}: {', '.join(modules)}")
    message = f"not installed, and needed for {what}: {', '.join(absent)}"
    if extra is None:
        return Check(name, "warn", message, "install rwkvflow anew: it requires them")
    return Check(name, "ok", message, f"pip install 'rwkvflow[{extra}]'")


def _docker() -> list[Check]:
    from rwkvflow.sandbox.docker import DockerSandbox

    sandbox = DockerSandbox()
    try:
        info = sandbox.info
        version = str(sandbox.client.version().get("Version"))
        bases = sandbox.client.images.list(name="rwkvflow-base")
    except RwkvflowError as error:
        return [Check("docker", "warn", error.message, error.remedy)]
    checks = [Check("docker", "ok", f"engine {version}, {platform_of(info)}, {info.get('NCPU')} cores")]
    address = os.environ.get("DOCKER_HOST", "")
    if address and not address.startswith(("unix://", "npipe://")):
        checks.append(
            Check(
                "docker host",
                "warn",
                f"the engine at {address} is on another machine and does not see this one's files",
                "unset DOCKER_HOST, or use --sandbox host",
            )
        )
    if "rootless" in str(info.get("SecurityOptions")):
        checks.append(Check("docker limits", "ok" if _limits(info) else "warn", "rootless engine", _delegate(info)))
    elif not _limits(info):
        checks.append(Check("docker limits", "warn", "the engine enforces no memory limit", _delegate(info)))
    checks.append(_docker_disk(info))
    checks.append(_base_image(sorted(tag for image in bases for tag in image.tags)))
    return checks


def _base_image(tags: list[str]) -> Check:
    """Whether images can be made for recipes that name no base."""
    from rwkvflow.sandbox.image.base_choice import official

    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    try:
        found = official(python)
    except RwkvflowError as error:
        if tags:
            return Check("base image", "ok", f"{', '.join(tags)}; no registry's: {error.message}")
        remedy = "`rwkvflow image bootstrap` makes one of Debian packages; or make the registry reachable"
        return Check("base image", "warn", error.message, remedy)
    here = "can be pulled" if found.kind == "registry" else "is in the engine"
    return Check("base image", "ok", ", ".join([f"{found.reference} {here}", *tags]))


def _limits(info: Any) -> bool:
    return bool(info.get("MemoryLimit")) and bool(info.get("PidsLimit", True))


def _delegate(info: Any) -> str | None:
    return None if _limits(info) else "give it cgroup v2 with the memory and pids controllers delegated"


def _docker_disk(info: Any) -> Check:
    root = str(info.get("DockerRootDir") or "")
    try:
        free = shutil.disk_usage(root).free
    except OSError:  # inside a virtual machine, or not ours to look into
        return Check("docker disk", "ok", "not visible from here")
    return _space("docker disk", free, "docker system prune, or move the engine's data-root")


def _bootstrap() -> Check:
    found = tools()
    if "mmdebstrap" in found or (found and os.getuid() == 0):
        return Check("bootstrap", "ok", ", ".join(found))
    message = "debootstrap needs root" if found else "neither mmdebstrap nor debootstrap"
    return Check("bootstrap", "warn", message, "apt-get install mmdebstrap (only `image bootstrap` needs it)")


def _pythons() -> Check:
    found = [python.version for python in installed()]
    remedy = None if len(found) > 1 else "the host sandbox runs recipes with these only; Docker any"
    return Check("host pythons", "ok", ", ".join(sorted(found, key=lambda v: int(v.split(".")[1]))), remedy)


def _walls() -> Check:
    """What keeps commands of the host sandbox in."""
    here = walls()
    if here.whole:
        return Check("host walls", "ok", str(here))
    remedy = "recipes with code of their own need Docker here, or your word: --sandbox host"
    return Check("host walls", "warn", str(here), remedy)


def _disk(store: Path) -> Check:
    folder = store.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Check("store", "missing", f"{folder} cannot be written to", "name another place with RWKVFLOW_STORE")
    return _space(
        "store", shutil.disk_usage(folder).free, "rwkvflow cache gc, or name another place with RWKVFLOW_STORE"
    )


def _space(name: str, free: int, remedy: str) -> Check:
    enough = free >= ENOUGH_DISK
    return Check(name, "ok" if enough else "warn", f"{free / GIB:.1f} GiB free", None if enough else remedy)


def _memory() -> Check:
    total = total_memory()
    if total is None:
        return Check("memory", "ok", "unknown")
    enough = total >= ENOUGH_MEMORY
    remedy = None if enough else "convert smaller models, or give this machine more"
    return Check("memory", "ok" if enough else "warn", f"{total / GIB:.1f} GiB", remedy)


def _token() -> Check:
    """Whether there is one; its value is nobody's business."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    where = [name for name in ("HF_TOKEN", "HF_TOKEN_PATH") if os.environ.get(name)]
    where += ["the hub's login"] if (home / "token").is_file() else []
    if where:
        return Check("hub token", "ok", f"given by {', '.join(where)}")
    return Check(
        "hub token", "ok", "none; public models need none", "set HF_TOKEN, or `hf auth login`, for gated models"
    )
