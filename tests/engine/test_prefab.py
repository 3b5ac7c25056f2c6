"""web-rwkv's prefabs: as cbor2 reads them they are the runtime's struct and the checkpoint's values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.smoke import judge
from tests.engine import artifacts, encoder
from tests.helpers import checkpoints

cbor2: Any = pytest.importorskip("cbor2")
NAMES = ("prefab-f16", "prefab-int8", "prefab-nf4")
VERSIONS = ("4", "5.1", "5.2", "6", "7")


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LAYER_4 = {
    "att_layer_norm": ("w", "b"),
    "ffn_layer_norm": ("w", "b"),
    "att": ("time_decay", "time_first", "time_mix_k", "time_mix_v", "time_mix_r", "w_k", "w_v", "w_r", "w_o"),
    "ffn": ("time_mix_k", "time_mix_r", "w_k", "w_v", "w_r"),
}
#: The fields of a layer, in the order of web-rwkv's source (src/runtime/v4.rs to v7.rs).
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "4": LAYER_4,
    "5.2": {
        **LAYER_4,
        "att": words(
            "time_decay time_first time_mix_k time_mix_v time_mix_r time_mix_g w_k w_v w_r w_g w_o group_norm"
        ),
    },
    "6": {
        **LAYER_4,
        "att": words(
            "time_decay time_first time_mix_x time_mix time_decay_w1 time_decay_w2 time_mix_w1 time_mix_w2 "
            "w_k w_v w_r w_g w_o group_norm"
        ),
    },
    "7": {
        "att_ln": ("w", "b"),
        "ffn_ln": ("w", "b"),
        "att": words("x_r x_w x_k x_v x_a x_g w0 a0 v0 w1 w2 a1 a2 g1 g2 v1 v2 r_k k_k k_a w_k w_v w_r w_o gn"),
        "ffn": ("x_k", "w_k", "w_v"),
    },
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_written_is_close_to_the_reference(version: str, engine: Path, tmp_path: Path) -> None:
    """In versions 4 to 6 the seventh layer is halved."""
    for dtype in ("bf16", "f32"):
        source, paths = artifacts.make(tmp_path / dtype, version, dtype, engine, *NAMES, layers=7, vocab=99)
        truth = artifacts.expected(source)
        found = []
        for name, path in zip(NAMES, paths, strict=True):
            assert cbor2.dumps(cbor2.loads(path.read_bytes())) == path.read_bytes()  # the shortest form of everything
            figures = judge.compare(truth, artifacts.ask(name, path, source))
            # Random weights lose more than trained ones, and more from layer to layer.
            assert figures.logits < {"prefab-f16": 0.05, "prefab-int8": 0.2, "prefab-nf4": 2.0}[name], name
            found.append(figures.logits)
        assert found == sorted(found)


@pytest.mark.parametrize("version", LAYERS)
def test_it_is_the_struct_of_web_rwkv(version: str, engine: Path, tmp_path: Path) -> None:
    _, (path,) = artifacts.make(tmp_path / "x", version, "bf16", engine, "prefab-nf4", layers=7, vocab=99)
    content = cbor2.loads(path.read_bytes())
    assert list(content) == ["context", "info", "rescale", "sep", "tensor"]
    assert content["context"] == []  # as cbor4ii writes PhantomData
    info = content["info"]
    assert list(info) == ["version", "num_layer", "num_emb", "num_hidden", "num_vocab", "num_head", "custom"]
    assert (info["num_vocab"], info["num_head"]) == (99, 1 if version == "4" else 2)
    lora = {"6": {"V6": {"time_mix": 32, "time_decay": 64}}, "7": {"V7": {"w": 32, "a": 32, "g": 32, "v": 32}}}
    assert info["custom"] == lora.get(version, "None")
    assert (content["rescale"], content["sep"]) == (1024 if version == "7" else 6, 1024)
    tensor = content["tensor"]
    norm = "ln" if version == "7" else "layer_norm"
    assert {key: list(value) for key, value in tensor.items() if key != "layers"} == {
        "embed": [norm, "w"],
        "head": [norm, "w"],
    }
    assert len(tensor["layers"]) == 7
    for layer in tensor["layers"]:
        assert {key: tuple(value) for key, value in layer.items()} == LAYERS[version]
        assert [list(layer), [list(value) for value in layer.values()]] == [
            list(LAYERS[version]),
            [list(value) for value in LAYERS[version].values()],
        ]
    assert tensor["embed"]["w"]["shape"] == [128, 104, 1, 1]  # padded to a multiple of 8
    assert tensor["head"]["w"]["Fp16"]["shape"] == [128, 104 if version in "67" else 99, 1, 1]
    matrix = tensor["layers"][6]["ffn"]["w_v"]["Fp4"]
    assert list(matrix) == ["q", "w", "m"]
    rows, columns = 128, info["num_hidden"]
    assert [matrix[key]["shape"] for key in "qwm"] == [
        [16, 1, 1, 1],
        [columns // 2, rows, 1, 1],
        [rows * columns // 64, 1, 1, 1],
    ]
    if version == "6":
        att = tensor["layers"][0]["att"]
        assert att["time_mix"]["shape"] == [128, 1, 5, 1]
        assert att["time_mix_w2"]["Fp16"]["shape"] == [32, 128, 5, 1]
        assert att["group_norm"]["w"]["shape"] == [64, 2, 1, 1]
    if version == "7":
        att = tensor["layers"][0]["att"]
        assert [att[f"v{n}"] for n in "012"] == [att[f"a{n}"] for n in "012"]
        assert att["r_k"]["shape"] == [64, 2, 1, 1]
        assert att["w1"]["Fp16"]["shape"] == [128, 32, 1, 1]


def damaged(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = cbor2.loads(path.read_bytes())
    change(content)
    path.write_bytes(cbor2.dumps(content))


def flip(tensor: dict[str, Any], at: int, bit: int) -> None:
    data = bytearray(tensor["data"])
    data[at] ^= bit
    tensor["data"] = bytes(data)


def test_what_is_wrong_is_told(engine: Path, tmp_path: Path) -> None:
    def layer(content: dict[str, Any]) -> Any:
        return content["tensor"]["layers"][1]

    cases: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
        (
            "prefab-f16",
            lambda c: flip(layer(c)["att"]["w_k"]["Fp16"], 100, 64),
            "holds other values than the checkpoint",
        ),
        ("prefab-f16", lambda c: flip(layer(c)["att"]["gn"]["b"], 1, 64), "holds other values than the checkpoint"),
        ("prefab-f16", lambda c: flip(c["tensor"]["embed"]["w"], -1, 64), "has values in the rows that fill it up"),
        ("prefab-f16", lambda c: layer(c)["att"].pop("k_a"), "the artifact lacks 'layers.1.att.k_a'"),
        ("prefab-f16", lambda c: layer(c).update(more={"shape": [1], "data": b""}), "has 'layers.1.more' besides"),
        ("prefab-f16", lambda c: c["info"].update(num_head=4), "info is .* is expected"),
        ("prefab-f16", lambda c: c.update(rescale=6), "rescale is 6 in the artifact; 1024 is expected"),
        ("prefab-f16", lambda c: layer(c)["att"]["w1"]["Fp16"].update(shape=[32, 128, 1, 1]), "is of shape"),
        (
            "prefab-int8",
            lambda c: flip(layer(c)["ffn"]["w_k"]["Int8"]["w"], 7, 1),
            "holds other values than the checkpoint",
        ),
        ("prefab-int8", lambda c: flip(layer(c)["ffn"]["w_k"]["Int8"]["m"], 0, 1), "its blocks have other scales"),
        (
            "prefab-nf4",
            lambda c: flip(layer(c)["ffn"]["w_v"]["Fp4"]["w"], 7, 16),
            "holds other values than the checkpoint",
        ),
        ("prefab-nf4", lambda c: flip(layer(c)["ffn"]["w_v"]["Fp4"]["m"], 0, 1), "its blocks have other scales"),
        ("prefab-nf4", lambda c: flip(layer(c)["ffn"]["w_v"]["Fp4"]["q"], 0, 1), "other levels than those of NF4"),
        (
            "prefab-nf4",
            lambda c: layer(c)["ffn"].update(w_v=layer(c)["ffn"]["w_v"]["Fp4"]["w"]),
            "has not the fields m, q, w",
        ),
    ]
    source, paths = artifacts.make(tmp_path / "x", "7", "f16", engine, *NAMES, vocab=99)
    good = {name: path.read_bytes() for name, path in zip(NAMES, paths, strict=True)}
    for name, change, message in cases:
        path = paths[NAMES.index(name)]
        path.write_bytes(good[name])
        damaged(path, change)
        with pytest.raises(WorkerError, match=message):
            artifacts.ask(name, path, source)
    for data, message in (
        (good["prefab-f16"][:-9], "cbor2 cannot read it"),
        (good["prefab-f16"] + b"x", "bytes follow"),
    ):
        paths[0].write_bytes(data)
        with pytest.raises(WorkerError, match=message):
            artifacts.ask("prefab-f16", paths[0], source)


def test_what_it_cannot_hold_is_refused_by_name(engine: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", "f32", layers=1, width=64, vocab=96, ffn=65)
    for name, message in (
        ("prefab-int8", "blocks.0.ffn.key.weight is of shape [65, 64]: web-rwkv quantizes blocks of 128 values"),
        (
            "prefab-nf4",
            "blocks.0.ffn.value.weight is of shape [64, 65]: web-rwkv quantizes blocks of 64 values in rows",
        ),
    ):
        (outcome,) = convert(source, engine, [ConversionJob("x", name, tmp_path / name)])
        assert (outcome.failure or "").startswith(message)
    entries = checkpoints.entries("7", "f32", layers=1, width=64, vocab=96)
    large = checkpoints.array_entry("blocks.0.att.key.weight", np.full((64, 64), 1e6, np.float32))
    checkpoints.write_pth(source, [large if entry.name == large.name else entry for entry in entries])
    (outcome,) = convert(source, engine, [ConversionJob("x", "prefab-nf4", tmp_path / "n")])
    assert outcome.failure == "blocks.0.att.key.weight holds a value that fp16 does not, and that nf4 cannot hold"
    (outcome,) = convert(source, engine, [ConversionJob("x", "prefab-f16", tmp_path / "f")])
    assert any("infinite in the artifact" in warning for warning in outcome.warnings)
    (outcome,) = convert(source, engine, [ConversionJob("x", "prefab-f16", tmp_path / "e")], group_norm_eps=1e-5)
    assert "whose head group norm has an epsilon of 1e-05" in (outcome.failure or "")


def test_every_format_is_of_the_same_versions() -> None:
    assert {FORMATS[name].versions for name in NAMES} == {frozenset(VERSIONS)}
