"""Workers on a real Slurm: its controller and its node daemon on this machine, with a munge of their own.

`matrix --format slurm` writes the array, and the lines of its head are what is typed: sbatch, and sbatch again for what
publishes. Each worker has a store of its own and shares a folder with the others. One of them is killed at a step.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_matrix import HOST, Farm, farm

WORKERS = 3
LEASE_S = 8
WORKFLOW = """\
stages:
  engine: {memory: 1GiB}
  convert: {memory: 1GiB}
  reference: {memory: 1GiB}
  smoke: {memory: 1GiB}
extra:
  - name: slow
    each: artifact
    needs: convert
    command: [python3, in/slow.py, in/artifact, out/slow.txt]
    inputs: {artifact: artifact, slow.py: slow.py}
    outputs: [slow.txt]
    publish: true
    memory: 1GiB
"""
SLOW = "import sys, time\nfrom pathlib import Path\n\ntime.sleep(4)\n" + (
    "Path(sys.argv[2]).write_text(str(Path(sys.argv[1]).stat().st_size))\n"
)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Slurm:
    """A cluster of one node. `prolog` is a script whose output sets variables of each task."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    def __call__(self, *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            argv, cwd=cwd, env={**os.environ, "SLURM_CONF": str(self.conf), **(env or {})},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stderr}{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        return "".join(f"\n== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def start(self, *argv: str) -> None:
        with (self.folder / f"{Path(argv[0]).name}.log").open("ab") as log:
            env = {**os.environ, "SLURM_CONF": str(self.conf)}
            self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log, env=env))

    def jobs(self, job: str) -> dict[str, dict[str, str]]:
        """By its place in the array ("" where it is none), what the controller knows of each task of a job."""
        found = {}
        for line in self("scontrol", "show", "job", job, "--oneliner").splitlines():
            known = dict(item.split("=", 1) for item in line.split() if "=" in item)
            found[known.get("ArrayTaskId", "")] = known
        return found

    def kill(self, job: str) -> None:
        """kill -9 for all processes of a job; scancel would ask it to end first."""
        lines = [line.split() for line in self("scontrol", "listpids", job).splitlines()[1:]]
        numbers = {int(line[0]) for line in lines if line and line[0].isdigit()}
        assert numbers, "it runs"
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def wait(self, job: str, seconds: float) -> None:
        """Until a job has ended."""
        end = time.monotonic() + seconds
        while self("squeue", "--noheader", "--jobs", job, "--format=%i %T"):
            assert time.monotonic() < end, f"it did not end{self.logs()}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """slurmctld, slurmd and munged of this user, below a temporary folder."""
    missing = [tool for tool in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    prolog = folder / "prolog.sh"
    prolog.write_text(f'#!/bin/sh\necho "export RWKVFLOW_STORE={folder}/stores/${{SLURM_ARRAY_TASK_ID:-publish}}"\n')
    prolog.chmod(0o755)
    lines = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "SlurmctldPort": _free_port(),
        "SlurmdPort": _free_port(),
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "TaskProlog": prolog,
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerParameters": "sched_min_interval=100000,batch_sched_delay=0,sched_interval=2",
        "ReturnToService": 2,
        "KillWait": 5,
        "MailProg": "/bin/true",
        # More cores than there are, so that the workers run at the same time on any machine.
        "SlurmdParameters": "config_overrides",
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={2 * WORKERS} RealMemory=16384 State=UNKNOWN",
        "PartitionName": "main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    }
    one = Slurm(folder, [])
    one.conf.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    try:
        munge = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
        one.start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        _until(lambda: (folder / "munge.socket").exists(), one)
        one.start("slurmctld", "-D", "-f", str(one.conf))
        one.start("slurmd", "-D", "-f", str(one.conf), "-N", host)
        _until(lambda: "idle" in _told("sinfo", one), one)
        yield one
    finally:
        for process in reversed(one.processes):
            process.terminate()
        for process in one.processes:
            with_patience(process)


def with_patience(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()


def _told(command: str, slurm: Slurm) -> str:
    env = {**os.environ, "SLURM_CONF": str(slurm.conf)}
    done = subprocess.run([command, "--noheader"], env=env, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout


def _until(moment: Any, slurm: Slurm, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end, f"it never came{slurm.logs()}"
        time.sleep(0.1)


def _events(store: Path) -> list[dict[str, Any]]:
    """What the worker with this store has done so far."""
    return [
        json.loads(line)
        for path in sorted(store.glob("runs/*/*.jsonl"))
        for line in path.read_text().splitlines()
        if line.endswith("}")
    ]


def _at(store: Path, stage: str) -> str:
    """The step of a stage that a worker is at; "" for none."""
    open_: dict[str, None] = {}
    for event in _events(store):
        if event["event"] == "StepStarted":
            open_[event["step"]] = None
        elif event["event"] == "StepFinished":
            open_.pop(event["step"], None)
    return next((step for step in open_ if step.startswith(stage)), "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """A release made by one run on this machine."""
    folder = tmp_path_factory.mktemp("one")
    return farm(folder, ["rwkv4", "rwkv7"], ["ggml-q5_1", "safetensors"], ["py3.11"], workflow=(WORKFLOW, SLOW))


def bring_engine(made: Farm, remote: str) -> None:
    """Building it takes a minute, and is a step like others."""
    done = made.one("engine", "build", "recipe.yaml", "--remote", remote, *HOST)
    assert done.code == 0, done.err


@pytest.mark.soak
def test_an_array_makes_the_bytes_of_one_run_though_one_of_it_is_killed(slurm: Slurm, made: Farm) -> None:
    project = made.machine("cluster")
    for name in (*map(str, range(WORKERS)), "publish"):  # a node's own disk: nothing but wheels and environments
        store = slurm.folder / "stores" / name
        store.mkdir(parents=True)
        for part in ("environments", "downloads"):
            (store / part).symlink_to(made.one.store / part)
    bring_engine(made, made.remote)
    asked = ("matrix", "recipe.yaml", "--format", "slurm", "--workers", str(WORKERS), "--workflow", "workflow.yaml")
    written = project(*asked)
    assert written.code == 0, written.err
    project.write("workers.sbatch", written.out)
    typed = re.findall(r"(?m)^#   (.*)$", written.out)
    assert len(typed) == 2, "sbatch, and sbatch for what publishes"
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RWKVFLOW_REMOTE": made.remote,
        "RWKVFLOW_LEASE": str(LEASE_S),
        "PYTHONPATH": project.environment()["PYTHONPATH"],
        "CI": "1",
    }
    told = slurm("bash", "-c", "\n".join([*typed, "echo $job"]), cwd=project.folder, env=env).split()
    publisher, array = told[-2], told[-1]

    stores = {str(number): slurm.folder / "stores" / str(number) for number in range(WORKERS)}
    victim = ""
    end = time.monotonic() + 180
    while not victim:
        assert time.monotonic() < end, f"nobody came to the slow stage{slurm.logs()}"
        victim = next((name for name, store in stores.items() if _at(store, "extra/")), "")
        time.sleep(0.1)
    step = _at(stores[victim], "extra/")
    slurm.kill(slurm.jobs(array)[victim]["JobId"])
    slurm.wait(array, 300)
    slurm.wait(publisher, 120)

    ended = slurm.jobs(array)
    assert ended[victim]["JobState"] != "COMPLETED", ended[victim]
    assert [task["ExitCode"] for name, task in ended.items() if name != victim] == ["0:0"] * (WORKERS - 1), ended
    done = {name: _done(store) for name, store in stores.items()}
    assert step not in done[victim]
    assert sum(step in steps for steps in done.values()) == 1, "one other did it again"
    extras = [each for steps in done.values() for each in steps if each.startswith("extra/")]
    assert len(extras) == len(set(extras)) == 4, "and nobody did anything twice"
    assert sum(bool(steps) for steps in done.values()) >= 2
    [published] = slurm.jobs(publisher).values()
    assert published["JobState"] == "COMPLETED", (project.folder / f"slurm-{publisher}.out").read_text()
    assert project.files() == made.one.files()
    assert len(project.files()) > 15


def _done(store: Path) -> list[str]:
    return [e["step"] for e in _events(store) if e["event"] == "StepFinished" and e["status"] == "done"]


@pytest.mark.soak
def test_a_worker_that_is_told_to_end_gives_its_step_up_at_once(slurm: Slurm, made: Farm) -> None:
    """scancel sends SIGTERM, as a node that is to be drained does; nobody waits for the claim to run out."""
    project = made.machine("drained")
    name = "0"
    store = slurm.folder / "stores" / name
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    for part in ("environments", "downloads"):
        (store / part).symlink_to(made.one.store / part)
    remote = f"{slurm.folder}/remote-drained"
    bring_engine(made, f"file://{remote}")
    written = project("matrix", "recipe.yaml", "--format", "slurm", "--workers", "1", "--workflow", "workflow.yaml")
    project.write("workers.sbatch", written.out)
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RWKVFLOW_REMOTE": f"file://{remote}",
        "PYTHONPATH": project.environment()["PYTHONPATH"],
        "CI": "1",
    }
    job = slurm("sbatch", "--parsable", "--export=ALL", "workers.sbatch", cwd=project.folder, env=env).strip()
    _until(lambda: _at(store, "extra/"), slurm, 180)
    slurm("scancel", "--signal=TERM", "--full", f"{job}_0")
    slurm.wait(job, 60)
    log = "".join(path.read_text() for path in project.folder.glob(f"slurm-{job}_*.out"))
    assert "interrupted" in log, log
    assert not list(Path(remote).glob("leases/*/*/*.json"))
    done = project(
        "run", "recipe.yaml", "--locked", "--workflow", "workflow.yaml", "--remote", f"file://{remote}", *HOST
    )
    assert done.code == 0, done.err
    assert project.files() == made.one.files()
