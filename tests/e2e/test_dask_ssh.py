"""A cluster over SSH, typed as the guide on clusters says it: sshd, keys and machines of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli import Project
from tests.e2e.test_matrix import HOST, Farm, farm
from tests.helpers.bucket import served
from tests.helpers.guide import changed, told
from tests.helpers.hosts import wait_for, why_not
from tests.helpers.machines import Machine, machines

pytest.importorskip("distributed")
pytest.importorskip("paramiko")
pytest.importorskip("moto.server")

MISSING = [tool for tool in ("/usr/sbin/sshd", "/usr/bin/ssh", "/usr/bin/scp") if not Path(tool).exists()]
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install openssh-server"),
]
PAGE = "guides/clusters.md"
NAMES = ["laptop", "head", "node1", "node2", "node3"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """A release made by one run on this machine."""
    folder = tmp_path_factory.mktemp("farm")
    return farm(folder, ["rwkv4", "rwkv7"], ["ggml-q5_1", "safetensors"], ["py3.11"])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[dict[str, Machine], str]]:
    """A laptop, and machines whose sshd takes its key; and the address where this machine can be reached."""
    with machines(tmp_path, NAMES) as (found, gateway):
        laptop = found["laptop"]
        laptop.shell("mkdir -m 700 .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
        key = (laptop.home / ".ssh" / "id_ed25519.pub").read_text()
        for name in NAMES[1:]:
            machine = found[name]
            (machine.home / ".ssh").mkdir(mode=0o700)
            (machine.home / ".ssh" / "authorized_keys").write_text(key)
            (machine.root / "run" / "sshd").mkdir(mode=0o755)
            config = "UsePAM no\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
            (machine.root / "etc" / "ssh" / "sshd_config").write_text(config)
            for old in (machine.root / "etc" / "ssh").glob("ssh_host_*"):
                old.unlink()
            machine.shell("ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key")
            machine.start("sshd", "/usr/sbin/sshd", "-D", "-e")
            wait_for(machine.address, 22)
        yield found, gateway


def test_what_the_guide_types_gives_the_bytes_of_a_local_run(many: Farm, site: tuple[dict[str, Machine], str]) -> None:
    found, gateway = site
    laptop = found["laptop"]
    certificates, run, configuration = told(PAGE, "TLS")
    (typed,) = told(PAGE, "SSH")
    laptop.shell(certificates)
    with served(gateway) as env:
        lines = [f'export {name}="{value}"\n' for name, value in {**env, "RWKVFLOW_STORE": "$HOME/store"}.items()]
        (laptop.home / "bucket.env").write_text("".join(lines))
        (laptop.home / "tls.yaml").write_text(changed(configuration, **{"/home/user": "/run/me"}))
        for machine in found.values():  # each has a home of its own, and the guide's are at the same place
            (machine.root / "run" / "me").symlink_to(machine.home)
        for name in NAMES[1:]:
            (found[name].home / "store").mkdir()
            (found[name].home / "store" / "environments").symlink_to(many.one.store / "environments")
        copying, starting = typed.split("dask ssh", 1)
        accept = "mkdir -p .ssh; echo 'StrictHostKeyChecking accept-new' >> .ssh/config\n"
        laptop.shell(f"{accept}{copying}")
        command = changed(f"dask ssh{starting}", **{"--nthreads 8": "--nthreads 1"})
        ssh = laptop.start("dask-ssh", "bash", "-c", f"PATH=/opt/rwkvflow/bin:$PATH; {command}")
        workers(laptop, 3)
        home = Project(laptop.home / "p", laptop.home / "store")
        home.store.mkdir()
        (home.store / "environments").symlink_to(many.one.store / "environments")
        shutil.copytree(many.one.store / "downloads", home.store / "downloads", copy_function=os.link)
        shutil.copytree(many.one.folder, home.folder, ignore=shutil.ignore_patterns("out"))
        (line,) = [line for line in run.splitlines() if line.startswith("rwkvflow run")]
        line = changed(line, **{"my.yaml": "recipe.yaml", "my-bucket": "bucket"})
        for name in ("ca.pem", "node.pem", "node.key"):
            line = line.replace(name, f"../{name}")
        line = f"{line} --locked --json {' '.join(HOST)}"
        environment = home.environment({**env, "PATH": f"/opt/rwkvflow/bin:{os.environ['PATH']}"})
        out = laptop.shell(f"cd p; {line}", env=environment, timeout=900)
        events = [json.loads(text) for text in out.splitlines() if text.startswith("{")]
        said = [str(event["line"]) for event in events if event["event"] == "StepLog"]
        by = {name for name in NAMES for line in said if line.startswith("on ") and line.endswith(f" on {name}")}
        assert by <= {"node1", "node2", "node3"}, by
        assert len(by) > 1, by
        assert home.files() == many.one.files()
        assert len(home.files()) > 15
        nothing_else(found)
        ssh.kill(signal.SIGINT)
        end = time.monotonic() + 60
        while ssh.process.poll() is None:
            assert time.monotonic() < end, laptop.logs()
            time.sleep(0.2)
    left = [name for name in NAMES[1:] if "dask" in found[name].processes()]
    assert not left, "Ctrl-C ends all of it"


def workers(laptop: Machine, number: int) -> None:
    """Wait until so many workers are there."""
    log = laptop.home.parent / "dask-ssh.log"
    end = time.monotonic() + 120
    while log.read_text(errors="replace").count("Register worker addr: tls://") < number:
        assert time.monotonic() < end, laptop.logs()
        time.sleep(0.2)


def nothing_else(found: dict[str, Machine]) -> None:
    """Without a certificate nobody learns anything: the web pages, which have no TLS, are empty."""
    for name in ("health", "info/main/workers.html", "json/counts.json", "metrics"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{found['head'].address}:8787/{name}", timeout=20)
    with urllib.request.urlopen(f"http://{found['head'].address}:8787/status", timeout=20) as page:
        assert b"Dask needs bokeh" in page.read(), "which no extra of ours brings"
