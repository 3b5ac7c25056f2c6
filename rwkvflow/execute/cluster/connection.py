"""The way to a scheduler: the certificates for it, and what it means where it does not answer."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError, UsageError
from rwkvflow.execute.cluster.fitness import Executor

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

CONNECT_S = 30  # a loaded machine takes its time to shake hands
OPTIONS = "--tls-ca, --tls-cert and --tls-key"


@dataclass(frozen=True)
class Certificates:
    """Files of PEM for TLS; None: what Dask's own configuration says."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __bool__(self) -> bool:
        return any(path is not None for path in (self.ca, self.cert, self.key))


def connect(executor: Executor, certificates: Certificates, cores: int) -> tuple[Client, Callable[[], object]]:
    """A client of the cluster that --executor names, and what ends a cluster of one's own.

    Raises UsageError where packages or certificates are missing, EnvironmentMissing where nobody answers.
    """
    check_asked(executor, certificates)
    try:
        import distributed
        from distributed.security import Security
    except ImportError as error:
        raise _no_package(str(error.name)) from error
    security = None
    try:
        if executor.kind == "own":
            return _own(executor.workers or min(2, cores), cores)
        if executor.address.startswith("tls://"):
            given = {
                "tls_ca_file": certificates.ca,
                "tls_client_cert": certificates.cert,
                "tls_client_key": certificates.key,
            }
            security = Security(require_encryption=True, **{name: path for name, path in given.items() if path})
            check_files(executor.address, security)
        client = distributed.Client(executor.address, security=security, timeout=CONNECT_S, set_as_default=False)
        return client, lambda: None
    except RwkvflowError:
        raise
    except Exception as error:
        if executor.kind == "own":
            words = f"no cluster can be started on this machine: {type(error).__name__}: {error}"
            raise EnvironmentMissing(words, remedy="see that connections to 127.0.0.1 are allowed") from error
        words, remedy = why(executor.address, security, error)
        raise EnvironmentMissing(f"the scheduler at {executor.address}: {words}", remedy=remedy) from error


def _own(workers: int, cores: int) -> tuple[Client, Callable[[], object]]:
    import dask
    import distributed
    from distributed.security import Security

    with contextlib.ExitStack() as stack:
        # Of a worker that was lost Dask asks after 15 s whether it is back, and if not ends its nanny. One that is lost
        # again in this time is not, just then, though its nanny is starting it: nobody would start it any more.
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "1 week"}))
        with _deaf():
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=max(1, cores // workers),
                host="127.0.0.1",
                memory_limit=0,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                security=Security.temporary(),  # other users of this machine must not be able to connect
            )
        stack.callback(cluster.close)
        client = distributed.Client(cluster, set_as_default=False)
        return client, stack.pop_all().close


def _no_package(name: str) -> UsageError:
    words = f"--executor dask needs a package that is not installed: {name}"
    return UsageError(words, remedy="pip install 'rwkvflow[dask]'")


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here do not hear Ctrl-C, which a terminal sends to all: this one stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---- certificates ----------------------------------------------------------------------------------------------


def check_asked(executor: Executor, certificates: Certificates) -> None:
    """Raises UsageError where packages are missing, or certificates are given and TLS would not be spoken with them."""
    if executor.kind != "local" and importlib.util.find_spec("distributed") is None:
        raise _no_package("distributed")
    if certificates and not executor.address.startswith("tls://"):
        where = {"local": "this process carries out the commands", "own": "a cluster of your own makes its own"}
        words = where.get(executor.kind, f"{executor.address} is spoken to without TLS")
        raise UsageError(
            f"{OPTIONS} are of no use: {words}", remedy="--executor dask=tls://host:8786, or leave them out"
        )


def check_files(address: str, security: Security) -> None:
    """Raises UsageError for files that cannot be what TLS needs, whether options or Dask's configuration name them."""
    ca, cert = security.tls_ca_file, security.tls_client_cert
    key = security.tls_client_key or cert  # one file may hold both
    missing = [option for option, path in (("--tls-ca", ca), ("--tls-cert", cert)) if path is None]
    if missing or ca is None or cert is None or key is None:
        raise UsageError(
            f"{address} is spoken to by TLS, and {' and '.join(missing)} is missing",
            remedy=f"{OPTIONS}, or distributed.comm.tls in Dask's configuration",
        )
    _check_certificate("--tls-ca", ca)
    _check_certificate("--tls-cert", cert)
    if "PRIVATE KEY-----" not in _read("--tls-key", key):
        raise UsageError(
            f"--tls-key: {key} holds no private key (PEM)", remedy="name the file that belongs to --tls-cert"
        )

    def ask() -> bytes:
        raise UsageError(f"--tls-key: {key} has a passphrase, and nobody can be asked for it", remedy=
                         "openssl pkey -in FILE -out another one, which only you can read")  # fmt: skip

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=ask)
    except ssl.SSLError as error:
        raise UsageError(
            f"--tls-key: {key} is not the key of the certificate {cert}: {error.reason}",
            remedy="name the file that belongs to --tls-cert",
        ) from error


def _read(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be read: {error.strerror}", remedy="see the path") from error


def _check_certificate(option: str, path: str) -> None:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        first = load_pem_x509_certificates(_read(option, path).encode())[0]
    except ValueError as error:
        raise UsageError(f"{option}: {path} holds no certificate (PEM)", remedy="name the right file") from error
    now = datetime.now(UTC)
    if now > first.not_valid_after_utc:
        words = f"the certificate {path} is valid until {first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise UsageError(f"{option}: {words}", remedy="have a new one signed; docs/guides/clusters.md has the commands")
    if now < first.not_valid_before_utc:
        words = f"the certificate {path} is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise UsageError(f"{option}: {words}", remedy="see this machine's clock")


# ---- no answer -------------------------------------------------------------------------------------------------


def why(address: str, security: Any, error: BaseException) -> tuple[str, str]:
    """What it means that no connection came about, and what can be done.

    Dask wraps what TLS says, sometimes in an error without words; so all that led to it is looked at.
    """
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    said = " | ".join(f"{type(one).__name__}: {one}" for one in chain)
    ca, cert = (security.tls_ca_file, security.tls_client_cert) if security is not None else (None, None)
    if security is not None:
        if any(word in said for word in ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "cannot convert to SSL")):
            return "it does not speak TLS", "start it with --protocol tls and certificates; see docs/guides/clusters.md"
        if "certificate does not match" in said or "CERTIFICATE_VERIFY_FAILED" in said:
            return (
                f"its certificate is not one that --tls-ca {ca} signed, or is out of date",
                "--tls-ca names the authority of that cluster; if it does, somebody else answers there",
            )
        if "ALERT" in said:
            return (
                f"it does not take your certificate, --tls-cert {cert}",
                "take one that the cluster's own authority signed",
            )
        if "EOF occurred" in said:  # where the connection is gone before the alert has been read
            return (
                f"it hangs up: it does not take your certificate, --tls-cert {cert}, or does not speak TLS",
                "take one that the cluster's own authority signed, and see that it was started with --protocol tls",
            )
    elif not any(word in said for word in ("ConnectionRefused", "Timed out")) and "CommClosed" in said:
        return "it hangs up, as one does that speaks TLS", "--executor dask=tls://…, with certificates"
    if not _resolves(address):  # which Dask tries again until its time is over
        return "its name is not known here", "see the name, and that this machine's resolver knows it"
    last = next((f": {type(one).__name__}: {one}" for one in chain if str(one)), "")
    return (
        f"nobody answers within {CONNECT_S} s{last}",
        "see that it runs there, and that nothing between drops connections",
    )


def _resolves(address: str) -> bool:
    try:
        socket.getaddrinfo(urlsplit(address).hostname, None)
    except OSError:
        return False
    return True
