"""What the user's configuration of pip says of indexes, read here because neither uv nor we run pip.

pip's own order: its global, user and site files, then what PIP_CONFIG_FILE names, then PIP_* variables; each replaces
what the one before it said. UV_* variables for the same things come last, for those who have no pip.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packageurl.contrib.purl2url import get_repo_url

from rwkvflow.base.errors import LockError

# The default index: at the registry that packageurl knows for Python packages.
PYPI = "/".join([*str(get_repo_url("pkg:pypi/pip")).split("/")[:3], "simple"])  # type: ignore[no-untyped-call]
_UV = {
    "UV_DEFAULT_INDEX": "index-url",
    "UV_INDEX_URL": "index-url",
    "UV_INDEX": "extra-index-url",
    "UV_EXTRA_INDEX_URL": "extra-index-url",
    "UV_FIND_LINKS": "find-links",
    "UV_CONSTRAINT": "constraint",
    "UV_INSECURE_HOST": "trusted-host",
}


@dataclass(frozen=True)
class PipSettings:
    """Where packages come from and how these places are spoken to. Addresses may carry logins: never print one."""

    indexes: tuple[str, ...] = (PYPI,)  # the first is the default one
    find_links: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()  # files or addresses
    certificates: str | None = None
    proxy: str | None = None
    trusted: tuple[str, ...] = ()  # host or host:port, whose certificates are not looked at
    prereleases: bool = False


def settings_of_environment(environment: Mapping[str, str] | None = None) -> PipSettings:
    """The settings that pip would use here. Raises LockError for a configuration file that cannot be read."""
    variables = os.environ if environment is None else environment
    values: dict[str, str] = {}
    for path in _files(variables):
        values.update(_read(path))
    for name, value in variables.items():
        if name.startswith("PIP_") and value:
            values[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    for name, key in _UV.items():
        if text := variables.get(name):
            values[key] = " ".join(item.partition("=")[2] if _named(item) else item for item in text.split())
    none = _true(values.get("no-index", ""))
    extra = values.get("extra-index-url", "").split()
    return PipSettings(
        indexes=() if none else tuple(dict.fromkeys([values.get("index-url", PYPI), *extra])),
        find_links=tuple(map(_place, values.get("find-links", "").split())),
        constraints=tuple(map(_place, values.get("constraint", "").split())),
        certificates=values.get("cert") or None,
        proxy=values.get("proxy") or None,
        trusted=tuple(values.get("trusted-host", "").split()),
        prereleases=_true(values.get("pre", "")),
    )


def _place(text: str) -> str:
    """A path as an absolute one, for programs that run in another folder; an address as it is."""
    return text if "://" in text or text.startswith("file:") else str(Path(text).expanduser().absolute())


def _named(index: str) -> bool:
    """Whether the text names its index, which uv allows, as in pytorch=https://…."""
    name, equals, rest = index.partition("=")
    return bool(equals) and "://" in rest and "/" not in name and ":" not in name


def _true(text: str) -> bool:
    return text.lower() in ("1", "true", "yes", "on", "y", "t")


def _files(variables: Mapping[str, str]) -> Iterator[Path]:
    named = variables.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    home = Path(variables.get("HOME") or variables.get("USERPROFILE") or Path.home())
    if sys.platform == "win32":
        yield Path(variables.get("PROGRAMDATA", "C:\\ProgramData")) / "pip" / "pip.ini"
        yield home / "pip" / "pip.ini"
        yield Path(variables.get("APPDATA", home)) / "pip" / "pip.ini"
        yield Path(sys.prefix) / "pip.ini"
    else:
        for folder in reversed((variables.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")):
            yield Path(folder) / "pip" / "pip.conf"
        if sys.platform == "darwin":
            yield Path("/Library/Application Support/pip/pip.conf")
        yield Path("/etc/pip.conf")
        yield home / ".pip" / "pip.conf"
        if sys.platform == "darwin":
            yield home / "Library/Application Support/pip/pip.conf"
        yield Path(variables.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
        yield Path(sys.prefix) / "pip.conf"
    if named:
        yield Path(named)


def _read(path: Path) -> dict[str, str]:
    """Options of [global], then those of [install]; {} where there is no such file."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError):
        return {}
    except (configparser.Error, UnicodeDecodeError) as error:
        raise LockError(f"pip's configuration cannot be read: {error}", remedy=f"correct {path}") from error
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update({key.replace("_", "-").removeprefix("--"): value for key, value in parser.items(section)})
    return found
