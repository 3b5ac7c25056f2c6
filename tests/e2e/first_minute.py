"""The first minute of a user: an empty environment with only uv, one line that converts and proves, one that talks.

    python -m tests.e2e.first_minute dist/rwkvflow-….whl [MODEL.pth]

Prints what a user sees, the processor's time and what was downloaded besides the checkpoint. The hub is a stand-in; all
other traffic goes through a proxy that counts. `python scripts/build_wheels.py dist` makes the wheel.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.standin import StandIn

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
# uv's scripts start with these two; there is no compiler, no git, no pip.
TOOLS = ("realpath", "dirname")
FORMATS = ("gguf-q4_k_m", "ggml-q8_0")


@dataclass
class Counter:
    """A proxy that tunnels to what it is asked for (CONNECT), or to the proxy of this machine, and counts."""

    listener: socket.socket
    onward: str | None
    received: int = 0  # bytes
    hosts: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        """As HTTPS_PROXY has it."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Take connections until the listener is closed."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head and (read := client.recv(65536)):
                head += read
            words = head.split(maxsplit=2)
            if len(words) < 2 or words[0] != b"CONNECT":
                client.sendall(b"HTTP/1.1 405 Only CONNECT\r\n\r\n")
                return
            host, _, port = words[1].decode().rpartition(":")
            with self.lock:
                self.hosts.add(host)
            onward = urlsplit(self.onward) if self.onward else None
            to = (onward.hostname or "", onward.port or 80) if onward else (host, int(port))
            try:
                server = socket.create_connection(to, timeout=60)
            except OSError as error:
                client.sendall(f"HTTP/1.1 502 {error}\r\n\r\n".encode())
                return
            with server:
                if onward:
                    server.sendall(head)
                else:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                up = threading.Thread(target=self._pump, args=(client, server, False), daemon=True)
                up.start()
                self._pump(server, client, True)

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while read := source.recv(1 << 18):
                target.sendall(read)
                if counted:
                    with self.lock:
                        self.received += len(read)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one side has gone; the other notices


@contextmanager
def counted() -> Iterator[Counter]:
    """A counting proxy on loopback."""
    onward = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        counter = Counter(listener, onward)
        threading.Thread(target=counter.serve, daemon=True).start()
        yield counter


@dataclass(frozen=True)
class Line:
    """One line that a user types: what it printed, its exit code, seconds of processor time, bytes downloaded."""

    words: tuple[str, ...]
    output: str
    errors: str
    code: int
    cpu: float
    downloaded: int


def first_minute(wheel: Path, checkpoint: Path, folder: Path) -> list[Line]:
    """Both lines, with everything of theirs below `folder`."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if uv is None:
        raise RuntimeError("uv is needed")
    programs = folder / "bin"
    programs.mkdir()
    for name, path in {"uv": uv, "uvx": f"{uv}x", **{tool: shutil.which(tool) for tool in TOOLS}}.items():
        (programs / name).symlink_to(str(path))
    run = ("uvx", "--from", str(wheel), "rwkvflow")
    with StandIn(folder / "hub") as hub, counted() as counter:
        hub.hub.create("owner/model").commit({checkpoint.name: checkpoint.read_bytes()})
        passed = {name: value for name, value in os.environ.items() if name.startswith("SSL_CERT")}
        environment = passed | {
            "PATH": str(programs),
            "HOME": str(folder / "home"),
            "HTTPS_PROXY": counter.address,
            "NO_PROXY": "127.0.0.1,127.0.0.2",
            "HF_ENDPOINT": hub.endpoint,
            "LANG": "C.UTF-8",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON": str(python),  # uv downloads one where a machine has none
        }
        formats = tuple(word for name in FORMATS for word in ("--format", name))
        source = f"hf://owner/model/{checkpoint.name}"
        lines = [_typed((*run, "convert", source, "out/", *formats), "", folder, environment, counter)]
        made = f"out/{checkpoint.stem}-Q4_K_M.gguf"
        said = (*run, "chat", made, "-n", "16", "--seed", "1")
        lines.append(_typed(said, "Once upon a time\n", folder, environment, counter))
    return lines


def _typed(words: tuple[str, ...], stdin: str, folder: Path, env: dict[str, str], counter: Counter) -> Line:
    before, downloaded = resource.getrusage(resource.RUSAGE_CHILDREN), counter.received
    done = subprocess.run(words, cwd=folder, env=env, input=stdin, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Line(words, done.stdout, done.stderr, done.returncode, cpu, counter.received - downloaded)


def printed(lines: list[Line], wheel: Path) -> Iterator[str]:
    """What a user types and sees, and what it took."""
    for line in lines:
        shown = [Path(word).name if word == str(wheel) else word for word in line.words]
        yield f"$ {' '.join(shown)}\n{line.errors}{line.output}"
        yield (
            f"[exit code {line.code}, {line.cpu:.1f} s of processor time, {line.downloaded / 1e6:.1f} MB downloaded "
            "besides the checkpoint]\n"
        )
    yield f"the wheel itself: {wheel.stat().st_size / 1e6:.1f} MB"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = first_minute(options.wheel.resolve(), options.checkpoint.resolve(), Path(folder))
    for text in printed(lines, options.wheel.resolve()):
        print(text)
    raise SystemExit(max(line.code for line in lines))


if __name__ == "__main__":
    main()
