"""The connection to a Docker engine, its errors in plain words, and who owns a container.

The docker package is imported where it is used: importing it takes longer than the rest of the program's start.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import EnvironmentMissing, MachineFailed, RwkvflowError, StepFailed
from rwkvflow.base.files import remove
from rwkvflow.base.hashing import SKIPPED
from rwkvflow.base.shipped import PACKAGE

if TYPE_CHECKING:
    import docker

MARKS = ("/.dockerenv", "/run/.containerenv")  # what Docker and podman leave in each container
IN_IMAGE = "RWKVFLOW_CONTAINER"  # 1 in the image of rwkvflow itself, or one like it
OLDEST = (20, 10)
CONNECT_S = 10
CALL_S = 120
HOST_INSTEAD = "or work without Docker: --sandbox host"

RUN_LABEL = "org.rwkvflow.run"
UNKNOWN = "?"
_OWNER = ("org.rwkvflow.machine", "org.rwkvflow.namespace", "org.rwkvflow.pid", "org.rwkvflow.started")


def connect() -> docker.DockerClient:
    """A client for the engine that DOCKER_HOST names, else for the first usual socket that answers.

    Raises EnvironmentMissing that says whether the engine is down, out of the user's reach, or too old.
    """
    import docker

    first: EnvironmentMissing | None = None
    for address in _addresses():
        client = None
        try:
            client = docker.DockerClient.from_env(
                timeout=CONNECT_S, environment={**os.environ, **({"DOCKER_HOST": address} if address else {})}
            )
            _check_version(str(client.version().get("Version", "")))
        except Exception as error:
            if client is not None:
                client.close()
            if isinstance(error, EnvironmentMissing):
                raise
            first = first or unreachable(error)
            continue
        client.api.timeout = CALL_S
        return client
    raise first or EnvironmentMissing("no address of a Docker engine is known", remedy=HOST_INSTEAD)


def _addresses() -> list[str | None]:
    """None stands for what docker itself would take."""
    found: list[str | None] = [None]
    if not os.environ.get("DOCKER_HOST"):
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        sockets = [Path(runtime) / "docker.sock"] if runtime else []
        sockets += [Path.home() / ".docker/run/docker.sock", Path.home() / ".docker/desktop/docker.sock"]
        found += [f"unix://{path}" for path in sockets if path.is_socket()]
    return found


def _check_version(version: str) -> None:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < OLDEST:
        raise EnvironmentMissing(
            f"the Docker engine is version {version}; 20.10 is the oldest that works",
            remedy=f"upgrade the engine, {HOST_INSTEAD}",
        )


def unreachable(error: BaseException) -> EnvironmentMissing:
    """Why no engine answered, with what to do."""
    causes = list(_causes(error))
    where = os.environ.get("DOCKER_HOST") or "the default socket"
    if any(isinstance(cause, PermissionError) for cause in causes):
        return EnvironmentMissing(
            f"the Docker engine at {where} refuses this user: permission denied on its socket",
            remedy=f"add yourself to the group: sudo usermod -aG docker $USER, then log in again; {HOST_INSTEAD}",
        )
    if any(isinstance(cause, FileNotFoundError | ConnectionRefusedError) for cause in causes):
        return EnvironmentMissing(
            f"no Docker engine answers at {where}",
            remedy=f"install or start it (sudo systemctl start docker), {HOST_INSTEAD}",
        )
    return EnvironmentMissing(
        f"the Docker engine at {where} does not answer: {causes[-1]}",
        remedy=f"check `docker version` and DOCKER_HOST, {HOST_INSTEAD}",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and everything below it, through arguments as well as through __cause__."""
    seen: list[BaseException] = []
    todo: list[BaseException] = [error]
    while todo:
        one = todo.pop(0)
        if one in seen:
            continue
        seen.append(one)
        todo += [item for item in (one.__cause__, one.__context__, *one.args) if isinstance(item, BaseException)]
    # The innermost of a urllib3 error stands in its `reason` text only; its type is what matters here.
    yield from seen


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn what docker and requests raise into StepFailed, MachineFailed and EnvironmentMissing."""
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    try:
        yield
    except RwkvflowError:
        raise
    except docker.errors.NotFound as error:
        raise EnvironmentMissing(f"{what}: {error.explanation or error}", remedy=remedy_for(str(error))) from error
    except docker.errors.DockerException as error:
        raise StepFailed(
            f"{what}: {getattr(error, 'explanation', None) or error}", remedy=remedy_for(str(error))
        ) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise MachineFailed(
            f"{what}: the Docker engine stopped answering ({type(error).__name__})",
            remedy="check that it runs (docker info), then run again: what is finished is not done twice",
        ) from error


_REMEDIES = (
    (
        r"no space left on device|disk quota",
        "free space where Docker keeps its images: docker system df, docker system prune",
    ),
    (r"toomanyrequests|rate limit", "Docker Hub limits anonymous pulls: docker login, or use a mirror"),
    (
        r"rwkvflow-base|rwkvflow/base",
        "make the base image here with `rwkvflow image bootstrap`, or load the same one from where it was made: "
        "docker save … | docker load",
    ),
    (
        r"dial tcp|no such host|i/o timeout|TLS handshake|connection refused|Client\.Timeout|server misbehaving"
        r"|network is unreachable|certificate|registry-1\.docker\.io|auth\.docker\.io",
        "the engine cannot reach the registry: `docker load` the base image here, name a mirror in `image.base`, "
        "or make one from Debian packages with `rwkvflow image bootstrap`",
    ),
    (
        r"pull access denied|manifest unknown|not found: manifest|repository does not exist|No such image",
        "check `image.base` in the recipe; a local base is made with `rwkvflow image bootstrap`",
    ),
    (
        r"exec: .?\"?python3.*not found|python3.*no such file",
        "the base image has no python3 on its PATH: choose one that has",
    ),
    (
        r"syntax|unknown flag|unknown instruction|parse error",
        "a Dockerfile for BuildKit does not work here: no `# syntax` line, no --mount",
    ),
    (r"Range of CPUs|Minimum memory limit", "change `cores` and `memory` of the stage in workflow.yaml"),
)


def remedy_for(message: str) -> str | None:
    """What to do about an error message of the engine, where that is known."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, message, re.IGNORECASE):
            return remedy
    return None


# ---- whose container is it ------------------------------------------------------------------------------------------


def owner_labels() -> dict[str, str]:
    """Labels that tell this process from every other, one that later gets the same pid included."""
    machine, namespace = _machine()
    pid = os.getpid()
    values = (machine, namespace, str(pid), _started(pid) or "")
    return {RUN_LABEL: "1", **dict(zip(_OWNER, values, strict=True))}


def is_orphan(labels: Mapping[str, str], *, running: bool = False) -> bool:
    """Whether the process that made a container with these labels is known to be gone. False where that is unknown.

    A container that is `running` was not started before this machine was: then it is that of another machine of the
    same name, on a shared engine.
    """
    machine, namespace, pid, started = (labels.get(name, "") for name in _OWNER)
    here = _machine()
    if not pid.isdigit() or machine.split("/")[0] != here[0].split("/")[0]:
        return False  # another machine's, on a shared engine
    if machine != here[0]:
        return not running  # this machine, before it was started again
    if namespace != here[1]:
        return False  # from inside another container: its pids mean nothing here
    found = _started(int(pid))
    return found is None or (UNKNOWN not in (found, started) and found != started)


def _machine() -> tuple[str, str]:
    """(host name/boot id, pid namespace); parts that the system does not have are empty."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()}/{boot}", namespace


def _started(pid: int) -> str | None:
    """Start time of a process, None where there is none such; "?" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        pass  # no /proc, no such process, or that of another user, which some systems hide
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return UNKNOWN


def in_container() -> bool:
    """Whether this process runs in a container of Docker or podman."""
    return any(Path(mark).exists() for mark in MARKS)


def seen_by_engine(path: Path, copy: Path) -> Path:
    """Where the engine finds an input: what ships in the image of rwkvflow itself is copied out of it.

    Stores and users' folders are mounted under their own paths, which is the user's to see to.
    """
    if os.environ.get(IN_IMAGE) != "1" or not path.resolve().is_relative_to(PACKAGE.resolve()):
        return path
    remove(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(*SKIPPED))
    else:
        shutil.copy(path, copy)
    return copy


def platform_of(info: Mapping[str, Any]) -> str:
    """Which wheels an engine's containers need, such as "linux-x86_64", from its /info."""
    machine = str(info.get("Architecture") or platform.machine()).lower()
    return "linux-" + {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
