"""Hosts with files of their own: `hosts` gives each a network, and here they get /etc, /opt and further folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.hosts import Host, Process, hosts, kill_all, start

OWN = ("etc", "opt", "run")  # below /, that a machine has for itself
#: Makes a root of what this machine has and what the other has for itself, and carries a command out there.
ENTER = """\
set -e
root=$1 own=$2
shift 2
mount --make-rprivate /
mount -t tmpfs -o mode=755 root "$root"
for folder in "$own"/*; do
  mkdir "$root/${folder##*/}"
  mount --bind "$folder" "$root/${folder##*/}"
done
for folder in /*; do
  if [ -L "$folder" ]; then
    cp -a "$folder" "$root"
  elif [ -d "$folder" ] && [ ! -e "$root$folder" ]; then
    mkdir "$root$folder"
    mount --rbind "$folder" "$root$folder"
  fi
done
cat "$own/etc/hostname" >/proc/sys/kernel/hostname
exec chroot "$root" "$@"
"""


@dataclass
class Machine:
    """One of them. `root` has what stands below its / and is not this machine's; `home` is its user's."""

    host: Host
    root: Path
    home: Path
    started: list[Process] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Its own."""
        return self.host.address

    def argv(self, command: Sequence[str], cwd: Path | None = None) -> list[str]:
        """What carries a command out there."""
        inside = ["/usr/bin/env", "-C", str(cwd or self.home), f"HOME={self.home}", *command]
        return [
            "ip", "netns", "exec", self.host.space, "unshare", "--mount", "--uts",
            "sh", "-c", ENTER, "sh", str(self.home.parent / "mounted"), str(self.root), *inside,
        ]  # fmt: skip

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        """Start a program there, with a log of this name."""
        process = start(self.argv(command, cwd), self.home.parent / f"{name}.log", env or {})
        self.started.append(process)
        return process

    def shell(self, text: str, *, env: Mapping[str, str] | None = None, timeout: float = 120) -> str:
        """What is typed there prints, in its home. Raises AssertionError where it fails."""
        done = subprocess.run(
            self.argv(["bash", "-ec", text]), env={**os.environ, **(env or {})},
            capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def logs(self) -> str:
        """The last of what its programs said."""
        return "".join(f"\n== {path}\n{path.read_text()[-3000:]}" for path in sorted(self.home.parent.glob("*.log")))

    def processes(self) -> str:
        """The commands that run there, one a line."""
        return "\n".join(self.host.commands())

    def end(self) -> None:
        """End all that runs there."""
        kill_all(self.host.pids())
        for process in self.started:
            process.end()


@contextlib.contextmanager
def machines(folder: Path, names: Sequence[str], own: Sequence[str] = ()) -> Iterator[tuple[dict[str, Machine], str]]:
    """Machines of these names, which know each other by them, and the address of this one.

    own: more folders below / that each has for itself. /opt/rwkvflow is the Python environment of this process.
    """
    with hosts(folder, list(names)) as made:
        found = {}
        for name, host in made.hosts.items():
            root, home = folder / name / "root", folder / name / "home"
            home.mkdir(parents=True)
            (home.parent / "mounted").mkdir()
            for place in (*OWN[1:], *own):
                (root / place).mkdir(parents=True)
            shutil.copytree("/etc", root / "etc", symlinks=True)
            known = [f"{other.address} {other.name}" for other in made.hosts.values()]
            (root / "etc" / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
            (root / "etc" / "hostname").write_text(f"{name}\n")
            users = (root / "etc" / "passwd").read_text().replace(":/root:", f":{home}:")
            (root / "etc" / "passwd").write_text(users)
            (root / "opt" / "rwkvflow").symlink_to(sys.prefix)
            found[name] = Machine(host, root, home)
        try:
            yield found, made.gateway
        finally:
            for machine in found.values():
                machine.end()
