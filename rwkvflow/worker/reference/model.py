"""Runs whole token sequences through a checkpoint, one layer after the other.

Only one layer's weights are in memory at a time, and the embedding and the head are read by rows, so memory follows the
width of a model and not its size. Where there is room for all weights as float32 they are kept, since a continuation
asks for all of them at every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import Architecture, architecture_of
from rwkvflow.worker.model.versions import HEAD_NORM_EPS, HYBRIDS, RESCALE_EVERY, RESCALED
from rwkvflow.worker.protocol import progress
from rwkvflow.worker.reference import hybrids, v4, v5, v6, v7
from rwkvflow.worker.reference.half import exact, half
from rwkvflow.worker.reference.memory import room
from rwkvflow.worker.reference.primitives import Array, Get, State, layer_norm, linear

CACHE_BYTES = 1 << 30  # fp32 models up to this size stay in memory between calls, however little is free
TOLD_TOKENS = 64  # of a sequence, for which progress is told layer by layer
HEAD_BYTES = 1 << 27  # of the head's fp32 rows, or of logits, at a time


class Tensors(Protocol):
    """What the forward pass asks of a file: worker.checkpoint.Checkpoint, or an artifact read by its own package."""

    tensors: Mapping[str, Any]  # name -> something with .shape

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> Array:
        """Rows of a tensor as float32."""


class Continuing(Protocol):
    """What continuations are asked for: rwkvflow.worker.smoke.questions.Questions."""

    @property
    def prompts(self) -> Sequence[Sequence[int]]:
        """Token ids, at least one of each."""

    @property
    def tokens(self) -> int:
        """How many follow each prompt."""

    def likeliest(self, logits: Array) -> int:
        """The token that is chosen by logits [V]."""


@dataclass
class Peaks:
    """The largest magnitudes that a forward pass came to, over all that it read.

    square: of the feed-forward's squared ReLU. residual: of what stands between layers, as runtimes in fp16 have it:
    before version 7 they halve it after each six layers. block: of sums of 32 such squares, which ggml quantizes
    together.
    """

    square: float = 0.0
    residual: float = 0.0
    block: float = 0.0


@dataclass
class Memory:
    """Tokens that were read so far, as what each layer remembers of them."""

    layers: list[State] = field(default_factory=list)


class Reference:
    """The fp32 forward pass of one checkpoint. Not safe to use from several threads.

    `cache_bytes`: models up to this size, in fp32, stay in memory; None: those that there is room for. `in_half`: as
    runtimes compute in fp16 (rwkvflow.worker.reference.half), with what they halve after each six layers.
    """

    def __init__(
        self,
        checkpoint: Tensors,
        group_norm_eps: float | None = None,
        cache_bytes: int | None = None,
        architecture: Architecture | None = None,
        *,
        in_half: bool = False,
    ) -> None:
        self.in_half = in_half
        self.checkpoint = checkpoint
        self.architecture = architecture or architecture_of(checkpoint.tensors)
        self.eps = HEAD_NORM_EPS if group_norm_eps is None else group_norm_eps
        total = sum(4 * int(np.prod(info.shape, dtype=np.int64)) for info in checkpoint.tensors.values())
        self._keep = total <= (max(CACHE_BYTES, room()) if cache_bytes is None else cache_bytes)
        self.peaks = Peaks()
        self._cache: dict[str, Array] = {}

    def _tensor(self, name: str) -> Array:
        found = self._cache.get(name)
        if found is None:
            found = self._cache[name] = self.checkpoint.float32(name)
        return found

    def _forget(self) -> None:
        if not self._keep:
            self._cache.clear()

    def start(self) -> Memory:
        """A fresh sequence."""
        return Memory([{} for _ in range(self.architecture.n_layer)])

    def hidden(self, sequences: Sequence[Memory], tokens: Sequence[Sequence[int]]) -> list[Array]:
        """Reads tokens[i] (at least one) into sequences[i]; returns what the head sees of each, [T_i, C].

        Every weight is read once, whatever the number of sequences. Raises WorkerError for a token that the
        vocabulary does not have.
        """
        xs = [self._embed(row) for row in tokens]
        firsts: list[Array | None] = [None] * len(xs)
        told = max(len(x) for x in xs) >= TOLD_TOKENS
        for layer in range(self.architecture.n_layer):
            prefix = f"blocks.{layer}."

            halvings = self._halvings(layer)

            def get(name: str, prefix: str = prefix, halvings: int = halvings) -> Array:
                found = self._tensor(prefix + name)
                return half(found / 2**halvings) if halvings and self.in_half and name in RESCALED else found

            for index, x in enumerate(xs):
                state = sequences[index].layers[layer]
                if layer == 0 and "blocks.0.ln0.weight" in self.checkpoint.tensors:  # else it is in the embedding
                    x = layer_norm(x, get("ln0.weight"), get("ln0.bias"))
                y = self._norm(x, get, "ln1")
                y, firsts[index] = self._time_mix(layer, get, y, state, firsts[index])
                x = x + y
                xs[index] = x + self._channel_mix(get, self._norm(x, get, "ln2"), state)
                self._look(layer, xs[index], state)
                if self.in_half and self._halvings(layer + 1) > halvings:
                    xs[index] = xs[index] / np.float32(2)
            self._forget()
            if told:
                progress(layer + 1, self.architecture.n_layer, "layers", "text")
        return [self._norm(x, self._tensor, "ln_out") for x in xs]

    def _norm(self, x: Array, get: Get, name: str) -> Array:
        """Of a layer, or the last one; a hybrid's has no bias, and takes no mean away."""
        eps = self.architecture.rms_norm_eps
        if eps is not None:
            return hybrids.rms_norm(x, get(f"{name}.weight"), eps)
        return layer_norm(x, get(f"{name}.weight"), get(f"{name}.bias"))

    def _look(self, layer: int, x: Array, state: State) -> None:
        halvings = 0 if self.in_half else self._halvings(layer)
        self.peaks.square = max(self.peaks.square, float(state["square"]))
        self.peaks.block = max(self.peaks.block, float(state["block"]))
        self.peaks.residual = max(self.peaks.residual, float(np.abs(x).max()) / 2**halvings)

    def _halvings(self, layer: int) -> int:
        """How often runtimes in fp16 have halved what they have before a layer."""
        return 0 if self.architecture.version in ("7", *HYBRIDS) else layer // RESCALE_EVERY

    def _embed(self, tokens: Sequence[int]) -> Array:
        vocabulary = self.architecture.n_vocab
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise WorkerError(f"token {token} is outside the model's vocabulary of {vocabulary}")
        rows = {token: self.checkpoint.float32("emb.weight", token, 1)[0] for token in set(tokens)}
        found = np.stack([rows[token] for token in tokens])
        return half(found) if self.in_half else found

    def _time_mix(
        self, layer: int, get: Get, x: Array, state: State, v_first: Array | None
    ) -> tuple[Array, Array | None]:
        version, heads = self.architecture.version, self.architecture.n_head or 0
        if version == "4":
            return v4.time_mix(get, x, state), None
        if version == "6":
            return v6.time_mix(get, x, state, heads, self.eps), None
        if version == "7":
            return v7.time_mix(get, x, state, heads, self.eps, v_first)
        has = self.checkpoint.tensors
        if version == "arwkv7":
            gated, normed = "blocks.0.att.g1" in has, "blocks.0.att.ln_x.weight" in has
            return v7.time_mix(get, x, state, heads, self.eps, v_first, gated=gated, normed=normed)
        if version == "rwkv6qwen2":
            bias = frozenset(x for x in ("receptance", "key", "value") if f"blocks.0.att.{x}.bias" in has)
            return hybrids.time_mix_6(get, x, state, heads, bias), None
        is_log = f"blocks.{layer}.att.time_faaaa" not in self.checkpoint.tensors
        return v5.time_mix(get, x, state, version, heads, self.eps, is_log), None

    def _channel_mix(self, get: Get, x: Array, state: State) -> Array:
        version = self.architecture.version
        if version == "7":
            return v7.channel_mix(get, x, state)
        if version == "6":
            return v6.channel_mix(get, x, state)
        if version in HYBRIDS:
            return hybrids.feed_forward(get, x, state)
        return v4.channel_mix(get, x, state)

    def head(self, hidden: Array) -> Iterator[tuple[int, Array]]:
        """Logits of hidden [T, C] in slices of the vocabulary: (first token of the slice, [T, slice])."""
        vocabulary, width = self.architecture.n_vocab, self.architecture.n_embd
        step = max(1, HEAD_BYTES // (4 * max(width, len(hidden))))
        for start in range(0, vocabulary, step):
            rows = min(step, vocabulary - start)
            if self._keep:
                weight = self._tensor("head.weight")[start : start + rows]
            else:
                weight = self.checkpoint.float32("head.weight", start, rows)
            yield start, exact(linear(hidden, weight))

    def logits(self, hidden: Array) -> Array:
        """All logits of hidden [T, C]: [T, V]."""
        return np.concatenate([part for _, part in self.head(hidden)], axis=1)

    def greedy(self, asked: Continuing) -> list[list[int]]:
        """The likeliest tokens after each prompt, one at a time, as many as are asked for."""
        prompts, count = asked.prompts, asked.tokens
        sequences = [self.start() for _ in prompts]
        out: list[list[int]] = [[] for _ in prompts]
        feed = [list(prompt) for prompt in prompts]
        for done in range(count if prompts else 0):
            progress(done, count, "tokens", "continuation")
            last = np.stack([hidden[-1] for hidden in self.hidden(sequences, feed)])
            feed = [[asked.likeliest(logits)] for logits in self.logits(last)]
            for row, token in zip(out, feed, strict=True):
                row += token
        return out


def logits(checkpoint: Tensors, tokens: Sequence[int], group_norm_eps: float | None = None) -> Array:
    """The logits after each of the tokens from a fresh state, [T, V] float32."""
    reference = Reference(checkpoint, group_norm_eps)
    return reference.logits(reference.hidden([reference.start()], [tokens])[0])
