"""An OCI registry, as far as publishing needs it: blobs, manifests, and the login that `docker login` left.

Written against the OCI Distribution Specification 1.1. Credentials come from Docker's configuration (auths, credential
helpers), go to the registry and to the token service that it names, and to no host that an upload is redirected to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from urllib.parse import urljoin, urlsplit

from rwkvflow.base.errors import PublishError
from rwkvflow.base.files import read_json
from rwkvflow.base.hashing import CHUNK, text_digest
from rwkvflow.documents.destinations import OciDestination
from rwkvflow.net.http import (
    TEMPORARY,
    Patience,
    Policy,
    TemporaryProblemError,
    certificates,
    origin,
    retry_after,
    scrub,
)
from rwkvflow.net.hub_session import note_socket, stopped_by
from rwkvflow.net.progress import Told
from rwkvflow.release.artifacts import ReleaseFile

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
READ_S = 300.0  # a registry reads a large blob once more before it answers
MANIFEST_MOST = 4 << 20  # bytes, the limit that the specification names
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_HUB = "https://index.docker.io/v1/"  # what Docker calls docker.io in its configuration


def is_digest(value: object) -> TypeGuard[str]:
    """Whether it may become a part of an address: whatever else is in its place leads elsewhere."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


class OciRegistry:
    """One repository of a registry."""

    def __init__(self, place: OciDestination, policy: Policy, told: Told) -> None:
        import httpx

        self.place, self.policy, self.told = place, policy, told
        host = "registry-1.docker.io" if place.registry == "docker.io" else place.registry
        self.base = f"{'https' if place.secure else 'http'}://{host}/v2/{place.repository}/"
        self._bearer: str | None = None
        self._basic: str | None = None
        self._login = credentials(place.registry)
        self._client = httpx.Client(
            verify=certificates(),
            follow_redirects=False,
            timeout=httpx.Timeout(policy.stall_s, connect=policy.connect_s, read=READ_S),
            headers={"User-Agent": "rwkvflow"},
        )

    def __enter__(self) -> OciRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    # ---- what there is -----------------------------------------------------------------------------------------

    def manifest(self, reference: str) -> tuple[str, dict[str, Any]] | None:
        """(digest, manifest) of a tag or a digest; None where there is none."""
        found = self.raw_manifest(reference)
        return None if found is None else (text_digest(found[0]), found[1])

    def raw_manifest(self, reference: str) -> tuple[bytes, dict[str, Any]] | None:
        """The bytes of a manifest, and what they say; None where there is none."""

        def ask() -> tuple[bytes, dict[str, Any]] | None:
            accept = {"Accept": ", ".join((MANIFEST, INDEX, DOCKER, DOCKER_LIST))}
            with self._send("GET", f"manifests/{reference}", headers=accept) as response:
                if response.status_code == 404:
                    return None
                self._judge(response, 200)
                data = response.read()
            value = _object(data)
            if len(data) > MANIFEST_MOST or value is None:
                raise PublishError(f"{self.place}: what the registry has there is no manifest")
            return data, value

        return self._patiently(ask)

    def has(self, digest: str, size: int) -> bool:
        """Whether a blob is there, with this size where the registry tells sizes."""

        def ask() -> bool:
            with self._send("HEAD", f"blobs/{digest}", follow=True) as response:
                if response.status_code == 404:
                    return False
                self._judge(response, 200)
                told = response.headers.get("content-length", "")
                return not told.isdigit() or int(told) == size

        return self._patiently(ask)

    def referrers(self, digest: str) -> dict[str, Any] | None:
        """The index of what says that it is about a manifest; None where the registry keeps no such list."""

        def ask() -> dict[str, Any] | None:
            with self._send("GET", f"referrers/{digest}", headers={"Accept": INDEX}) as response:
                if response.status_code in (400, 404, 405):
                    return None
                self._judge(response, 200)
                data = response.read()
            value = _object(data)
            return value if value is not None and value.get("mediaType") == INDEX else None

        return self._patiently(ask)

    def blob(self, digest: str, most: int) -> bytes:
        """The bytes of a small blob. Raises PublishError where they are more, or others than the digest's."""

        def ask() -> bytes:
            with self._send("GET", f"blobs/{digest}", follow=True) as response:
                self._judge(response, 200)
                data = b""
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > most:
                        raise PublishError(f"{self.place}: {digest} has more than {most} bytes")
            if text_digest(data) != digest:
                raise PublishError(f"{self.place}: the bytes of {digest} are others")
            return data

        return self._patiently(ask)

    # ---- writing -----------------------------------------------------------------------------------------------

    def upload(self, file: ReleaseFile, on_bytes: Callable[[int], None]) -> None:
        """Store a blob. The registry checks its digest. on_bytes is told how far it is."""

        def once() -> None:
            with self._send("POST", "blobs/uploads/") as response:
                self._judge(response, 202)
                place = response.headers.get("location", "")
            url = urljoin(self.base, place)
            url += f"{'&' if urlsplit(url).query else '?'}digest={file.digest}"
            headers = {"Content-Length": str(file.size), "Content-Type": "application/octet-stream"}
            with self._send("PUT", url, headers=headers, content=lambda: self._chunks(file, on_bytes)) as response:
                self._judge(response, 201)

        self._patiently(once)

    def put_manifest(self, reference: str, data: bytes, kind: str = MANIFEST) -> None:
        """Let a tag name this manifest or index; atomic, and the same again does nothing."""

        def once() -> None:
            headers = {"Content-Type": kind, "Content-Length": str(len(data))}
            with self._send("PUT", f"manifests/{reference}", headers=headers, content=lambda: iter([data])) as response:
                self._judge(response, 201)

        self._patiently(once)

    def _chunks(self, file: ReleaseFile, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
        if isinstance(file.source, bytes):
            yield file.source
            on_bytes(file.size)
            return
        done = 0
        with file.source.open("rb", buffering=0) as opened:
            while chunk := opened.read(CHUNK):
                self.told.check()
                yield chunk
                done += len(chunk)
                on_bytes(done)

    # ---- requests ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        follow: bool = False,
    ) -> Iterator[httpx.Response]:
        """The answer, its body unread. Logs in when asked to, once."""
        import httpx

        url = urljoin(self.base, path)
        for attempt in range(2):
            self.told.check()
            with self._sound_address():
                request = self._client.build_request(
                    method,
                    url,
                    headers={**(headers or {}), **self._authorize(url)},
                    content=content() if content else None,
                    extensions={"trace": note_socket},
                )
            try:
                with self._sound_address():  # httpx looks at a redirect's as well, followed or not
                    response = self._client.send(request, stream=True)
                if follow and response.has_redirect_location:  # a blob's storage, which gets no credentials from us
                    with self._sound_address():
                        target = urljoin(url, response.headers["location"])
                        request = self._client.build_request(method, target, headers=self._authorize(target))
                    response.close()
                    with self._sound_address():
                        response = self._client.send(request, stream=True)
            except httpx.TransportError as error:
                self.told.check()
                raise TemporaryProblemError(scrub(str(error), *self._secrets()) or type(error).__name__) from error
            try:
                if response.status_code == 401 and attempt == 0 and self._log_in(response):
                    continue
                yield response
                return
            except httpx.TransportError as error:
                raise TemporaryProblemError(scrub(str(error), *self._secrets()) or type(error).__name__) from error
            finally:
                response.close()

    @contextlib.contextmanager
    def _sound_address(self) -> Iterator[None]:
        """Around what takes apart an address that the registry named."""
        import httpx

        try:
            yield
        except (httpx.InvalidURL, ValueError) as error:
            raise PublishError(f"{self.place}: the registry names an address that is none: {error}") from error

    def _authorize(self, url: str) -> Mapping[str, str]:
        if origin(url) != origin(self.base):
            return {}
        if self._bearer:
            return {"Authorization": f"Bearer {self._bearer}"}
        return {"Authorization": f"Basic {self._basic}"} if self._basic else {}

    def _log_in(self, response: httpx.Response) -> bool:
        """Answer the registry's challenge; False where there is nothing to answer with."""
        scheme, _, rest = response.headers.get("www-authenticate", "").partition(" ")
        told = dict(_CHALLENGE.findall(rest))
        if scheme.lower() == "basic" and self._login and not self._basic:
            self._basic = _basic(self._login)
            return True
        realm = told.get("realm", "")
        if scheme.lower() != "bearer" or not realm:
            return False
        with self._sound_address():
            safe = urlsplit(realm).scheme == "https" or not self.place.secure
        if not safe:
            raise PublishError(f"{self.place.registry} wants the login to go over plain http, which is refused")
        query = {key: told[key] for key in ("service", "scope") if key in told}
        headers = {"Authorization": f"Basic {_basic(self._login)}"} if self._login else {}
        with self._sound_address():
            answer = self._client.get(realm, params=query, headers=headers)
        if answer.status_code in TEMPORARY:
            raise TemporaryProblemError(f"the login at {urlsplit(realm).hostname}: {answer.status_code}")
        try:
            value = answer.json()
            found = value.get("token") or value.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            found = None
        self._bearer = found if answer.status_code == 200 and isinstance(found, str) else None
        return self._bearer is not None

    def _secrets(self) -> tuple[str | None, ...]:
        return (self._bearer, self._basic, self._login[1] if self._login else None)

    def _judge(self, response: httpx.Response, expected: int) -> None:
        """Raise unless the status is the expected one."""
        status = response.status_code
        if status == expected:
            return
        response.read()
        said = f"{status} {self._reason(response)}".strip()
        if status in TEMPORARY:
            raise TemporaryProblemError(
                f"{self.place.registry} answers {said}", retry_after(response.headers.get("retry-after"), time.time())
            )
        if status in (401, 403):
            raise PublishError(
                f"{self.place}: the registry refuses: {said}",
                remedy=f"`docker login {self.place.registry}` as somebody who may push to {self.place.repository}",
            )
        raise PublishError(f"{self.place}: the registry answers {said}")

    def _reason(self, response: httpx.Response) -> str:
        try:
            first = response.json()["errors"][0]
            return scrub(f"{first.get('code', '')}: {first.get('message', '')}"[:300], *self._secrets())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return response.reason_phrase

    def _patiently(self, function: Callable[[], T]) -> T:
        patience = Patience(
            self.policy,
            PublishError,
            self.told.cancel,
            what=f"{self.place}: ",
            again="run again: blobs that have arrived are not sent again",
            log=self.told.log,
        )

        def attempt() -> T:
            with stopped_by(self.told.cancel):
                return function()

        return patience.call(attempt, self.told.check)


# ---- logins --------------------------------------------------------------------------------------------------------


def credentials(registry: str) -> tuple[str, str] | None:
    """(user, password) that `docker login` keeps for a registry; None where there is none. Never raises."""
    folder = os.environ.get("DOCKER_CONFIG")
    config = read_json((Path(folder) if folder else Path.home() / ".docker") / "config.json") or {}
    names = [registry, f"https://{registry}"] + ([_HUB] if registry == "docker.io" else [])
    helpers = config.get("credHelpers")
    for name in names:
        helper = (helpers.get(name) if isinstance(helpers, dict) else None) or config.get("credsStore")
        if isinstance(helper, str) and (found := _from_helper(helper, name)):
            return found
    auths = config.get("auths")
    entries = auths if isinstance(auths, dict) else {}
    for name in names:
        entry = entries.get(name)
        if isinstance(entry, dict) and isinstance(entry.get("auth"), str):
            try:
                user, colon, password = base64.b64decode(entry["auth"]).decode().partition(":")
            except ValueError:
                continue
            if colon and user:
                return user, password
    return None


def _from_helper(helper: str, registry: str) -> tuple[str, str] | None:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", helper):
        return None
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=registry.encode(),
            capture_output=True,
            timeout=60,
            check=True,
        )
        found = json.loads(done.stdout)
        return str(found["Username"]), str(found["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return None


def _basic(login: tuple[str, str]) -> str:
    return base64.b64encode(f"{login[0]}:{login[1]}".encode()).decode()


def _object(data: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
