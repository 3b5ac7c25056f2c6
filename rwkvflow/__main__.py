"""Turns errors into exit codes. `rwkvflow` and `python -m rwkvflow` both come here."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType

from rwkvflow.base.errors import DocumentError, RwkvflowError
from rwkvflow.base.text import shown


def main() -> None:
    """Run the command line; exits with the codes of rwkvflow.base.errors."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            settle(stream)
    try:
        sys.exit(_run())
    except KeyboardInterrupt:  # while starting, or while it is said that it was interrupted
        print("interrupted; what is finished is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)


def settle(stream: io.TextIOWrapper) -> None:
    """Write UTF-8 where Windows would take a code page, which has no place for most names, and its own line ends.

    Half a surrogate pair, from metadata or a file's name, is shown as \\udc80. PYTHONIOENCODING is left alone.
    """
    if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ and not stream.isatty():
        stream.reconfigure(encoding="utf-8", newline="\n")  # a pipe carries the same bytes everywhere
    stream.reconfigure(errors="backslashreplace")


def _run() -> int | str | None:
    """The exit code."""
    import click

    from rwkvflow.cli import cli

    code: int | str | None
    try:
        cli.main(prog_name="rwkvflow", standalone_mode=False)
        code = 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; what is finished is kept, run the same command to go on", file=sys.stderr)
        code = 130
    except DocumentError as error:  # lines that editors and CI understand: file:line:column: message
        print(shown(str(error)), file=sys.stderr)
        code = error.exit_code
    except RwkvflowError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - nobody listens any more; keep Python from complaining
        code = 1
    except OSError as error:  # a place that the user named, and that the system does not want: no fault of rwkvflow's
        if error.filename is None:
            raise
        print(shown(f"error: {error.filename2 or error.filename}: {error.strerror}"), file=sys.stderr)
        code = 1
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
