"""Artifacts of random checkpoints through their consumers: good ones agree with the reference, bad ones are told."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.chatrwkv import layout as chatrwkv
from rwkvflow.worker.formats.runner import Task, answer, run_artifact
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Answers, Questions
from tests.engine import encoder
from tests.helpers import checkpoints

CHATRWKV = tuple(name for name in FORMATS if name.startswith("chatrwkv-"))
FASTER = ("faster-rwkv-f16", "faster-rwkv-f32")
TENSORS = ("safetensors-f16", "safetensors-f32", "web-rwkv")
QUESTIONS = Questions(tuple(int(x) for x in np.random.default_rng(5).integers(1, 90, 24)), 12, ((3, 4), (7,)), 4)
LOUD = {"ffn.key.weight": 300.0, "ffn.value.weight": 1 / 9e4}  # k² is multiplied, and what comes of it is not
Place = Callable[..., Path]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


def small(path: Path, version: str, dtype: str = "bf16", **sizes: int) -> Path:
    return checkpoints.make(path, version, dtype, **({"layers": 2, "width": 128, "vocab": 96} | sizes))


def artifact(source: Path, engine: Path, name: str) -> Path:
    path = source.with_name(name)
    (outcome,) = convert(source, engine, [ConversionJob("x", name, path)])
    assert outcome.failure is None
    return path


def expected(source: Path, questions: Questions = QUESTIONS) -> Answers:
    with open_checkpoint(source) as checkpoint:
        return answer(Reference(checkpoint), questions)


def ask(name: str, path: Path, source: Path, questions: Questions = QUESTIONS) -> Answers:
    return run_artifact(Task(path, source, source.parent, None, FORMATS[name]), questions)


@pytest.mark.parametrize(
    ("name", "version"),
    [(name, version) for name in TENSORS for version in VERSIONS if version in FORMATS[name].versions],
)
def test_what_was_written_gives_the_references_logits(name: str, version: str, engine: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "f32"):
        source = small(tmp_path / f"{dtype}.pth", version, dtype)
        answers = ask(name, artifact(source, engine, name), source)
        figures = judge.compare(expected(source), answers)
        assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
        assert (figures.logits == 0) == (name == "safetensors-f32")


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2"])
@pytest.mark.parametrize("name", FASTER)
def test_what_faster_rwkv_reads(name: str, version: str, engine: Path, tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    for dtype in ("bf16", "f32"):
        source = small(tmp_path / f"{dtype}.pth", version, dtype, layers=7, vocab=300)
        path = artifact(source, engine, name)
        content = msgpack.unpackb(path.read_bytes())
        assert msgpack.packb(content) == path.read_bytes()  # the shortest form of everything
        figures = judge.compare(expected(source), ask(name, path, source))
        assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 64
        path.write_bytes(damaged)
        with pytest.raises(WorkerError):
            ask(name, path, source)


@pytest.mark.parametrize("name", TENSORS)
def test_one_wrong_value_is_found(name: str, engine: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "m.pth", "6", "f16")
    path = artifact(source, engine, name)
    data = bytearray(path.read_bytes())
    data[-3] ^= 8
    path.write_bytes(data)
    with pytest.raises(WorkerError, match="holds other values than the checkpoint: one is off by"):
        ask(name, path, source)


def header(path: Path) -> dict[str, dict[str, object]]:
    data = path.read_bytes()
    found: dict[str, dict[str, object]] = json.loads(data[8 : 8 + struct.unpack_from("<Q", data)[0]])
    return found


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    text = change(data[8 : 8 + length].decode()).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_wrong_names_and_shapes_are_found(engine: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "m.pth", "7", "f16")
    for old, new, message in (
        ('"blocks.1.att.w1"', '"blocks.1.att.w9"', r"the artifact lacks 'blocks.1.att.w1'"),
        ('"shape":[32,128]', '"shape":[128,32]', r"is f16 \[128, 32\] in the artifact; f16 \[32, 128\] is expected"),
        ('"F16"', '"BF16"', r"is bf16 \[\d+, \d+\] in the artifact; f16"),
    ):
        path = artifact(source, engine, "web-rwkv")
        rewrite(path, lambda text, old=old, new=new: text.replace(old, new))  # type: ignore[misc]
        with pytest.raises(WorkerError, match=message):
            ask("web-rwkv", path, source)


# ---- web-rwkv -------------------------------------------------------------------------------------------------


def test_names_and_transpositions_of_web_rwkv(engine: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "m.pth", "6", "f32")
    found = header(artifact(source, engine, "web-rwkv"))
    assert found["__metadata__"] == {"format": "pt"}
    assert {entry["dtype"] for name, entry in found.items() if name != "__metadata__"} == {"F16"}
    assert "blocks.0.att.time_maa_w1" not in found
    assert found["blocks.0.att.time_mix_w1"]["shape"] == [160, 128]
    assert found["blocks.0.att.time_mix_w2"]["shape"] == [5, 128, 32]
    assert found["blocks.1.att.time_decay_w2"]["shape"] == [128, 64]
    assert found["blocks.0.att.time_first"]["shape"] == [2, 64]
    assert found["blocks.0.att.time_decay"]["shape"] == [1, 1, 128]
    assert found["blocks.1.ffn.time_mix_k"]["shape"] == [1, 1, 128]
    assert found["blocks.1.ffn.value.weight"]["shape"] == [128, 448]
    source = small(tmp_path / "n.pth", "5.1", "f32")
    path = artifact(source, engine, "web-rwkv")
    assert header(path)["blocks.0.att.time_decay"]["shape"] == [2, 64]
    source = small(tmp_path / "o.pth", "7", "f32")
    found = header(artifact(source, engine, "web-rwkv"))
    assert [found[f"blocks.1.att.{name}"]["shape"] for name in ("g1", "g2", "r_k")] == [[32, 128], [128, 32], [2, 64]]


def test_the_report_says_when_web_rwkv_did_not_run(engine: Path, tmp_path: Path) -> None:
    for version, why in (("7", "it does not know version 7"), ("4", "it wants a vocabulary of 65536")):
        source = small(tmp_path / f"{version}.pth", version)
        note = ask("web-rwkv", artifact(source, engine, "web-rwkv"), source).note
        assert note is not None
        assert note.startswith("its tensors were compared with the checkpoint's, and ")
        assert "; not run by web-rwkv-py: " in note
        assert why in note


@pytest.mark.soak
@pytest.mark.parametrize("version", ["4", "5.1", "5.2", "6"])
def test_web_rwkv_runs_it(version: str, engine: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "m.pth", version, layers=6, vocab=65536)
    path = artifact(source, engine, "web-rwkv")
    note = ask("web-rwkv", path, source).note or ""
    if "no Vulkan" in note or "not installed" in note:
        pytest.skip(note)
    assert note.endswith("web-rwkv-py ran it after 2, 8, 12 tokens")


# ---- chatrwkv -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CHATRWKV)
def test_the_rwkv_package_agrees(name: str, version: str, engine: Path, tmp_path: Path) -> None:
    """It runs every file in the types of its strategy; what is for CUDA is also what it writes itself."""
    pytest.importorskip("rwkv")
    if version not in FORMATS[name].versions:
        pytest.skip("not a version of this format")
    for dtype in ("bf16", "f32") if "cuda" in name else ("bf16",):
        source = small(tmp_path / f"{dtype}.pth", version, dtype, layers=7)
        answers = ask(name, artifact(source, engine, name), source)
        figures = judge.compare(expected(source), answers)
        assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
        assert bool(answers.note) == ("cuda" in name)
        assert answers.runtime


STRATEGIES = (
    "cuda fp16i8 *3 -> cuda fp16 *0+ -> cpu fp32",
    "cuda:0 bf16 *2 -> cuda:1 fp32i8",
    "cpu fp32 *4 -> mps fp16",
    "cuda fp16 *99 -> cpu bf16",
    "cpu bf16 *1 -> cpu fp32",
    "cpu fp32i8 *2 -> cpu fp32",
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_strategy_is_what_the_rwkv_package_makes_of_it(strategy: str, engine: Path, tmp_path: Path) -> None:
    """Run by the package; tensor by tensor as well where a GPU would be needed to run it as it is."""
    pytest.importorskip("rwkv")
    item = chatrwkv.of_strategy(strategy)
    version = VERSIONS[STRATEGIES.index(strategy) % 5]
    source = small(tmp_path / "m.pth", version, "bf16", layers=7)
    path = artifact(source, engine, item.name)
    answers = ask(item.name, path, source)
    figures = judge.compare(expected(source), answers)
    assert judge.problems(item.name, figures, vars(item.limits)) == []
    assert ("equals what the package itself writes" in (answers.note or "")) == (strategy.count("cpu") < 2)
    other = chatrwkv.of_strategy("cuda fp16 *1 -> cuda fp32" if "mps" in strategy else "cuda fp32 *1 -> mps fp16")
    if answers.note:
        with pytest.raises(WorkerError, match="the package writes"):
            ask(other.name, path, source)
    with open_checkpoint(path) as opened:
        assert opened.metadata["_strategy"] == strategy


HALVES = (*(name for name in CHATRWKV if "fp16" in name), "web-rwkv", "faster-rwkv-f16")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_passes_fp16_is_found_where_fp16_is_computed_in(version: str, engine: Path, tmp_path: Path) -> None:
    """k² of the feed-forward reaches a million; in fp32 and bf16 the model is a good one."""
    pytest.importorskip("rwkv")
    pytest.importorskip("msgpack")
    entries = []
    for entry in checkpoints.entries(version, "f32", 3, layers=2, width=128, vocab=96):
        factor = next((by for end, by in LOUD.items() if entry.name.endswith(end)), 1.0)
        values = np.frombuffer(b"".join(entry.data()), "<f4").reshape(entry.shape) * np.float32(factor)
        entries.append(checkpoints.array_entry(entry.name, values, "f32"))
    source = tmp_path / "m.pth"
    checkpoints.write_pth(source, entries)
    for name in HALVES:
        if version in FORMATS[name].versions:
            assert "NaN" in (judge.finite(ask(name, artifact(source, engine, name), source)) or ""), name
    name = "chatrwkv-cpu-bf16"
    figures = judge.compare(expected(source), ask(name, artifact(source, engine, name), source))
    assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []


def test_what_the_package_cannot_run_here_is_compared(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rwkv")
    source = small(tmp_path / "m.pth", "6", "f16")
    path = artifact(source, engine, "chatrwkv-cuda-fp16")
    monkeypatch.setattr("rwkvflow.worker.formats.chatrwkv.run.room", lambda: 1000)
    answers = ask("chatrwkv-cuda-fp16", path, source)
    assert not answers.runtime
    assert answers.note is not None
    assert answers.note.startswith("not run by the rwkv package: its 1 MiB are too many to be run")


def test_version_7_takes_plain_strategies_only(engine: Path, tmp_path: Path) -> None:
    source = small(tmp_path / "m.pth", "7")
    for strategy in ("cuda fp16 *1 -> cpu fp32", "cuda fp16i8", "cuda fp16 *9"):
        name = chatrwkv.of_strategy(strategy).name
        (outcome,) = convert(source, engine, [ConversionJob("x", name, tmp_path / "out.pth")])
        assert outcome.failure == f"{name} cannot hold version 7; it holds 4, 5.0, 5.1, 5.2, 6"
    assert artifact(source, engine, chatrwkv.of_strategy("cuda:1 bf16").name).is_file()


def test_a_matrix_without_an_eight_bit_form_is_refused(engine: Path, tmp_path: Path) -> None:
    entries = checkpoints.entries("4", "f32", layers=1, width=64, vocab=96)
    zero = checkpoints.array_entry("blocks.0.ffn.key.weight", np.zeros((256, 64), np.float32))
    checkpoints.write_pth(tmp_path / "m.pth", [zero if entry.name == zero.name else entry for entry in entries])
    path = tmp_path / "out.pth"
    (outcome,) = convert(tmp_path / "m.pth", engine, [ConversionJob("x", "chatrwkv-cuda-fp16i8", path)])
    assert outcome.failure == "a row or column of a matrix is constant or not finite: it has no eight-bit form"
    assert not path.exists()


def test_a_file_that_differs_from_the_packages_is_found(engine: Path, tmp_path: Path) -> None:
    pytest.importorskip("rwkv")
    source = small(tmp_path / "m.pth", "5.2", "f16")
    path = artifact(source, engine, "chatrwkv-cuda-fp16")
    data = bytearray(path.read_bytes())
    with open_checkpoint(path) as checkpoint:
        raw = checkpoint.read("blocks.1.ffn.key.weight").T.tobytes()
    data[data.index(raw) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkerError, match=r"blocks.1.ffn.key.weight holds other values than what the rwkv package"):
        ask("chatrwkv-cuda-fp16", path, source)


def test_bf16_is_read_where_ml_dtypes_is_loaded(engine: Path, tmp_path: Path) -> None:
    """It tells numpy of a bfloat16, and onnx, which another artifact of the same batch needs, imports it."""
    pytest.importorskip("ml_dtypes")
    source = small(tmp_path / "m.pth", "5.2")
    figures = judge.compare(expected(source), ask("safetensors", artifact(source, engine, "safetensors"), source))
    assert figures.logits == 0
