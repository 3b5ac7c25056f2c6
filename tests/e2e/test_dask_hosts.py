"""Three hosts that share a bucket and no more: one dies, one is cut off, one is slow, one lies; no byte changes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.hashing import text_digest
from rwkvflow.store.keys import load_signer
from rwkvflow.store.record import Output, parse_record, record_json
from tests.e2e.cli import Project, Ran
from tests.e2e.test_matrix import Farm, farm
from tests.helpers.bucket import client, served
from tests.helpers.hosts import Hosts, hosts, why_not

pytest.importorskip("distributed")
pytest.importorskip("cryptography")
pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("s3fs")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]
HOST = ("--sandbox", "host")
MODELS = ["rwkv4", "rwkv6", "rwkv7"]
FORMATS = ["ggml-f16", "ggml-q5_1", "safetensors", "ggml-q8_0"]
IMAGES = ["py3.11", "other"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """The 24 artifacts and their release, as one run on this machine makes them."""
    made = farm(tmp_path_factory.mktemp("farm"), MODELS, FORMATS, IMAGES)
    assert len(made.ids()) == 24
    return made


class Place:
    """Hosts with workers, a bucket that they see, and a home whose store is empty."""

    def __init__(self, many: Farm, made: Hosts, bucket: Any, env: dict[str, str], home: Path) -> None:
        self.hosts, self.bucket, self.env = made, bucket, env
        store = home / "store"
        store.mkdir(parents=True)
        (store / "environments").symlink_to(many.one.store / "environments")
        shutil.copytree(many.one.store / "downloads", store / "downloads", copy_function=os.link)
        shutil.copytree(many.one.folder, home / "p", ignore=shutil.ignore_patterns("out"))
        self.home = Project(home / "p", store)

    def run(self, *options: str, moment: Callable[[dict[str, Any]], None] = lambda event: None) -> Ran:
        """A run at home whose events are looked at as they come."""
        argv = ["run", "recipe.yaml", "--locked", *HOST, "--remote", "s3://bucket/store", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "rwkvflow", *argv, *self.hosts.options(), *options],
            cwd=self.home.folder,
            env=self.home.environment(self.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = []
        timer = threading.Timer(900, process.kill)
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if line.startswith("{"):
                    moment(json.loads(line))
        except BaseException:
            process.kill()
            raise
        finally:
            _, err = process.communicate()
            timer.cancel()
        logs = "".join(f"\n== {path.name}\n{path.read_text()[-3000:]}" for path in self.hosts.folder.glob("*.log"))
        ran = Ran(process.returncode, "".join(lines), err + (logs if process.returncode else ""))
        told = [f"{event['step']}: {event['message']}\n" for event in ran.events if event.get("status") == "failed"]
        told += [f"{event['message']}\n" for event in ran.events if event["event"] == "Notice"][-100:]
        return replace(ran, err="".join(told) + ran.err)


@pytest.fixture
def place(many: Farm, tmp_path: Path) -> Iterator[Place]:
    with hosts(tmp_path, ["one", "two", "three"]) as made, served(made.gateway) as env:
        made.env = env
        made.begin((many.one.store / "environments").resolve())
        made.wait()
        yield Place(many, made, client(env), env, tmp_path / "home")


def worker_of(event: dict[str, Any]) -> str:
    """Who began a step, where this event says so."""
    line = str(event.get("line", "")) if event["event"] == "StepLog" else ""
    words = line.removeprefix("begun again ").split()
    return words[1] if line.startswith(("on ", "begun again on ")) and len(words) > 1 else ""


def test_one_dies_one_is_cut_off_and_one_is_slow(many: Farm, place: Place) -> None:
    struck: list[str] = []

    def moment(event: dict[str, Any]) -> None:
        name = place.hosts.of(worker_of(event))
        if name and event["step"].startswith("reference") and not struck:
            struck.append(name)
            place.hosts.hosts[name].kill()
        elif name and event["step"].startswith("convert") and len(struck) == 1 and name not in struck:
            struck.append(name)
            place.hosts.hosts[name].cut()
            (left,) = place.hosts.hosts.keys() - set(struck)
            place.hosts.hosts[left].slow(20.0)

    ran = place.run(moment=moment)
    assert ran.code == 0, ran.err
    assert len(struck) == 2
    again = [event["step"] for event in ran.events if str(event.get("line", "")).startswith("begun again")]
    assert any(step.startswith("reference") for step in again)
    assert any(step.startswith("convert") for step in again)
    assert place.home.files() == many.one.files()
    keys = [item["Key"] for item in place.bucket.list_objects_v2(Bucket="bucket", Prefix="store/index/")["Contents"]]
    steps = json.loads(many.one("plan", "recipe.yaml", *HOST, "--json").out)
    made = {row["key"] for row in steps if row["step"].partition("/")[0] not in ("publish",)}
    assert {key.rpartition("/")[2].removesuffix(".json") for key in keys} == made, "one record a step"
    started = [event["step"] for event in ran.events if event["event"] == "StepStarted"]
    assert len(started) == len(set(started)), "for listeners a step begins once"


def test_a_host_that_stops_and_comes_back_spoils_nothing(many: Farm, place: Place) -> None:
    import signal

    struck: list[str] = []

    def moment(event: dict[str, Any]) -> None:
        name = place.hosts.of(worker_of(event))
        if name and event["step"].startswith(("reference", "smoke")) and not struck:
            struck.append(name)
            worker = place.hosts.hosts[name].worker
            assert worker is not None
            worker.kill(signal.SIGSTOP)
            threading.Timer(12, worker.kill, [signal.SIGCONT]).start()

    ran = place.run(moment=moment)
    assert ran.code == 0, ran.err
    assert struck
    assert place.home.files() == many.one.files()


class Poisoner(threading.Thread):
    """One who may write to the bucket: false records, without a signature or with his own, and other bytes."""

    def __init__(self, bucket: Any, eve: Path) -> None:
        super().__init__(daemon=True)
        self.bucket, self.signer = bucket, load_signer(eve)
        self.done = threading.Event()
        self.records = self.blobs = 0
        self.failure: BaseException | None = None
        self._seen: set[str] = set()
        self._chance = random.Random(7)

    def run(self) -> None:
        try:
            while not self.done.wait(0.02):
                listed = self.bucket.list_objects_v2(Bucket="bucket", Prefix="store/").get("Contents", [])
                for item in listed:
                    if item["Key"] not in self._seen:
                        self._seen.add(item["Key"])
                        self._spoil(item["Key"], item["Size"])
        except BaseException as error:
            self.failure = error

    def _spoil(self, key: str, size: int) -> None:
        if "/index/" in key:
            entry = json.loads(self.bucket.get_object(Bucket="bucket", Key=key)["Body"].read())
            if "wicked" in entry["notes"] or not entry["step"].startswith(("convert", "smoke", "reference", "engine")):
                return
            record = parse_record({**entry, "notes": {"wicked": "yes"}})
            outputs = {}
            for name, output in record.outputs.items():
                data = b"wicked" * 10
                digest = text_digest(data)
                place = f"store/blobs/{digest[7:9]}/{digest[7:]}"
                self.bucket.put_object(Bucket="bucket", Key=place, Body=data)
                self._seen.add(place)
                outputs[name] = Output(digest, "file", len(data)) if output.kind == "file" else output
            record = replace(record, outputs=outputs, signature=None)
            if self._chance.random() < 0.5:
                record = replace(record, signature=self.signer.sign(entry["key"], record))
            body = json.dumps({"key": entry["key"], **record_json(record)}).encode()
            self.bucket.put_object(Bucket="bucket", Key=key, Body=body)
            self.records += 1
        elif "/blobs/" in key and size and self._chance.random() < 0.3:
            self.bucket.put_object(Bucket="bucket", Key=key, Body=b"\x66" * size)
            self.blobs += 1


def test_nothing_of_a_poisoned_store_reaches_the_release(many: Farm, place: Place, tmp_path: Path) -> None:
    ann, eve = tmp_path / "ann.key", tmp_path / "eve.key"
    keys = {
        name: place.home("cache", "keys", "--new", str(path)).out.strip() for name, path in (("ann", ann), ("eve", eve))
    }
    poisoner = Poisoner(place.bucket, eve)
    poisoner.start()
    ran = place.run("--store-key", str(ann), "--trust", keys["ann"])
    poisoner.done.set()
    poisoner.join(timeout=30)
    assert poisoner.failure is None
    assert ran.code == 0, ran.err
    assert poisoner.records > 20, poisoner.records
    assert poisoner.blobs > 5, poisoner.blobs
    assert place.home.files() == many.one.files()
    assert "wicked" not in "".join(
        path.read_text("utf-8", "replace") for path in place.home.folder.rglob("out/**/*.json")
    )

    fresh = Project(tmp_path / "fresh" / "p", tmp_path / "fresh" / "store")
    shutil.copytree(many.one.folder, fresh.folder, ignore=shutil.ignore_patterns("out"))
    fresh.store.mkdir()
    for part in ("environments", "downloads"):
        (fresh.store / part).symlink_to(many.one.store / part)
    second = fresh(
        "run", "recipe.yaml", "--locked", *HOST, "--remote", "s3://bucket/store", "--trust", keys["ann"],
        "--remote-read-only", "--only", "rwkv7/*@other", "--json", env=place.env,
    )  # fmt: skip
    assert second.code == 0, second.err
    said = {e["step"]: e["outputs"] for e in second.events if e["event"] == "StepFinished"}
    mine = many.one("run", "recipe.yaml", *HOST, "--json")
    truth = {e["step"]: e["outputs"] for e in mine.events if e["event"] == "StepFinished"}
    for step, outputs in said.items():
        if step.startswith("convert"):
            assert outputs == truth[step], "who comes later is not deceived either"


def test_nobody_gets_in_without_a_certificate(place: Place, tmp_path: Path) -> None:
    from tests.helpers.hosts import certificates, tls

    other = certificates(tmp_path / "stranger")
    argv = ["run", "recipe.yaml", "--locked", *HOST, "--remote", "s3://bucket/store"]
    strange = place.home(*argv, "--executor", f"dask={place.hosts.address}", *tls(other), env=place.env)
    assert strange.code == 4, strange.err
    assert "its certificate is not one that --tls-ca" in strange.err
    plain = place.home(*argv, "--executor", f"dask={place.hosts.address.replace('tls', 'tcp')}", env=place.env)
    assert plain.code == 2
    assert "has no TLS" in plain.err
