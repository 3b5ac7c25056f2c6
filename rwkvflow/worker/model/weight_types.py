"""The types that weights are stored in: their numbers in each kind of file, and how they are packed.

The one table of them in Python. A type's number in the code is the one that rwkv.cpp's files have (engine/src/quantize/
blocks.h holds the same); llama.cpp's GGUF counts otherwise. Imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# With rwkv.cpp's numbers (rwkv_file_format.inc since 2025). It has no BF16 and no IQ types: those have ggml's.
F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, BF16 = 0, 1, 2, 3, 7, 8, 9, 30
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = 11, 12, 13, 14, 15
IQ3_XXS, IQ4_NL, IQ3_S, IQ4_XS = 18, 20, 21, 23
LARGEST_F16: Final = 65504  # what is larger is infinite in F16


@dataclass(frozen=True, slots=True)
class WeightType:
    """One type: `values` weights of a row are packed into a block of `nbytes` bytes.

    number       in rwkv.cpp's `.bin` files, and in this code
    gguf         in llama.cpp's GGUF files (ggml_type)
    file_type    of a GGUF file that is mostly of this type (llama_ftype); None where we write no such file
    in_bin       whether a `.bin` file may hold it
    narrower     the type for rows that the block does not divide, as in llama.cpp; None where there is none
    """

    name: str
    number: int
    gguf: int
    values: int
    nbytes: int
    file_type: int | None = None
    in_bin: bool = True
    narrower: int | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether weights share a scale."""
        return self.values > 1


WEIGHT_TYPES: Final[tuple[WeightType, ...]] = (
    WeightType("f32", F32, 0, 1, 4, file_type=0),
    WeightType("f16", F16, 1, 1, 2, file_type=1),
    WeightType("q4_0", Q4_0, 2, 32, 18, file_type=2),
    WeightType("q4_1", Q4_1, 3, 32, 20, file_type=3),
    WeightType("q5_0", Q5_0, 6, 32, 22, file_type=8),
    WeightType("q5_1", Q5_1, 7, 32, 24, file_type=9),
    WeightType("q8_0", Q8_0, 8, 32, 34, file_type=7),
    WeightType("q2_k", Q2_K, 10, 256, 84, file_type=10, narrower=Q4_0),
    WeightType("q3_k", Q3_K, 11, 256, 110, file_type=12, narrower=Q4_0),
    WeightType("q4_k", Q4_K, 12, 256, 144, file_type=15, narrower=Q5_0),
    WeightType("q5_k", Q5_K, 13, 256, 176, file_type=17, narrower=Q5_1),
    WeightType("q6_k", Q6_K, 14, 256, 210, file_type=18, narrower=Q8_0),
    WeightType("iq3_xxs", IQ3_XXS, 18, 256, 98, file_type=23, in_bin=False, narrower=IQ4_NL),
    WeightType("iq4_nl", IQ4_NL, 20, 32, 18, file_type=25, in_bin=False),
    WeightType("iq3_s", IQ3_S, 21, 256, 110, file_type=26, in_bin=False, narrower=IQ4_NL),
    WeightType("iq4_xs", IQ4_XS, 23, 256, 136, file_type=30, in_bin=False, narrower=IQ4_NL),
    WeightType("bf16", BF16, 30, 1, 2, file_type=32, in_bin=False),
)

BY_NUMBER: Final[Mapping[int, WeightType]] = {kind.number: kind for kind in WEIGHT_TYPES}
BY_NAME: Final[Mapping[str, WeightType]] = {kind.name: kind for kind in WEIGHT_TYPES}

#: (values, bytes) of a block.
BLOCKS: Final[Mapping[int, tuple[int, int]]] = {kind.number: (kind.values, kind.nbytes) for kind in WEIGHT_TYPES}
QUANTIZED: Final = frozenset(kind.number for kind in WEIGHT_TYPES if kind.is_quantized)
NARROWER: Final[Mapping[int, int]] = {kind.number: kind.narrower for kind in WEIGHT_TYPES if kind.narrower is not None}
#: Numbers that `.bin` files of rwkvflow 0.1 gave to Q4_K and Q5_K (ggml's), and what they stand for.
NUMBERS_OF_0_1: Final[Mapping[int, int]] = {12: Q4_K, 13: Q5_K}
#: The dtypes of a checkpoint that the engine encodes.
TYPE_OF_DTYPE: Final[Mapping[str, int]] = {kind.name: kind.number for kind in WEIGHT_TYPES if not kind.is_quantized}


def size_of(kind: int, count: int) -> int:
    """Bytes of `count` weights; count has to be a multiple of the type's block."""
    length, size = BLOCKS[kind]
    if count % length:
        raise ValueError(f"{count} weights are no whole blocks of type {kind}")
    return count // length * size
