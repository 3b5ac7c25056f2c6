"""A recipe as many CI jobs: separate processes on separate stores that share a remote one, then one publish."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cli import DEMO, ROOT, Project
from tests.e2e.conftest import CACHE

HOST = ("--sandbox", "host")


def recipe(models: list[str], formats: list[str], images: list[str]) -> str:
    """Images differ by name only, so that what is made in them must agree."""
    return "\n".join(
        [
            "name: many",
            "models:",
            *(f"  - {{name: {m}, source: models/{m}-demo.pth, tokenizer: bytes}}" for m in models),
            f"formats: [{', '.join(formats)}]",
            "images:",
            *(f'  - {{python: "3.11", name: {name}}}' for name in images),
            'smoke: {prompts: ["The "], tokens: 8}',
            "publish:",
            "  - to: out",
            "",
        ]
    )


@dataclass
class Farm:
    """One project with its release, and the means to make the same by jobs."""

    folder: Path
    one: Project

    @property
    def remote(self) -> str:
        return f"file://{self.folder}/remote"

    def machine(self, name: str) -> Project:
        """A fresh checkout on a fresh store; only wheels and environments are not made anew for each job."""
        folder, store = self.folder / name / "p", self.folder / name / "store"
        shutil.copytree(self.one.folder, folder, ignore=shutil.ignore_patterns("out"))
        store.mkdir()
        for part in ("environments", "downloads"):
            (store / part).symlink_to(self.one.store / part)
        return Project(folder, store)

    def ids(self) -> list[str]:
        listed = self.one("matrix", "recipe.yaml", "--format", "json")
        assert listed.code == 0, listed.err
        return [job["only"] for job in json.loads(listed.out)]

    def job(self, number: int, only: str) -> Project:
        machine = self.machine(f"job{number}")
        done = machine("run", "recipe.yaml", "--locked", "--remote", self.remote, "--only", only, *HOST)
        assert done.code == 0, f"{only}: {done.err}"
        assert "published" not in done.err
        assert not (machine.folder / "out").exists()
        shutil.rmtree(machine.store, ignore_errors=True)  # what is not in the remote store is gone with the machine
        return machine

    def publish(self, name: str) -> tuple[Project, int, str]:
        machine = self.machine(name)
        done = machine("publish", "recipe.yaml", "--locked", "--remote", self.remote, *HOST)
        return machine, done.code, done.err


def farm(
    folder: Path, models: list[str], formats: list[str], images: list[str], workflow: tuple[str, str] = ("", "")
) -> Farm:
    """A project, made by one run. `workflow`: its text, and that of the script slow.py of a stage in it."""
    one = Project(folder / "one", folder / "store")
    (one.folder / "models").mkdir(parents=True)
    for model in models:
        shutil.copy(DEMO / f"{model}-demo.pth", one.folder / "models")
    one.write("recipe.yaml", recipe(models, formats, images))
    one.store.mkdir()
    (CACHE / "store" / "environments").mkdir(parents=True, exist_ok=True)
    (one.store / "environments").symlink_to(CACHE / "store" / "environments")  # a virtual environment cannot be moved
    if (CACHE / "store" / "downloads").exists():
        shutil.copytree(CACHE / "store" / "downloads", one.store / "downloads", copy_function=os.link)
    more: list[str] = []
    if workflow[0]:
        one.write("workflow.yaml", workflow[0])
        one.write("slow.py", workflow[1])
        more = ["--workflow", "workflow.yaml"]
    done = one("run", "recipe.yaml", *HOST, *more)
    assert done.code == 0, done.err
    return Farm(folder, one)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """3 models × 2 formats × 2 images, made by 12 jobs, two at a time."""
    models, formats = ["rwkv4", "rwkv6", "rwkv7"], ["ggml-q5_1", "safetensors"]
    made = farm(tmp_path_factory.mktemp("farm"), models, formats, ["py3.11", "other"])
    jobs = list(enumerate(made.ids()))
    assert len(jobs) == 12
    first, rest = jobs[:10], jobs[10:]  # the rest: one artifact in both images, whose results are the same
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: made.job(*job), first))
    _, code, told = made.publish("early")
    assert code == 9
    assert all(only in told for _, only in rest), "what no job has made is named"
    assert not any(only in told for _, only in first), told
    for job in rest:
        made.job(*job)
    return made


def test_jobs_and_one_publish_give_the_bytes_of_one_run(many: Farm) -> None:
    machine, code, told = many.publish("publisher")
    assert code == 0, told
    assert machine.files() == many.one.files()
    assert len(machine.files()) > 15
    again = machine("publish", "recipe.yaml", "--locked", "--remote", many.remote, *HOST, "--json")
    assert again.code == 0
    assert again.steps("done") == []


def test_publish_needs_no_remote_where_one_store_has_it_all(many: Farm) -> None:
    machine = Project(many.folder / "same", many.one.store)
    shutil.copytree(many.one.folder, machine.folder, ignore=shutil.ignore_patterns("out"))
    done = machine("publish", "recipe.yaml", *HOST)
    assert done.code == 0, done.err
    assert machine.files() == many.one.files()


def test_publish_makes_nothing(many: Farm, tmp_path: Path) -> None:
    machine = Project(many.machine("lonely").folder, tmp_path / "store")
    done = machine("publish", "recipe.yaml", "--locked", *HOST, "--json")
    assert done.code == 9
    assert "convert/rwkv4/ggml-q5_1@py3.11" in done.err
    assert "smoke/rwkv7/safetensors@py3.11" in done.err
    assert not done.steps("done")
    assert not (machine.folder / "out").exists()


def partly(many: Farm, name: str) -> Project:
    """A machine that has all but what was made of one model in its formats, and the release."""
    machine = many.machine(name)
    for part in ("index", "blobs", "trees"):
        shutil.copytree(many.one.store / part, machine.store / part, copy_function=os.link)
    dropped = 0
    for path in (machine.store / "index").glob("*/*.json"):
        stage, _, rest = json.loads(path.read_text())["step"].partition("/")
        if stage in ("convert", "smoke") and rest.startswith("rwkv7/"):
            path.unlink()
            dropped += 1
    assert dropped >= 4, "two formats, whose images are equal"
    return machine


def test_a_cluster_of_this_machine_gives_the_same_bytes(many: Farm) -> None:
    pytest.importorskip("distributed")
    machine = partly(many, "cluster")
    done = machine("run", "recipe.yaml", "--locked", *HOST, "--executor", "dask=2", "--json", timeout=120)
    assert done.code == 0, done.err
    assert machine.files() == many.one.files()
    assert {step.partition("/")[0] for step in done.steps("done")} == {"convert", "smoke", "publish"}
    assert "2 workers with" in done.out
    lines = [event["line"] for event in done.events if event["event"] == "StepLog"]
    assert any(re.match(r"on [01] on \S", line) for line in lines), "who did it is told, by name"


def test_workers_with_stores_of_their_own_give_the_same_bytes(many: Farm, tmp_path: Path) -> None:
    """Bytes go through the remote store; what nobody there has is refused before anything begins."""
    distributed = pytest.importorskip("distributed")
    machine = partly(many, "home")
    worker = tmp_path / "worker"
    worker.mkdir()
    (worker / "environments").symlink_to(machine.store / "environments")
    machine.write("large.yaml", "version: 1\nstages: {convert: {memory: 524288GiB}}\n")
    env = {"RWKVFLOW_STORE": str(worker), "PYTHONPATH": str(ROOT)}
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0", memory_limit="2GiB", env=env
    ) as cluster:
        at = ("run", "recipe.yaml", "--locked", *HOST, "--executor", f"dask={cluster.scheduler_address}")
        remote = ("--remote", f"file://{tmp_path}/remote")
        refused = machine(*at, *remote, "--workflow", "large.yaml")
        assert refused.code == 4, refused.err
        assert "convert/rwkv4/ggml-q5_1@py3.11: it needs 524288.00 GiB; of 1 workers" in refused.err
        assert "steps in the host sandbox" not in refused.err, "nothing began"
        done = machine(*at, *remote, "--json", timeout=120)
    assert done.code == 0, done.err
    assert machine.files() == many.one.files()
    assert {step.partition("/")[0] for step in done.steps("done")} == {"convert", "smoke", "publish"}
    assert (worker / "cluster").is_dir(), "it was there"
    assert len(list((tmp_path / "remote" / "index").glob("*/*.json"))) >= 4


def at_work(store: Path) -> list[str]:
    """The commands that are carried out with a store, whatever namespaces they have."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_text().replace("\0", " ")
            if str(store) in line or str(store) in str((process / "cwd").readlink()):
                found.append(line)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_stops_the_commands_of_a_clusters_workers(many: Farm) -> None:
    pytest.importorskip("distributed")
    machine = partly(many, "stopped")
    busy: list[str] = []

    def moment(event: dict[str, Any]) -> bool:
        if event["event"] == "StepLog" and event["step"].startswith("convert") and event["line"].startswith("on "):
            busy.extend(at_work(machine.store))
            return True
        return False

    done = machine.until(moment, signal.SIGINT, "run", "recipe.yaml", "--locked", *HOST, "--executor", "dask=2")
    assert done.code == 130, done.err
    assert "interrupted; what is finished is kept" in done.err
    end = time.monotonic() + 30
    while left := at_work(machine.store):
        assert time.monotonic() < end, left
        time.sleep(0.2)
    again = machine("run", "recipe.yaml", "--locked", *HOST)
    assert again.code == 0, again.err
    assert machine.files() == many.one.files()


def test_poisoned_remote_is_noticed_and_mended(many: Farm) -> None:
    name = "rwkv7/ggml-q5_1@py3.11"
    index = many.folder / "remote" / "index"
    step = f"convert/{name.split('@')[0]}@"  # equal images share a record, under the name of whichever came first
    record = next(
        entry for path in index.glob("*/*.json") if (entry := json.loads(path.read_text()))["step"].startswith(step)
    )
    digest = record["outputs"]["artifact"]["digest"].removeprefix("sha256:")
    blob = many.folder / "remote" / "blobs" / digest[:2] / digest
    whole = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    machine, code, told = many.publish("poisoned")
    assert code == 9
    assert f"convert/{name}" in told
    assert "damaged" in told
    assert not (machine.folder / "out").exists()
    done = machine("run", "recipe.yaml", "--locked", "--remote", many.remote, "--only", name, *HOST)
    assert done.code == 0, done.err
    assert "damaged" in done.err
    assert blob.read_bytes() == whole, "made anew, and put right in the remote store"
    _, code, told = many.publish("mended")
    assert code == 0, told
