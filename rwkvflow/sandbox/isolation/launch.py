"""Starts one command behind walls that the kernel has for everybody: `python -I -S launch.py SPEC -- ARGV…` (Linux).

A program of its own, with the standard library only: it changes the process that it runs in, for good, and that must
be one without threads. SPEC is JSON: {"namespaces": bool, "readonly": bool, "landlock": bool, "read": [...], "write":
[...]}; what it asks for is put up or the command does not start. `--probe` prints what this machine has.

Namespaces (user, network, processes, mounts, IPC): no network but a loopback of its own, no sight of other processes
where /proc can be mounted anew, all file systems read-only but for what SPEC lists, and whatever the command started
ends with it. Landlock (files): what SPEC lists can be read, or written, and nothing else can be opened. Capabilities
are dropped, so that root inside is nobody special.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

with suppress(ImportError):  # on Windows there are neither these nor walls
    import fcntl
    import resource

FAILED = 125  # exit code where a wall could not be put up

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x00020000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 1, 24, 38, 47, 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# Landlock: the system calls have these numbers on every processor.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # those that a rule on a file may name
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_NET_BIND, _NET_CONNECT = 1, 2
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2


@cache
def _libc() -> Any:
    """The program's own C library, which only a system with walls has: so not when this is imported."""
    return ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> NoReturn:
    """Put up the walls, then become the command; exits with FAILED and a message if that is not possible."""
    if argv == ["--probe"]:
        print(json.dumps(probe()))
        sys.exit(0)
    spec, command = json.loads(argv[0]), argv[2:]
    try:
        start(spec, command)
    except OSError as error:
        print(f"a wall of the host sandbox could not be put up: {error}", file=sys.stderr)
        sys.exit(FAILED)


def start(spec: dict[str, Any], command: list[str]) -> NoReturn:
    """Put up what the spec asks for, and become the command (or wait for it, in the outer process)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spec["namespaces"]:
        enter_namespaces()
        _fork_first()
        _mount_proc()
        if spec["readonly"]:
            make_readonly(spec["write"])
    drop_capabilities()
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if spec["landlock"]:
        restrict(spec["read"], spec["write"], network=not spec["namespaces"])
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127 if error.errno == errno.ENOENT else 126)


def probe() -> dict[str, Any]:
    """{"namespaces": bool, "readonly": bool, "landlock": its version or 0}, each tried in a process of its own."""
    version = _libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return {
        "namespaces": _works(enter_namespaces),
        "readonly": _works(_readonly_namespace),
        "landlock": max(0, version) if _works(lambda: restrict(["/"], [], network=True)) else 0,
    }


def _works(function: Any) -> bool:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
                function()
                code = 0
        except OSError:
            pass
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- namespaces ------------------------------------------------------------------------------------------------


def enter_namespaces() -> None:
    """New ones, with the user's own number inside, and a loopback that works."""
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", _NAMESPACES)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 - no pathlib: starts faster
            file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(handle, _SIOCGIFFLAGS, struct.pack("16s24x", b"lo")))
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


def _fork_first() -> None:
    """Returns in a child of the first process of the namespace, when which ends all end; the others wait for it."""
    outer = os.getpid()
    first = os.fork()
    if first:
        _wait(first)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() not in (0, outer):  # 0: a parent outside of the namespace
        os._exit(FAILED)
    command = os.fork()
    if command:
        _wait(command)


def _wait(pid: int) -> NoReturn:
    """End as this child ends; others, which are orphans of the command, are only reaped."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):  # the command's output ends with the command
        os.dup2(null, handle)
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _mount_proc() -> None:
    """A /proc of these processes alone, where the kernel lets us; inside of some containers it does not."""
    if _libc().mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) == 0:
        flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        _libc().mount(b"proc", b"/proc", b"proc", flags, None)


def make_readonly(write: list[str]) -> None:
    """Every file system that is mounted here, but for these folders; devices are not touched by that."""
    folders = [os.fsencode(path) for path in write if os.path.isdir(path)]  # noqa: PTH112 - see above
    _mount(None, b"/", _MS_REC | _MS_PRIVATE)
    for path in folders:
        _mount(path, path, _MS_BIND | _MS_REC)
    _set_mount(b"/", _AT_RECURSIVE, added=_MOUNT_ATTR_RDONLY)
    for path in folders:
        _set_mount(path, _AT_RECURSIVE, removed=_MOUNT_ATTR_RDONLY)


def _readonly_namespace() -> None:
    enter_namespaces()
    make_readonly([os.getcwd()])  # noqa: PTH109 - see above


def _mount(source: bytes | None, target: bytes, flags: int) -> None:
    _call("mount", source, target, None, ctypes.c_ulong(flags), None)


def _set_mount(path: bytes, flags: int, *, added: int = 0, removed: int = 0) -> None:
    attributes = struct.pack("QQQQ", added, removed, 0, 0)
    arguments = (ctypes.c_int(_AT_FDCWD), path, ctypes.c_uint32(flags), attributes, ctypes.c_size_t(len(attributes)))
    if _libc().syscall(_MOUNT_SETATTR, *arguments):
        raise OSError(ctypes.get_errno(), f"mount_setattr: {os.strerror(ctypes.get_errno())}")


def drop_capabilities() -> None:
    """None can be had any more, by executing what as root would give them either."""
    for number in range(64):
        if _libc().prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            if ctypes.get_errno() == errno.EINVAL:
                break  # beyond the last
            if os.getuid():
                break  # without privileges there are none to drop
            raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
    _libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    _call("capset", header, bytes(24))


# ---- Landlock --------------------------------------------------------------------------------------------------


def restrict(read: list[str], write: list[str], *, network: bool) -> None:
    """From now on only these folders and files can be opened; with `network`, no TCP port either (interface 4)."""
    version = _libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    if version < 1:
        raise OSError(ctypes.get_errno(), "Landlock is not there")
    every = (1 << 13) - 1
    every |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL_DEV if version >= 5 else 0)
    ports = _NET_BIND | _NET_CONNECT if network and version >= 4 else 0
    scopes = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= 6 else 0
    attributes = struct.pack("QQQ", every, ports, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _libc().syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock refuses the rules")
    for paths, rights in ((read, _READ & every), (write, every)):
        for path in paths:
            _allow(ruleset, path, rights)
    if _libc().syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "Landlock refuses this process")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there: nothing to allow
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - see above
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, handle)
        if _libc().syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), f"Landlock refuses {path}")
    finally:
        os.close(handle)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc(), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
