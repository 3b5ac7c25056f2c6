"""One read of a checkpoint, many artifacts.

The main thread reads tensors piece by piece. A pool encodes each piece once for each distinct Encoding and writes it
where it belongs; one thread per artifact (a sink) hashes what it needs, in order. Reading, encoding, writing and
hashing release the GIL. A window bounds the pieces on their way, so memory does not depend on the size of the model.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.conversion.jobs import ConversionJob, ConversionOutcome, check_room, format_of, shown_bytes
from rwkvflow.worker.conversion.written import check_written
from rwkvflow.worker.errors import WorkerError, is_disk_full
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.strangers import refuse_unknown
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.weight_types import BY_NUMBER, QUANTIZED, TYPE_OF_DTYPE
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.write.encode import encode, oddity
from rwkvflow.worker.write.layout import Encoding, Slot, Writer
from rwkvflow.worker.write.native import Native, keep_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PIECE", "ConversionJob", "ConversionOutcome", "convert"]

PIECE = 1 << 20  # values read at a time; pieces are whole rows, and a multiple of 32 of them
SMALL = 1 << 14  # values that are not worth handing to another thread
MOST_THREADS = 8
NAMED = 4  # tensors that a warning names

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor


def convert(
    source: Path | Origin,
    engine: Path,
    jobs: Sequence[ConversionJob],
    *,
    threads: int | None = None,
    piece: int = PIECE,
    on_progress: Progress | None = None,
    group_norm_eps: float | None = None,
) -> list[ConversionOutcome]:
    """Make every job's artifact from the checkpoint `source`, with the library in the engine folder `engine`.

    A job that cannot be done does not keep the others from being done; it leaves no file. Outcomes come in the order of
    jobs. Raises WorkerError when nothing can be done: an unreadable checkpoint, a disk without room.
    """
    keep_memory()
    with open_checkpoint(source) as checkpoint:
        architecture = architecture_of(checkpoint.tensors, group_norm_eps)
        refuse_unknown(checkpoint.tensors, architecture)
        native = Native(engine)
        outcomes = [ConversionOutcome(job) for job in jobs]
        check_room(outcomes, architecture, checkpoint.tensors, source)
        sinks = _open(outcomes, architecture, checkpoint.tensors, engine, source)
        run = _Run(checkpoint, native, sinks, threads or _cores(), piece, on_progress)
        try:
            run.feed()
        finally:
            run.finish()
        for outcome in outcomes:
            outcome.warnings.extend(run.warnings)
            check_written(outcome)
        return outcomes


def _cores() -> int:
    """Cores that this process may use."""
    try:
        return min(len(os.sched_getaffinity(0)), MOST_THREADS)
    except AttributeError:  # not on macOS
        return min(os.cpu_count() or 1, MOST_THREADS)


def _open(
    outcomes: Sequence[ConversionOutcome],
    architecture: Architecture,
    tensors: Mapping[str, TensorInfo],
    engine: Path,
    source: Path | Origin,
) -> list[_Sink]:
    full = threading.Event()
    sinks: list[_Sink] = []
    for outcome in outcomes:
        item = format_of(outcome.job, source)
        if outcome.failure is not None or item is None:
            continue
        try:
            writer = item.open(outcome.job.path, architecture, held := item.held(architecture, tensors), engine)
        except (WorkerError, OSError) as error:
            outcome.failure = str(error)
            continue
        outcome.warnings += [*writer.remarks, *item.left_out(held, tensors)]
        sinks.append(_Sink(outcome, writer, full))
    return sinks


class _Piece:
    """Part of a tensor on its way; lets the window move on when every sink is through with it."""

    def __init__(self, window: threading.Semaphore, users: int) -> None:
        self._window = window
        self._users = users
        self._lock = threading.Lock()

    def done(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._window.release()


#: Bytes, and what is wrong with the values: None for nothing, "" for too large, else "a NaN" or "an infinity".
_Made = tuple[memoryview, str | None]


@dataclass(frozen=True)
class _Item:
    name: str
    slot: Slot
    start: int
    piece: _Piece
    encoded: Future[_Made]


class _Sink(threading.Thread):
    """Finishes one artifact. After a failure it goes on taking items, and drops them."""

    def __init__(self, outcome: ConversionOutcome, writer: Writer, full: threading.Event) -> None:
        super().__init__(daemon=True)
        self.outcome = outcome
        self.writer = writer
        self.queue: SimpleQueue[_Item | None] = SimpleQueue()
        self.complete = False  # set before the last item: whether all there is has been put
        self.overflown: dict[str, dict[str, None]] = {}  # what is wrong with values, and the names of their tensors
        self._full = full

    @property
    def failed(self) -> bool:
        return self.outcome.failure is not None

    def write(self, slot: Slot, start: int, data: memoryview) -> None:
        """Put bytes in their place, for whoever made them."""
        try:
            if self._full.is_set():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not self.failed:
                self.writer.write(slot, start, data)
        except Exception as error:
            self._fail(error)

    def run(self) -> None:
        while (item := self.queue.get()) is not None:
            try:
                item.encoded.exception()  # waits; even after a failure: the file stays open until nobody writes to it
                if not self.failed:
                    self._take(item)
            except Exception as error:
                self._fail(error)
            finally:
                item.piece.done()
        if not self.failed and self.complete:
            try:
                self.outcome.written = self.writer.close()
            except Exception as error:
                self._fail(error)
        if self.outcome.written is None:
            self.writer.abort()
        elif self.overflown:
            for what, names in self.overflown.items():
                self.outcome.warnings.append(f"{self.outcome.job.format}: {what}: {_names(names)}")

    def _take(self, item: _Item) -> None:
        data, odd = item.encoded.result()
        if odd is not None:
            if item.slot.encoding.kind in QUANTIZED:
                what = odd or "a value too large for its 16-bit scales"
                raise WorkerError(f"{item.name} holds {what}, which {self.outcome.job.format} cannot hold")
            kind = item.slot.encoding.kind
            too_large = (
                f"too large for {'it' if kind is None else BY_NUMBER[kind].name.upper()}, infinite in the artifact"
            )
            what = f"{odd} in the checkpoint and in the artifact" if odd else too_large
            self.overflown.setdefault(what, {})[item.name] = None
        self.writer.put(item.slot, item.start, data)

    def _fail(self, error: Exception) -> None:
        if is_disk_full(error):
            self.outcome.full = True
            self._full.set()  # the others write to the same disk: let them end with the same message
            self.outcome.failure = (
                f"the disk is full: {self.outcome.job.path.name} needs {shown_bytes(self.writer.size)}"
            )
        elif isinstance(error, WorkerError | OSError):
            self.outcome.failure = str(error)
        else:
            self.outcome.failure = f"internal error: {type(error).__name__}: {error}"


_Place = tuple[_Sink, Slot, int]  # where in the slot bytes begin


class _Run:
    """One pass over the checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        native: Native,
        sinks: list[_Sink],
        threads: int,
        piece: int,
        on_progress: Progress | None,
    ) -> None:
        self.warnings: list[str] = []
        self._checkpoint = checkpoint
        self._native = native
        self._sinks = sinks
        self._piece = piece
        self._progress = on_progress
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        self._window = threading.Semaphore(threads + 2)
        self._surveys: list[tuple[str, int]] = []  # of pieces: values that are not finite
        self._needed: dict[str, NDArray[Any]] = {}
        for sink in sinks:
            sink.start()

    def feed(self) -> None:
        """Give every sink all that it wants. Raises WorkerError when the checkpoint cannot be read."""
        tensors = self._checkpoint.tensors
        total = sum(info.nbytes for info in tensors.values())
        done, shown = 0, 0.0
        for name, info in tensors.items():
            for start, count in self._pieces(name, info):
                if self._progress and time.monotonic() - shown >= 0.2:
                    shown = time.monotonic()
                    self._progress(done, total, name)
                self._send(name, info, start, count)
                done += info.nbytes * count // max(info.numel, 1)
        for sink in self._sinks:
            sink.complete = True
        if self._progress:
            self._progress(total, total, "")

    def finish(self) -> None:
        """Wait until every artifact is closed, or removed where `feed` did not come to its end."""
        for sink in self._sinks:
            sink.queue.put(None)
        for sink in self._sinks:
            sink.join()
        self._pool.shutdown()
        counts: dict[str, int] = {}
        for name, count in self._surveys:
            counts[name] = counts.get(name, 0) + count
        bad = {name: counts[name] for name in self._checkpoint.tensors if counts.get(name)}
        if bad:
            self.warnings.append(
                f"the checkpoint holds {sum(bad.values())} values that are NaN or infinite, in {_names(bad)}"
            )

    def _users(self, name: str) -> list[tuple[_Sink, Slot]]:
        return [(s, slot) for s in self._sinks if not s.failed for slot in s.writer.slots.get(name, ())]

    def _pieces(self, name: str, info: TensorInfo) -> list[tuple[int, int]]:
        """(first value, number of values) of each read; all at once where a transform wants the whole."""
        users = self._users(name)
        if not users or not info.numel:
            return []
        row = info.numel // info.shape[0] if info.shape else 1
        rows = max(32, self._piece // row // 32 * 32)
        if not info.shape or any(slot.encoding.whole for _, slot in users) or rows >= info.shape[0]:
            return [(0, info.numel)]
        return [(at * row, min(rows, info.shape[0] - at) * row) for at in range(0, info.shape[0], rows)]

    def _send(self, name: str, info: TensorInfo, start: int, count: int) -> None:
        users = self._users(name)
        if not users:
            return
        self._window.acquire()
        piece = _Piece(self._window, len(users))
        try:
            raw = self._read(name, info, start, count)
        except BaseException:
            self._window.release()
            raise
        places: dict[Encoding, list[_Place]] = {}
        for sink, slot in users:
            offset = slot.size * start // info.numel  # whole blocks: pieces are multiples of 32 rows
            places.setdefault(slot.encoding, []).append((sink, slot, offset))
        survey = info.dtype in TYPE_OF_DTYPE
        for encoding, group in places.items():
            self._fetch(encoding)
            submit = self._pool.submit if count > SMALL else _now
            encoded = submit(self._make, raw, info, encoding, group, survey)
            survey = False
            for sink, slot, offset in group:
                sink.queue.put(_Item(name, slot, offset, piece, encoded))

    def _fetch(self, encoding: Encoding) -> None:
        """Read what a transform needs besides; it stays in memory."""
        for name in encoding.transform.needs if encoding.transform else ():
            if name not in self._needed:
                self._needed[name] = self._checkpoint.float32(name)

    def _read(self, name: str, info: TensorInfo, start: int, count: int) -> NDArray[Any]:
        if not info.shape:
            return self._checkpoint.read(name)
        row = info.numel // info.shape[0]
        return self._checkpoint.read(name, start // row, count // row)

    def _make(
        self, raw: NDArray[Any], info: TensorInfo, encoding: Encoding, places: Sequence[_Place], survey: bool
    ) -> _Made:
        needed = [self._needed[name] for name in encoding.transform.needs] if encoding.transform else []
        data, finite = encode(self._native, raw, info.dtype, encoding, needed)
        for sink, slot, start in places:
            sink.write(slot, start, data)
        clean = finite and encoding.kind is not None and encoding.transform is None  # as what it was made from, then
        if survey and not clean:
            self._surveys.append((info.name, self._native.count_not_finite(raw, TYPE_OF_DTYPE[info.dtype])))
        return data, None if finite else oddity(raw, info.dtype)


def _now(function: Callable[..., _Made], *arguments: Any) -> Future[_Made]:
    """Call the function at once and return its result as a future, for what is faster to do than to hand over."""
    future: Future[_Made] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def _names(names: Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
