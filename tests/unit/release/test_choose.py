"""`rwkvflow choose`: the file that loses least among those that fit, and what else there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import UsageError
from rwkvflow.cli import cli
from rwkvflow.release.choose import ROOM, best, best_for_some, choices, memory_of, of_quality, speed_class
from rwkvflow.release.quality import ArtifactFigures, Quality, quality_bytes

GB = 10**9
FILES = (("gguf-q8_0", 3.0, 0.001), ("gguf-q4_k_m", 1.6, 0.02), ("gguf-q4_0", 1.7, 0.05), ("ggml-q5_1", 2.0, 0.01))


def figures(name: str, size: float, divergence: float | None, model: str = "m") -> ArtifactFigures:
    plain: dict[str, Any] = dict.fromkeys(ArtifactFigures.model_fields)
    plain |= {"path": f"{model}/{model}-{name}", "model": model, "format": name, "size": int(size * GB)}
    plain |= {"kl_divergence": divergence, "kl_divergence_tokens": 512, "consumer": "c", "evaluated": "runtime"}
    return ArtifactFigures.model_validate(plain)


def quality(*more: ArtifactFigures) -> Quality:
    return Quality(release="r", text=None, models={}, artifacts=(*(figures(*each) for each in FILES), *more))


@pytest.mark.parametrize(
    ("memory", "runtime", "wanted"),
    [
        (4.0, None, "gguf-q8_0"),
        (3.0, None, "ggml-q5_1"),
        (3.0, "llama.cpp", "gguf-q4_k_m"),  # Q4_0 is larger and loses more
        (3.0, "rwkv.cpp", "ggml-q5_1"),
        (1.5, None, None),
    ],
)
def test_the_least_loss_that_fits(memory: float, runtime: str | None, wanted: str | None) -> None:
    found = best(choices(of_quality(quality()), runtime), int(memory * GB))
    assert (found and found.format) == wanted


def test_what_was_not_measured_is_the_last_choice() -> None:
    found = quality(figures("gguf-q6_k", 0.5, None))
    for memory, wanted in ((4.0, "gguf-q8_0"), (1.0, "gguf-q6_k")):
        chosen = best(choices(of_quality(found)), int(memory * GB))
        assert chosen is not None
        assert chosen.format == wanted


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 10**10), min_size=1, max_size=6), memory=st.integers(0, 10**10), data=st.data())
def test_nothing_that_fits_loses_less(sizes: list[int], memory: int, data: Any) -> None:
    losses = [data.draw(st.none() | st.floats(0, 1)) for _ in sizes]
    rows = [figures(f"gguf-q{i}", size / GB, loss) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))]
    found = choices(of_quality(Quality(release="r", text=None, models={}, artifacts=tuple(rows))))
    chosen = best(found, memory)
    fitting = [item for item in found if item.memory <= memory]
    assert (chosen is None) == (not fitting)
    assert chosen is None or all(chosen.loss <= item.loss for item in fitting)
    assert all(item.memory == memory_of(item.size) >= item.size + ROOM for item in found)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 10**9), min_size=1, max_size=8), memory=st.integers(0, 2 * 10**9), data=st.data())
def test_marked_are_those_that_are_the_best_for_some_memory(sizes: list[int], memory: int, data: Any) -> None:
    losses = [data.draw(st.none() | st.sampled_from([0.0, 0.1, 0.2])) for _ in sizes]
    rows = [figures(f"gguf-q{i}", size / GB, loss) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))]
    found = of_quality(Quality(release="r", text=None, models={}, artifacts=tuple(rows)))
    marked = best_for_some(found)
    assert all(best(found, item.memory) == item for item in marked)
    chosen = best(found, memory)
    assert chosen is None or chosen in marked


@pytest.mark.parametrize(
    ("bits", "wanted"), [(None, None), (16.0, 1.0), (4.83, 3.5), (8.5, 2.0), (32.0, 0.5), (99, 0.5)]
)
def test_speed_goes_by_the_bytes_that_a_token_reads(bits: float | None, wanted: float | None) -> None:
    assert speed_class(bits) == wanted


def call(*words: object) -> Any:
    return CliRunner().invoke(cli, ["choose", *map(str, words)])


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "quality.json").write_bytes(quality_bytes(quality()))
    done = call(tmp_path, "--memory", "3GB", "--runtime", "llama.cpp")
    assert done.exit_code == 0, done.exception
    lines = done.output.splitlines()
    assert [line[0] for line in lines] == ["*", " ", "-"]
    assert "m/m-gguf-q4_k_m" in lines[0]
    assert "KL 0.02" in lines[0]
    rows = json.loads(call(tmp_path / "quality.json", "--memory", "3GB", "--json").output)
    assert [row["path"] for row in rows if row["best"]] == ["m/m-ggml-q5_1"]
    assert "librwkv" in rows[0]["runtimes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory", "1GB"), "nothing fits into 1GB: m/m-gguf-q4_k_m takes about 1.76 GB"),
        (("--memory", "much"), "--memory: "),
        (("--memory", "1GB", "--runtime", "llama"), "--runtime: llama is not known"),
        (("--memory", "1GB", "--runtime", "ncnn"), "has no file that ncnn reads"),
        (("--memory", "1GB", "--model", "x"), "--model: there is no x"),
    ],
)
def test_mistakes_are_told(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "quality.json").write_bytes(quality_bytes(quality()))
    done = call(tmp_path, *words)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_a_folder_that_is_no_release(tmp_path: Path) -> None:
    assert "cannot be read" in str(call(tmp_path, "--memory", "1GB").exception)
    (tmp_path / "quality.json").write_text("{}")
    assert "is no quality.json of a release" in str(call(tmp_path, "--memory", "1GB").exception)
