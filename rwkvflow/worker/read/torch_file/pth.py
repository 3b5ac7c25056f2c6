"""Where the tensors of a torch file (.pth, .pt) are: a stored zip of one pickle and one record per storage.

Records: `<folder>/data.pkl`, `<folder>/data/<key>`, and `<folder>/byteorder` since torch 2.1 (torch/serialization.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, TensorInfo
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file import zip_directory
from rwkvflow.worker.read.torch_file.pickle_reader import MAX_BYTES, PickleReader, TensorRef
from rwkvflow.worker.read.torch_file.remedies import GATHERING, IF_TRUSTED, NOT_RUN, UNPACK_NUMPY, UNPACK_SCRIPT

#: Keys under which training programs nest the tensors.
WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "module", "weights", "params")
MAX_NAME: Final = 1000
_OF_MODEL: Final = re.compile(r"(?:^|\.)(?:emb|embeddings)\.weight$|(?:^|\.)(?:blocks|layers)\.[0-9]+\.")
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
    whose names were replaced by the author's; None where the file has the latter. `said`: see ModelTensors.
    """

    views: Mapping[str, View]
    metadata: Metadata
    ignored: tuple[str, ...]
    check: Callable[[Callable[[int], None] | None], int]
    changes: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    renamed: str | None = None
    said: Mapping[str, float] = field(default_factory=dict)


def read_index(file: RawFile) -> Index:
    """Reads and validates directory and pickle of a torch file; touches no tensor data.

    Raises WorkerError for anything damaged, hostile, or not a dict of tensors.
    """
    records = zip_directory.read_directory(file)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        if records and all(name.endswith(".npy") for name in records):
            raise WorkerError(f"{file.name}: numpy's .npz, not a torch file. Save it as one: {UNPACK_NUMPY}")
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
    if folder + "constants.pkl" in records:
        raise WorkerError(
            f"{file.name}: a TorchScript archive (torch.jit.save): a program with its weights; {NOT_RUN}. "
            f"{IF_TRUSTED}{UNPACK_SCRIPT}"
        )
    summed = zip_directory.has_checksums(records)
    if summed:
        zip_directory.check(file, record)
    root = PickleReader(file.bytes_at(record.offset, record.size), file.name).load()
    tensors, metadata, ignored = _tensors(root, file.name)
    views = {name: _view(file, name, ref, records, folder) for name, ref in tensors.items()}
    changes = {name: _negated(ref.dtype) for name, ref in tensors.items() if ref.negated}
    total = sum(view.info.nbytes for view in views.values())
    if total > max(8 * file.size, 64 << 20):
        raise WorkerError(
            f"{file.name}: refused: its tensors would take {total} bytes but the file has {file.size}: "
            "the same bytes are claimed over and over"
        )

    def check(on_bytes: Callable[[int], None] | None) -> int:
        if not summed:
            return 0
        for item in records.values():
            if item.stored:
                zip_directory.check(file, item, on_bytes)
        return sum(item.size for item in records.values() if item.stored)

    return Index(views, metadata, ignored, check, changes)


def named_tensors(pickle: bytes, where: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a pickle, by its name, without their data. Raises WorkerError."""
    tensors, _, _ = _tensors(PickleReader(pickle, where).load(), where)
    return {name: (ref.dtype, ref.shape) for name, ref in tensors.items()}


def _little_endian(file: RawFile, record: zip_directory.ZipRecord | None) -> None:
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
    """The dict of tensors, through wrappers such as {"state_dict": ...}; small values and ignored names of it.

    What stands beside a wrapper, such as a loss or an optimizer's state, is ignored.
    """
    left: dict[str, Any] = {}
    for _ in range(4):
        if not isinstance(root, dict):
            raise WorkerError(
                f"{where}: it holds {_kind(root)}, not a dict of tensors. Save the model's state_dict: "
                "torch.save(model.state_dict(), path)"
            )
        found = {k: v for k, v in root.items() if isinstance(v, TensorRef) and isinstance(k, str)}
        key = None if _is_model(found) else _wrapper(root, where)
        if key is None and found:
            break
        if key is None:
            keys = ", ".join(ascii(str(key)[:40]) for key in list(root)[:8])
            if "ds_version" in root or "param_shapes" in root:
                raise WorkerError(f"{where}: a part of a DeepSpeed checkpoint, without the model: {GATHERING}")
            raise WorkerError(f"{where}: no tensors in it; its keys are {keys or 'none'}")
        left |= {str(k)[:MAX_NAME]: v for k, v in root.items() if k != key}
        root = root[key]
    else:
        raise WorkerError(f"{where}: its tensors are nested too deep")
    for name in found:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise WorkerError(f"{where}: refused: a tensor is called {name[:100]!a}")
    plain = (str, int, float, bool, type(None))
    if any(name.endswith("emb.weight") for name in found) and all(0 in ref.shape for ref in found.values()):
        raise WorkerError(
            f"{where}: all of its {len(found)} tensors are empty, as in a part of a DeepSpeed ZeRO-3 checkpoint: "
            f"{GATHERING}"
        )
    if hollow := [name for name, ref in found.items() if ref.storage is None]:
        more = f" and {len(hollow) - 1} more" if len(hollow) > 1 else ""
        raise WorkerError(
            f"{where}: {hollow[0]!a}{more} of its {len(found)} tensors are meta tensors, which have a shape and no "
            'values: it was saved from a model on the device "meta". Load the weights into the model, and save it then.'
        )
    rest = left | {str(k)[:MAX_NAME]: v for k, v in root.items() if k not in found}
    metadata = {k: v for k, v in rest.items() if isinstance(v, plain)}
    return found, metadata, tuple(k for k in rest if k not in metadata)


def _kind(value: Any) -> str:
    return "a single tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"


def _is_model(names: Iterable[str]) -> bool:
    """Whether among the tensors of a dict are those of a model, and not only a loss or the like."""
    return any(_OF_MODEL.search(name) for name in names)


def _wrapper(root: dict[Any, Any], where: str) -> str | None:
    """The key of a dict under which the model is; None for none. Raises WorkerError where several may be it."""
    for key in WRAPPERS:
        if isinstance(root.get(key), dict):
            return key
    models = [key for key, value in root.items() if isinstance(value, dict) and _is_model(_texts(value))]
    if len(models) > 1:
        shown = ", ".join(ascii(str(key)[:40]) for key in models[:4])
        raise WorkerError(f"{where}: it holds several models, under the keys {shown}. Save one of them as a file")
    return models[0] if models else None


def _texts(keys: Iterable[Any]) -> Iterator[str]:
    return (key for key in keys if isinstance(key, str))


def _negated(dtype: str) -> Callable[[Any], Any]:
    """The other sign; that of types which numpy lacks is their highest bit."""
    sign = {"bf16": 0x8000, "f8_e4m3": 0x80, "f8_e5m2": 0x80}.get(dtype)
    return (lambda values: -values) if sign is None else (lambda values: values ^ values.dtype.type(sign))


def _view(
    file: RawFile, name: str, ref: TensorRef, records: Mapping[str, zip_directory.ZipRecord], folder: str
) -> View:
    def bad(what: str) -> WorkerError:
        return WorkerError(f"{file.name}: tensor {name!a}: {what}")

    storage = ref.storage
    record = records.get(f"{folder}data/{storage.key}") if storage else None
    if record is None or storage is None:
        raise bad(f"its data (record data/{storage and storage.key}) is missing. Download or copy the file again.")
    if not record.stored:
        raise _compressed(file, record.name)
    if record.size != storage.nbytes:
        raise bad(f"its data has {record.size} bytes, not {storage.nbytes}. Download or copy the file again.")
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
