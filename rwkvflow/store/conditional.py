"""Writing a file of a remote store only where there is none, so that of several who try at once one has done it.

Folders: a link, which the kernel makes once. Object stores: a condition of the request (`If-None-Match: *` for S3). A
server may ignore it, which only a probe tells; see `holds`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from pathlib import Path
from typing import Any

LOCAL = frozenset({"file", "local"})
CONDITIONAL = frozenset({"memory", "s3", "s3a", "gcs", "gs"})  # where fsspec's "create" is the server's condition

_MEMORY = threading.Lock()


def protocols(system: Any) -> frozenset[str]:
    """The names of a file system of fsspec."""
    return frozenset((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def create(system: Any, place: str, data: bytes) -> bool:
    """Write a file where there is none; False: there is one. Raises what the file system raises.

    Raises NotImplementedError where the kind of file system has no such thing.
    """
    kind = protocols(system)
    if kind & LOCAL:
        return _link(Path(place), data)
    if not kind & CONDITIONAL:
        raise NotImplementedError(f"{sorted(kind)[0]}: nothing can be written there on condition that it is absent")
    try:
        with _MEMORY if "memory" in kind else contextlib.nullcontext():  # which looks first, and then writes
            system.pipe_file(place, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        if refused(error):
            return False
        raise
    return True


def refused(error: BaseException | None) -> bool:
    """Whether a server says that its condition does not hold: 412, or 409 where two tried at the same moment."""
    while error is not None:
        said = getattr(error, "response", None)
        if isinstance(said, dict):
            code = str(said.get("Error", {}).get("Code", ""))
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return True
        if str(getattr(error, "code", "")) in ("409", "412"):
            return True
        if isinstance(error, OSError) and "pre-conditions" in str(error).lower():
            return True
        error = error.__cause__
    return False


def _link(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def holds(system: Any, folder: str) -> bool:
    """Whether conditions are kept there: two writes of a new file, of which the second has to be refused."""
    place = f"{folder}/.probe-{uuid.uuid4().hex}"
    try:
        return create(system, place, b"1") and not create(system, place, b"2")
    except NotImplementedError:
        return False
    finally:
        with contextlib.suppress(Exception):
            system.rm_file(place)
