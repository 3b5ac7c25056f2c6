"""The one parser of source strings: where a checkpoint, a tokenizer or an engine comes from.

    hf://owner/name[@revision]/path/in/repository     a file of a hub model repository
    hf://owner/name[@revision][/path]                 the Hugging Face model in it, or in a folder of it
    https://host/path                                 a file of a web server (http:// on loopback only)
    file:path, file:///absolute/path, path            a file of this machine, relative to the recipe, or a folder

Everything here is text in, text out: nothing touches a network or a disk.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from rwkvflow.base.errors import UsageError
from rwkvflow.documents.names import repository_page
from rwkvflow.documents.pages import without_page
from rwkvflow.documents.yaml.nearest import did_you_mean, shown

COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCP_LIKE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*:(?!//)[^-:][^:]*")
_HUB_HELP = "write hf://owner/name/file or hf://owner/name@revision/file"


class SourceError(UsageError, ValueError):
    """A source string that cannot be understood. A ValueError too, so that validators may raise it."""

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class Source(ABC):
    """Where a file comes from. Each kind is a class, and stands in SOURCES.

    schemes   what its texts begin with, before "://"; none: whatever is of no other kind
    example   how it begins, for messages
    remote    module:function that gives the net room's Remote of a source; None: it is a file of this machine
    folders   whether it may name a folder, whose files its Remote lists
    """

    schemes: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    remote: ClassVar[str | None] = None
    folders: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def parse(cls, text: str, folder: bool) -> Source:
        """What a text of this kind names; `folder`: it may be one. Raises SourceError."""

    @abstractmethod
    def __str__(self) -> str:
        """The text that names it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the file is called; "" where that cannot be told."""

    @property
    def repository(self) -> str | None:
        """owner/name, where it is of a model repository."""
        return None

    @property
    def page(self) -> str | None:
        """Where people read of it in a browser; None for a file of this machine."""
        return None

    def below(self, recipe_folder: Path) -> Path | None:
        """Where the file of this machine is; None for any other."""
        return None

    def pinned_by(self, found: Source) -> bool:
        """Whether `found` may stand in a lock for this."""
        return self == found

    def package_url(self) -> dict[str, str | None] | None:
        """The parts of its package URL (purl), where there is a type for it."""
        return None


@dataclass(frozen=True)
class HubSource(Source):
    """A file of a hub model repository, or a folder. `revision` None means the default branch."""

    schemes = ("hf",)
    example = "hf://"
    remote = "rwkvflow.net.hub:HubRemote"
    folders = True

    repo: str  # owner/name
    path: str  # POSIX, inside the repository; "" for all of it
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, folder: bool) -> HubSource:
        """A repository, a revision of it, and a path in it."""
        return _hub(text, folder)

    def __str__(self) -> str:
        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.repo}{at}" + (f"/{self.path}" if self.path else "")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def repository(self) -> str:
        """The repository itself."""
        return self.repo

    @property
    def page(self) -> str:
        """The repository's, whatever the revision."""
        return repository_page(self.repo)

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit hash, so that the content cannot change."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> HubSource:
        """This source at another revision."""
        return HubSource(self.repo, self.path, commit)

    def pinned_by(self, found: Source) -> bool:
        """The same file at a commit; at this very one, where this names one."""
        same = isinstance(found, HubSource) and found.pinned and (self.repo, self.path) == (found.repo, found.path)
        return same and (not self.pinned or self == found)

    def package_url(self) -> dict[str, str | None]:
        """The type is huggingface: https://github.com/package-url/purl-spec."""
        owner, _, name = self.repo.partition("/")
        return {
            "type": "huggingface",
            "namespace": owner,
            "name": name,
            "version": self.revision,
            "subpath": self.path,
        }


@dataclass(frozen=True)
class WebSource(Source):
    """One file of a web server."""

    schemes = ("https", "http")
    example = "https://"
    remote = "rwkvflow.net.remote:WebRemote"

    url: str

    @classmethod
    def parse(cls, text: str, folder: bool) -> WebSource:
        """A URL without a login; http:// on loopback only. Raises SourceError for a page of the hub about a file."""
        if re.search(r"/(blob|tree)/", text) and (meant := without_page(text)) != text:
            raise SourceError(f"{shown(text)} is a page about it", remedy=f"write {meant}")
        return cls(_web(text))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.url.partition("?")[0]).name

    @property
    def page(self) -> str:
        """The address, without a query that may be a signature."""
        return self.url.partition("?")[0]


@dataclass(frozen=True)
class LocalSource(Source):
    """A file or folder of this machine; `path` is as in the recipe, percent-decoded where it came from a file: URL."""

    schemes = ("file",)
    example = "file: and paths"

    path: str

    @classmethod
    def parse(cls, text: str, folder: bool) -> LocalSource:
        """A path, or a URL with file:."""
        if text.startswith("file:"):
            return cls(_file(text.rstrip("/") if folder else text))
        if folder and text.strip("/"):
            return cls(text.rstrip("/"))
        if text.endswith(("/", "\\")):
            raise SourceError(f"{shown(text)} names a folder; name the file in it")
        return cls(text)

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return Path(self.path).name

    def below(self, recipe_folder: Path) -> Path:
        """Where the file is: relative paths start at the recipe's folder, ~ at the user's home."""
        return recipe_folder / Path(self.path).expanduser()


#: Every kind of source, in the order in which messages name them.
SOURCES: list[type[Source]] = [HubSource, WebSource, LocalSource]


def parse_source(text: str, *, folder: bool = False) -> Source:
    """Understand a source string; `folder`: it may name one. Raises SourceError with what to write instead."""
    if not text.strip():
        raise SourceError("the source is empty")
    if text != text.strip():
        raise SourceError("the source has spaces around it")
    if control := control_character(text):
        raise SourceError(f"the control character {control} cannot stand in a source")
    known = {scheme: kind for kind in SOURCES for scheme in kind.schemes}
    found = _SCHEME.match(text)
    scheme = found[1] if found else ""
    kind = known.get(scheme)
    if text[len(scheme) :].startswith("://"):
        if kind is not None:
            return kind.parse(text, folder)
        if scheme.lower() in known:
            raise SourceError(f"the scheme must be lower case: {scheme.lower()}://")
        examples = ", ".join(kind.example for kind in SOURCES)
        near = did_you_mean(scheme.lower(), known)
        raise SourceError(f"unknown scheme {shown(scheme + '://')}; known are {examples}{near}")
    if (meant := known.get(scheme.lower())) is not None and meant.remote is not None:
        raise SourceError(f"{shown(text)} lacks the // after the scheme")
    return LocalSource.parse(text, folder)


def is_remote(text: str) -> bool:
    """Whether a text names something that has to be fetched, by its scheme."""
    return any(text.startswith(f"{scheme}://") for kind in SOURCES if kind.remote for scheme in kind.schemes)


def source_problem(text: str, *, folder: bool = False) -> str | None:
    """What is wrong with a source, in words; None where nothing is."""
    try:
        parse_source(text, folder=folder)
    except SourceError as error:
        return str(error)
    return None


def control_character(text: str) -> str | None:
    """The first control character in a text, as U+XXXX."""
    return f"U+{ord(found[0]):04X}" if (found := _CONTROL.search(text)) else None


def public_url(url: str) -> str:
    """A URL as it may stand in a message: without user, query (signed links) and fragment."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:  # brackets of an address that is none, a port above 65535
        return "an address that is none"


def parse_repository(text: str) -> tuple[str, str | None]:
    """(owner/name, revision) of hf://owner/name[@revision], for publishing. Raises SourceError."""
    if not text.startswith("hf://"):
        raise SourceError(f"{text!r} is not a hub repository", remedy="write hf://owner/name")
    owner, _, rest = text.removeprefix("hf://").rstrip("/").partition("/")
    name, at, revision = rest.partition("@")
    return _repo(owner, name, text), _revision(unquote(revision), text) if at else None


def git_url(text: str) -> str:
    """Check a clone URL: https, ssh, git@host:path, file:// or a path. Raises SourceError.

    Other transports (ext:: runs commands, git:// and http:// are neither signed nor encrypted) are refused,
    and so is anything that git could take for an option.
    """
    if not text or text.startswith("-") or _CONTROL.search(text) or "::" in text:
        raise SourceError(f"{text!r} is not a git URL", remedy="use https://…, ssh://…, git@host:path or a path")
    if "://" not in text:
        if ":" not in text or text.startswith(("/", "./", "../")) or _SCP_LIKE.fullmatch(text):
            return text
        raise SourceError(f"{text!r} is not a git URL", remedy="use https://…, ssh://…, git@host:path or a path")
    parts = _split(text)
    if parts.scheme not in ("https", "ssh", "file"):
        raise SourceError(f"git over {parts.scheme}:// is refused", remedy="use https:// or ssh://")
    if parts.password is not None or (parts.scheme == "https" and parts.username is not None):
        raise SourceError(
            "a git URL holds a user name or a password, which would end up in the lock",
            remedy="leave it out; git asks your credential helper",
        )
    if parts.scheme != "file" and (not parts.hostname or parts.hostname.startswith("-")):
        raise SourceError(f"{text!r} has no host name")
    return text


def local_repository(url: str) -> str | None:
    """The path of a clone URL that is a repository of this machine; None for any other."""
    if url.startswith("file://"):
        return unquote(urlsplit(url).path)
    return url if "://" not in url and (":" not in url or url.startswith(("/", "./", "../"))) else None


def _hub(text: str, folder: bool) -> HubSource:
    parts = text.removeprefix("hf://").split("/")
    if folder and len(parts) > 2 and parts[-1] == "":
        parts.pop()
    if parts[0] in ("models", "datasets", "spaces", "buckets"):
        raise SourceError(f"{shown(text)}: only model repositories can be read", remedy=_HUB_HELP)
    if len(parts) < (2 if folder else 3):
        raise SourceError(f"{shown(text)} names no file of a repository", remedy=_HUB_HELP)
    name, at, revision = parts[1].partition("@")
    rest = parts[2:]
    if revision == "refs" and len(rest) > (1 if folder else 2) and rest[0] in ("pr", "convert"):
        revision, rest = "/".join([revision, *rest[:2]]), rest[2:]  # the hub's own refs have slashes
    repo = _repo(parts[0], name, text)
    path = "/".join(rest)
    if any(part in ("", ".", "..") for part in rest) or "\\" in path:
        raise SourceError("the path inside the repository must name a file, without empty parts, . and ..")
    return HubSource(repo, path, _revision(unquote(revision), text) if at else None)


def _repo(owner: str, name: str, text: str) -> str:
    for part in (owner, name):
        if not _REPO_PART.fullmatch(part) or ".." in part or "--" in part or part.endswith(".git"):
            raise SourceError(f"{shown(text)}: {shown(part)} is not a hub name", remedy=_HUB_HELP)
    return f"{owner}/{name}"


def _revision(revision: str, text: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith("/"):
        raise SourceError(
            f"{shown(text)}: {shown(revision)} is not a revision",
            remedy="use a branch, a tag or a commit (write / as %2F)",
        )
    return revision


def _web(text: str) -> str:
    parts = _split(text)
    if not parts.hostname:
        raise SourceError("the URL names no host")
    if parts.username is not None or parts.password is not None:
        raise SourceError("a URL with a user name or password would end up in the lock; use ~/.netrc")
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise SourceError("http:// is only for this machine, anybody on the way can change what arrives; use https://")
    if parts.path in ("", "/") and not parts.query:
        raise SourceError("the URL names no file")
    if " " in text:
        raise SourceError("the URL has a space in it; write it as %20")
    return text.split("#", 1)[0]


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise SourceError(f"not a URL: {error}") from error
    return parts


def _file(text: str) -> str:
    rest = text.removeprefix("file:")
    if rest.startswith("//"):
        host, slash, tail = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"file:// with the host {shown(host)}; write file:///absolute/path or file:relative/path")
        rest = slash + tail
    if not (path := unquote(rest)).strip("/") or path.endswith("/"):
        raise SourceError("the URL names no file")
    if control := control_character(path):
        raise SourceError(f"the control character {control} cannot stand in a source")
    return path


def _loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
