"""Folders for MLX: mlx-lm itself runs them, and quantizes to the same bytes; what is wrong with one is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.mlx import blocks
from rwkvflow.worker.formats.mlx.layout import _typed
from rwkvflow.worker.formats.runner import one_by_one
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Answers, Questions
from tests.engine import artifacts, encoder
from tests.helpers import checkpoints

NAMES = ("mlx", "mlx-6bit")
TYPES = ("f32", "f16", "bf16")
#: Of MLX, which computes in the type of the weights, a token at a time.
CLOSE = {"f32": 1e-4, "f16": 0.02, "bf16": 0.2}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


@pytest.fixture(scope="module")
def packages() -> tuple[Any, Any]:
    """mlx.core, and the module of mlx-lm that loads models."""
    mx = pytest.importorskip("mlx.core")
    resource = pytest.importorskip("resource")
    mx.disable_compile()  # on a CPU it has a C++ compiler join operations
    mx.set_default_device(mx.cpu)
    kept, resource.setrlimit = resource.setrlimit, lambda *_: None  # it lowers how many files a process may open
    try:
        return mx, pytest.importorskip("mlx_lm.utils")
    finally:
        resource.setrlimit = kept


def answers_of(folder: Path, packages: tuple[Any, Any], questions: Questions) -> Answers:
    mx, utils = packages
    model, _ = utils.load_model(folder)

    def step(token: int, state: Any) -> tuple[Any, Any]:
        cache = model.make_cache() if state is None else state
        return np.array(model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)), cache

    return one_by_one(step, questions, None)


def test_blocks_are_those_of_mlx(packages: tuple[Any, Any]) -> None:
    mx, _ = packages
    source = np.random.default_rng(1)
    cases = [
        source.normal(0, 0.05, (16, 256)),
        source.normal(0, 1, (16, 256)) * 2.0 ** source.integers(-20, 4, (16, 256)),
        np.abs(source.normal(0, 0.05, (16, 256))),
        source.choice([-1, -0.5, 0, 0.5, 0.75, 1], (16, 256)),
        np.repeat([[0], [0.25], [-0.5], [1e-9]], 64, axis=1),
    ]
    for dtype, kind in (("f32", mx.float32), ("f16", mx.float16), ("bf16", mx.bfloat16)):
        bits_of = (mx.uint32, "<u4") if dtype == "f32" else (mx.uint16, "<u2")
        for values in cases:
            theirs = mx.array(values.astype(np.float32)).astype(kind)
            given = np.array(theirs.astype(mx.float32))
            for bits in (6, 8):
                wanted = mx.quantize(theirs, group_size=64, bits=bits)
                assert np.array_equal(blocks.packed(given, bits).view("<u4"), np.array(wanted[0]))
                for ours, part in zip(blocks.steps(given, bits), wanted[1:], strict=True):
                    found = np.ascontiguousarray(_typed(ours, dtype)).view(bits_of[1])
                    assert np.array_equal(found, np.array(part.view(bits_of[0])))


@pytest.mark.parametrize("dtype", TYPES)
def test_mlx_lm_runs_it_and_quantizes_to_the_same_bytes(
    dtype: str, packages: tuple[Any, Any], engine: Path, tmp_path: Path
) -> None:
    mx, utils = packages
    tree_flatten = pytest.importorskip("mlx.utils").tree_flatten
    source, (plain, small, plain_names) = artifacts.make(
        tmp_path / "x", "7", dtype, engine, *NAMES, "transformers", vocab=300
    )
    truth = artifacts.expected(source)
    for folder in (plain, plain_names):
        assert judge.compare(truth, answers_of(folder, packages, artifacts.QUESTIONS)).logits < CLOSE[dtype]
    # Its own arithmetic beside, it computes what the smoke test says of the file.
    told, ran = artifacts.ask("mlx-6bit", small, source), answers_of(small, packages, artifacts.QUESTIONS)
    assert judge.compare(told, ran).logits < CLOSE[dtype]
    model, config = utils.load_model(plain)
    model, config = utils.quantize_model(model, config, 64, 6)
    said = json.loads((small / "config.json").read_text())
    assert {key: said[key] for key in ("quantization", "quantization_config")} == {
        key: config[key] for key in ("quantization", "quantization_config")
    }
    theirs, ours = dict(tree_flatten(model.parameters())), mx.load(str(small / "model.safetensors"))
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert value.dtype == ours[name].dtype, name
        same = mx.array_equal(value.view(mx.uint8).reshape(-1), ours[name].view(mx.uint8).reshape(-1))
        assert same.item(), name


@pytest.mark.parametrize("dtype", TYPES)
def test_what_was_written_is_close_to_the_reference(dtype: str, engine: Path, tmp_path: Path) -> None:
    source, paths = artifacts.make(tmp_path / "x", "7", dtype, engine, *NAMES, vocab=256)
    truth = artifacts.expected(source)
    for name, path in zip(NAMES, paths, strict=True):
        figures = judge.compare(truth, artifacts.ask(name, path, source))
        assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
    config = json.loads((paths[1] / "config.json").read_text())
    assert config["quantization"] == {
        "group_size": 64,
        "bits": 6,
        "mode": "affine",
        "model.embeddings": {"bits": 8},
    }


def test_shards_hold_the_same(engine: Path, tmp_path: Path) -> None:
    from rwkvflow.worker.formats.base import Split

    source = checkpoints.make(tmp_path / "m.pth", "7", "bf16", layers=2, width=128, vocab=96)
    path = tmp_path / "shards"
    (outcome,) = convert(source, engine, [ConversionJob("x", "mlx-6bit", path, Split(150_000))])
    assert outcome.failure is None
    assert len(list(path.glob("model-*.safetensors"))) > 1
    truth = artifacts.expected(source)
    assert judge.compare(truth, artifacts.ask("mlx-6bit", path, source)).logits < 0.8


def test_what_is_wrong_is_told(engine: Path, tmp_path: Path) -> None:
    source, paths = artifacts.make(tmp_path / "x", "7", "bf16", engine, *NAMES, vocab=96)

    def config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
        def edit(path: Path) -> None:
            content = json.loads((path / "config.json").read_text())
            change(content)
            (path / "config.json").write_text(json.dumps(content))

        return edit

    def flip(name: str, bit: int) -> Callable[[Path], None]:
        def edit(path: Path) -> None:
            file = path / "model.safetensors"
            data = bytearray(file.read_bytes())
            length = int.from_bytes(data[:8], "little")
            begin, _ = json.loads(data[8 : 8 + length])[name]["data_offsets"]
            data[8 + length + begin] ^= bit
            file.write_bytes(data)

        return edit

    cases = [
        ("mlx", flip("model.layers.1.attn.w_lora.lora.0.weight", 64), "holds other values than the checkpoint"),
        ("mlx", config(lambda c: c.update(head_dim=32)), "head_dim is 32 in config.json; 64 is expected"),
        ("mlx-6bit", flip("model.layers.1.ffn.value.weight", 1), "holds other values than the checkpoint"),
        ("mlx-6bit", flip("model.layers.1.ffn.value.scales", 1), "holds other values than the checkpoint"),
        ("mlx-6bit", flip("model.layers.1.ffn.value.biases", 1), "holds other values than the checkpoint"),
        ("mlx-6bit", flip("model.embeddings.weight", 1), "holds other values than the checkpoint"),
        ("mlx-6bit", config(lambda c: c["quantization"].pop("model.embeddings")), "quantization is "),
    ]
    for name, edit, message in cases:
        path = paths[NAMES.index(name)]
        kept = {file: file.read_bytes() for file in path.iterdir()}
        edit(path)
        with pytest.raises(WorkerError, match=message):
            artifacts.ask(name, path, source)
        for file, data in kept.items():
            file.write_bytes(data)


def test_what_it_cannot_hold_is_refused_by_name(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", "f32", layers=1, width=64, vocab=96, head_size=16)
    (outcome,) = convert(source, engine, [ConversionJob("x", "mlx", tmp_path / "a")])
    assert outcome.failure == "mlx cannot hold heads of 16: mlx-lm's kernel wants a multiple of 32"
    entries = checkpoints.entries("7", "f32", layers=1, width=64, vocab=96)
    odd = checkpoints.array_entry("blocks.0.att.key.weight", np.full((64, 64), np.nan, np.float32))
    checkpoints.write_pth(source, [odd if entry.name == odd.name else entry for entry in entries])
    (outcome,) = convert(source, engine, [ConversionJob("x", "mlx-6bit", tmp_path / "b")])
    assert outcome.failure == "a matrix holds a NaN or an infinity, which a quantized one cannot hold"
    source = checkpoints.make(tmp_path / "n.pth", "6", "f32", layers=1, width=64, vocab=96)
    (outcome,) = convert(source, engine, [ConversionJob("x", "mlx", tmp_path / "c")])
    assert outcome.failure == "mlx cannot hold version 6; it holds 7"
