"""Releases small enough to be published a hundred times, and a process that publishes them and may be killed.

python tests/publishing.py   reads {"repo", "folder", "tag"?} as JSON lines, forks for each, and answers
                             {"pid"} at once and {"code", "output"} at its end
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import RwkvflowError
from rwkvflow.net.http import Policy
from rwkvflow.net.progress import Told
from rwkvflow.publish.hub import HubOptions, HubPublisher
from rwkvflow.release.artifacts import from_bytes, from_file
from rwkvflow.release.names import CARD, PROVENANCE, SUMS
from rwkvflow.release.release import Release
from rwkvflow.release.sums import sums_text

POLICY = Policy(attempts=4, first_delay_s=0.01, longest_delay_s=0.05)
CARD_TEXT = b"---\nlicense: apache-2.0\n---\n# A release\n"


def release(files: Mapping[str, bytes], folder: Path | None = None, name: str = "tiny") -> Release:
    """A release of these files, with card, statement and sums; from disk where a folder is named."""
    contents = {CARD: CARD_TEXT, PROVENANCE: json.dumps(sorted(files)).encode(), **files}
    made = []
    for path, data in sorted(contents.items()):
        if folder is None:
            made.append(from_bytes(path, data))
        else:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            made.append(from_file(path, place))
    made.append(from_bytes(SUMS, sums_text({file.path: file.digest[7:] for file in made}).encode()))
    return Release(name, tuple(made), ())


def contents(release: Release) -> dict[str, bytes]:
    """path → bytes."""
    return {
        file.path: file.source if isinstance(file.source, bytes) else file.source.read_bytes() for file in release.files
    }


class Process:
    """A publisher in a process of its own; imports happen once, each publishing in a fork."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.publishing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", **environment},
        )

    def start(self, repo: str, folder: Path, **options: Any) -> int:
        """Begin; returns the pid of the one that publishes."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"repo": repo, "folder": str(folder), "options": options}) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> tuple[int, str]:
        """(exit code, all that was printed); the code is -9 where it was killed."""
        answer = self._answer()
        return int(answer["code"]), str(answer["output"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the publishing process ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


def from_folder(folder: Path) -> Release:
    """The release that `release(..., folder)` wrote."""
    files = [
        from_file(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    sums = sums_text({file.path: file.digest[7:] for file in files})
    return Release("tiny", (*files, from_bytes(SUMS, sums.encode())), ())


def _child(task: Mapping[str, Any], write: int) -> None:
    os.dup2(write, 1)
    os.dup2(write, 2)
    code = 0
    try:
        publisher = HubPublisher(task["repo"], HubOptions(**task["options"]), POLICY)
        made = publisher.apply(from_folder(Path(task["folder"])), Told(log=lambda line: print(line, flush=True)))
        print(made.to, json.dumps(dict(made.facts)), flush=True)
    except RwkvflowError as error:
        print(str(error), flush=True)
        code = error.exit_code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        code = 99
    os._exit(code)


def _serve() -> None:
    from rwkvflow.net.hub import library

    library().HfApi  # noqa: B018 - imported once, before the forks
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete  # noqa: F401

    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _child(json.loads(line), write)
        os.close(write)
        print(json.dumps({"pid": pid}), flush=True)
        with os.fdopen(read, "rb") as output:
            text = output.read().decode("utf-8", "replace")
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "output": text}), flush=True)


if __name__ == "__main__":
    _serve()
