"""Runs inside an image build, with the base image's own Python: `python3 stage.py COMMAND ARGUMENT...`.

Standard library only, and old syntax only: it also tells a Python 3.6 that it is not the one that was asked for.
"""

import os
import shutil
import sys
from pathlib import Path


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


def own(folder, user):
    """Make a folder that belongs to uid:gid."""
    uid, gid = user.split(":")
    Path(folder).mkdir(parents=True)
    os.chown(folder, int(uid), int(gid))


COMMANDS = {"check-python": check_python, "check-toolchain": check_toolchain, "compile": compile_all, "own": own}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
