"""The way to a scheduler: what is wrong is said with its place, its cause and what to do, before anything begins."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError, UsageError
from rwkvflow.cli import cli
from rwkvflow.execute.cluster.connection import Certificates, check_asked, connect, why
from rwkvflow.execute.cluster.fitness import Executor, parse_executor
from tests.helpers.hosts import certificates

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The cluster's."""
    return certificates(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stranger's."""
    return certificates(tmp_path_factory.mktemp("theirs"))


def words_of(address: str, given: Certificates) -> str:
    with pytest.raises(RwkvflowError) as caught:
        connect(Executor("at", address), given, 1)
    assert caught.value.remedy
    return f"{type(caught.value).__name__} {caught.value.message} | {caught.value.remedy}"


def given(files: dict[str, Path], **other: Path) -> Certificates:
    return Certificates(*(str({**files, **other}[name]) for name in ("ca", "cert", "key")))


def test_files_that_cannot_be_it_are_named_before_anything_is_tried(
    files: dict[str, Path], theirs: dict[str, Path], tmp_path: Path
) -> None:
    at = "tls://127.0.0.1:1"
    text = tmp_path / "text"
    text.write_text("none")
    assert f"--tls-ca: {text} holds no certificate" in words_of(at, given(files, ca=text))
    assert f"--tls-cert: {text} holds no certificate" in words_of(at, given(files, cert=text))
    assert f"--tls-key: {text} holds no private key" in words_of(at, given(files, key=text))
    assert f"--tls-key: {theirs['key']} is not the key of the certificate {files['cert']}" in words_of(
        at, given(files, key=theirs["key"])
    )
    assert f"--tls-key: {tmp_path / 'no'} cannot be read" in words_of(at, given(files, key=tmp_path / "no"))
    assert "--tls-key: " in words_of(at, Certificates(str(files["ca"]), str(files["cert"])))
    locked = tmp_path / "locked.pem"
    argv = ["openssl", "pkey", "-in", str(files["key"]), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(argv, check=True, capture_output=True)
    assert f"--tls-key: {locked} has a passphrase" in words_of(at, given(files, key=locked))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> None:
    assert "--tls-ca and --tls-cert is missing" in words_of("tls://127.0.0.1:1", Certificates())
    both = Certificates(cert=str(files["cert"]), key=str(files["key"]))
    assert "TLS, and --tls-ca is missing" in words_of("tls://127.0.0.1:1", both)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="a package that is not installed: distributed"):
        check_asked(Executor("own"), Certificates())
    check_asked(Executor("local"), Certificates())


def test_a_certificate_out_of_date_is_told_with_the_date(files: dict[str, Path], tmp_path: Path) -> None:
    old = certificates(tmp_path / "old", days=(-9, -2))
    assert "--tls-ca: the certificate" in words_of("tls://127.0.0.1:1", given(old))
    assert "is valid until 20" in words_of("tls://127.0.0.1:1", given(files, cert=old["cert"]))
    new = certificates(tmp_path / "new", days=(2, 9))
    assert "see this machine's clock" in words_of("tls://127.0.0.1:1", given(new))


@pytest.mark.parametrize("executor", ["local", "dask", "dask=2", "dask=tcp://127.0.0.1:8786"])
def test_certificates_that_would_be_ignored_are_refused(executor: str, files: dict[str, Path], tmp_path: Path) -> None:
    """Somebody who gives them believes that TLS is spoken."""
    with pytest.raises(UsageError, match="are of no use"):
        check_asked(parse_executor(executor), Certificates(ca=str(files["ca"])))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("")
    done = CliRunner().invoke(cli, ["run", str(recipe), "--executor", executor, "--tls-ca", str(files["ca"])])
    assert isinstance(done.exception, UsageError | SystemExit)
    assert "are of no use" in f"{done.output}{done.exception}"


def test_a_cluster_that_cannot_be_started_here_is_no_schedulers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("no port")

    monkeypatch.setattr(distributed, "LocalCluster", fail)
    with pytest.raises(EnvironmentMissing, match="no cluster can be started on this machine: OSError: no port"):
        connect(Executor("own"), Certificates(), 2)


def test_a_nanny_of_ones_own_cluster_is_kept_while_it_starts_a_worker_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask ends the nanny of a worker that is lost twice within its lost-worker-timeout; see test_faults_dask.py."""
    import dask

    name = "distributed.deploy.lost-worker-timeout"
    before, seen, closed = dask.config.get(name), list[str](), list[str]()

    class FakeCluster:
        def __init__(self, **options: object) -> None:
            seen.append(dask.config.get(name))

        def close(self) -> None:
            closed.append(dask.config.get(name))

    def client(cluster: FakeCluster, **options: object) -> str:
        seen.append(dask.config.get(name))
        return "a client"

    monkeypatch.setattr(distributed, "LocalCluster", FakeCluster)
    monkeypatch.setattr(distributed, "Client", client)
    found, close = connect(Executor("own", workers=2), Certificates(), 2)
    assert found == "a client"
    assert dask.config.get(name) == "1 week", "as long as it runs: Dask looks whenever a worker is lost"
    close()
    assert (seen, closed) == (["1 week"] * 2, ["1 week"])
    assert dask.config.get(name) == before, "somebody else's Dask in this process has its own again"


def test_what_was_started_of_a_cluster_is_ended_where_no_client_comes_about(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class FakeCluster:
        def __init__(self, **options: object) -> None:
            pass

        def close(self) -> None:
            closed.append(True)

    def client(cluster: FakeCluster, **options: object) -> str:
        raise OSError("no sockets left")

    monkeypatch.setattr(distributed, "LocalCluster", FakeCluster)
    monkeypatch.setattr(distributed, "Client", client)
    with pytest.raises(EnvironmentMissing, match="no cluster can be started on this machine: OSError: no sockets left"):
        connect(Executor("own", workers=2), Certificates(), 2)
    assert closed == [True]


def test_who_hangs_up_in_the_middle_may_not_take_the_certificate(files: dict[str, Path]) -> None:
    """The alert that says so may be lost with the connection."""
    security = distributed.security.Security(
        tls_ca_file=str(files["ca"]), tls_client_cert=str(files["cert"]), tls_client_key=str(files["key"])
    )
    error = OSError("Timed out")
    error.__cause__ = OSError("EOF occurred in violation of protocol (_ssl.c:2393)")
    problem, remedy = why("tls://127.0.0.1:1", security, error)
    assert f"it does not take your certificate, --tls-cert {files['cert']}, or does not speak TLS" in problem
    assert "--protocol tls" in remedy
