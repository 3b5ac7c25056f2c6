"""Workers that dask-jobqueue submits to a real Slurm, by the file of the guide on clusters, with TLS."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cli import Project
from tests.e2e.test_dask_hosts import worker_of
from tests.e2e.test_matrix import HOST, Farm, farm
from tests.e2e.test_slurm import Slurm, bring_engine, slurm
from tests.helpers.guide import changed, told
from tests.helpers.hosts import Process, start

pytest.importorskip("dask_jobqueue")
__all__ = ["slurm"]  # the fixture

pytestmark = pytest.mark.soak
PAGE = "guides/clusters.md"
WORKERS = 3


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """A release made by one run on this machine."""
    folder = tmp_path_factory.mktemp("farm")
    return farm(folder, ["rwkv4", "rwkv7"], ["ggml-q5_1", "safetensors"], ["py3.11"])


@pytest.fixture
def cluster(slurm: Slurm, many: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Project]]:
    """The address of what the guide's file starts, and the home of the one who typed it."""
    monkeypatch.chdir(tmp_path)  # where jobs leave what they print
    home = many.machine("home")
    env = {
        "HOME": str(home.folder),
        "SLURM_CONF": str(slurm.conf),
        "PYTHONPATH": home.environment()["PYTHONPATH"],
    }
    store = tmp_path / "node"  # all jobs of a node have its disk
    store.mkdir()
    (store / "environments").symlink_to(many.one.store / "environments")
    (home.folder / "tls").mkdir()
    done = subprocess.run(["bash", "-ec", told(PAGE, "TLS")[0]], cwd=home.folder / "tls", check=False)
    assert done.returncode == 0
    home.write("bucket.env", "export SOME_KEY=secret\n")
    (file,) = told(PAGE, "Slurm")
    file = changed(
        file,
        **{
            "cores=8": "cores=1",
            "60GiB": "2GiB",
            "eth0": "lo",
            "/scratch/$USER/rwkvflow": str(store),
            "jobs=24": f"jobs={WORKERS}",
            "sleep(60)": "sleep(2)",
        },
    )
    path = home.write("cluster.py", file)
    log = tmp_path / "cluster.log"
    process = start([sys.executable, str(path)], log, env)
    try:
        yield address(process), home
        process.kill(signal.SIGINT)
        process.process.wait(timeout=60)
        end = time.monotonic() + 60
        while slurm("squeue", "--noheader"):
            assert time.monotonic() < end, f"jobs are left{slurm.logs()}"
            time.sleep(0.5)
    finally:
        process.end()


def address(cluster: Process) -> str:
    """What the guide's file prints."""
    end = time.monotonic() + 60
    while not (said := [line for line in cluster.log.read_text().splitlines() if line.startswith("tls://")]):
        assert time.monotonic() < end, cluster.log.read_text()
        assert cluster.process.poll() is None, cluster.log.read_text()
        time.sleep(0.1)
    return said[0]


def job_of(worker: str, slurm: Slurm) -> str:
    """The job of a worker, by what its script says."""
    for job in slurm("squeue", "--noheader", "--format=%A").split():
        if f"--name {worker} " in slurm("scontrol", "write", "batch_script", job, "-"):
            return job
    return ""


def running(slurm: Slurm) -> list[str]:
    return slurm("squeue", "--noheader", "--states=RUNNING", "--format=%A").split()


def test_the_guide_s_cluster_gives_the_same_bytes_though_a_job_is_cancelled(
    slurm: Slurm, many: Farm, cluster: tuple[str, Project]
) -> None:
    at, home = cluster
    end = time.monotonic() + 120
    while len(first := running(slurm)) < WORKERS:
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.5)
    tls = [f"--tls-{what}={home.folder}/tls/{name}" for what, name in FILES.items()]
    bring_engine(many, many.remote)
    argv = ["run", "recipe.yaml", "--locked", *HOST, "--remote", many.remote, "--executor", f"dask={at}", *tls]
    struck: list[str] = []

    def moment(event: dict[str, Any]) -> None:
        worker = worker_of(event)
        if worker and event["step"].startswith("reference") and not struck:
            struck.append(job_of(worker, slurm))
            slurm("scancel", struck[0])

    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvflow", *argv, "--json"],
        cwd=home.folder, env=home.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    timer = threading.Timer(900, process.kill)
    timer.start()
    events = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            events.append(json.loads(line))
            moment(events[-1])
    _, err = process.communicate()
    timer.cancel()
    assert process.returncode == 0, err
    assert struck, "a job was cancelled"
    assert struck[0] in first
    again = [event["step"] for event in events if str(event.get("line", "")).startswith("begun again")]
    assert any(step.startswith("reference") for step in again), "what it was at was done again"
    workers = {worker_of(event) for event in events if worker_of(event)}
    assert len(workers) > 1, workers
    assert home.files() == many.one.files()
    assert len(home.files()) > 15
    end = time.monotonic() + 90
    while len(now := running(slurm)) < WORKERS:
        assert time.monotonic() < end, "another job takes the place of the one that was cancelled"
        time.sleep(0.5)
    assert struck[0] not in now


FILES = {"ca": "ca.pem", "cert": "node.pem", "key": "node.key"}
