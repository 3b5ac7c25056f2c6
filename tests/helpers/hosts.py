"""Hosts of a test's own: network namespaces on one bridge, with Dask's workers in them and a scheduler before them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TTL_S = 5  # after which the scheduler gives up a worker that says nothing


def why_not() -> str | None:
    """Why no such hosts can be made here, in words."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if shutil.which("ip") is None:
        return "network namespaces need ip (iproute2)"
    name = f"rwf-{os.getpid()}-t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


def certificates(folder: Path, days: tuple[int, int] = (-1, 2)) -> dict[str, Path]:
    """An authority and one certificate by it: ca, cert, key. `days`: from now, of their validity."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir(parents=True, exist_ok=True)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("ca", "cert")}
    files = {}
    for who in ("ca", "cert"):
        built = (
            x509.CertificateBuilder()
            .subject_name(name(who))
            .issuer_name(name("ca"))
            .public_key(keys[who].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=who == "ca", path_length=None), critical=True)
            .sign(keys["ca"], hashes.SHA256())
        )
        files[who] = folder / f"{who}.pem"
        files[who].write_bytes(built.public_bytes(serialization.Encoding.PEM))
    files["key"] = folder / "key.pem"
    files["key"].write_bytes(
        keys["cert"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    files["key"].chmod(0o600)
    return files


def tls(files: Mapping[str, Path]) -> list[str]:
    """As Dask's commands, and ours, take them."""
    return ["--tls-ca", str(files["ca"]), "--tls-cert", str(files["cert"]), "--tls-key", str(files["key"])]


def dask_tls(files: Mapping[str, Path]) -> list[str]:
    """As Dask's commands take them."""
    return ["--tls-ca-file", str(files["ca"]), "--tls-cert", str(files["cert"]), "--tls-key", str(files["key"])]


@dataclass
class Process:
    """A program in a session of its own, with its log."""

    log: Path
    process: subprocess.Popen[bytes]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it, and all that it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """End it for good; a stopped one too."""
        self.kill(signal.SIGKILL)
        self.process.wait(timeout=30)


def start(argv: list[str], log: Path, env: Mapping[str, str]) -> Process:
    """Start a program whose output goes into a file."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
        )
    return Process(log, process)


def kill_all(pids: Iterable[int]) -> None:
    """End processes at once, as far as they are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Host:
    """One host: a namespace, an address, a store, and a worker."""

    name: str
    space: str
    link: str  # its end outside
    address: str
    store: Path
    worker: Process | None = None

    def kill(self) -> None:
        """As a power cut: its worker, the nanny and every command of theirs are gone."""
        assert self.worker is not None
        found = self.pids()
        self.worker.kill()
        kill_all(found)

    def pids(self) -> list[int]:
        """Of all that runs there."""
        listed = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]

    def commands(self) -> list[str]:
        """What runs there, as it was called."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return [line for line in found if line]

    def cut(self) -> None:
        """No packet comes or goes any more."""
        subprocess.run(["ip", "link", "set", self.link, "down"], check=True)

    def mend(self) -> None:
        """They do again."""
        subprocess.run(["ip", "link", "set", self.link, "up"], check=True)

    def slow(self, seconds: float) -> None:
        """For so long its processes get a third of the time; not all kernels can slow packets down."""
        assert self.worker is not None
        worker, end = self.worker, time.monotonic() + seconds

        def pulse() -> None:
            while time.monotonic() < end:
                worker.kill(signal.SIGSTOP)
                time.sleep(0.2)
                worker.kill(signal.SIGCONT)
                time.sleep(0.1)

        threading.Thread(target=pulse, daemon=True).start()


@dataclass
class Hosts:
    """All of them, the bridge that they hang on, and the scheduler on this side of it."""

    folder: Path
    number: int
    files: Mapping[str, Path]
    env: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    scheduler: Process | None = None
    port: int = 0

    @property
    def bridge(self) -> str:
        return f"rwfb{self.number}"

    @property
    def gateway(self) -> str:
        return f"10.{200 + self.number % 50}.{self.number // 50 % 250}.1"

    @property
    def address(self) -> str:
        return f"tls://{self.gateway}:{self.port}"

    def options(self) -> list[str]:
        """Of `rwkvflow run`."""
        return ["--executor", f"dask={self.address}", *tls(self.files)]

    def begin(self, environments: Path) -> None:
        """Start scheduler and workers, each with a store that has environments and nothing else."""
        self.port = free_port(self.gateway)
        env = {
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL_S}s",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
            "PYTHONPATH": str(ROOT),
        }
        dask = [sys.executable, "-m", "dask"]
        at = ["--host", self.gateway, "--port", str(self.port), "--protocol", "tls", "--no-dashboard"]
        self.scheduler = start([*dask, "scheduler", *at, *dask_tls(self.files)], self.folder / "scheduler.log", env)
        wait_for(self.gateway, self.port)
        for host in self.hosts.values():
            host.store.mkdir(parents=True)
            (host.store / "environments").symlink_to(environments)
            scratch = self.folder / f"{host.name}.scratch"
            scratch.mkdir()
            argv = [*dask, "worker", self.address, *dask_tls(self.files), "--name", host.name, "--nthreads", "1"]
            argv += ["--host", host.address, "--protocol", "tls", "--no-dashboard", "--local-directory", str(scratch)]
            argv += ["--memory-limit", "2GiB", "--death-timeout", "20"]
            host.worker = start(
                ["ip", "netns", "exec", host.space, *argv],
                self.folder / f"{host.name}.log",
                {**env, **self.env, "RWKVFLOW_STORE": str(host.store)},
            )

    def of(self, worker: str) -> str:
        """The host of a worker, by its name or its address; "" for none."""
        return next((host.name for host in self.hosts.values() if host.name == worker or host.address in worker), "")

    def wait(self, seconds: float = 60) -> None:
        """Until all workers are there."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (self.folder / "scheduler.log").read_text().count("Register worker addr") >= len(self.hosts):
                return
            time.sleep(0.2)
        raise AssertionError("not all workers came")


def free_port(address: str) -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def wait_for(address: str, port: int, seconds: float = 60) -> None:
    """Until somebody listens."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at {address}:{port}")


@contextlib.contextmanager
def hosts(folder: Path, names: list[str]) -> Iterator[Hosts]:
    """Hosts of these names, with nothing started on them yet. Everything is taken away afterwards."""
    made = Hosts(folder, os.getpid() % 9000, certificates(folder / "tls"))
    rule = ["DOCKER-USER", "-i", made.bridge, "-j", "ACCEPT"]  # Docker drops what is forwarded on a stranger's bridge
    with contextlib.ExitStack() as stack:
        ip("link", "add", made.bridge, "type", "bridge")
        stack.callback(ip, "link", "del", made.bridge, check=False)
        ip("addr", "add", f"{made.gateway}/24", "dev", made.bridge)
        ip("link", "set", made.bridge, "up")
        if subprocess.run(["iptables", "-I", *rule], capture_output=True, check=False).returncode == 0:
            stack.callback(subprocess.run, ["iptables", "-D", *rule], capture_output=True, check=False)
        for index, name in enumerate(names):
            space, link = f"rwf{made.number}{name}", f"rwf{made.number}x{index}"
            address = made.gateway.rpartition(".")[0] + f".{10 + index}"
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space, check=False)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            stack.callback(ip, "link", "del", link, check=False)  # a namespace's end takes it away some time later
            ip("link", "set", link, "master", made.bridge)
            ip("link", "set", link, "up")
            for argv in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                ip("-n", space, *argv)
            ip("-n", space, "link", "set", "lo", "up")
            made.hosts[name] = Host(name, space, link, address, folder / name / "store")
        try:
            yield made
        finally:
            for host in made.hosts.values():
                if host.worker is not None:
                    host.kill()
                    host.worker.end()
            if made.scheduler is not None:
                made.scheduler.end()


def ip(*argv: str, check: bool = True) -> None:
    """Run ip."""
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(argv)}: {done.stderr.strip()}")
