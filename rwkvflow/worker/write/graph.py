"""The forward pass of one token as a graph, for formats that hold the computation beside the weights (ONNX, ncnn).

`forward` walks it once over an Ops, which writes down what each step becomes in its format; the arithmetic is that of
worker.reference. A value is a name that the Ops chose. Vectors are one token's; heads are [H, 1, N] ("row") or
[H, N, 1] ("column"), a layer's matrix of states [H, N, N].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rwkvflow.worker.write.layout import Transform
from rwkvflow.worker.write.transforms import EXP, EXP_NEGATIVE_EXP, NEGATIVE_EXP

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

VERSIONS = frozenset({"4", "5.0", "5.1", "5.2", "6", "7"})  # those whose graph `forward` writes
EMPTY = -1e30  # where version 4's largest exponent (state 3) begins; every other state begins with zeros
SMALLEST_NORM = 1e-12
LOWEST_LOG_DECAY = -math.exp(-0.5)  # of version 7: w = exp(LOWEST_LOG_DECAY · sigmoid(…))


@dataclass(frozen=True)
class State:
    """What a layer remembers under one number. `fill`: every value of a fresh one."""

    layer: int
    index: int
    shape: tuple[int, ...]
    fill: float = 0.0


def states(architecture: Architecture) -> list[State]:
    """All states in order. Version 4: token shift, numerator, denominator, largest exponent, token shift of the
    channel mix; the others: token shift, [H, N, N], token shift of the channel mix.
    """
    wide, att = (architecture.n_embd,), (architecture.n_att,)
    heads, size = architecture.n_head or 1, architecture.head_size or 1
    own: list[tuple[tuple[int, ...], float]]
    if architecture.version == "4":
        own = [(wide, 0.0), (att, 0.0), (att, 0.0), (att, EMPTY), (wide, 0.0)]
    else:
        own = [(wide, 0.0), ((heads, size, size), 0.0), (wide, 0.0)]
    return [
        State(layer, index, shape, fill)
        for layer in range(architecture.n_layer)
        for index, (shape, fill) in enumerate(own)
    ]


class Ops(ABC):
    """Writes a graph down. Tensors are named as in the checkpoint."""

    def __init__(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> None:
        self.architecture = architecture
        self.tensors = tensors

    @abstractmethod
    def embedding(self, name: str) -> str:
        """The row of the input token: a vector."""

    @abstractmethod
    def linear(self, x: str, name: str, *, stored: str = "out,in", part: int | None = None) -> str:
        """A matrix times a vector; `stored` tells its dims, `part` which of its first dim's matrices it is."""

    @abstractmethod
    def constant(self, name: str, shape: tuple[int, ...], transform: Transform | None = None) -> str:
        """A small tensor, float32; of one dim it is a vector."""

    @abstractmethod
    def layer_norm(self, x: str, name: str) -> str:
        """The layer norm of a vector, with weight and bias."""

    @abstractmethod
    def head_norm(self, x: str, name: str) -> str:
        """The norm of each head of a row [H, 1, N], with weight, bias and the architecture's epsilon: a vector."""

    @abstractmethod
    def binary(self, kind: str, x: str, y: str) -> str:
        """add, sub, mul, div or max; dims of 1 are repeated, and the number of dims is the same."""

    @abstractmethod
    def scalar(self, kind: str, x: str, number: float) -> str:
        """add, mul or max with a number."""

    @abstractmethod
    def unary(self, kind: str, x: str) -> str:
        """exp, tanh, sigmoid, relu, sqrt, neg."""

    @abstractmethod
    def shaped(self, x: str, shape: tuple[int, ...]) -> str:
        """The same values in another shape; a shape of one number is a vector."""

    @abstractmethod
    def product(self, x: str, y: str) -> str:
        """A matrix product for each head."""

    @abstractmethod
    def parts(self, x: str, count: int, size: int) -> list[str]:
        """A vector cut into `count` vectors."""

    @abstractmethod
    def state(self, layer: int, index: int) -> str:
        """What the layer remembers."""

    @abstractmethod
    def keep(self, layer: int, index: int, value: str) -> None:
        """What it is to remember."""

    # ---- of these

    def square(self, x: str) -> str:
        """x · x."""
        return self.binary("mul", x, x)

    def silu(self, x: str) -> str:
        """x · sigmoid(x)."""
        return self.binary("mul", x, self.unary("sigmoid", x))

    def vector(self, name: str, transform: Transform | None = None) -> str:
        """A vector of the checkpoint."""
        return self.constant(name, (self.tensors[name].numel,), transform)

    def heads(self, x: str, shape: str) -> str:
        """A vector by heads: "row" or "column"."""
        heads, size = self.architecture.n_head or 1, self.architecture.head_size or 1
        return self.shaped(x, (heads, 1, size) if shape == "row" else (heads, size, 1))

    def moved(self, x: str, delta: str, share: str) -> str:
        """x + delta · share."""
        return self.binary("add", x, self.binary("mul", delta, share))


def forward(ops: Ops) -> str:
    """All of the graph; returns the logits, a vector."""
    architecture = ops.architecture
    x = ops.layer_norm(ops.embedding("emb.weight"), "blocks.0.ln0")
    first = ""
    for layer in range(architecture.n_layer):
        block = f"blocks.{layer}."
        y = ops.layer_norm(x, block + "ln1")
        if architecture.version == "4":
            y = _time_mix_4(ops, layer, y)
        elif architecture.version == "6":
            y = _time_mix_6(ops, layer, y)
        elif architecture.version == "7":
            y, first = _time_mix_7(ops, layer, y, first)
        else:
            y = _time_mix_5(ops, layer, y)
        x = ops.binary("add", x, y)
        x = ops.binary("add", x, _channel_mix(ops, layer, ops.layer_norm(x, block + "ln2")))
    return ops.linear(ops.layer_norm(x, "ln_out"), "head.weight")


def _before(ops: Ops, layer: int, index: int, x: str) -> str:
    """The token before; x is to be remembered."""
    previous = ops.state(layer, index)
    ops.keep(layer, index, x)
    return previous


def _channel_mix(ops: Ops, layer: int, x: str) -> str:
    ffn, version = f"blocks.{layer}.ffn.", ops.architecture.version
    previous = _before(ops, layer, 4 if version == "4" else 2, x)
    if version in ("6", "7"):  # x + (previous - x) · share
        base, delta = x, ops.binary("sub", previous, x)
        name = "x_" if version == "7" else "time_maa_"
    else:  # x · share + previous · (1 - share)
        base, delta = previous, ops.binary("sub", x, previous)
        name = "time_mix_"
    k = ops.linear(ops.moved(base, delta, ops.vector(f"{ffn}{name}k")), ffn + "key.weight")
    value = ops.linear(ops.square(ops.unary("relu", k)), ffn + "value.weight")
    if version == "7":
        return value
    r = ops.linear(ops.moved(base, delta, ops.vector(f"{ffn}{name}r")), ffn + "receptance.weight")
    return ops.binary("mul", ops.unary("sigmoid", r), value)


def _projections(ops: Ops, layer: int, x: str, letters: Mapping[str, str]) -> list[str]:
    """Versions 4 and 5: the token and its predecessor mixed, and multiplied."""
    att = f"blocks.{layer}.att."
    previous = _before(ops, layer, 0, x)
    delta = ops.binary("sub", x, previous)
    return [
        ops.linear(ops.moved(previous, delta, ops.vector(f"{att}time_mix_{letter}")), f"{att}{name}.weight")
        for letter, name in letters.items()
    ]


def _time_mix_4(ops: Ops, layer: int, x: str) -> str:
    att = f"blocks.{layer}.att."
    r, k, v = _projections(ops, layer, x, {"r": "receptance", "k": "key", "v": "value"})
    above, below, largest = (ops.state(layer, index) for index in (1, 2, 3))
    now = ops.binary("add", ops.vector(att + "time_first"), k)
    top = ops.binary("max", largest, now)

    def weighed(old: str, new: str) -> tuple[str, str]:
        """Numerator and denominator with the past weighed by `old` and this token by `new`, both logarithms."""
        old, new = (ops.unary("exp", ops.binary("sub", part, top)) for part in (old, new))
        numerator = ops.binary("add", ops.binary("mul", old, above), ops.binary("mul", new, v))
        return numerator, ops.binary("add", ops.binary("mul", old, below), new)

    wkv = ops.binary("div", *weighed(largest, now))
    past = ops.binary("add", ops.vector(att + "time_decay", NEGATIVE_EXP), largest)
    top = ops.binary("max", past, k)
    above, below = weighed(past, k)
    for index, value in enumerate((above, below, top), 1):
        ops.keep(layer, index, value)
    return ops.linear(ops.binary("mul", ops.unary("sigmoid", r), wkv), att + "output.weight")


def _recurrence(ops: Ops, layer: int, r: str, k: str, v: str, decay: str, bonus: str) -> str:
    """Versions 5 and 6, see reference.v5: r, k, v are vectors, decay and bonus [H, N or 1, 1]; returns a row."""
    product = ops.product(ops.heads(k, "column"), ops.heads(v, "row"))
    s = ops.state(layer, 1)
    out = ops.product(ops.heads(r, "row"), ops.moved(s, product, bonus))
    ops.keep(layer, 1, ops.moved(product, s, decay))
    return out


def _time_mix_5(ops: Ops, layer: int, x: str) -> str:
    architecture, att = ops.architecture, f"blocks.{layer}.att."
    letters = {"r": "receptance", "k": "key", "v": "value"}
    if architecture.version != "5.0":
        letters["g"] = "gate"
    r, k, v, *gate = _projections(ops, layer, x, letters)
    heads, size = architecture.n_head or 1, architecture.head_size or 1
    shape = (heads, size if architecture.version == "5.2" else 1, 1)
    decay = ops.constant(att + "time_decay", shape, EXP_NEGATIVE_EXP)
    if att + "time_faaaa" in ops.tensors:
        bonus = ops.constant(att + "time_faaaa", shape)
    else:
        bonus = ops.constant(att + "time_first", shape, EXP)
    y = ops.head_norm(_recurrence(ops, layer, r, k, v, decay, bonus), att + "ln_x")
    if gate:
        y = ops.binary("mul", y, ops.silu(gate[0]))
    return ops.linear(y, att + "output.weight")


def _time_mix_6(ops: Ops, layer: int, x: str) -> str:
    architecture, att = ops.architecture, f"blocks.{layer}.att."
    delta = ops.binary("sub", _before(ops, layer, 0, x), x)
    low = ops.linear(ops.moved(x, delta, ops.vector(att + "time_maa_x")), att + "time_maa_w1", stored="in,out")
    shares = ops.parts(ops.unary("tanh", low), 5, architecture.lora["maa"])
    mixed = {}
    for part, letter in enumerate("wkvrg"):
        share = ops.linear(shares[part], att + "time_maa_w2", stored="in,out", part=part)
        mixed[letter] = ops.moved(x, delta, ops.binary("add", ops.vector(f"{att}time_maa_{letter}"), share))
    r, k, v, g = (
        ops.linear(mixed[letter], f"{att}{name}.weight")
        for letter, name in {"r": "receptance", "k": "key", "v": "value", "g": "gate"}.items()
    )
    low = ops.unary("tanh", ops.linear(mixed["w"], att + "time_decay_w1", stored="in,out"))
    low = ops.linear(low, att + "time_decay_w2", stored="in,out")
    log = ops.unary("exp", ops.binary("add", ops.vector(att + "time_decay"), low))
    decay = ops.heads(ops.unary("exp", ops.unary("neg", log)), "column")
    bonus = ops.constant(att + "time_faaaa", (architecture.n_head or 1, architecture.head_size or 1, 1))
    y = ops.head_norm(_recurrence(ops, layer, r, k, v, decay, bonus), att + "ln_x")
    return ops.linear(ops.binary("mul", y, ops.silu(g)), att + "output.weight")


def _time_mix_7(ops: Ops, layer: int, x: str, first: str) -> tuple[str, str]:
    """Also returns the values of layer 0, which later layers mix in. See reference.v7."""
    att = f"blocks.{layer}.att."
    delta = ops.binary("sub", _before(ops, layer, 0, x), x)
    xs = {letter: ops.moved(x, delta, ops.vector(f"{att}x_{letter}")) for letter in "rwkvag"}

    def low_rank(letter: str, between: str | None = None) -> str:
        low = ops.linear(xs[letter], f"{att}{letter}1", stored="in,out")
        low = ops.linear(ops.unary(between, low) if between else low, f"{att}{letter}2", stored="in,out")
        return low if letter == "g" else ops.binary("add", ops.vector(f"{att}{letter}0"), low)

    r, k, v = (
        ops.linear(xs[x], f"{att}{name}.weight") for x, name in (("r", "receptance"), ("k", "key"), ("v", "value"))
    )
    w = ops.unary("exp", ops.scalar("mul", ops.unary("sigmoid", low_rank("w", "tanh")), LOWEST_LOG_DECAY))
    a = ops.unary("sigmoid", low_rank("a"))
    g = low_rank("g", "sigmoid")
    if first:
        v = ops.moved(v, ops.binary("sub", first, v), ops.unary("sigmoid", low_rank("v")))
    else:
        first = v
    kappa = ops.binary("mul", k, ops.vector(att + "k_k"))
    row = ops.heads(kappa, "row")
    norm = ops.unary("sqrt", ops.product(row, ops.heads(kappa, "column")))
    row = ops.binary("div", row, ops.scalar("max", norm, SMALLEST_NORM))
    removed = ops.unary("neg", ops.product(ops.state(layer, 1), ops.shaped(row, _column(ops))))
    k = ops.moved(k, ops.binary("mul", k, ops.scalar("add", a, -1.0)), ops.vector(att + "k_a"))
    value, key, query = ops.heads(v, "row"), ops.heads(k, "column"), ops.heads(r, "row")
    s = ops.binary("mul", ops.state(layer, 1), ops.heads(w, "row"))
    s = ops.binary("add", s, ops.product(removed, ops.binary("mul", row, ops.heads(a, "row"))))
    s = ops.binary("add", s, ops.product(ops.heads(v, "column"), ops.heads(k, "row")))
    ops.keep(layer, 1, s)
    out = ops.shaped(ops.product(s, ops.heads(r, "column")), _row(ops))
    y = ops.head_norm(out, att + "ln_x")
    bonus = ops.product(ops.binary("mul", query, ops.constant(att + "r_k", _row(ops))), key)
    extra = ops.shaped(ops.binary("mul", value, bonus), (ops.architecture.n_att,))
    y = ops.binary("mul", ops.binary("add", y, extra), g)
    return ops.linear(y, att + "output.weight"), first


def _row(ops: Ops) -> tuple[int, int, int]:
    return (ops.architecture.n_head or 1, 1, ops.architecture.head_size or 1)


def _column(ops: Ops) -> tuple[int, int, int]:
    return (ops.architecture.n_head or 1, ops.architecture.head_size or 1, 1)


# ---- what both formats write beside it ---------------------------------------------------------------------------


def config(architecture: Architecture, weights: str, **more: object) -> bytes:
    """The lines that faster-rwkv reads. What it calls head_size is the number of heads, and 5.0 is "5" there."""
    lines = {
        "version": {"5.0": "5"}.get(architecture.version, architecture.version),
        "act_dtype": "fp32",
        "weight_dtype": weights,
        "head_size": architecture.n_head or 0,
        "n_layer": architecture.n_layer,
        "n_embd": architecture.n_embd,
        "n_att": architecture.n_att,
        "n_ffn": architecture.n_ffn,
        **more,
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items()).encode()


def part_of(index: int, swap: bool = False) -> Transform:
    """One matrix of a tensor of matrices; with `swap` its dims are swapped."""
    name = f"part {index} of the first dim" + (", its dims swapped" if swap else "")
    return Transform(name, lambda values: values[index].T if swap else values[index])
