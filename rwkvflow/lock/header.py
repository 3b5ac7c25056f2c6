"""What a checkpoint elsewhere is, from its header: a few ranges of it, before all of it is downloaded.

The names and shapes of a .safetensors stand at its beginning, those of a GGUF behind what it says of itself, those of a
.pth in a record that the directory at its end points to, those of a .bin and .prefab before the data of each tensor.
Where a server gives no ranges, or the file is of another kind, nothing is said here: whoever converts it looks at it
again.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rwkvflow.base.errors import FetchError, LockError, UsageError
from rwkvflow.documents.names import part_of
from rwkvflow.documents.sources import Source, SourceError, parse_source
from rwkvflow.engine.parts import FileSet
from rwkvflow.lock.sets import listing_beside, set_begun
from rwkvflow.net.http import Authorize, Connection, Policy, TemporaryProblemError
from rwkvflow.net.remote import RemoteSource, remote_of
from rwkvflow.worker.errors import UnknownModelError, WorkerError
from rwkvflow.worker.read.rawfile import RawFile

if TYPE_CHECKING:
    from rwkvflow.worker.model.tensorinfo import TensorInfo

BLOCK: Final = 1 << 18  # bytes of the least range that is asked for
STEP: Final = 1 << 14  # the same where headers stand between the data
MOST: Final = 96 << 20  # bytes of all ranges of a file
CONFIG: Final = "config.json"
SUFFIXES: Final = (".pth", ".pt", ".bin", ".safetensors")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class _UnreadableError(Exception):
    """The header cannot be had in ranges; `status` and `headers` are those of the server's answer, if that is why."""

    def __init__(self, status: int = 0, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.status, self.headers = status, headers or {}


#: What reading a header ends in that is not one.
_UNREADABLE: Final = (
    _UnreadableError,
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
)


class _Ranges(io.RawIOBase):
    """A file of a server, read in ranges; each block is asked for once."""

    def __init__(self, url: str, authorize: Authorize, connection: Connection) -> None:
        self._url, self._authorize, self._connection = url, authorize, connection
        self._blocks: dict[int, bytes] = {}
        self._block = BLOCK
        self._at = 0
        self.size = 0
        self._blocks[0] = self._get(0, BLOCK)

    def in_steps(self) -> None:
        """From now on asks for ranges of STEP bytes: only headers are read of what they stand in."""
        first, self._block = self._blocks[0], STEP
        self._blocks = {at // STEP: first[at : at + STEP] for at in range(0, len(first), STEP)}

    def _get(self, start: int, count: int) -> bytes:
        if self._block * len(self._blocks) > MOST:
            raise _UnreadableError
        headers = {"Range": f"bytes={start}-{start + count - 1}"}
        with self._connection.request("GET", self._url, headers, self._authorize) as (response, _):
            match = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or match is None or int(match[1]) != start:
                raise _UnreadableError(response.status_code, response.headers)
            self.size = int(match[3])
            wanted = min(count, self.size - start)
            got = bytearray()
            for piece in response.iter_raw():
                got += piece
                if len(got) >= wanted:
                    break
        if len(got) < wanted:
            raise _UnreadableError
        return bytes(got[:wanted])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self._at)
        wanted = left if size < 0 else min(size, left)
        out = bytearray()
        while len(out) < wanted:
            number, skip = divmod(self._at + len(out), self._block)
            if number not in self._blocks:
                self._blocks[number] = self._get(number * self._block, self._block)
            out += self._blocks[number][skip : skip + wanted - len(out)]
        self._at += len(out)
        return bytes(out)


def refuse_source(
    text: str,
    folder: Path,
    ignore: Sequence[str] = (),
    connection: Connection | None = None,
) -> None:
    """Raises UsageError for a checkpoint that is none of the versions, as far as it can be known without all of it.

    `folder` is what a path is relative to. What is wrong with the place itself is told by whoever downloads it.
    """
    try:
        source = parse_source(text, folder=True)
    except SourceError:
        return
    begun = set_begun(text, source.name)
    try:
        path = source.below(folder)
        if path is not None:
            _refuse_local(path, ignore)
        elif begun is not None or source.name.endswith(SUFFIXES):
            policy = Policy(attempts=1, connect_s=5.0, stall_s=10.0)
            own = Connection(policy, None) if connection is None else nullcontext(connection)
            with suppress(FetchError, LockError, OSError, TemporaryProblemError), own as opened:
                if begun is not None:
                    _refuse_missing(text, begun, opened)
                else:
                    _refuse_remote(source, ignore, opened)
    except UnknownModelError as error:
        raise UsageError(f"{text}: {error}") from error


def _refuse_missing(text: str, begun: FileSet, connection: Connection) -> None:
    """Raises UsageError where parts of a model are not where the first is, as far as its server lists them."""
    there = listing_beside(text, connection)
    if there is None:
        return
    listed = [*begun.names, *([begun.index] if begun.index else [])]
    if missing := [name for name in listed if name not in there.names]:
        raise UsageError(f"{text}: {begun.place_of(missing[0])}, is missing where it lies")


def _refuse_local(path: Path, ignore: Sequence[str]) -> None:
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.model.origin import Origin
    from rwkvflow.worker.model.strangers import refuse_unknown
    from rwkvflow.worker.read.open import open_checkpoint

    if not path.exists():
        return
    try:
        with open_checkpoint(Origin(path, ignore=tuple(ignore))) as checkpoint:
            refuse_unknown(checkpoint.tensors, architecture_of(checkpoint.tensors))
    except UnknownModelError:
        raise
    except WorkerError:
        return  # the stage that reads it says what is wrong with it


def tensors_of_source(text: str, connection: Connection | None = None) -> dict[str, TensorInfo] | None:
    """Names, types and shapes of a checkpoint elsewhere, from its header alone; None where that cannot be had now."""
    try:
        source = parse_source(text)
    except SourceError:
        return None
    if source.remote is None or not source.name.endswith(SUFFIXES):
        return None
    with suppress(*_UNREADABLE, FetchError, LockError, OSError, TemporaryProblemError):
        remote = remote_of(source)
        with connection or Connection(Policy(attempts=1, connect_s=5.0, stall_s=10.0), None) as opened:
            return _tensors(_shapes(_Ranges(remote.url, remote.authorize, opened))[1])
    return None


def is_hybrid(text: str, folder: Path, connection: Connection | None = None) -> bool:
    """Whether a source is the folder or repository of a hybrid, by its config.json; False where that cannot be had."""
    from rwkvflow.worker.read.hf_source import is_hybrid as is_of_hybrid

    try:
        source = parse_source(text, folder=True)
        path = source.below(folder)
        if path is not None:
            if not path.is_dir() or not (path / CONFIG).is_file():
                return False
            config = (path / CONFIG).read_bytes()
        elif source.name.endswith(SUFFIXES):  # a file
            return False
        else:
            remote = remote_of(parse_source(part_of(text, CONFIG)))
            with connection or Connection(Policy(attempts=1, connect_s=5.0, stall_s=10.0), None) as opened:
                config = _Ranges(remote.url, remote.authorize, opened).read()
    except (*_UNREADABLE, SourceError, FetchError, LockError, OSError, TemporaryProblemError):
        return False
    return is_of_hybrid(config)


def describe_source(text: str, connection: Connection | None = None) -> dict[str, Any]:
    """What rwkvflow.worker.read.inspect.describe says of a file, of one on the hub or the web, from its header alone.

    Raises UsageError where that does not say it: a file of another kind or a broken one, or a server that gives no
    ranges. Raises FetchError where there is no such file, or it may not be read.
    """
    from rwkvflow.worker.read.inspect import GGUF, described, described_open, is_for_a_runtime
    from rwkvflow.worker.read.packed.packed_file import HEAD
    from rwkvflow.worker.read.shards import Joined

    try:
        source = parse_source(text)
    except SourceError as error:
        raise UsageError(f"{text}: {error}", remedy="give hf://owner/name/file, or an address") from error
    if source.remote is None:
        raise UsageError(f"{text} is a file of this machine")
    begun = set_begun(text, source.name)
    names = begun.names if begun else ("",)
    kind, size = "", 0
    files: list[_RangesFile] = []
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    with connection or Connection(Policy(attempts=2, connect_s=10.0, stall_s=30.0), None) as opened:
        for name in names:
            remote = remote_of(parse_source(part_of(text, name))) if begun else remote_of(source)
            where = f"{text}: {begun.place_of(name)}" if begun else text
            with _told(where, remote, whole=begun is None):
                file = _Ranges(remote.url, remote.authorize, opened)
                size += file.size
                if is_for_a_runtime(head := file.read(HEAD)):
                    if not head.startswith(GGUF):
                        file.in_steps()
                    files.append(_RangesFile(name or source.name, file))
                    continue
                kind, more = _shapes(file)
            if again := next((tensor for tensor in more if tensor in shapes), None):
                raise UsageError(f"{where}: tensor {again!a} is in a part before it, too: no parts of one model")
            shapes |= more
        listed = {"files": list(names)} if begun else {}
        if not files:
            return {"file": text, **listed, "bytes": size, **described(kind, _tensors(shapes), {})}
        with _told(text, remote, whole=begun is None):
            if len(files) < len(names):
                raise WorkerError("some of its parts are files of a runtime, and some are not")
            body = described_open(files[0] if begun is None else Joined.of(files[0].path, files))
        return {"file": text, **listed, "bytes": size, **body}


@contextmanager
def _told(where: str, remote: RemoteSource, *, whole: bool) -> Iterator[None]:
    """Says what reading a header ends in; `where` is the place, and `whole` whether `remote` names that, too."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, _UnreadableError) and error.status >= 400:
            refusal = _refusal(remote, error)
            message = refusal.message if whole else f"{where}: {refusal.message}"
            raise FetchError(message, remedy=refusal.remedy) from None
        why = "none of .pth, .safetensors, .gguf, .bin and .prefab, or its server gives no ranges of it"
        raise UsageError(f"{where}: {why}", remedy="download it, and inspect the file") from error
    except WorkerError as error:
        raise UsageError(f"{where}: {error}") from error
    except TemporaryProblemError as error:
        raise FetchError(f"{where}: {error}", remedy="try again later") from error


class _RangesFile(RawFile):
    """A file of a server as readers of files take it."""

    def __init__(self, name: str, ranges: _Ranges) -> None:
        self.path, self.name, self.size, self._ranges = Path(name), name, ranges.size, ranges

    def close(self) -> None:
        """Nothing is open of it."""

    def into(self, buffer: memoryview, offset: int) -> None:
        """Fills a writable buffer of bytes from `offset` on. Raises what reading a header raises."""
        self._ranges.seek(offset)
        data = self._ranges.read(len(buffer))
        if len(data) < len(buffer):
            raise _UnreadableError
        buffer[:] = data


def _refusal(remote: RemoteSource, error: _UnreadableError) -> FetchError:
    meant = remote.explain(error.status, error.headers)
    return meant or FetchError(f"{remote.name}: the server answers {error.status}")


def _refuse_remote(source: Source, ignore: Sequence[str], connection: Connection) -> None:
    remote = remote_of(source)
    with suppress(*_UNREADABLE):
        refuse_shapes(_shapes(_Ranges(remote.url, remote.authorize, connection))[1], ignore)


def refuse_shapes(shapes: dict[str, tuple[str, tuple[int, ...]]], ignore: Sequence[str] = ()) -> None:
    """Raises UnknownModelError for a checkpoint with tensors of these names, types and shapes."""
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.model.strangers import ignored, refuse_unknown
    from rwkvflow.worker.model.variants import refuse_variant

    tensors = _tensors(shapes)
    refuse_variant(tensors)
    for name in ignored(tensors, ignore):
        del tensors[name]
    try:
        architecture = architecture_of(tensors)
    except UnknownModelError:
        raise
    except WorkerError:
        return  # of a folder's parts, say, or under other names
    refuse_unknown(tensors, architecture)


def _tensors(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """By the names that a reader of the file gives them: without what wrapped the model."""
    from rwkvflow.worker.maps.prefixes import plain
    from rwkvflow.worker.model.tensorinfo import TensorInfo

    with suppress(WorkerError):  # of several models, say: whoever reads it says so
        shapes = plain(shapes, "checkpoint")
    return {name: TensorInfo(name, dtype, shape) for name, (dtype, shape) in shapes.items()}


def _shapes(file: _Ranges) -> tuple[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """The kind of a checkpoint, and dtype and shape of each of its tensors."""
    file.seek(0)
    head = file.read(9)
    if head[:4] == b"PK\3\4":
        return "pth", _of_zip(file)
    (length,) = struct.unpack("<Q", head[:8])
    if head[8:] != b"{" or length > MOST // 2:
        raise _UnreadableError
    from rwkvflow.worker.read.safetensors_file import DTYPES

    file.seek(8)
    header: dict[str, Any] = json.loads(file.read(length))
    return "safetensors", {
        name: (DTYPES[value["dtype"]], tuple(value["shape"]))
        for name, value in header.items()
        if name != "__metadata__"
    }


def _of_zip(file: _Ranges) -> dict[str, tuple[str, tuple[int, ...]]]:
    from rwkvflow.worker.read.torch_file.pickle_reader import MAX_BYTES
    from rwkvflow.worker.read.torch_file.pth import named_tensors

    with zipfile.ZipFile(file) as archive:  # which refuses to read a record without a checksum, as torch may save it
        records = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if len(records) != 1 or records[0].file_size > min(MAX_BYTES, MOST // 2) or records[0].compress_type:
            raise _UnreadableError
        try:
            return named_tensors(_record(file, records[0]), "checkpoint")
        except WorkerError:
            raise _UnreadableError from None


def _record(file: _Ranges, info: zipfile.ZipInfo) -> bytes:
    """A stored record's bytes."""
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(info.header_offset + 30 + name + extra)
    return file.read(info.file_size)
