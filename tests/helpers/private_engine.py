"""A Docker engine of a test's own: another data root and socket, and another network namespace.

Without the last, an engine without a bridge removes that of the machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def problem() -> str | None:
    """Why there can be none here."""
    if os.name != "posix" or os.getuid() != 0:
        return "an engine of one's own needs root"
    return None if shutil.which("dockerd") else "there is no dockerd"


@dataclass
class PrivateEngine:
    """dockerd, and the containerd that it starts; `kill` is what a crash is, `start` what the system does then."""

    root: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    clients: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        """DOCKER_HOST."""
        return f"unix://{self.root}/docker.sock"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.root.mkdir(parents=True, exist_ok=True)
        # A killed one leaves them; and its containerd may stay a zombie, which dockerd takes for one that runs.
        for name in ("docker.pid", "exec-root/containerd/containerd.pid"):
            (self.root / name).unlink(missing_ok=True)
        argv = [
            "unshare",
            "--net",
            "dockerd",
            "--host",
            self.address,
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        ]
        for name in ("data-root", "exec-root"):
            argv += [f"--{name}", str(self.root / name)]
        argv += ["--pidfile", str(self.root / "docker.pid"), *self.options]
        log = (self.root / "dockerd.log").open("ab")
        with log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(Exception):
                self.client().ping()
                return
            time.sleep(0.1)
        tail = (self.root / "dockerd.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"dockerd does not answer:\n{tail}")

    def client(self) -> Any:
        """A client of it, closed with it."""
        import docker

        made = docker.DockerClient(base_url=self.address, timeout=120)
        self.clients.append(made)
        return made

    def kill(self) -> None:
        """End it at once. Its containerd goes with it; its containers do not, and the next start finds them."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order, and clear away what it mounted."""
        for client in self.clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._kill_containers()
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((item for item in mounts if item.startswith(f"{self.root}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)

    def _kill_containers(self) -> None:
        """The shims of containers leave the group of their engine; each names its socket or folder of ours."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].rpartition(b"/")[2].startswith((b"containerd", b"runc")) and any(
                    os.fsencode(self.root) in word for word in words
                ):
                    for child in _children(int(entry.name)):
                        os.kill(child, signal.SIGKILL)
                    os.kill(int(entry.name), signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def private_engine(*options: str) -> Iterator[PrivateEngine]:
    """One that runs; its folder's name is short, as the name of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="rwkvflow-engine-", ignore_cleanup_errors=True) as folder:
        engine = PrivateEngine(Path(folder), options)
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()
