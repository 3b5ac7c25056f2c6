"""Which type llama.cpp's quantizer gives a tensor (src/llama-quant.cpp), where its rows are whole blocks.

The embedding and the output have types of their own. RWKV's matrices belong to none of its categories; of a hybrid's,
`ffn_down` does: it gets more bits in some layers of the types that `_m` and `_s` name, and in others' first eighth.
"""

from __future__ import annotations

import re

from rwkvflow.worker.model.weight_types import BY_NAME, BY_NUMBER, IQ3_S, IQ3_XXS, Q5_K, Q6_K, Q8_0

_DOWN = re.compile(r"blk\.([0-9]+)\.ffn_down\.weight")


def wanted_type(name: str, kind: int, *, small: bool = False, layers: int = 0, weighed: bool = False) -> int:
    """The type of a tensor in a file that is mostly of `kind`; small: of the format whose name ends in `_s`.

    `layers` is how many the model has. weighed: whether there is an importance matrix.
    """
    if name == "output.weight" and kind != Q8_0:
        return Q5_K if kind == IQ3_XXS else Q6_K
    if name == "token_embd.weight" and kind == IQ3_XXS:
        return IQ3_S
    if (match := _DOWN.fullmatch(name)) is not None:
        given = _of_down(BY_NUMBER[kind].name, int(match[1]), layers, small, weighed)
        return kind if given is None else BY_NAME[given].number
    return kind


def _of_down(kind: str, layer: int, layers: int, small: bool, weighed: bool) -> str | None:
    """The name of another type than the file's, for ffn_down of a layer; None for the file's own."""
    first = layer < layers // 8
    more = first or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if kind == "q2_k":
        return "q3_k"
    if kind == "iq3_xxs":
        return None if weighed else "q4_k" if first else "q3_k"
    if kind == "q3_k":
        return None if small else "q5_k" if layer < layers // 16 else "q4_k"
    if kind == "q4_k":
        return ("q5_k" if first else None) if small else ("q6_k" if more else None)
    if kind == "q5_k":
        return None if small or not more else "q6_k"
    if kind in ("iq4_nl", "iq4_xs"):
        return "q5_k" if first and not weighed else None
    if kind in ("q4_0", "q5_0"):
        return {"q4_0": "q4_1", "q5_0": "q5_1"}[kind] if first and weighed else None
    return None
