"""The converter's binding of librwkv, by ctypes: rows of weights in, encoded rows out. Calls release the GIL."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.errors import WorkerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".so", ".dylib", ".dll")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3)


class Native:
    """The encoding functions of include/rwkvflow.h. Safe to use from several threads."""

    def __init__(self, engine: Path) -> None:
        """`engine` is an engine folder (lib/librwkv.so in it) or the library itself. Raises WorkerError."""
        library = find_library(engine)
        try:
            # A path without a slash would be looked up in the system's library folders.
            self._lib = ctypes.CDLL(str(library.resolve()))
            self._row_bytes = self._lib.rwkvflow_row_bytes
            self._encode = self._lib.rwkvflow_encode
            self._encode_weighted = getattr(self._lib, "rwkvflow_encode_weighted", None)
            self._count = self._lib.rwkvflow_count_not_finite
        except (OSError, AttributeError) as error:
            raise WorkerError(f"{library.name} cannot be used to convert: {error}") from error
        i32, u32, u64, pointer = ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
        self._row_bytes.argtypes = [i32, u64]
        self._row_bytes.restype = u64
        self._encode.argtypes = [i32, i32, i32, pointer, pointer, u64, u64, u32]
        self._encode.restype = i32
        if self._encode_weighted is not None:
            self._encode_weighted.argtypes = [i32, i32, i32, pointer, pointer, u64, u64, pointer]
            self._encode_weighted.restype = i32
        self._count.argtypes = [i32, pointer, u64]
        self._count.restype = u64

    def row_bytes(self, kind: int, cols: int) -> int:
        """Bytes of a row; 0 for an unknown type or where cols is no multiple of the type's block."""
        return int(self._row_bytes(kind, cols))

    def _room(self, source: NDArray[Any], source_type: int, kind: int, cols: int) -> tuple[int, NDArray[Any]]:
        """The number of rows, and an array (uint8) for them as type `kind`. Raises ValueError for no whole rows."""
        import numpy as np

        rows, rest = divmod(source.size, cols) if cols else (0, source.size)
        width = 4 if source_type == 0 else 2
        if rest or source.itemsize != width or not source.flags.c_contiguous:
            raise ValueError(f"{source.size} values of {source.itemsize} bytes are no rows of {cols}")
        return rows, np.empty(rows * self.row_bytes(kind, cols), np.uint8)

    def encode(
        self, source: NDArray[Any], source_type: int, kind: int, cols: int, via_f16: bool = False
    ) -> tuple[NDArray[Any], bool]:
        """Rows of `cols` values as type `kind`: the bytes (uint8), and whether every value or scale is finite.

        `source` is C-contiguous with itemsize 4 (F32) or 2 (F16, BF16) and holds a whole number of rows.
        """
        rows, out = self._room(source, source_type, kind, cols)
        status = self._encode(source_type, kind, via_f16, source.ctypes.data, out.ctypes.data, rows, cols, 1)
        if status < 0 or (rows and not out.size):
            raise ValueError(f"type {source_type} in rows of {cols} cannot be encoded as type {kind}")
        return out, status == 0

    def encode_weighted(
        self, source: NDArray[Any], source_type: int, kind: int, importance: NDArray[Any], via_f16: bool = False
    ) -> tuple[NDArray[Any], bool]:
        """The same with an importance matrix: float32 [columns], how much an error of each column counts.

        Raises ValueError for importance that is negative, not finite, or 0 in all columns of a block.
        """
        import numpy as np

        if self._encode_weighted is None:
            raise ValueError("this library knows no importance matrices")
        cols = importance.size
        weights = np.ascontiguousarray(importance, np.float32)
        rows, out = self._room(source, source_type, kind, cols)
        places = (source.ctypes.data, out.ctypes.data)
        status = self._encode_weighted(source_type, kind, via_f16, *places, rows, cols, weights.ctypes.data)
        if status == -3:
            raise ValueError("importance has to be finite and at least 0, and above 0 somewhere in each block")
        if status < 0 or (rows and not out.size):
            raise ValueError(f"type {source_type} in rows of {cols} cannot be encoded as type {kind}")
        return out, status == 0

    def count_not_finite(self, source: NDArray[Any], source_type: int) -> int:
        """How many of the F32, F16 or BF16 values are infinite or NaN."""
        return int(self._count(source_type, source.ctypes.data, source.size))


def keep_memory() -> None:
    """Have glibc keep what is freed for the next piece: fresh pages for each cost as much as reading the checkpoint."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 25), (M_TRIM_THRESHOLD, 1 << 30)):
            mallopt(option, value)


def find_library(engine: Path, stem: str = "librwkv") -> Path:
    """The library in an engine folder; `engine` itself where that is a library. Raises WorkerError for none."""
    if engine.is_file():
        return engine
    names = [stem + suffix for suffix in SUFFIXES]
    for name in names:
        path = engine / "lib" / name
        if path.is_file():
            return path
    raise WorkerError(f"no {', '.join(names[:-1])} or {names[-1]} in {engine.name}/lib")
