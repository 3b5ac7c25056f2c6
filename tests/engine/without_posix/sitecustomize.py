"""Python as it is where there is no POSIX: tests put this folder on PYTHONPATH, and commands run in it for real.

The modules that Windows lacks cannot be imported, and the functions of `os` that it lacks are gone: all but statvfs,
with which shutil does here what it does otherwise on Windows. What is open or mapped can be neither removed nor
replaced, what is read-only not removed, and nobody may make a link.
"""

# ruff: noqa: PTH100, PTH115, PTH123, PTH208
import errno
import importlib.abc
import os
import stat
import sys
from typing import Any

MISSING = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "readline", "syslog", "posixshmem")
GONE = (
    "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "chown", "fchmod", "fork", "getegid", "geteuid",
    "getgid", "getloadavg", "getpgid", "getuid", "mkfifo", "posix_fadvise", "pread", "preadv", "pwrite", "pwritev",
    "sched_getaffinity", "setsid", "sysconf",
)  # fmt: skip


class _Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return


for _name in MISSING:
    sys.modules.pop(_name, None)
sys.meta_path.insert(0, _Missing())
for _name in GONE:
    if hasattr(os, _name):
        delattr(os, _name)
for _name in ("supports_dir_fd", "supports_fd"):
    setattr(os, _name, set())


def _in_use(path: Any) -> bool:
    """Whether this process has a file open or mapped."""
    path = os.path.abspath(os.fsdecode(path))
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    if path in found:
        return True
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(line.rstrip("\n").endswith(f" {path}") for line in maps)


def _refusing(name: str, count: int, refused: Any) -> Any:
    """os.NAME, with PermissionError where `refused` has a word against one of its first paths."""
    own = getattr(os, name)

    def call(*words: Any, **more: Any) -> Any:
        for number, path in enumerate(words[:count]):
            if why := refused(path, number):
                raise PermissionError(errno.EACCES, why, os.fsdecode(path))
        return own(*words, **more)

    return call


def _kept(path: Any, number: int) -> str | None:
    """Why a file is not removed."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    return "in use" if _in_use(path) else "read-only" if stat.S_ISREG(mode) and not mode & stat.S_IWUSR else None


def _open(path: Any, number: int) -> str | None:
    return "in use" if _in_use(path) else None


def _open_or_there(path: Any, number: int) -> str | None:
    return "in use" if _in_use(path) else "is there" if number == 1 and os.path.lexists(path) else None


os.unlink = os.remove = _refusing("unlink", 1, _kept)
os.replace = _refusing("replace", 2, _open)
os.rename = _refusing("rename", 2, _open_or_there)
os.symlink = _refusing("symlink", 1, lambda path, number: "a privilege is missing")
