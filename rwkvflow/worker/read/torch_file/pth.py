"""Where the tensors of a torch file (.pth, .pt) are: a stored zip of one pickle and one record per storage.

Records: `<folder>/data.pkl`, `<folder>/data/<key>`, and `<folder>/byteorder` since torch 2.1 (torch/serialization.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, TensorInfo
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file import zip_directory
from rwkvflow.worker.read.torch_file.pickle_reader import MAX_BYTES, PickleReader, TensorRef

#: Keys under which training programs nest the tensors.
WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "weights", "params")
MAX_NAME: Final = 1000
Metadata = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor's values are: `base` bytes into the file, a storage of `span` bytes; stride in values."""

    info: TensorInfo
    base: int
    span: int
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """What a file holds: tensors in its order, small values beside them, and the checksummed records.

    `changes` are made to the values of some tensors, as arrays of the whole, after they were read. `renamed` says
    whose names were replaced by the author's; None where the file has the latter.
    """

    views: Mapping[str, View]
    metadata: Metadata
    ignored: tuple[str, ...]
    check: Callable[[Callable[[int], None] | None], int]
    changes: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    renamed: str | None = None


def read_index(file: RawFile) -> Index:
    """Reads and validates directory and pickle of a torch file; touches no tensor data.

    Raises WorkerError for anything damaged, hostile, or not a dict of tensors.
    """
    records = zip_directory.read_directory(file)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise WorkerError(
            f"{file.name}: a zip file, but not one that torch.save wrote: it has {len(pickles)} records */data.pkl, "
            "not one"
        )
    folder = pickles[0].removesuffix("data.pkl")
    _little_endian(file, records.get(folder + "byteorder"))
    record = records[pickles[0]]
    if not record.stored:
        raise _compressed(file, record.name)
    if record.size > MAX_BYTES:
        raise WorkerError(f"{file.name}: its pickle has {record.size} bytes; no checkpoint's has more than {MAX_BYTES}")
    zip_directory.check(file, record)
    root = PickleReader(file.bytes_at(record.offset, record.size), file.name).load()
    tensors, metadata, ignored = _tensors(root, file.name)
    views = {name: _view(file, name, ref, records, folder) for name, ref in _unprefixed(tensors).items()}
    total = sum(view.info.nbytes for view in views.values())
    if total > max(8 * file.size, 64 << 20):
        raise WorkerError(
            f"{file.name}: refused: its tensors would take {total} bytes but the file has {file.size}: "
            "the same bytes are claimed over and over"
        )

    def check(on_bytes: Callable[[int], None] | None) -> int:
        for item in records.values():
            if item.stored:
                zip_directory.check(file, item, on_bytes)
        return sum(item.size for item in records.values() if item.stored)

    return Index(views, metadata, ignored, check)


def named_tensors(pickle: bytes, where: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a pickle, by its name, without their data. Raises WorkerError."""
    tensors, _, _ = _tensors(PickleReader(pickle, where).load(), where)
    return {name: (ref.dtype, ref.shape) for name, ref in _unprefixed(tensors).items()}


def _little_endian(file: RawFile, record: zip_directory.Record | None) -> None:
    if record is None:
        return
    if not record.stored:
        raise _compressed(file, record.name)
    order = file.bytes_at(record.offset, min(record.size, 16))
    if order != b"little":
        raise WorkerError(
            f"{file.name}: refused: its byte order is {order.decode('latin-1')!a}, not 'little'. "
            "Load it with torch on a little-endian machine and save it again."
        )


def _compressed(file: RawFile, name: str) -> WorkerError:
    return WorkerError(
        f"{file.name}: record {name!a} is compressed; torch.save stores. Somebody packed this file anew: get the "
        "original, or load it with torch and save it again."
    )


def _tensors(root: Any, where: str) -> tuple[dict[str, TensorRef], Metadata, tuple[str, ...]]:
    """The dict of tensors, through wrappers such as {"state_dict": ...}; small values and ignored names of it."""
    for _ in range(4):
        if not isinstance(root, dict):
            raise WorkerError(
                f"{where}: it holds {_kind(root)}, not a dict of tensors. Save the model's state_dict: "
                "torch.save(model.state_dict(), path)"
            )
        found = {k: v for k, v in root.items() if isinstance(v, TensorRef) and isinstance(k, str)}
        if found:
            break
        inner = next((root[key] for key in WRAPPERS if isinstance(root.get(key), dict)), None)
        if inner is None:
            keys = ", ".join(ascii(str(key)[:40]) for key in list(root)[:8])
            raise WorkerError(f"{where}: no tensors in it; its keys are {keys or 'none'}")
        root = inner
    else:
        raise WorkerError(f"{where}: its tensors are nested too deep")
    for name in found:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise WorkerError(f"{where}: refused: a tensor is called {name[:100]!a}")
    plain = (str, int, float, bool, type(None))
    rest = {str(k)[:MAX_NAME]: v for k, v in root.items() if k not in found}
    metadata = {k: v for k, v in rest.items() if isinstance(v, plain)}
    return found, metadata, tuple(k for k in rest if k not in metadata)


def _kind(value: Any) -> str:
    return "a single tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"


def _unprefixed(tensors: dict[str, TensorRef]) -> dict[str, TensorRef]:
    """Without the prefix that wrappers of modules put before every name ("module.", "_forward_module.model.")."""
    anchor = "emb.weight"
    if anchor in tensors:
        return tensors
    for name in tensors:
        prefix = name.removesuffix(anchor)
        if prefix != name and prefix.endswith(".") and all(other.startswith(prefix) for other in tensors):
            return {other.removeprefix(prefix): ref for other, ref in tensors.items()}
    return tensors


def _view(file: RawFile, name: str, ref: TensorRef, records: Mapping[str, zip_directory.Record], folder: str) -> View:
    def bad(what: str) -> WorkerError:
        return WorkerError(f"{file.name}: tensor {name!a}: {what}")

    record = records.get(f"{folder}data/{ref.storage.key}")
    if record is None:
        raise bad(f"its data (record data/{ref.storage.key}) is missing. Download or copy the file again.")
    if not record.stored:
        raise _compressed(file, record.name)
    if record.size != ref.storage.nbytes:
        raise bad(f"its data has {record.size} bytes, not {ref.storage.nbytes}. Download or copy the file again.")
    item = ITEM_BYTES[ref.dtype]
    if record.size % item:
        raise bad(f"its data is no whole number of {ref.dtype} values")
    numel, held = math.prod(ref.shape), record.size // item
    if numel > held:
        raise bad(
            f"it claims {numel} values and its storage holds {held} (an expanded view). "
            "Call .contiguous() on it before saving."
        )
    if numel:
        last = ref.offset + sum((size - 1) * step for size, step in zip(ref.shape, ref.stride, strict=True))
        if last >= held:
            raise bad(f"it reaches value {last} of a storage of {held}")
    return View(TensorInfo(name, ref.dtype, ref.shape), record.offset + ref.offset * item, record.size, ref.stride)
