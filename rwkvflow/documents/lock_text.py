"""The lock as YAML: one way to write each lock, so that a diff shows what changed and nothing else."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import LockError
from rwkvflow.documents.lock import Lock, LockedWheel
from rwkvflow.documents.yaml.source import resolve

HEADER = """\
# Made by `rwkvflow lock` from the recipe beside it: every input, pinned. Commit it, review it, do not edit it.
# `rwkvflow run` uses it; `rwkvflow lock` makes it again; `rwkvflow run --locked` refuses when the two disagree.
"""

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+@:~%=-]*")
_WORDS_OF_YAML_1_1 = frozenset({"yes", "no", "on", "off", "y", "n", "null", "true", "false"})
_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
_VERSION = re.compile(r"^[0-9A-Za-z.!+_-]+$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def lock_text(lock: Lock) -> str:
    """The lock's one YAML text: keys in the models' order, names of the user's sorted, absent values left out."""
    data = lock.model_dump(mode="json", exclude_none=True)
    for key in ("models", "tokenizers", "loras", "lora_inits", "states", "images"):
        if key in data:
            data[key] = dict(sorted(data[key].items()))
    for locked in data["models"].values():
        if "files" in locked:
            locked["files"] = dict(sorted(locked["files"].items()))
    for image in data["images"].values():
        image["platforms"] = dict(sorted(image["platforms"].items()))
    lines: list[str] = []
    _mapping(data, "", lines)
    return HEADER + "\n" + "\n".join(lines) + "\n"


def dump_lock(lock: Lock, path: Path) -> bool:
    """Write a lock, all or nothing; whether the file changed. LockError where it cannot be written."""
    data = lock_text(lock).encode()
    target = Path(os.path.realpath(path))  # a link keeps pointing where it did
    try:
        if target.is_file() and target.read_bytes() == data:
            return False
        _replace(target, data)
    except OSError as error:
        raise LockError(f"{path}: the lock cannot be written: {error.strerror}") from error
    return True


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _mapping(data: dict[str, Any], indent: str, lines: list[str]) -> None:
    for key, value in data.items():
        start = f"{indent}{_scalar(key)}:"
        if isinstance(value, dict) and value:
            lines.append(start)
            _mapping(value, indent + "  ", lines)
        elif isinstance(value, list) and value:
            lines.append(start)
            for item in value:
                if not isinstance(item, dict):
                    lines.append(f"{indent}- {_scalar(item)}")
                    continue
                first = len(lines)
                _mapping(item, indent + "  ", lines)
                lines[first] = f"{indent}- {lines[first][len(indent) + 2 :]}"
        else:
            lines.append(f"{start} {_scalar(value)}")


def _scalar(value: Any) -> str:
    if isinstance(value, dict | list):
        return "{}" if isinstance(value, dict) else "[]"
    if not isinstance(value, str):
        return json.dumps(value)
    if (
        _PLAIN.fullmatch(value)
        and not value.endswith(":")
        and value.lower() not in _WORDS_OF_YAML_1_1
        and not re.match(r"[0-9.]", value)
    ) or _plain_hash(value):
        return value
    return _UNPRINTABLE.sub(_escape, json.dumps(value, ensure_ascii=False))


def _plain_hash(value: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{40,64}", value)) and isinstance(resolve(value), str)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def requirements_text(wheels: Iterable[LockedWheel]) -> str:
    """A pip --require-hashes file: one `name==version --hash=sha256:…` a line, sorted by name. Raises LockError."""
    lines = []
    for wheel in sorted(wheels, key=lambda item: item.name):
        if not (_NAME.fullmatch(wheel.name) and _VERSION.fullmatch(wheel.version) and _SHA256.fullmatch(wheel.sha256)):
            raise LockError(f"lock: not a wheel that pip could be asked for: {wheel.name!r} {wheel.version!r}")
        lines.append(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    return "".join(lines)
