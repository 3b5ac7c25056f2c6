"""Where the tensors of a .safetensors file are.

Layout: u64 length of the header, the header (JSON: name to dtype, shape, data_offsets; "__metadata__" of texts), then
the data without gaps. The `safetensors` package reads the same, but maps the file and cannot hand out rows of bfloat16
to numpy; so the header, which is all there is to parse, is validated here.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES, TensorInfo
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file.pth import MAX_NAME, Index, View

MAX_HEADER: Final = 8 << 20
DTYPES: Final = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "f8_e4m3",
    "F8_E5M2": "f8_e5m2",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U64": "u64",
    "U32": "u32",
    "U16": "u16",
    "U8": "u8",
    "BOOL": "bool",
}
_AGAIN = "Download or copy the file again."


def looks_like(file: RawFile) -> bool:
    """Whether the file starts as a safetensors file does; the length of its header may still be absurd."""
    return file.size >= 10 and file.bytes_at(8, 1) == b"{"


def read_index(file: RawFile) -> Index:
    """Reads and validates the header. Tensors are in the order of their data.

    Raises WorkerError for a header that is too large, damaged, or whose tensors overlap, leave gaps or lie outside.
    """
    (length,) = struct.unpack("<Q", file.bytes_at(0, 8))
    if length > MAX_HEADER:
        raise _bad(file, f"its header claims {length} bytes; no model's has more than {MAX_HEADER}")
    if length > file.size - 8:
        raise _bad(file, f"its header claims {length} bytes and the file has {file.size}. {_AGAIN}")
    header = _json(file, file.bytes_at(8, length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise _bad(file, "its __metadata__ is not a dict of texts")
    base = 8 + length
    found = sorted((_entry(file, name, value) for name, value in header.items()), key=lambda item: item[0])
    end = 0
    views: dict[str, View] = {}
    for begin, info in found:
        if begin != end:
            what = "overlaps" if begin < end else "leaves a gap after"
            raise _bad(file, f"tensor {info.name!a} {what} the one before it")
        stride = tuple(math.prod(info.shape[i + 1 :]) for i in range(len(info.shape)))
        views[info.name] = View(info, base + begin, info.nbytes, stride)
        end = begin + info.nbytes
    if base + end != file.size:
        raise _bad(file, f"it should have {base + end} bytes and has {file.size}. {_AGAIN}")
    return Index(views, metadata, (), lambda on_bytes: 0)


def _bad(file: RawFile, what: str) -> WorkerError:
    return WorkerError(f"{file.name}: broken safetensors file: {what}")


def _json(file: RawFile, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError("a key stands twice")
        return out

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _bad(file, f"its header is not JSON ({str(error)[:100]}). {_AGAIN}") from error
    if not isinstance(header, dict):
        raise _bad(file, "its header is not a JSON object")
    return header


def _entry(file: RawFile, name: str, value: Any) -> tuple[int, TensorInfo]:
    """Start in the data, and what the header says of the tensor."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise _bad(file, f"a tensor is called {name[:100]!a}")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(file, f"tensor {name!a} is not described by dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise _bad(file, f"tensor {name!a} has the dtype {str(value['dtype'])[:40]!a}, which is unknown")
    shape, offsets = value["shape"], value["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > 16:
            raise _bad(file, f"tensor {name!a} has an odd shape or place")
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise _bad(file, f"tensor {name!a} has an odd shape or place")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _bad(file, f"tensor {name!a} has a place that does not fit its shape and dtype")
    return offsets[0], TensorInfo(name, dtype, tuple(shape))
