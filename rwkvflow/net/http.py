"""HTTP as fetch steps need it: the user's proxies and certificates, redirects that leak no credentials, retries.

httpx is imported inside functions: nothing that starts the command line pays for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from rwkvflow.base.errors import FetchError, Interrupted, RwkvflowError
from rwkvflow.documents.sources import public_url

if TYPE_CHECKING:
    import ssl

    import httpx

T = TypeVar("T")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_REDIRECTS = 10
ENOUGH_PROGRESS = 1 << 20  # bytes after which a failed attempt does not count as one


@dataclass(frozen=True)
class Policy:
    """Patience. Delays double from `first_delay_s` up to `longest_delay_s`, without jitter."""

    attempts: int = 6
    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    longest_retry_after_s: float = 600.0  # a server that asks for more is reported instead
    connect_s: float = 20.0
    stall_s: float = 60.0  # nothing arrives for so long, or less than `stall_bytes` in that time
    stall_bytes: int = 4096

    def delay(self, failures: int) -> float:
        """Seconds to wait after the n-th failure in a row, n counted from 1."""
        return float(min(self.longest_delay_s, self.first_delay_s * 2 ** min(failures - 1, 20)))


class TemporaryProblemError(Exception):
    """Worth another attempt. `after` is the server's Retry-After in seconds."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


Authorize = Callable[[str], Mapping[str, str]]  # URL -> headers that may go to exactly this URL


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what a credential belongs to."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)


def certificates() -> ssl.SSLContext | bool:
    """Trust what the user's environment names: SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_DIR."""
    import ssl

    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            try:
                if name == "SSL_CERT_DIR" or os.path.isdir(path):  # noqa: PTH112 - REQUESTS_CA_BUNDLE may be a folder
                    return ssl.create_default_context(capath=path)
                return ssl.create_default_context(cafile=path)
            except (OSError, ssl.SSLError) as error:
                raise FetchError(f"the certificates that {name} names cannot be read: {error}") from error
    return True


def netrc_login(url: str) -> Mapping[str, str]:
    """Basic authorization from the user's ~/.netrc (or $NETRC) for this very host; empty where there is none."""
    import netrc

    import httpx

    if not url.startswith("https://"):
        return {}
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).hosts.get(urlsplit(url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return {}
    if entry is None:
        return {}
    request = next(httpx.BasicAuth(entry[0], entry[2] or "").auth_flow(httpx.Request("GET", url)))
    return {"Authorization": request.headers["Authorization"]}


@dataclass(frozen=True)
class Access:
    """How one place is spoken to, where its configuration says more than the environment."""

    authorize: Authorize
    certificates: str | None = None  # a file or folder of trusted ones; None: those of the environment
    proxy: str | None = None  # None: those of the environment
    verify: bool = True  # False: any certificate will do

    def trusted(self) -> ssl.SSLContext | bool:
        """What httpx is to verify certificates with. Raises FetchError."""
        import ssl

        if not self.verify or self.certificates is None:
            return certificates() if self.verify else False
        try:
            folder = os.path.isdir(self.certificates)  # noqa: PTH112 - a text of the user's
            if folder:
                return ssl.create_default_context(capath=self.certificates)
            return ssl.create_default_context(cafile=self.certificates)
        except (OSError, ssl.SSLError) as error:
            raise FetchError(f"the certificates of pip's configuration cannot be read: {error}") from error


class Connection:
    """One client whose sockets are shut when `cancel` is set, so that no read outlives Ctrl-C."""

    def __init__(self, policy: Policy, cancel: threading.Event | None, access: Access | None = None) -> None:
        import httpx

        self.policy = policy
        self.cancel = cancel
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()
        timeout = httpx.Timeout(policy.stall_s, connect=policy.connect_s)
        try:
            self._client = httpx.Client(
                verify=access.trusted() if access else certificates(),
                proxy=access.proxy if access else None,
                trust_env=True,
                follow_redirects=False,
                timeout=timeout,
                headers={"User-Agent": "rwkvflow", "Accept": "*/*", "Accept-Encoding": "identity"},
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise FetchError(f"the proxy settings cannot be used: {scrub(str(error))}") from error

    def __enter__(self) -> Connection:
        if self.cancel is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._client.close()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            if self.cancel is not None and self.cancel.is_set():
                for open_socket in list(self._sockets):
                    with contextlib.suppress(OSError):
                        open_socket.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            found = info["return_value"].get_extra_info("socket")
            if found is not None:
                self._sockets.append(found)

    def check(self) -> None:
        """Raise Interrupted once `cancel` is set."""
        if self.cancel is not None and self.cancel.is_set():
            raise Interrupted("the download was stopped", remedy="run again: it goes on where it stopped")

    @contextlib.contextmanager
    def request(
        self, method: str, url: str, headers: Mapping[str, str], authorize: Authorize
    ) -> Iterator[tuple[httpx.Response, list[httpx.Response]]]:
        """Send, follow redirects, hand over (final response with an unread body, the redirects before it).

        Credentials are computed for each hop from its URL alone, so that none is ever forwarded. Raises
        TemporaryProblemError for what another attempt may cure and FetchError for what it will not.
        """
        import httpx

        hops: list[httpx.Response] = []
        try:
            while True:
                self.check()
                request = self._client.build_request(
                    method, url, headers={**headers, **authorize(url)}, extensions={"trace": self._trace}
                )
                response = self._client.send(request, stream=True)
                try:
                    if response.status_code in REDIRECTS and "location" in response.headers:
                        url = self._next(url, response.headers["location"], len(hops))
                        hops.append(response)
                        continue
                    yield response, hops
                    return
                finally:
                    response.close()
        except httpx.TransportError as error:
            self.check()
            raise self._translated(error, url) from error
        except httpx.InvalidURL as error:
            raise FetchError(f"{public_url(url)}: {error}") from error

    def _next(self, url: str, location: str, count: int) -> str:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
        if count >= MAX_REDIRECTS:
            raise FetchError(f"{public_url(url)}: more than {MAX_REDIRECTS} redirects")
        if scheme not in ("http", "https") or (scheme == "http" and url.startswith("https:")):
            raise FetchError(f"{public_url(url)} redirects from https to {scheme}, which is refused")
        return target

    def _translated(self, error: httpx.TransportError, url: str) -> Exception:
        import httpx

        host = urlsplit(url).hostname or url
        text = scrub(str(error)) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            return FetchError(
                f"{host}: its certificate is not trusted: {text}",
                remedy="behind a proxy that inspects traffic, let SSL_CERT_FILE name your company's certificates",
            )
        if isinstance(error, httpx.UnsupportedProtocol):
            return FetchError(f"{public_url(url)}: {text}")
        if isinstance(error, httpx.ReadTimeout):
            return TemporaryProblemError(f"{host}: nothing arrived for {self.policy.stall_s:g} s")
        if isinstance(error, httpx.ConnectTimeout):
            return TemporaryProblemError(f"{host}: no connection within {self.policy.connect_s:g} s")
        if isinstance(error, httpx.ProxyError):
            return TemporaryProblemError(f"{host}: the proxy refused: {text}")
        return TemporaryProblemError(f"{host}: {text}")


@dataclass
class Patience:
    """The one loop that tries again: how often, how long it waits in between, what it says when it gives up.

    error   what is raised then: of a kind that takes a remedy
    what    what messages begin with
    whose   who asks for more time, in messages
    again   the remedy: what running again does
    log     is told each wait
    """

    policy: Policy
    error: Callable[..., RwkvflowError]
    cancel: threading.Event | None
    what: str = ""
    whose: str = "it"
    again: str = "run again: what has arrived is kept"
    log: Callable[[str], None] = lambda line: None
    failures: int = 0  # in a row

    def failed(self, problem: TemporaryProblemError, progress: bool = False) -> None:
        """Wait before the next attempt; `progress`: this one brought the work on, so failures are counted anew.

        Raises `error` when there were enough, or when the server asks for more time than anybody waits.
        """
        self.failures = 1 if progress else self.failures + 1
        if problem.after is not None and problem.after > self.policy.longest_retry_after_s:
            text = f"{self.what}{problem}; {self.whose} asks to wait {problem.after:.0f} s"
            raise self.error(text, remedy=f"later, {self.again}") from problem
        if self.failures >= self.policy.attempts:
            text = f"{self.what}{problem}; gave up after {self.failures} attempts"
            raise self.error(text, remedy=f"check the network and {self.again}") from problem
        seconds = max(self.policy.delay(self.failures), problem.after or 0.0)
        self.log(f"{problem}; trying again in {seconds:.0f} s")
        if self.cancel is None:
            time.sleep(seconds)
        else:
            self.cancel.wait(seconds)

    def call(self, attempt: Callable[[], T], check: Callable[[], None], done: Callable[[], int] = lambda: 0) -> T:
        """What `attempt` returns, once it does; TemporaryProblemError is answered with patience, all else is final.

        `check` raises Interrupted once somebody wants to stop. `done` tells how many bytes are safe: attempts that
        bring the transfer on are not counted as failures.
        """
        while True:
            before = done()
            check()
            try:
                return attempt()
            except TemporaryProblemError as problem:
                self.failed(problem, done() - before >= ENOUGH_PROGRESS)


def retrying(attempt: Callable[[], T], connection: Connection, done: Callable[[], int] = lambda: 0) -> T:
    """What `attempt` returns, with patience; see Patience. Raises FetchError, Interrupted."""
    patience = Patience(connection.policy, FetchError, connection.cancel, whose="the server")
    return patience.call(attempt, connection.check, done)


def temporary(response: httpx.Response, what: str) -> TemporaryProblemError | None:
    """The problem that a 429 or 5xx answer stands for; None for every other status."""
    if response.status_code not in TEMPORARY:
        return None
    after = retry_after(response.headers.get("retry-after"), time.time())
    return TemporaryProblemError(f"{what}: {response.status_code} {response.reason_phrase}".rstrip(), after)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date compared to `now` (Unix time)."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError, OverflowError):
        return None


def scrub(text: str, *secrets: str | None) -> str:
    """A text without the given secrets, without logins inside URLs and without bearer tokens."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = re.sub(r"(?<=//)[^/\s@]+@", "***@", text)
    return re.sub(r"(?i)(bearer\s+|\bhf_)[A-Za-z0-9._~+/=-]{8,}", r"\1***", text)
