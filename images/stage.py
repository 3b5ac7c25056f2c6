"""Runs inside an image build, with the base image's own Python: `python3 stage.py COMMAND ARGUMENT...`.

Standard library only, and old syntax only: it also tells a Python 3.6 that it is not the one that was asked for.
"""

import os
import shutil
import sys
from pathlib import Path

TIMES = (0, 0)  # of all that stays in an image: layers hold times, and two machines build at two of them


def check_python(wanted):
    """Ends with a message where the base image's Python is another than the recipe's."""
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if found != wanted:
        sys.exit(f"the base image has Python {found}, the recipe asks for {wanted}")


def check_toolchain():
    """Ends with a message where a program that `toolchain: system` needs is absent."""
    missing = [name for name in ("cc", "c++", "cmake") if not shutil.which(name)]
    if not (shutil.which("ninja") or shutil.which("make")):
        missing.append("ninja or make")
    if missing:
        names = ", ".join(missing)
        sys.exit(f"the base image lacks {names}: `toolchain: system` needs them, `toolchain: zig` brings its own")


def compile_all(folder):
    """Bytecode that holds no time stamp: the final image cannot write any, and imports are ten times faster with it."""
    import compileall
    import py_compile

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode, workers=0)  # 0: a process a core
    for made in sorted(Path(folder).rglob("__pycache__")):
        # No other folder: some storage drivers keep what was touched in the layer, others only what became different.
        for path in [*sorted(made.iterdir()), made, made.parent]:
            os.utime(str(path), TIMES)


def rooms():
    """The folders that commands find."""
    folders = [Path("/job"), Path("/job/in"), Path("/job/out")]
    for folder in folders:
        folder.mkdir(0o755)
    for folder in folders:
        os.utime(str(folder), TIMES)


def own(folder, user):
    """Give a folder to uid:gid."""
    uid, gid = user.split(":")
    os.chown(folder, int(uid), int(gid))


def place(source, root, to):
    """Copy a folder to root/to as it stands in an image: owner, modes and times are the same in every build."""
    target = Path(root) / to
    target.mkdir(parents=True)
    for one in sorted(Path(source).rglob("*")):  # a folder before what is in it; links are not followed
        other = target / one.relative_to(source)
        if one.is_symlink():
            other.symlink_to(os.readlink(str(one)))  # noqa: PTH115 - Path's came with Python 3.9
        elif one.is_dir():
            other.mkdir()
        elif one.is_file():
            shutil.copyfile(str(one), str(other))
            other.chmod(0o755 if one.stat().st_mode & 0o100 else 0o644)
        else:
            sys.exit(f"{one} is neither a file nor a folder nor a link")
    for path in [*sorted(Path(root).rglob("*"), reverse=True), Path(root)]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(str(path), TIMES, follow_symlinks=False)


COMMANDS = {
    "check-python": check_python,
    "check-toolchain": check_toolchain,
    "compile": compile_all,
    "rooms": rooms,
    "own": own,
    "place": place,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
