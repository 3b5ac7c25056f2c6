"""The importance of a model's columns over a text: sums of squared inputs, the same bits on every machine."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def chunks_of(tokens: Sequence[int], size: int, most: int | None = None) -> Iterator[Sequence[int]]:
    """Whole chunks from the beginning; what is left behind the last one is not used."""
    count = len(tokens) // size if most is None else min(most, len(tokens) // size)
    for index in range(count):
        yield tokens[index * size : (index + 1) * size]


class Gatherer:
    """Sums over chunks of tokens, each from a fresh state. Not for several threads."""

    def __init__(self, model: Model) -> None:
        """Raises EngineError where the library is not ours, or older than this."""
        import numpy as np

        self._model, library = model, model.library
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        try:
            self._len = library.function("rwkvflow_importance_len", u64, pointer)
            self._part = library.function("rwkvflow_importance_part", ctypes.c_bool, pointer, u64, pointer, pointer)
            self._add = library.function(
                "rwkvflow_importance_add", ctypes.c_bool, pointer, pointer, ctypes.c_size_t, pointer
            )
        except AttributeError:
            raise EngineError(
                f"{library.path.name} computes no importance: it is not librwkv, or an older one"
            ) from None
        self._sums = np.zeros(int(self._len(model._alive())), np.float64)

    def add(self, tokens: Sequence[int]) -> None:
        """Read one chunk. Raises EngineError."""
        import numpy as np

        ids = np.ascontiguousarray(tokens, np.uint32)
        context = self._model._alive()
        if not self._add(context, ids.ctypes.data, ids.size, self._sums.ctypes.data):
            raise self._model.library.error("the tokens cannot be read", context)

    def sums(self) -> dict[str, NDArray[np.float64]]:
        """By the author's name of each matrix: [columns]."""
        parts: list[tuple[str, int]] = []
        columns = ctypes.c_uint64()
        name = ctypes.c_char_p()
        while self._part(self._model._alive(), len(parts), ctypes.byref(name), ctypes.byref(columns)):
            parts.append(((name.value or b"").decode(), columns.value))
        out, at = {}, 0
        for layer in range(self._model.n_layer):
            for part, count in parts:
                out[f"blocks.{layer}.{part}"] = self._sums[at : at + count]
                at += count
        return out
