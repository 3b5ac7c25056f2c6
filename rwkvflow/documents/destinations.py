"""The one parser of where a release goes to.

    out, ../releases/tiny, file:///srv/tiny     a folder of this machine, relative to the recipe
    hf://owner/name[@branch]                    a model repository of the Hugging Face Hub
    oci://registry/name:tag                     an artifact in an OCI registry
    s3://bucket/folder, gs://…                  a folder of any file system that fsspec knows

Everything here is text in, text out: nothing touches a network or a disk.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from rwkvflow.documents.sources import SourceError, control_character, parse_repository
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


@dataclass(frozen=True)
class FolderDestination:
    """A folder of this machine; `path` as in the recipe."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class HubDestination:
    """A model repository; `branch` None where the text names none."""

    repo: str
    branch: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.branch}" if self.branch else "")


@dataclass(frozen=True)
class OciDestination:
    """A tag in a repository of a registry."""

    registry: str  # host or host:port
    repository: str
    tag: str

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
class RemoteDestination:
    """A folder that fsspec opens."""

    url: str  # without a slash at its end

    def __str__(self) -> str:
        return self.url


Destination = FolderDestination | HubDestination | OciDestination | RemoteDestination


def parse_destination(text: str) -> Destination:
    """Understand where to publish to. Raises SourceError with what to write instead."""
    if control := control_character(text):
        raise SourceError(f"the control character {control} cannot stand in a path")
    if text != text.strip() or not text:
        raise SourceError("the place has spaces around it" if text.strip() else "the place is empty")
    found = _SCHEME.match(text)
    if found is None:
        return FolderDestination(text)
    scheme = found[1]
    known = ("hf", "oci", "file", *REMOTE)
    if scheme != scheme.lower() and scheme.lower() in known:
        raise SourceError(f"the scheme must be lower case: {scheme.lower()}:")
    if scheme == "file":
        return FolderDestination(_folder(text))
    if scheme not in known:
        near = did_you_mean(scheme.lower(), known)
        raise SourceError(
            f"cannot publish to {shown(scheme + ':')}; write a path, hf://owner/name, oci://registry/name:tag or s3://…{near}"
        )
    if not text.startswith(f"{scheme}://"):
        raise SourceError(f"{shown(text)} lacks the // after the scheme")
    if scheme == "hf":
        repo, branch = parse_repository(text)
        return HubDestination(repo, None if branch is None else branch_name(branch))
    return _oci(text) if scheme == "oci" else _remote(text)


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
