"""Schedulers with TLS and without: why there is no connection is said, in words of this place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvflow.execute.cluster import connection
from rwkvflow.execute.cluster.connection import Certificates, connect
from rwkvflow.execute.cluster.fitness import Executor
from tests.helpers.hosts import dask_tls, free_port, start, wait_for
from tests.unit.execute.test_dask_connection import files, given, theirs, words_of

pytest.importorskip("distributed")
__all__ = ["files", "theirs"]  # fixtures


@pytest.fixture(scope="module")
def schedulers(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The ports of one with TLS and of one without."""
    folder = tmp_path_factory.mktemp("schedulers")
    ports, started = {}, []
    for name, more in (("tls", dask_tls(files)), ("tcp", [])):
        ports[name] = free_port("127.0.0.1")
        argv = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(ports[name])]
        argv += ["--protocol", name, "--no-dashboard", "--dashboard-address", "127.0.0.1:0", *more]
        started.append(start(argv, folder / f"{name}.log", {}))
    try:
        for port in ports.values():
            wait_for("127.0.0.1", port, 120)
        yield ports
    finally:
        for process in started:
            process.end()


def test_who_does_not_answer_by_tls_is_told_why(
    schedulers: dict[str, int], files: dict[str, Path], theirs: dict[str, Path]
) -> None:
    tls, plain = f"tls://127.0.0.1:{schedulers['tls']}", f"tls://127.0.0.1:{schedulers['tcp']}"
    client, _ = connect(Executor("at", tls), given(files), 1)
    client.close()
    told = words_of(tls, given(theirs))
    assert f"the scheduler at {tls}: its certificate is not one that --tls-ca {theirs['ca']} signed" in told
    told = words_of(tls, given(theirs, ca=files["ca"]))
    assert f"it does not take your certificate, --tls-cert {theirs['cert']}" in told
    assert "it does not speak TLS | start it with --protocol tls" in words_of(plain, given(files))
    told = words_of(tls.replace("tls", "tcp"), Certificates())
    assert "hangs up, as one does that speaks TLS | --executor dask=tls://" in told


def test_nobody_there_is_told_as_that(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1)
    port = free_port("127.0.0.1")
    for scheme, with_ in (("tls", given(files)), ("tcp", Certificates())):
        assert "nobody answers within 1 s: " in words_of(f"{scheme}://127.0.0.1:{port}", with_)
    assert "its name is not known here" in words_of(f"tls://no-such-host.invalid:{port}", given(files))
