"""Publishing to S3: moto's server on loopback, spoken to by s3fs, read by boto3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvflow.base.errors import PublishError
from rwkvflow.net.progress import Told
from rwkvflow.publish.remote_folder import RemoteFolderPublisher
from rwkvflow.release.names import STATE
from tests.helpers.publishing import contents, release

SECRET = "plantedPLANTEDplantedPLANTED"  # noqa: S105 - of nobody


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto and flask are not installed")
    import boto3

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    try:
        yield client
    finally:
        running.stop()


def objects(client: object) -> dict[str, bytes]:
    found = client.list_objects_v2(Bucket="models").get("Contents", [])  # type: ignore[attr-defined]
    keys = [entry["Key"] for entry in found if not entry["Key"].endswith(STATE)]
    return {
        key.removeprefix("rwkv/out/"): client.get_object(Bucket="models", Key=key)["Body"].read()  # type: ignore[attr-defined]
        for key in keys
    }


def test_a_release_in_a_bucket(bucket: object, tmp_path: Path) -> None:
    old = {"a/a.bin": b"a" * (11 << 20), "a/b.bin": b"b", "gone.json": b"{}"}  # the first one in several parts
    new = {"a/a.bin": old["a/a.bin"], "a/b.bin": b"B", "empty.json": b""}
    url = "s3://models/rwkv/out"
    RemoteFolderPublisher(url).apply(release(old, tmp_path / "store"), Told())
    assert objects(bucket) == contents(release(old))
    assert RemoteFolderPublisher(url).plan(release(old)).changes == ()
    plan = RemoteFolderPublisher(url).plan(release(new))
    assert "a/a.bin" not in {change.path for change in plan.changes}
    RemoteFolderPublisher(url).apply(release(new), Told())
    assert objects(bucket) == contents(release(new))


def test_no_such_bucket(bucket: object) -> None:
    with pytest.raises(PublishError, match="s3://nobodys/out") as caught:
        RemoteFolderPublisher("s3://nobodys/out").apply(release({"a.bin": b"a"}), Told())
    assert SECRET not in str(caught.value)
