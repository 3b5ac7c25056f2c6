"""The process in which a stranger's template is rendered; see rwkvflow.base.jinja_apart, which starts it."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from pathlib import Path


def main() -> int:
    """Render what standard input holds. 0: the text is on standard output; 3: what is wrong with the template."""
    from jinja2 import TemplateError

    # Our own parent's words: what makes the environment, the template, what it sees, and the bounds.
    maker, template, told, seconds, memory, largest = pickle.loads(sys.stdin.buffer.read())  # noqa: S301
    module, _, name = maker.partition(":")
    environment = getattr(importlib.import_module(module), name)()
    _limit(seconds, memory)
    mistakes = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)  # in expressions
    try:
        pieces, length = [], 0
        for piece in environment.from_string(template).generate(told):
            length += len(piece)
            if length > largest:
                sys.stdout.write(f": it makes more than {largest >> 20} MiB of text")
                return 3
            pieces.append(piece)
    except (TemplateError, *mistakes) as error:
        line = getattr(error, "lineno", None) or line_of(error)
        sys.stdout.write(f"{f', line {line}' if line else ''}: {error}"[:2000])
        return 3
    except MemoryError:
        return 4
    sys.stdout.buffer.write("".join(pieces).encode("utf-8", "backslashreplace"))
    return 0


def line_of(error: BaseException) -> int | None:
    """The line of a template that an error came from."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _limit(seconds: int, memory: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + memory
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    except (OSError, ValueError):
        return  # not on macOS


if __name__ == "__main__":
    sys.exit(main())
