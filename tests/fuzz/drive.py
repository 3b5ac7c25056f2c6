"""Runs fuzzers of readers, in a process with bounds.

    python -m tests.fuzz.drive --seconds 60 gguf           # changes of real files, the same ones every time
    python -m tests.fuzz.drive --seconds 600 --guided gguf # by what they cover, through atheris

A finding is whatever a reader raises that is no refusal of its own, and whatever takes more than SECONDS of the
processor or ROOM of memory beyond what the process takes by itself. Each is kept below --findings: the input, and
beside it the traceback. What was found once and mended lies in tests/fuzz/regressions/NAME/, and is tried first.

Prints a line of JSON for each reader: executions, how many of them were read, and how many findings there were.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.reader import Reader

REGRESSIONS = Path(__file__).resolve().parent / "regressions"
PACKAGE = Path(__file__).resolve().parents[2] / "rwkvflow"
SECONDS = 5.0
ROOM = 512 << 20


class TooLong(BaseException):
    """A reader takes longer than it may; no reader's own `except` catches this."""


class Fuzzer:
    """One reader, its seeds, and what was found."""

    def __init__(self, name: str, reader: Reader, scratch: Path, findings: Path) -> None:
        self.name, self.reader = name, reader
        self.scratch, self.findings = scratch / name, findings / name
        self.executions = self.read = 0
        self.found: dict[str, str] = {}
        (self.scratch / "seeds").mkdir(parents=True)
        self.seeds = list(reader.seeds(self.scratch / "seeds"))
        self.words = (*reader.words, *literals(reader.modules))

    def one(self, data: bytes) -> bool:
        """Read an input; whether it was read and not refused."""
        folder = self.scratch / "now"
        folder.mkdir(exist_ok=True)
        self.executions += 1
        start = time.process_time()
        problem: BaseException | None = None
        try:
            with _quiet(), _limited():
                self.reader.read(data, folder)
            self.read += 1
        except self.reader.errors:
            pass
        except (Exception, TooLong) as error:
            problem = error
        finally:
            if next(folder.iterdir(), None) is not None:  # making and removing one takes longer than most readers
                shutil.rmtree(folder, ignore_errors=True)
        if problem is None and time.process_time() - start > SECONDS:
            problem = TooLong(f"{time.process_time() - start:.0f} s")
        if problem is not None:
            self._keep(data, problem)
            return False
        return True

    def _keep(self, data: bytes, problem: BaseException) -> None:
        frames = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_tb(problem.__traceback__)
            if "/rwkvflow/" in frame.filename and "/tests/" not in frame.filename
        ]
        kind = f"{type(problem).__name__} at {frames[-1] if frames else '?'}"
        if kind in self.found:
            return
        name = hashlib.sha256(data).hexdigest()[:16]
        self.found[kind] = name
        self.findings.mkdir(parents=True, exist_ok=True)
        (self.findings / name).write_bytes(data)
        text = "".join(traceback.format_exception(problem, limit=-12))
        (self.findings / f"{name}.txt").write_text(f"{kind}\n{text[-6000:]}", encoding="utf-8", errors="replace")

    def told(self) -> dict[str, Any]:
        """For the line that is printed."""
        return {"reader": self.name, "executions": self.executions, "read": self.read, "findings": self.found}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What readers print is nobody's here."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TooLong(f"more than {SECONDS:g} s of the processor")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def bound_memory() -> None:
    """From now on this process gets ROOM more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    room = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))


def unbound_memory() -> None:
    """Room for what the next reader brings with it."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def regressions(name: str) -> list[bytes]:
    """Inputs that a reader did not take as it should, once."""
    folder = REGRESSIONS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def literals(modules: Sequence[str]) -> list[bytes]:
    """The short texts in the sources of modules below rwkvflow/: names of keys, headers, media types."""
    found: set[str] = set()
    for module in modules:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        found |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return [text.encode("utf-8", "replace") for text in sorted(found) if 1 < len(text) <= 60 and text.count(" ") < 2]


def warm(fuzzer: Fuzzer) -> None:
    """Read the seeds, which imports what there is to import. Raises AssertionError where one is refused by mistake."""
    read = [fuzzer.one(seed) for seed in fuzzer.seeds]
    assert fuzzer.read, f"{fuzzer.name}: none of {len(read)} real files is read: {fuzzer.found}"


def plain(fuzzer: Fuzzer, seconds: float, seed: int, least: int) -> None:
    """Regressions, then changes of the seeds: for so many seconds of the processor, and `least` of them at least."""
    from tests.fuzz.mutate import changed

    dice = random.Random(f"{seed} {fuzzer.name}")
    for data in regressions(fuzzer.name):
        fuzzer.one(data)
    pool = list(fuzzer.seeds)
    end, first = time.process_time() + seconds, fuzzer.executions
    while time.process_time() < end or fuzzer.executions - first < least:
        data = changed(dice.choice(pool), fuzzer.seeds, fuzzer.words, fuzzer.reader.text, dice)
        before = fuzzer.read
        fuzzer.one(data)
        if fuzzer.read > before and len(pool) < 300 and len(data) <= 1 << 15:
            pool.append(data)  # what is read leads further in than what is not


def guided(fuzzer: Fuzzer, seconds: float, corpus: Path, tell: Path) -> None:
    """Through libFuzzer, which keeps what covers more. Does not return: libFuzzer ends the process."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    from tests.fuzz.mutate import changed

    told = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal told
        fuzzer.one(bytes(data))
        if time.monotonic() - told > 0.5:
            told = time.monotonic()
            tell.write_text(json.dumps(fuzzer.told()), encoding="utf-8")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < 0.5:
            found: bytes = atheris.Mutate(data, most)
            return found
        return changed(bytes(data), fuzzer.seeds, fuzzer.words, fuzzer.reader.text, dice)[:most]

    corpus.mkdir(parents=True, exist_ok=True)
    tell.parent.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*fuzzer.seeds, *regressions(fuzzer.name))):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={int(seconds)}",
        "-timeout=60",
        "-rss_limit_mb=4096",
        "-max_len=131072",
        "-len_control=0",
        f"-artifact_prefix={tell.parent}/",
    ]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def _reader(name: str, *, instrumented: bool) -> Reader:
    """A reader; `instrumented`: what it imports of rwkvflow counts what is covered."""
    if not instrumented:
        from tests.fuzz.table import READERS

        return READERS[name]
    import atheris

    with atheris.instrument_imports(include=["rwkvflow"], enable_loader_override=False):
        table = importlib.import_module("tests.fuzz.table")
        reader: Reader = table.READERS[name]
        for module in reader.modules:
            importlib.import_module(f"rwkvflow.{module.replace('/', '.')}")
    return reader


def main(argv: Sequence[str]) -> int:
    """Exit code 1 where there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of readers; all where none is named")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each")
    parser.add_argument("--least", type=int, default=1, help="changes for each, however slow the machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz/findings"))
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"))
    chosen = parser.parse_args(argv)
    if not chosen.names:
        from tests.fuzz.table import READERS

        chosen.names = list(READERS)
    wrong = False
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for name in chosen.names:
            fuzzer = Fuzzer(name, _reader(name, instrumented=chosen.guided), Path(scratch), chosen.findings)
            warm(fuzzer)
            bound_memory()
            if chosen.guided:
                guided(fuzzer, chosen.seconds, chosen.corpus / name, chosen.findings / f"{name}.json")
            plain(fuzzer, chosen.seconds, chosen.seed, chosen.least)
            unbound_memory()
            print(json.dumps(fuzzer.told()), flush=True)
            wrong = wrong or bool(fuzzer.found)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
