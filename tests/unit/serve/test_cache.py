"""The tree of states finds the longest beginning, and never takes more bytes than it may."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.serve.batching.cache import Snapshot, StateCache

TOKENS = st.lists(st.integers(0, 2), max_size=9).map(tuple)


def snapshot(tokens: tuple[int, ...], logits: bool = True) -> Snapshot:
    state = np.full(16, len(tokens), np.float32)
    return Snapshot(len(tokens), state, np.zeros(4, np.float32) if logits else None)


@settings(max_examples=80, deadline=None)
@given(
    puts=st.lists(st.tuples(st.sampled_from(["a", "b"]), TOKENS, st.booleans()), max_size=25),
    asked=st.lists(st.tuples(st.sampled_from(["a", "b"]), TOKENS), min_size=1, max_size=6),
    limit=st.sampled_from([0, 300, 900, 10**6]),
)
def test_it_is_a_dictionary_that_forgets_what_was_not_used(puts: Any, asked: Any, limit: int) -> None:
    cache = StateCache(limit)
    model: dict[tuple[str, tuple[int, ...]], Snapshot] = {}  # the least recently used first

    def find(key: str, tokens: tuple[int, ...]) -> None:
        fitting = [
            (k, t)
            for (k, t), kept in model.items()
            if k == key and tokens[: len(t)] == t and (len(t) < len(tokens) or kept.logits is not None)
        ]
        found = cache.find(key, tokens)
        if not fitting:
            assert found is None
            return
        best = max(fitting, key=lambda place: len(place[1]))
        assert found is model[best]
        model[best] = model.pop(best)

    for key, tokens, logits in puts:
        entry = snapshot(tokens, logits)
        assert cache.put(key, tokens, entry) == (entry.size <= limit)
        if entry.size <= limit:
            model.pop((key, tokens), None)
            model[key, tokens] = entry
            while sum(kept.size for kept in model.values()) > limit:
                del model[next(iter(model))]
        assert cache.size == sum(kept.size for kept in model.values()) <= limit
        assert len(cache) == len(model)
        find(*asked[len(tokens) % len(asked)])
    for place in asked:
        find(*place)
        assert cache.has(*place, logits=False) == (place in model)
    held = {(key, tokens): kept for key, tokens, kept in cache.nodes() if kept is not None}
    assert held == model
    # No node is there for nothing: it holds a snapshot, or parts at least two ways, or is a root that leads somewhere.
    for key, tokens, kept in cache.nodes():
        below = [t for k, t, _ in cache.nodes() if k == key and len(t) > len(tokens) and t[: len(tokens)] == tokens]
        assert kept is not None or len({t[len(tokens)] for t in below}) >= (2 if tokens else 1)
