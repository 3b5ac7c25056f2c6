"""Python as it is where there is no POSIX: tests put this folder on PYTHONPATH, and commands run in it for real.

The modules that Windows lacks cannot be imported, and the functions of `os` that it lacks are gone: all but statvfs,
with which shutil does here what it does otherwise on Windows.
"""

import importlib.abc
import os
import sys

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
