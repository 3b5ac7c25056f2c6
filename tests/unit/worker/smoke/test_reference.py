"""The fp32 forward pass: against PyPI's rwkv package, and against itself read in other ways."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference, logits
from rwkvflow.worker.smoke.questions import Questions
from tests.helpers import checkpoints

VERSIONS = ("4", "5.0", "5.1", "5.2", "6", "7")
SCRIPT = Path(__file__).with_name("run_pypi_rwkv.py")


def some_tokens(count: int, vocab: int, seed: int = 5) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, count)]


TOKENS = some_tokens(48, 320)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """By version: a checkpoint, and what PyPI's rwkv makes of TOKENS."""
    if importlib.util.find_spec("rwkv") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("PyPI's rwkv and torch are not installed")
    folder = tmp_path_factory.mktemp("pypi-rwkv")
    paths = {
        version: checkpoints.make(folder / f"m{index}.pth", version=version, dtype="f32", layers=3, seed=11)
        for index, version in enumerate(VERSIONS)
    }
    for on in (False, True):
        env = {name: value for name, value in os.environ.items() if not name.startswith("RWKV_")}
        env |= {"RWKV_JIT_ON": "0"} | ({"RWKV_V7_ON": "1"} if on else {})
        chosen = [str(path) for version, path in paths.items() if (version == "7") == on]
        command = [sys.executable, str(SCRIPT), json.dumps(TOKENS), *chosen]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    return {version: (path, np.load(path.with_suffix(".npy"))) for version, path in paths.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_agrees_with_the_authors_package(version: str, theirs: dict[str, tuple[Path, np.ndarray]]) -> None:
    path, expected = theirs[version]
    with open_checkpoint(path) as checkpoint:
        ours = logits(checkpoint, TOKENS)
    assert expected.std() > 0.3  # else there is nothing to compare
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", VERSIONS)
def test_state_carries_a_sequence_over_a_cut(version: str, tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version=version)
    tokens = some_tokens(20, 320)
    with open_checkpoint(path) as checkpoint:
        reference = Reference(checkpoint)
        whole = reference.hidden([reference.start()], [tokens])[0]
        memory = reference.start()
        parts = [reference.hidden([memory], [tokens[a:b]])[0] for a, b in ((0, 1), (1, 13), (13, 20))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5, rtol=0)
    # and the order of tokens matters at all
    assert np.abs(whole[-1] - whole[-2]).max() > 1e-2


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_kept_of_a_model_over_the_cache_limit(version: str, tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version=version)
    tokens = some_tokens(6, 320)
    with open_checkpoint(path) as checkpoint:
        small, large = Reference(checkpoint), Reference(checkpoint, cache_bytes=0)
        expected = small.logits(small.hidden([small.start()], [tokens])[0])
        hidden = large.hidden([large.start()], [tokens])[0]
        np.testing.assert_array_equal(large.logits(hidden), expected)
        asked = Questions((), 0, (tuple(tokens), tuple(tokens[:2])), 3)
        assert large.greedy(asked) == small.greedy(asked)
        large._forget()
        assert large._cache == {}


def test_memory_follows_the_width_and_not_the_layers_or_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rwkvflow.worker.reference import model

    monkeypatch.setattr(model, "HEAD_BYTES", 1 << 18)
    tokens, peaks = some_tokens(16, 320), []
    for name, layers, vocab in (("small", 2, 4096), ("large", 12, 24576)):
        path = checkpoints.make(tmp_path / f"{name}.pth", version="7", width=256, layers=layers, vocab=vocab)
        with open_checkpoint(path) as checkpoint:
            tracemalloc.start()
            reference = Reference(checkpoint, cache_bytes=0)
            for _ in reference.head(reference.hidden([reference.start()], [tokens])[0]):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # ten layers' states and the names of their tensors are more, ten layers' weights (30 MB) are not
    assert peaks[1] < peaks[0] + 4_000_000


def test_sequences_in_one_pass_do_not_touch_each_other(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version="7")
    a, b = some_tokens(9, 320, 1), some_tokens(4, 320, 2)
    with open_checkpoint(path) as checkpoint:
        reference = Reference(checkpoint)
        alone = [reference.hidden([reference.start()], [tokens])[0] for tokens in (a, b)]
        together = reference.hidden([reference.start(), reference.start()], [a, b])
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_logits_are_the_same_whatever_the_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rwkvflow.worker.reference import model

    path = checkpoints.make(tmp_path / "model.pth", version="5.2")
    tokens = some_tokens(12, 320)
    with open_checkpoint(path) as checkpoint:
        reference = Reference(checkpoint, cache_bytes=0)
        hidden = reference.hidden([reference.start()], [tokens])[0]
        expected = reference.logits(hidden)
        monkeypatch.setattr(model, "HEAD_BYTES", 4 * 128 * 7)  # seven rows at a time, which does not divide 320
        assert len(list(reference.head(hidden))) == 46
        np.testing.assert_allclose(reference.logits(hidden), expected, rtol=1e-5, atol=1e-6)


def test_greedy_takes_the_likeliest_token_each_time(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version="6")
    prompt = some_tokens(5, 320)
    with open_checkpoint(path) as checkpoint:
        reference = Reference(checkpoint)
        (continuation,) = reference.greedy(Questions((), 0, (tuple(prompt),), 6))
        for length in range(6):
            row = logits(checkpoint, prompt + continuation[:length])[-1]
            assert continuation[length] == int(row.argmax())


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6", "7"])
def test_head_norm_epsilon_is_64e_5_and_can_be_set(version: str, tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version=version)
    tokens = some_tokens(8, 320)
    with open_checkpoint(path) as checkpoint:
        default = logits(checkpoint, tokens)
        np.testing.assert_array_equal(default, logits(checkpoint, tokens, 64e-5))
        assert np.abs(default - logits(checkpoint, tokens, 1e-2)).max() > 1e-4


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "model.pth", version="4")
    with open_checkpoint(path) as checkpoint, pytest.raises(WorkerError, match=r"token 320 .* vocabulary of 320"):
        logits(checkpoint, [1, 320])
