"""Figures by domain: what they are of models whose answers are known, and that texts and tasks are the generator's."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tokenizers import Bytes
from rwkvflow.worker.smoke.domain_names import DOMAINS
from rwkvflow.worker.smoke.domains import (
    BLOCK,
    FOLDER,
    SEARCH,
    answer_tasks,
    compare_on,
    figures,
    over,
    standard_error,
)

ROOT = Path(__file__).resolve().parents[4]
TOKENS = [(7 * k * k + k) % 256 for k in range(300)]


class Table:
    """A model whose logits depend on the last token alone; its state counts what it has read."""

    state_len = 1

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.astype(np.float32)
        self.read = 0

    def eval_sequences(
        self, sequences: Sequence[Sequence[int]], states: Sequence[Any], out: Sequence[Any], wanted: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        self.read = (0 if states[0] is None else int(states[0][0])) + len(sequences[0])
        if out[-1] is not None:
            out[-1][0] = self.read
        flat = np.array([token for tokens in sequences for token in tokens])
        return self.table[flat[list(wanted)]], np.empty(0)


def random(seed: int, scale: float = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (256, 256))


def softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows - rows.max(1, keepdims=True))
    out: np.ndarray = e / e.sum(1, keepdims=True)
    return out


def test_figures_are_what_their_definitions_say() -> None:
    one, other = random(1), random(1) + random(2, 0.3)
    model, changed = Table(one), Table(other)
    (found,) = compare_on(TOKENS, model, [changed])
    assert model.read == changed.read == len(TOKENS), "states are carried on"
    p, q = softmax(one.astype("f4").astype("f8")[TOKENS]), softmax(other.astype("f4").astype("f8")[TOKENS])
    kl = (p * np.log(p / q)).sum(1)
    assert np.allclose(found.divergence, kl, atol=1e-6)
    losses = -np.log(q[np.arange(len(TOKENS) - 1), TOKENS[1:]])
    assert np.allclose(found.losses, losses)
    told = figures(found)
    assert told["tokens"] == 300
    assert told["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-3)
    assert told["kl"] == pytest.approx(kl.mean(), rel=1e-3)
    assert told["kl_p99"] == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert told["kl_max"] == pytest.approx(kl.max(), rel=1e-3)
    assert told["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean(), abs=1e-4)
    assert told["rise"] == pytest.approx(told["perplexity"] / told["reference_perplexity"] - 1, abs=2e-3)
    blocks = kl[: 2 * BLOCK].reshape(2, BLOCK).mean(1)
    assert told["kl_se"] == pytest.approx(blocks.std(ddof=1) / np.sqrt(2), rel=0.06)


def test_a_model_differs_from_itself_in_nothing() -> None:
    model = Table(random(3))
    (found,) = compare_on(TOKENS, model, [model])
    told = figures(found)
    assert (told["kl"], told["kl_max"], told["rise"], told["agreement"], told["rise_se"]) == (0, 0, 0, 1, 0)


def test_what_is_no_number_is_an_error() -> None:
    broken = random(1)
    broken[TOKENS[70], 3] = np.nan
    with pytest.raises(WorkerError, match="NaN or infinite"):
        compare_on(TOKENS, Table(random(1)), [Table(broken)])


@given(st.integers(1, 2000))
def test_errors_are_of_blocks(count: int) -> None:
    assert (standard_error(np.arange(count, dtype=float)) is None) == (count < 2 * BLOCK)
    assert standard_error(np.ones(2 * BLOCK)) == 0


def test_limits_are_held() -> None:
    found = {"rise": 0.02, "kl": 0.3, "agreement": 0.9}
    assert not over("code", found, {"perplexity": 0.02, "kl": 0.3, "agreement": 0.9})
    assert over("code", found, {"perplexity": 0.01}) == ["code: perplexity 0.02 is over the recipe's 0.01"]
    assert over("code", found, {"kl": 0.1}) == ["code: kl 0.3 is over the recipe's 0.1"]
    assert over("code", found, {"agreement": 0.95}) == ["code: agreement 0.9 is under the recipe's 0.95"]


class Knowing:
    """A model that continues every text as a table of endings says."""

    state_len = 1

    def __init__(self, endings: dict[str, str]) -> None:
        self.endings = {tuple(text.encode()): end.encode() for text, end in endings.items()}

    def eval_sequences(
        self, sequences: Sequence[Sequence[int]], states: Sequence[Any], out: Sequence[Any], wanted: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for tokens in sequences:
            for at in range(len(tokens)):
                row = np.zeros(256, np.float32)
                for text, end in self.endings.items():
                    whole = (*text, *end)
                    if at + 1 >= len(text) and tuple(tokens[: at + 1]) == whole[: at + 1] and at + 1 < len(whole):
                        row[whole[at + 1]] = 9
                rows.append(row)
        return np.stack(rows)[list(wanted)], np.empty(0)


def test_tasks_count_what_is_right() -> None:
    import json

    tasks = json.loads((FOLDER / "tasks.json").read_text(encoding="utf-8"))
    words, sums = tasks["last_words"][:6], tasks["sums"][:6]
    right = {item["text"]: item["answer"] + "." for item in (*words, *sums)}
    assert {name: share["right"] for name, share in answer_tasks(Knowing(right), Bytes(), 6).items()} == {
        "last_words": 1.0,
        "last_words_exact": 1.0,
        "sums": 1.0,
    }
    wrong = {item["text"]: item["others"][0] + "." for item in words} | {
        item["text"]: item["answer"] + "0" for item in sums
    }
    found = answer_tasks(Knowing(wrong), Bytes(), 6)
    nothing = {"items": 6, "right": 0.0, "se": 0.0}
    assert found["last_words"] == found["sums"] == nothing, "a digit too many is wrong"
    assert found["last_words_exact"] == nothing
    longer = {item["text"]: item["answer"] + "s" for item in words}
    found = answer_tasks(Knowing(longer), Bytes(), 6)
    assert (found["last_words"]["right"], found["last_words_exact"]) == (1.0, nothing), "another word is wrong"
    half = {text: end for index, (text, end) in enumerate(right.items()) if index % 2}
    found = answer_tasks(Knowing(half), Bytes(), 6)
    assert (found["sums"]["right"], found["sums"]["se"]) == (0.5, 0.2041)
    shorter = [all(len(item["answer"]) < len(other) for other in item["others"]) for item in words]
    known = [index % 2 or shorter[index] for index in range(6)]
    assert found["last_words"]["right"] == round(sum(map(bool, known)) / 6, 4), "fewer tokens of the same loss win"


def test_texts_and_tasks_are_what_their_script_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    made = dict(runpy.run_path(str(ROOT / "scripts" / "domains.py"))["files"]())
    assert {path.stem for path in made} == {*DOMAINS, "tasks"}
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python scripts/domains.py --write"
    sys.modules.pop("calibration_text", None)
    sys.modules.pop("demo_stories", None)


def test_what_types_are_searched_with_is_not_what_they_are_judged_by() -> None:
    for name in DOMAINS:
        cut = "\n\nUser:" if name == "dialogue" else "\n\n"  # an answer alone may be that of two questions
        judged, searched = ((folder / f"{name}.txt").read_text(encoding="utf-8") for folder in (FOLDER, SEARCH))
        assert not set(judged.split(cut)) & set(searched.split(cut)), name


def test_the_vocabulary_of_the_demo_reads_every_text() -> None:
    from rwkvflow.worker.model.tokenizers import World

    words = World(ROOT / "recipes" / "demo" / "rwkv7-domains.vocab.txt")
    assert words.size == 512
    for name in DOMAINS:
        text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
        tokens = words.encode(text)
        assert words.decode(tokens) == text
        assert len(tokens) >= 8192
