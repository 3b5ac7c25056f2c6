"""How much memory there is for weights that stay: a share of what this machine and this container have free."""

from __future__ import annotations

from pathlib import Path

LARGEST = 8 << 30  # bytes; half of the limit that the stages which compute have by default
CGROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def room(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: half of what is free, at most LARGEST; 0 where nobody tells."""
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        free = [next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))]
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
    for most, used in CGROUP:  # of this container, where it is in one
        try:
            free.append(int((cgroup / most).read_text("ascii")) - int((cgroup / used).read_text("ascii")))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return max(0, min(LARGEST, min(free) // 2))
