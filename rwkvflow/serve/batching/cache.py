"""States by the tokens that were read to reach them, so that a text which begins as an earlier one is read from there.

A radix tree: an edge is a run of tokens, a node may hold a snapshot. One tree is for one model file, adapter,
tokenizer and first state; the scheduler that owns the model owns its tree, and nobody else may touch it. What the
snapshots take is limited in bytes; those that were not used for the longest time go first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TOKEN_BYTES = 8  # what the tree itself takes a token, about


@dataclass(eq=False)
class Snapshot:
    """What a model remembers after `length` tokens. Its arrays are never written again.

    logits: those after the last token; None where they were not kept, and then it serves only texts that go on.
    """

    length: int
    state: Floats
    logits: Floats | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.state.nbytes + (self.logits.nbytes if self.logits is not None else 0) + TOKEN_BYTES * self.length


@dataclass(eq=False)
class _Node:
    edge: tuple[int, ...]
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    snapshot: Snapshot | None = None


class StateCache:
    """`limit`: bytes; 0 keeps nothing. `size`: bytes that are taken now."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = self.hits = self.misses = 0
        self._roots: dict[Hashable, _Node] = {}
        self._used: dict[_Node, None] = {}  # nodes with a snapshot, the least recently used first

    def __len__(self) -> int:
        return len(self._used)

    def find(self, key: Hashable, tokens: Sequence[int]) -> Snapshot | None:
        """The longest beginning of `tokens` with a snapshot that serves: all of them only where its logits are there.

        `key` tells apart what the same tokens may have been read on: another first state.
        """
        best: _Node | None = None
        node = self._roots.get(key)
        at = 0
        while node is not None:
            snapshot = node.snapshot
            if snapshot is not None and (at < len(tokens) or snapshot.logits is not None):
                best = node
            child = node.children.get(tokens[at]) if at < len(tokens) else None
            if child is None or tuple(tokens[at : at + len(child.edge)]) != child.edge:
                break
            at += len(child.edge)
            node = child
        if best is None:
            self.misses += 1
            return None
        self.hits += 1
        self._used[best] = self._used.pop(best)
        return best.snapshot

    def has(self, key: Hashable, tokens: Sequence[int], *, logits: bool) -> bool:
        """Whether there is a snapshot for exactly these tokens, with logits where they are asked for."""
        node = self._roots.get(key)
        at = 0
        while node is not None and at < len(tokens):
            node = node.children.get(tokens[at])
            if node is None or tuple(tokens[at : at + len(node.edge)]) != node.edge:
                return False
            at += len(node.edge)
        snapshot = None if node is None else node.snapshot
        return snapshot is not None and (snapshot.logits is not None or not logits)

    def put(self, key: Hashable, tokens: Sequence[int], snapshot: Snapshot) -> bool:
        """Keep it, in place of an older one for these tokens. False where it is larger than the limit."""
        if snapshot.size > self.limit:
            return False
        node = self._reach(key, tuple(tokens))
        if node.snapshot is not None:
            self.size -= node.snapshot.size
            self._used.pop(node)
        node.snapshot = snapshot
        self._used[node] = None
        self.size += snapshot.size
        while self.size > self.limit:
            self._forget(next(iter(self._used)))
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self._used.clear()
        self.size = 0

    def _reach(self, key: Hashable, tokens: tuple[int, ...]) -> _Node:
        """The node for these tokens, made where there is none."""
        node = self._roots.setdefault(key, _Node((), None))
        at = 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(tokens[at:], node)
                return child
            same = _common(child.edge, tokens, at)
            if same < len(child.edge):
                middle = node.children[tokens[at]] = _Node(child.edge[:same], node)
                middle.children[child.edge[same]] = child
                child.edge, child.parent = child.edge[same:], middle
                child = middle
            at += same
            node = child
        return node

    def _forget(self, node: _Node) -> None:
        if node.snapshot is not None:
            self.size -= node.snapshot.size
            node.snapshot = None
        del self._used[node]
        while node.parent is not None and node.snapshot is None and not node.children:
            del node.parent.children[node.edge[0]]
            node = node.parent
        if node.parent is None and node.snapshot is None and not node.children:
            self._roots = {key: root for key, root in self._roots.items() if root is not node}
        if node.parent is not None and node.snapshot is None and len(node.children) == 1:
            (child,) = node.children.values()
            child.edge, child.parent = node.edge + child.edge, node.parent
            node.parent.children[node.edge[0]] = child

    def nodes(self) -> Iterator[tuple[Hashable, tuple[int, ...], Snapshot | None]]:
        """Every node of every tree, for tests: its key, tokens from the root, and snapshot."""
        stack: list[tuple[Hashable, tuple[int, ...], _Node]] = [(key, (), root) for key, root in self._roots.items()]
        while stack:
            key, before, node = stack.pop()
            tokens = before + node.edge
            yield key, tokens, node.snapshot
            stack += [(key, tokens, child) for child in node.children.values()]


def _common(edge: tuple[int, ...], tokens: tuple[int, ...], at: int) -> int:
    """How many tokens of the edge stand in `tokens` from `at` on."""
    count = 0
    for mine, other in zip(edge, tokens[at : at + len(edge)], strict=False):
        if mine != other:
            break
        count += 1
    return count
