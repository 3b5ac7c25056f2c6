"""The remote store on S3, as moto's server speaks it: two people who share nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.store.record import Record
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from tests.e2e.cli import Project, project
from tests.e2e.conftest import CACHE

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

HOST = ("--sandbox", "host")
SECRET = "planted-secret-access-key"  # noqa: S105 - what must not turn up anywhere


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Environment variables for clients of a bucket called bucket, on loopback."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    client(env).create_bucket(Bucket="bucket")
    yield env
    server.stop()


def client(env: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=env["FSSPEC_S3_ENDPOINT_URL"],
        aws_access_key_id="user",
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


def objects(env: dict[str, str], prefix: str) -> dict[str, int]:
    pages = client(env).get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}


@pytest.fixture
def in_process(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same for clients in this process, where fsspec read its variables long ago."""
    import fsspec.config

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3["FSSPEC_S3_ENDPOINT_URL"]})
    return s3


def test_large_outputs_in_parts(in_process: dict[str, str], tmp_path: Path) -> None:
    told: list[str] = []
    mine, yours = Store(tmp_path / "mine"), Store(tmp_path / "yours")
    for store in (mine, yours):
        store.remote = Remote("s3://bucket/parts", told.append)
    source = tmp_path / "artifact"
    source.write_bytes(os.urandom(1 << 20) * 120)  # s3fs sends parts of 50 MiB
    output = mine.put_file(source)
    mine.share("ab" * 32, Record("convert/x", {"artifact": output}), contents=True, again=False)
    assert yours.lookup("ab" * 32) is not None
    assert yours.bring([output])
    assert told == []
    name = output.digest.removeprefix("sha256:")
    client(in_process).put_object(Bucket="bucket", Key=f"parts/blobs/{name[:2]}/{name}", Body=b"\0" * output.size)
    third = Store(tmp_path / "third")
    third.remote = Remote("s3://bucket/parts", told.append)
    assert not third.bring([output])
    assert "damaged" in told[0]


def test_conditions_hold_and_one_claim_wins(in_process: dict[str, str], tmp_path: Path) -> None:
    told: list[str] = []
    one, other = (Remote("s3://bucket/claims", told.append) for _ in range(2))
    leases = [one.leases(60), other.leases(60)]
    assert [each.claim("ab" * 32) is not None for each in leases] == [True, False]
    with leases[0].held([f"bucket/claims/leases/ab/{'ab' * 32}/000001.json"]):
        pass
    assert leases[1].claim("ab" * 32) is not None, "given up, so it is another's"
    store = Store(tmp_path / "store")
    (tmp_path / "x").write_bytes(b"artifact")
    record = Record("convert/x", {"artifact": store.put_file(tmp_path / "x")})
    assert one.send("cd" * 32, record, store, contents=True)
    first = objects(in_process, "claims/index/")
    assert other.send("cd" * 32, record, store, contents=True), "the same again is no trouble"
    assert objects(in_process, "claims/index/") == first
    assert told == []


def machine(folder: Path, like: Project | None = None) -> Project:
    """A project on a store that has environments and downloads, and nothing else."""
    store = folder / "store"
    store.mkdir(parents=True)
    (CACHE / "store" / "environments").mkdir(parents=True, exist_ok=True)
    (store / "environments").symlink_to(CACHE / "store" / "environments")
    if (CACHE / "store" / "downloads").exists():
        shutil.copytree(CACHE / "store" / "downloads", store / "downloads", copy_function=os.link)
    made = project(folder / "p", store)
    if like is not None:
        shutil.copy(like.folder / "recipe.lock.yaml", made.folder)
    return made


def test_a_colleague_makes_nothing_again(s3: dict[str, str], tmp_path: Path) -> None:
    env = {**s3, "RWKVFLOW_REMOTE": "s3://bucket/team/store"}
    mine = machine(tmp_path / "mine")
    first = mine("run", "recipe.yaml", *HOST, "--json", env=env)
    assert first.code == 0, first.err
    assert "convert/tiny4/ggml-q5_1@py3.11" in first.steps("done")
    sent = objects(s3, "team/store/")
    assert any(key.startswith("team/store/trees/") for key in sent), "the engine, as an archive"
    largest = max(path.stat().st_size for path in (mine.folder / "models").iterdir())
    assert largest not in sent.values(), "checkpoints stay where they are"

    yours = machine(tmp_path / "yours", like=mine)
    planned = yours("plan", "recipe.yaml", *HOST, env=env)
    assert "= convert/tiny4/ggml-q5_1@py3.11" in planned.out
    second = yours("run", "recipe.yaml", *HOST, "--json", env=env)
    assert second.code == 0, second.err
    assert {step.partition("/")[0] for step in second.steps("done")} <= {"publish", "fetch", "image"}
    assert yours.files() == mine.files()
    assert set(objects(s3, "team/store/")) == set(sent)

    for root in (mine.store, mine.folder, yours.store, yours.folder):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_relative_to(root / "downloads"):
                assert SECRET.encode() not in path.read_bytes(), path
    for text in (first.out, first.err, second.out, second.err, planned.out):
        assert SECRET not in text
    for key, size in sent.items():
        if size < 1 << 20:
            assert SECRET.encode() not in client(s3).get_object(Bucket="bucket", Key=key)["Body"].read()


def test_without_the_bucket_a_run_goes_on(s3: dict[str, str], tmp_path: Path) -> None:
    env = {**s3, "RWKVFLOW_REMOTE": "s3://no-such-bucket/x"}
    mine = machine(tmp_path / "mine")
    done = mine("run", "recipe.yaml", *HOST, env=env)
    assert done.code == 0, done.err
    assert "remote store s3://no-such-bucket/x" in done.err
    assert done.err.count("remote store s3://") <= 4
    assert (mine.folder / "out" / "SHA256SUMS").exists()


class Silent(threading.Thread):
    """A server that takes whatever is sent, and says nothing: what a network that drops everything looks like."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.heard = b""
        self._held: list[socket.socket] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                self._held.append(client)
                threading.Thread(target=self._hear, args=(client,), daemon=True).start()

    def _hear(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.heard += data


def test_a_server_that_says_nothing_any_more_is_waited_for_no_longer_than_one_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """aiohttp would wait without limit for the leave to send a file's content."""
    import fsspec.config

    from rwkvflow.store.address import open_url

    silent = Silent()
    silent.start()
    options = {
        "endpoint_url": f"http://127.0.0.1:{silent.server.getsockname()[1]}",
        "key": "user",
        "secret": SECRET,
        "config_kwargs": {"retries": {"max_attempts": 1}, "read_timeout": 1, "connect_timeout": 1},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    system, root = open_url("s3://bucket/silent")
    (tmp_path / "x").write_bytes(b"content")
    ended: list[BaseException] = []

    def send() -> None:
        try:
            system.put_file(str(tmp_path / "x"), f"{root}/x")
        except BaseException as error:
            ended.append(error)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    sender.join(120)
    silent.server.close()
    assert ended, "it waits for ever"
    assert b"PUT /bucket/silent/x" in silent.heard
    assert b"expect" not in silent.heard.lower()
