"""The one parser of where a release goes to.

    out, ../releases/tiny, file:///srv/tiny     a folder of this machine, relative to the recipe
    hf://owner/name[@branch]                    a model repository of the Hugging Face Hub
    oci://registry/name:tag                     an artifact in an OCI registry
    s3://bucket/folder, gs://…                  a folder of any file system that fsspec knows

Everything here is text in, text out: nothing touches a network or a disk.
"""

from __future__ import annotations

import ipaddress
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from rwkvflow.documents.sources import SourceError, control_character, parse_repository, public_url
from rwkvflow.documents.yaml.nearest import did_you_mean, shown

# Of fsspec's protocols, those that a release can be written to, and that keep it.
REMOTE = (
    *("abfs", "adl", "az", "box", "dbfs", "dropbox", "ftp", "gcs", "gdrive", "gs", "hdfs", "lakefs"),
    *("oss", "s3", "s3a", "sftp", "smb", "ssh", "tos", "webdav", "webhdfs"),
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_OCI_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_OCI_NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_OCI_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")


def tag_name(text: str) -> str:
    """A tag of the hub. Raises SourceError."""
    if not _TAG.fullmatch(text) or text.endswith((".", ".lock")) or ".." in text:
        raise SourceError(f"{shown(text)} cannot be a tag; take letters, digits, '.', '-' and '_', e.g. v1.0")
    return text


def branch_name(text: str) -> str:
    """A branch of the hub that can be committed to. Raises SourceError."""
    wrong = not _BRANCH.fullmatch(text) or text.endswith((".", "/", ".lock")) or ".." in text or "//" in text
    if wrong or text.startswith("refs/") or re.fullmatch(r"[0-9a-f]{40}", text):
        raise SourceError(f"{shown(text)} cannot be a branch; take letters, digits, '.', '-', '_' and '/', e.g. main")
    return text


class Destination(ABC):
    """A place that a release can go to. Each kind is a class, and stands in DESTINATIONS.

    kind       what its action is called: publish-<kind>
    schemes    what its texts begin with, before "://"; "" is a text without a scheme
    example    how it is written, for messages
    options    the options of a recipe that it takes, each with what raises SourceError for a text that will not do
    publisher  module:function that gives the Publisher of a place: (place, Given) -> Publisher; imported when used
    local      whether it can be looked at without a network; of others, the store remembers what stands there
    """

    kind: ClassVar[str]
    schemes: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    options: ClassVar[Mapping[str, Callable[[str], object] | None]] = {}
    publisher: ClassVar[str]
    local: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Destination:
        """The place that a text with one of these schemes names. Raises SourceError."""

    @abstractmethod
    def __str__(self) -> str:
        """The text that names the place."""

    def identity(self) -> str:
        """The same text for the same place."""
        return str(self)

    def problem(self) -> str | None:
        """Why nothing can be published to it, in words."""
        return None

    def has(self, option: str) -> bool:
        """Whether the text itself says what this option would say."""
        return False

    def folder(self, recipe_folder: Path) -> Path | None:
        """The folder of this machine that is replaced, if it is one."""
        return None

    def shown(self, text: str) -> str:
        """What a card calls the place; `text` is what the recipe calls it."""
        return text

    def given(self) -> dict[str, Any]:
        """What the environment adds to the options: a part of the step's parameters."""
        return {}


@dataclass(frozen=True)
class FolderDestination(Destination):
    """A folder of this machine; `path` as in the recipe."""

    kind = "folder"
    schemes = ("", "file")
    example = "a path"
    publisher = "rwkvflow.publish.places:folder_publisher"
    local = True

    path: str

    @classmethod
    def parse(cls, text: str) -> FolderDestination:
        """A path, or a URL with file:."""
        return cls(_folder(text) if text.startswith("file:") else text)

    def __str__(self) -> str:
        return self.path

    def identity(self) -> str:
        """The path without what leads nowhere."""
        return "/".join(self._parts())

    def problem(self) -> str | None:
        """The recipe's own folder, or one around it, is never replaced."""
        parts = self._parts()
        if set(parts) <= {".."} or parts == ["/"]:
            return "a release replaces its folder as a whole, and this one holds the recipe; name another"
        return None

    def folder(self, recipe_folder: Path) -> Path:
        """Relative to the recipe's; ~ is the user's home."""
        return Path(os.path.normpath(recipe_folder / Path(self.path).expanduser()))

    def _parts(self) -> list[str]:
        """Parts of the path with . and inner .. gone; [] for the folder of the recipe itself."""
        parts: list[str] = ["/"] if self.path.startswith("/") else []
        for part in self.path.split("/"):
            if part == ".." and parts and parts[-1] not in ("..", "/"):
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return parts


@dataclass(frozen=True)
class HubDestination(Destination):
    """A model repository; `branch` None where the text names none."""

    kind = "hub"
    schemes = ("hf",)
    example = "hf://owner/name"
    options = MappingProxyType({"branch": branch_name, "tag": tag_name, "private": None})
    publisher = "rwkvflow.publish.hub:publisher"

    repo: str
    branch: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubDestination:
        """A repository, and a branch of it."""
        repo, branch = parse_repository(text)
        return cls(repo, None if branch is None else branch_name(branch))

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.branch}" if self.branch else "")

    def has(self, option: str) -> bool:
        """A branch may stand behind the repository."""
        return option == "branch" and self.branch is not None

    def shown(self, text: str) -> str:
        """Without the branch."""
        return f"hf://{self.repo}"

    def given(self) -> dict[str, Any]:
        """The hub that the environment names; nothing of a login that may stand in its address."""
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        return {"endpoint": public_url(endpoint) if endpoint else None}


@dataclass(frozen=True)
class OciDestination(Destination):
    """A tag in a repository of a registry."""

    kind = "oci"
    schemes = ("oci",)
    example = "oci://registry/name:tag"
    publisher = "rwkvflow.publish.oci:publisher"

    registry: str  # host or host:port
    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> OciDestination:
        """A registry, a name in lower case, and a tag."""
        return _oci(text)

    def __str__(self) -> str:
        return f"oci://{self.registry}/{self.repository}:{self.tag}"

    @property
    def secure(self) -> bool:
        """Whether it is spoken to by https: everything but this machine is."""
        host = urlsplit(f"//{self.registry}").hostname or ""
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"


@dataclass(frozen=True)
class RemoteDestination(Destination):
    """A folder that fsspec opens."""

    kind = "remote"
    schemes = REMOTE
    example = "s3://…"
    publisher = "rwkvflow.publish.remote_folder:publisher"

    url: str  # without a slash at its end

    @classmethod
    def parse(cls, text: str) -> RemoteDestination:
        """A bucket or host, and a folder."""
        return _remote(text)

    def __str__(self) -> str:
        return self.url


#: Every kind of place, in the order in which messages name them.
DESTINATIONS: list[type[Destination]] = [FolderDestination, HubDestination, OciDestination, RemoteDestination]


def parse_destination(text: str) -> Destination:
    """Understand where to publish to. Raises SourceError with what to write instead."""
    if control := control_character(text):
        raise SourceError(f"the control character {control} cannot stand in a path")
    if text != text.strip() or not text:
        raise SourceError("the place has spaces around it" if text.strip() else "the place is empty")
    known = {scheme: kind for kind in DESTINATIONS for scheme in kind.schemes}
    found = _SCHEME.match(text)
    scheme = found[1] if found else ""
    if scheme != scheme.lower() and scheme.lower() in known:
        raise SourceError(f"the scheme must be lower case: {scheme.lower()}:")
    if scheme not in known:
        *most, last = (kind.example for kind in DESTINATIONS)
        near = did_you_mean(scheme.lower(), filter(None, known))
        raise SourceError(f"cannot publish to {shown(scheme + ':')}; write {', '.join(most)} or {last}{near}")
    if scheme not in ("", "file") and not text.startswith(f"{scheme}://"):
        raise SourceError(f"{shown(text)} lacks the // after the scheme")
    return known[scheme].parse(text)


def takers(option: str) -> list[type[Destination]]:
    """The kinds of place that take an option of a recipe."""
    return [kind for kind in DESTINATIONS if option in kind.options]


def _folder(text: str) -> str:
    rest = text.removeprefix("file:")
    if rest.startswith("//"):
        host, slash, tail = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"file:// with the host {shown(host)}; write file:///absolute/path")
        rest = slash + tail
    path = unquote(rest)
    if not path:
        raise SourceError("the URL names no folder")
    if control := control_character(path):
        raise SourceError(f"the control character {control} cannot stand in a path")
    return path


def _oci(text: str) -> OciDestination:
    help_ = "write oci://registry/name:tag, e.g. oci://ghcr.io/me/rwkv7:v1"
    host, slash, rest = text.removeprefix("oci://").partition("/")
    if "@" in host:
        raise SourceError("a user name or a password would end up in the lock; use `docker login`")
    if not slash or not _OCI_HOST.fullmatch(host):
        raise SourceError(f"{shown(text)} names no registry", remedy=help_)
    if "@" in rest:
        raise SourceError(f"{shown(text)} names a digest; a release gets its digest by being published", remedy=help_)
    name, colon, tag = rest.partition(":")
    if not _OCI_NAME.fullmatch(name) or len(name) > 255:
        raise SourceError(f"{shown(text)}: {shown(name)} is no name in a registry (lower case)", remedy=help_)
    if not colon or not _OCI_TAG.fullmatch(tag):
        raise SourceError(f"{shown(text)} names no tag" if not colon else f"{shown(tag)} is no tag", remedy=help_)
    return OciDestination(host, name, tag)


def _remote(text: str) -> RemoteDestination:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise SourceError(f"not a URL: {error}") from error
    if parts.password is not None or (parts.username is not None and parts.scheme not in ("sftp", "ssh", "abfs")):
        raise SourceError("a user name or a password would end up in the lock; give it by the environment instead")
    if "?" in text or "#" in text:
        raise SourceError("a query or a fragment cannot stand in the address of a folder")
    if not parts.netloc:
        raise SourceError(f"{shown(text)} names no bucket or host")
    if any(part in (".", "..") for part in parts.path.split("/")):
        raise SourceError(f"{shown(text)} has a part . or ..")
    return RemoteDestination(text.rstrip("/"))
