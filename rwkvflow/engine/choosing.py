"""Choosing tokens with librwkv: many texts at once, by its threads, from logits that Python never looks at.

`chooser_of(model)` also serves libraries that cannot, with rwkvflow.engine.sampling. The tokens are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import c_bool, c_char_p, c_double, c_size_t, c_uint64, c_void_p
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.binding import Library, Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.sampling import NOT_FINITE, Sampler, Sampling, check_seed, rated

Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]  # [ceil(n_vocab / 32)]: a bit for each id, lowest first
Rating = tuple[float, tuple[tuple[int, float], ...]]  # a token's log-probability, and the likeliest ones with theirs
NO_TOKEN = 0xFFFFFFFF
SETTINGS = ("temperature", "top_p", "top_k", "presence", "frequency", "decay")


class TextSampler(Protocol):
    """Chooses token after token of one text, and remembers what it chose."""

    def choose(self, logits: Floats) -> int:
        """The next token. logits: [n_vocab], not changed. Raises ValueError where one is not finite."""

    def copy(self) -> TextSampler:
        """One that would choose the same from here on."""

    def forget(self) -> None:
        """Nothing was chosen yet; the random numbers go on."""


class Chooser(Protocol):
    """Chooses the next tokens of many texts. For the thread that owns the model."""

    def sampler(
        self,
        settings: Sampling,
        seed: int,
        exist: NDArray[np.bool_] | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> TextSampler:
        """`exist`: [n_vocab], which ids have a token; the others are never chosen. `bias`: what is added to logits.

        Raises ValueError for a seed that is none, or a bias that is too large.
        """

    def choose(
        self, samplers: Sequence[TextSampler], logits: Sequence[Floats], allowed: Sequence[Bits | None]
    ) -> list[int | None]:
        """The next token of each text, by samplers of this chooser; None where a logit is not finite.

        `allowed` has at least one bit: the others do not exist, in place of those that never do; None: as ever.
        """

    def rate(
        self, samplers: Sequence[TextSampler], logits: Sequence[Floats], asked: Sequence[tuple[int, int]]
    ) -> list[Rating]:
        """How likely tokens are, before temperature and penalties, where logits are finite.

        `asked`: a token, and how many of the likeliest ones that exist.
        """


def chooser_of(model: Model) -> Chooser:
    """The library's own, or one in Python where it has none."""
    return LibraryChooser(model) if model.library.chooses else PlainChooser()


def bits_of(mask: NDArray[np.bool_]) -> Bits:
    """A mask [n_vocab] as bits."""
    packed = np.packbits(mask, bitorder="little")
    return np.concatenate([packed, np.zeros(-packed.size % 4, np.uint8)]).view(np.uint32)


def mask_of(bits: Bits, n_vocab: int) -> NDArray[np.bool_]:
    """The same back."""
    return np.unpackbits(bits.view(np.uint8), bitorder="little")[:n_vocab].astype(np.bool_)


class PlainChooser:
    """See Chooser."""

    def sampler(
        self,
        settings: Sampling,
        seed: int,
        exist: NDArray[np.bool_] | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> Sampler:
        """See Chooser."""
        return Sampler(settings, seed, exist, bias)

    def choose(
        self, samplers: Sequence[Any], logits: Sequence[Floats], allowed: Sequence[Bits | None]
    ) -> list[int | None]:
        """See Chooser."""
        out: list[int | None] = []
        for sampler, row, bits in zip(samplers, logits, allowed, strict=True):
            try:
                out.append(sampler.choose(row, None if bits is None else mask_of(bits, row.size)))
            except ValueError:
                out.append(None)
        return out

    def rate(self, samplers: Sequence[Any], logits: Sequence[Floats], asked: Sequence[tuple[int, int]]) -> list[Rating]:
        """See Chooser."""
        found = zip(samplers, logits, asked, strict=True)
        return [rated(row, token, top, sampler.exist) for sampler, row, (token, top) in found]


class LibrarySampler:
    """A sampler of rwkvflow.h."""

    def __init__(self, chooser: LibraryChooser, address: int | None, exist: Bits | None) -> None:
        """`address`: the library's, which is owned from here on. Raises EngineError where it is none."""
        self._chooser, self.address, self.exist = chooser, address, exist
        if not address:
            raise chooser.library.error("no sampler")

    def __del__(self) -> None:
        if getattr(self, "address", None):
            self._chooser.library.call("rwkvflow_sampler_free", self.address)
            self.address = None

    def choose(self, logits: Floats) -> int:
        """See TextSampler."""
        (token,) = self._chooser.choose([self], [logits], [None])
        if token is None:
            raise ValueError(NOT_FINITE)
        return token

    def copy(self) -> LibrarySampler:
        """See TextSampler."""
        address = self._chooser.library.call("rwkvflow_sampler_copy", self.address)
        return LibrarySampler(self._chooser, address, self.exist)

    def forget(self) -> None:
        """See TextSampler."""
        self._chooser.library.call("rwkvflow_sampler_forget", self.address)


class LibraryChooser:
    """See Chooser. Samplers of one may choose from the logits of another model with the same vocabulary."""

    def __init__(self, model: Model) -> None:
        """Raises AttributeError where the library cannot choose tokens."""
        self._model, self.library = model, model.library
        _declare(self.library)
        self._exist: tuple[NDArray[np.bool_] | None, Bits | None] = (None, None)  # the last mask, and its bits

    def sampler(
        self,
        settings: Sampling,
        seed: int,
        exist: NDArray[np.bool_] | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> LibrarySampler:
        """See Chooser."""
        check_seed(seed)
        if exist is not self._exist[0]:
            self._exist = (exist, None if exist is None else self._mask(bits_of(exist)))
        made = LibrarySampler(self, self.library.call("rwkvflow_sampler_create", seed), self._exist[1])
        for name in SETTINGS:
            value = float(
                min(getattr(settings, name), self._model.n_vocab) if name == "top_k" else getattr(settings, name)
            )
            if not self.library.call("rwkvflow_sampler_set", made.address, name.encode(), value):
                raise ValueError(str(self.library.error("no sampler")))
        tokens, values = np.array([*(bias or {})], np.uint32), np.array([*(bias or {}).values()], np.float64)
        call = (tokens.ctypes.data, values.ctypes.data, tokens.size)
        if bias and not self.library.call("rwkvflow_sampler_bias", made.address, *call):
            raise ValueError(str(self.library.error("no bias")))
        return made

    def choose(
        self, samplers: Sequence[Any], logits: Sequence[Floats], allowed: Sequence[Bits | None]
    ) -> list[int | None]:
        """See Chooser."""
        masks = [
            sampler.exist if bits is None else self._mask(bits) for sampler, bits in zip(samplers, allowed, strict=True)
        ]
        owners = np.array([sampler.address for sampler in samplers], np.uintp)
        rows, words = self._rows(logits), _addresses(masks)
        out = np.empty(len(samplers), np.uint32)
        arrays = (owners.ctypes.data, rows.ctypes.data, words.ctypes.data)
        self._model.run("rwkvflow_choose", *arrays, owners.size, out.ctypes.data)
        return [None if token == NO_TOKEN else token for token in out.tolist()]

    def rate(self, samplers: Sequence[Any], logits: Sequence[Floats], asked: Sequence[tuple[int, int]]) -> list[Rating]:
        """See Chooser."""
        rows, words = self._rows(logits), _addresses([sampler.exist for sampler in samplers])
        tokens, tops = (np.array([each[i] for each in asked], np.uint32) for i in (0, 1))
        out = np.empty(tokens.size, np.float64)
        ids = [np.empty(top, np.uint32) for _, top in asked]
        logprobs = [np.empty(top, np.float64) for _, top in asked]
        to, likely = _addresses(ids), _addresses(logprobs)
        call = (rows.ctypes.data, words.ctypes.data, tokens.ctypes.data, tokens.size, out.ctypes.data)
        self._model.run("rwkvflow_logprobs", *call, tops.ctypes.data, to.ctypes.data, likely.ctypes.data)
        found = zip(out.tolist(), ids, logprobs, strict=True)
        return [
            (own, tuple(pair for pair in zip(which.tolist(), theirs.tolist(), strict=True) if pair[0] != NO_TOKEN))
            for own, which, theirs in found
        ]

    def _rows(self, logits: Sequence[Floats]) -> NDArray[np.uintp]:
        """Addresses of so many rows. Raises EngineError for what is no row of logits."""
        for row in logits:
            if row.dtype != np.float32 or row.size != self._model.n_vocab or not row.flags.c_contiguous:
                raise EngineError(f"logits of this model are {self._model.n_vocab} contiguous float32")
        return _addresses(logits)

    def _mask(self, bits: Bits) -> Bits:
        words = (self._model.n_vocab + 31) // 32
        if bits.dtype != np.uint32 or bits.size != words or not bits.flags.c_contiguous:
            raise EngineError(f"a mask of this model's tokens is {words} contiguous uint32")
        return bits


def _addresses(arrays: Sequence[NDArray[Any] | None]) -> NDArray[np.uintp]:
    """Of arrays that outlive what is done with them; 0 for None."""
    return np.array([0 if array is None else array.ctypes.data for array in arrays], np.uintp)


def _declare(library: Library) -> None:
    pointer, size = c_void_p, c_size_t
    library.function("rwkvflow_sampler_create", pointer, c_uint64)
    library.function("rwkvflow_sampler_copy", pointer, pointer)
    library.function("rwkvflow_sampler_free", None, pointer)
    library.function("rwkvflow_sampler_set", c_bool, pointer, c_char_p, c_double)
    library.function("rwkvflow_sampler_bias", c_bool, pointer, pointer, pointer, size)
    library.function("rwkvflow_sampler_forget", None, pointer)
    library.function("rwkvflow_choose", c_bool, *(4 * [pointer]), size, pointer)
    library.function("rwkvflow_logprobs", c_bool, *(4 * [pointer]), size, *(4 * [pointer]))
