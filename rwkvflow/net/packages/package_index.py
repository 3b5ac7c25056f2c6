"""What package indexes and find-links have of a package: names of files, addresses, hashes (PEP 503 and 691)."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from rwkvflow.base.errors import FetchError
from rwkvflow.documents.sources import public_url
from rwkvflow.net.download import OnBytes, fetch_file
from rwkvflow.net.http import Access, Connection, Policy, netrc_login, origin, retrying, temporary
from rwkvflow.net.packages.pip_settings import PipSettings
from rwkvflow.net.packages.target import Target

LARGEST_PAGE = 64 << 20  # bytes; PyPI's page of a package with thousands of files has a few MB
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = {"Accept": f"{_JSON}, text/html;q=0.1", "Accept-Encoding": "gzip, identity"}


@dataclass(frozen=True)
class Distribution:
    """One file of a package; `address` may carry a login and is never printed."""

    filename: str
    address: str
    sha256: str | None
    requires_python: str | None = None


def access_to(address: str, settings: PipSettings) -> Access:
    """How a place is spoken to: the login in its address or of ~/.netrc, pip's certificate and proxy."""
    parts = urlsplit(address)
    trusted = parts.hostname in settings.trusted or parts.netloc.rpartition("@")[2] in settings.trusted

    def authorize(url: str) -> Mapping[str, str]:
        if parts.username is None or origin(url) != origin(address):
            return netrc_login(url)
        import httpx

        login = httpx.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
        request = next(login.auth_flow(httpx.Request("GET", url)))
        return {"Authorization": request.headers["Authorization"]}

    return Access(authorize, settings.certificates, settings.proxy, verify=not trusted)


def without_login(address: str) -> str:
    """An address without its login and fragment."""
    parts = urlsplit(urldefrag(address).url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def download(
    file: Distribution,
    destination: Path,
    settings: PipSettings,
    *,
    sha256: str | None,
    on_bytes: OnBytes | None = None,
    cancel: threading.Event | None = None,
) -> str:
    """Bring a file of an index to `destination`, going on where an earlier process stopped; its sha256."""
    address = without_login(file.address)
    access = access_to(file.address, settings)
    found, _ = fetch_file(
        address, destination, sha256=sha256, recipe_folder=Path("/"), on_bytes=on_bytes, cancel=cancel, access=access
    )
    return found


def files_of(name: str, settings: PipSettings, cancel: threading.Event | None = None) -> list[Distribution]:
    """All files of a package in all indexes and find-links, in that order, without those that were withdrawn.

    A place that does not have the package adds nothing. Raises FetchError for one that cannot be asked.
    """
    wanted = canonicalize_name(name)
    found: dict[str, Distribution] = {}
    for place in settings.find_links:
        for file in _links(place, settings, cancel):
            if _package(file.filename) == wanted:
                found.setdefault(file.filename, file)
    for index in settings.indexes:
        for file in _page(f"{index.rstrip('/')}/{wanted}/", settings, cancel):
            found.setdefault(file.filename, file)
    return list(found.values())


def wheels_of(name: str, settings: PipSettings, target: Target, cancel: threading.Event | None = None) -> list[Version]:
    """Versions of a package that have a wheel for a target, the oldest first; empty where there is none."""
    fitting = frozenset(target.tags())
    found = set()
    for file in files_of(name, settings, cancel):
        try:
            distribution, version, _, tags = parse_wheel_filename(file.filename)
        except (InvalidWheelFilename, ValueError):
            continue
        if distribution == canonicalize_name(name) and not fitting.isdisjoint(tags) and _for_python(file, target):
            found.add(version)
    return sorted(found)


def best_wheel(files: Iterable[Distribution], target: Target) -> Distribution | None:
    """The wheel that an installer would take: the best tag, then the highest build number."""
    rank = {tag: number for number, tag in enumerate(target.tags())}
    best: tuple[tuple[int, tuple[int, str] | tuple[()]], Distribution] | None = None
    for file in files:
        try:
            _, _, build, tags = parse_wheel_filename(file.filename)
        except (InvalidWheelFilename, ValueError):
            continue
        places = [rank[tag] for tag in tags if tag in rank]
        if places and _for_python(file, target):
            key = (-min(places), build)
            if best is None or key > best[0]:
                best = (key, file)
    return best[1] if best else None


def _for_python(file: Distribution, target: Target) -> bool:
    try:
        return SpecifierSet(file.requires_python or "").contains(f"{target.python}.0")
    except InvalidSpecifier:
        return True


def _package(filename: str) -> str:
    """The name of the package that a file belongs to."""
    if filename.endswith(".whl"):
        return canonicalize_name(filename.split("-", 1)[0])
    return canonicalize_name(filename.removesuffix(".tar.gz").removesuffix(".zip").rpartition("-")[0])


def _links(place: str, settings: PipSettings, cancel: threading.Event | None) -> Iterator[Distribution]:
    """Files of one find-links entry: a folder, or a page with links."""
    folder = _local(place)
    if folder is None:
        yield from _page(place, settings, cancel)
    elif folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name.endswith((".whl", ".tar.gz", ".zip")):
                yield Distribution(path.name, path.absolute().as_uri(), None)
    elif folder.is_file():
        yield from _from_html(folder.read_text(encoding="utf-8", errors="replace"), folder.absolute().as_uri())


def _local(place: str) -> Path | None:
    if place.startswith("file:"):
        return Path(url2pathname(urlsplit(place).path))
    return None if "://" in place else Path(place).expanduser()


def _page(address: str, settings: PipSettings, cancel: threading.Event | None) -> list[Distribution]:
    """The files that a page of an index lists; none where it has no such page."""
    folder = _local(address)
    if folder is not None:
        page = folder / "index.html"
        if page.is_file():
            return list(_from_html(page.read_text(encoding="utf-8", errors="replace"), page.absolute().as_uri()))
        return list(_links(str(folder), settings, cancel)) if folder.is_dir() else []
    access = access_to(address, settings)
    with Connection(Policy(), cancel, access) as connection:

        def ask() -> tuple[str, bytes, str] | None:
            request = connection.request("GET", without_login(address), _ACCEPT, access.authorize)
            with request as (response, _):
                if problem := temporary(response, public_url(address)):
                    raise problem
                if response.status_code in (404, 410):
                    return None
                if response.status_code != 200:
                    raise FetchError(
                        f"{public_url(address)}: {response.status_code} {response.reason_phrase}",
                        remedy="check the indexes and logins of pip's configuration (pip.conf, PIP_*, ~/.netrc)",
                    )
                data = b""
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > LARGEST_PAGE:
                        raise FetchError(f"{public_url(address)}: a page of more than {LARGEST_PAGE >> 20} MiB")
                return response.headers.get("content-type", ""), data, str(response.url)

        answer = retrying(ask, connection)
    if answer is None:
        return []
    kind, data, final = answer
    base = final if origin(final) != origin(address) else _with_login(final, address)
    try:
        if "json" in kind:
            return list(_from_json(json.loads(data), base))
        return list(_from_html(data.decode("utf-8", "replace"), base))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise FetchError(f"{public_url(address)}: not a page of a package index: {error}") from error


def _with_login(address: str, login: str) -> str:
    parts, user = urlsplit(address), urlsplit(login).netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user[0]}@{parts.netloc.rpartition('@')[2]}")) if user[1] else address


def _from_json(page: Any, base: str) -> Iterator[Distribution]:
    for row in page["files"]:
        if not row.get("yanked"):
            sha256, python = (row.get("hashes") or {}).get("sha256"), row.get("requires-python")
            if not all(isinstance(text, str) for text in (row["filename"], row["url"], sha256 or "", python or "")):
                raise TypeError(f"a file is listed as {row!a:.200}")
            yield Distribution(row["filename"], _joined(base, row["url"]), sha256, python)


def _joined(base: str, link: str) -> str:
    """A link of a page; one to the page's own host keeps the login that the page was read with."""
    address = urljoin(base, link)
    return _with_login(address, base) if origin(address) == origin(base) and "@" not in address else address


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.base: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs))
        elif tag == "base" and self.base is None:
            self.base = dict(attrs).get("href")


def _from_html(text: str, base: str) -> Iterator[Distribution]:
    parser = _Anchors()
    parser.feed(text)
    if parser.base:
        base = urljoin(base, parser.base)
    for anchor in parser.found:
        link = anchor.get("href")
        if not link or "data-yanked" in anchor:
            continue
        address, fragment = urldefrag(_joined(base, link))
        filename = unquote(urlsplit(address).path).rsplit("/", 1)[-1]
        if filename.endswith((".whl", ".tar.gz", ".zip")):
            found = re.search(r"sha256=([0-9a-f]{64})", fragment)
            yield Distribution(filename, address, found[1] if found else None, anchor.get("data-requires-python"))
