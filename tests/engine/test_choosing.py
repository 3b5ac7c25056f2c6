"""librwkv chooses what the description says, to the bit: by any kernels, any threads, whatever else is in the batch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.engine import EngineError, Model
from rwkvflow.engine.choosing import Bits, LibraryChooser, PlainChooser, bits_of, chooser_of, mask_of
from rwkvflow.engine.sampling import Sampler, Sampling, rated
from tests.engine import librwkv
from tests.helpers import checkpoints

VOCABULARY = 1111  # no whole number of words, groups or blocks
FINITE = st.floats(-80, 80, width=32)


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config)


@pytest.fixture(scope="session")
def path(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which only the size of its vocabulary matters."""
    from rwkvflow.worker.conversion.convert import ConversionJob, convert

    root = tmp_path_factory.mktemp("choosing")
    source = checkpoints.make(root / "model.pth", "4", vocab=VOCABULARY, layers=1, width=32)
    (outcome,) = convert(source, built / "librwkv.so", [ConversionJob("x", "ggml-f16", root / "model.bin")])
    assert outcome.failure is None
    return root / "model.bin"


@pytest.fixture(scope="session")
def model(built: Path, path: Path) -> Iterator[Model]:
    with Model(path, built / "librwkv.so", 3) as opened:
        yield opened


def rows(seed: int, kind: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits: of any kind that a model may have, or that may go wrong."""
    chance = np.random.default_rng(seed)
    values = chance.normal(0, {"flat": 0.01, "usual": 2, "steep": 30}.get(kind, 1), VOCABULARY)
    if kind == "ties":
        values = np.round(values)
    if kind == "same":
        values[:] = 3
    if kind == "far":  # a few, and all others so far below that their weights are 0
        values[chance.integers(0, VOCABULARY, VOCABULARY - 5)] -= 1e30
    if kind == "falling":
        values = np.sort(values)[::-1]
    return values.astype(np.float32)


SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-300, 0.01, 0.5, 1.0, 3.0, 1e9, 1e300]),
    top_p=st.sampled_from([1e-9, 0.3, 0.7, 0.999999, 1.0 - 2**-53, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 17, 40, 63, 64, 65, 600, 10**6, 10**400]),
    presence=st.sampled_from([0.0, 0.4, -3.0, 1e300]),
    frequency=st.sampled_from([0.0, 0.7]),
    decay=st.sampled_from([0.0, 1e-200, 0.9, 1.0]),
)
KINDS = ("flat", "usual", "steep", "ties", "same", "far", "falling")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 9), seed=st.integers(0, 2**64 - 1))
def test_a_batch_is_what_the_description_says_of_each(data: Any, count: int, seed: int, model: Model) -> None:
    chance = np.random.default_rng(seed % 2**32)
    ours, plain = LibraryChooser(model), PlainChooser()
    mine: list[Any] = []
    theirs: list[Sampler] = []
    for i in range(count):
        exist = None if chance.random() < 0.5 else chance.random(VOCABULARY) < chance.choice([0.02, 0.5, 0.99])
        if exist is not None:
            exist[0] = True
        tokens = chance.permutation(VOCABULARY)[: chance.integers(0, 5)]
        bias = {int(token): float(chance.choice([-1e300, -100.0, 0.3, 20.0])) for token in tokens}
        sampling = data.draw(SAMPLING)
        mine.append(ours.sampler(sampling, (seed + i) % 2**64, exist, bias))
        theirs.append(plain.sampler(sampling, (seed + i) % 2**64, exist, bias))
    for turn in range(6):
        logits = [rows(int(chance.integers(2**32)), data.draw(st.sampled_from(KINDS))) for _ in range(count)]
        allowed: list[Bits | None] = [None] * count
        for i in range(count):
            if chance.random() < 0.3:
                mask = chance.random(VOCABULARY) < 0.1
                mask[chance.integers(VOCABULARY)] = True
                allowed[i] = bits_of(mask)
        if turn == 3:
            logits[0][chance.integers(VOCABULARY)] = chance.choice([math.nan, math.inf, -math.inf])
        if turn == 4:
            mine, theirs = [one.copy() for one in mine], [one.copy() for one in theirs]
        if turn == 5:
            for one in (mine[-1], theirs[-1]):
                one.forget()
        chosen = ours.choose(mine, logits, allowed)
        assert chosen == plain.choose(theirs, logits, allowed)
        assert (chosen[0] is None) == (turn == 3)
        finite = [i for i in range(count) if chosen[i] is not None]
        asked = [(int(chosen[i] or 0), int(chance.choice([0, 1, 20, VOCABULARY]))) for i in finite]
        told = ours.rate([mine[i] for i in finite], [logits[i] for i in finite], asked)
        for i, (token, top), (own, likeliest) in zip(finite, asked, told, strict=True):
            wanted, best = rated(logits[i], token, top, theirs[i].exist)
            assert math.isclose(own, wanted, rel_tol=1e-14, abs_tol=1e-13)
            assert [each[0] for each in likeliest] == [each[0] for each in best]
            assert np.allclose([each[1] for each in likeliest], [each[1] for each in best], rtol=1e-14, atol=1e-13)


def test_masks_are_bits() -> None:
    mask = np.random.default_rng(0).random(VOCABULARY) < 0.5
    bits = bits_of(mask)
    assert (bits.dtype.name, bits.size) == ("uint32", (VOCABULARY + 31) // 32)
    assert (mask_of(bits, VOCABULARY) == mask).all()
    assert [bool(int(bits[i // 32]) >> (i % 32) & 1) for i in range(VOCABULARY)] == mask.tolist()


def test_where_nothing_is_allowed_nothing_is_chosen(model: Model) -> None:
    """Nor is chance used up; and bits beyond the vocabulary are none of it."""
    ours = LibraryChooser(model)
    nothing = bits_of(np.zeros(VOCABULARY, np.bool_))
    nothing[-1] = 0xFFFFFFFF << (VOCABULARY % 32) & 0xFFFFFFFF
    one, other = (ours.sampler(Sampling(top_p=1.0), 5) for _ in range(2))
    logits = rows(0, "usual")
    assert ours.choose([one], [logits], [nothing]) == [None]
    assert one.choose(logits) == other.choose(logits)


def test_logits_are_only_read_and_may_be_shared(model: Model) -> None:
    ours = LibraryChooser(model)
    logits = rows(1, "usual")
    before = logits.copy()
    logits.flags.writeable = False
    samplers = [ours.sampler(Sampling(temperature=2.0, top_p=1.0), seed) for seed in range(20)]
    chosen = ours.choose(samplers, [logits] * 20, [None] * 20)
    assert chosen == [Sampler(Sampling(temperature=2.0, top_p=1.0), seed).choose(before) for seed in range(20)]
    assert (logits == before).all()


def test_what_makes_no_sense_is_refused(model: Model) -> None:
    ours = chooser_of(model)
    assert isinstance(ours, LibraryChooser)
    one = ours.sampler(Sampling(), 0)
    logits = rows(0, "usual")
    with pytest.raises(EngineError, match="no sampler of its own"):
        ours.choose([one, one], [logits, logits], [None, None])
    assert ours.choose([one], [logits], [None]) == [Sampler(Sampling(), 0).choose(logits)]
    with pytest.raises(EngineError, match="logits of this model are 1111"):
        ours.choose([one], [logits[:-1]], [None])
    with pytest.raises(EngineError, match="a mask of this model's tokens is 35"):
        ours.choose([one], [logits], [np.zeros(34, np.uint32)])
    with pytest.raises(EngineError, match="the vocabulary has 1111"):
        ours.rate([one], [logits], [(VOCABULARY, 0)])
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            ours.sampler(Sampling(), seed)
    with pytest.raises(ValueError, match="the bias of token 3 is too large"):
        ours.sampler(Sampling(), 0, bias={2: 1.0, 3: 1e301})
    call = model.library.call
    assert not call("rwkvflow_sampler_set", one.address, b"top_p", 0.0)
    for name, value in ((b"top_k", 1.5), (b"top_k", 2.0**32), (b"temperature", math.nan), (b"heat", 1.0)):
        assert not call("rwkvflow_sampler_set", one.address, name, value)
    assert "a sampler's heat cannot be set to 1" in str(model.library.error("refused"))


ONE_SET = """
import hashlib, sys
import numpy as np
from rwkvflow.engine import Model
from rwkvflow.engine.choosing import LibraryChooser
from rwkvflow.engine.sampling import Sampling
with Model(sys.argv[1], sys.argv[2]) as model:
    chooser, told = LibraryChooser(model), []
    chance = np.random.default_rng(0)
    kinds = [Sampling(top_p=p, top_k=k, temperature=t) for p in (0.7, 1.0) for k in (0, 9) for t in (0.3, 1.0, 4.0)]
    samplers = [chooser.sampler(each, 1) for each in kinds]
    for _ in range(100):
        logits = [chance.normal(0, 2, model.n_vocab).astype(np.float32) for _ in samplers]
        tokens = chooser.choose(samplers, logits, [None] * len(samplers))
        told += [tokens, chooser.rate(samplers, logits, [(token, 3) for token in tokens])]
    print(hashlib.sha256(repr(told).encode()).hexdigest())
"""


def test_kernels_make_no_difference(built: Path, path: Path) -> None:
    """Not even the generic ones, whose logits differ in the last bits: what is chosen from the same logits does not."""
    told = set()
    for name in librwkv.kernel_sets(built / "rwkv"):
        env = {**os.environ, "RWKV_KERNELS": name}
        command = [sys.executable, "-c", ONE_SET, str(path), str(built / "librwkv.so")]
        told.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(told) == 1
