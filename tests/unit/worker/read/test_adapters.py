"""LoRA and initial states: what is merged is the sum that the training code computes; what does not fit is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runner import Task
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.model.rounding import bf16_to_float32, product, rounded
from rwkvflow.worker.read.adapters import initial_states
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import logits
from tests.helpers import checkpoints

SIZES: dict[str, Any] = {"layers": 2, "width": 64, "vocab": 40}
KEY = "blocks.1.att.key"


def lora(path: Path, tensors: Mapping[str, Any], dtype: str = "f32") -> Path:
    """A file of these tensors."""
    entries = [checkpoints.array_entry(name, np.asarray(values, np.float32), dtype) for name, values in tensors.items()]
    (checkpoints.write_pth if path.suffix == ".pth" else checkpoints.write_safetensors)(path, entries)
    return path


def pair(stem: str = KEY, rank: int = 4, rows: int = 64, columns: int = 64, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        f"{stem}.lora_A": rng.standard_normal((rank, columns), np.float32),
        f"{stem}.lora_B": rng.standard_normal((rows, rank), np.float32),
    }


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("base") / "m.pth", "7", "bf16", **SIZES)


# ---- LoRA -----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    dtype=st.sampled_from(["f32", "f16", "bf16"]),
    of_lora=st.sampled_from(["f32", "f16", "bf16"]),
    rank=st.integers(1, 9),
    alpha=st.sampled_from([0.5, 8.0, 32.0]),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_each_value_is_the_sum_in_the_order_of_the_rank(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, of_lora: str, rank: int, alpha: float, cuts: list[int]
) -> None:
    """Against a loop over plain float32 numbers; in pieces of any size it is the same."""
    place = tmp_path_factory.mktemp("lora")
    source = checkpoints.make(place / "m.pth", "4", dtype, layers=1, width=32, vocab=8)
    name = "blocks.0.ffn.key"
    made = lora(place / "l.pth", pair(name, rank, 128, 32), of_lora)
    with open_checkpoint(source) as plain, open_checkpoint(Origin(source, made, alpha)) as merged:
        with open_checkpoint(made) as values:
            a, b = values.float32(f"{name}.lora_A"), values.float32(f"{name}.lora_B")
        weight = plain.float32(f"{name}.weight")
        total = np.zeros_like(weight)
        for row in (0, 77, 127):
            for column in (0, 5, 31):
                one = np.float32(b[row, 0] * a[0, column])
                for k in range(1, rank):
                    one = np.float32(one + np.float32(b[row, k] * a[k, column]))
                total[row, column] = np.float32(weight[row, column] + np.float32(one * np.float32(alpha / rank)))
        whole = merged.read(f"{name}.weight")
        found = merged.float32(f"{name}.weight")
        for row in (0, 77, 127):
            for column in (0, 5, 31):
                assert found[row, column] == rounded(dtype, total[row : row + 1, column])[0]
        near = weight + (b.astype(np.float64) @ a) * (alpha / rank)
        assert np.abs(found - near).max() <= np.abs(near).max() * 2.0**-7
        at, pieces = 0, []
        for cut in [*cuts, 128]:
            count = min(cut, 128 - at)
            pieces.append(merged.read(f"{name}.weight", at, count))
            at += count
        assert np.concatenate(pieces).tobytes() == whole.tobytes()
        assert merged.tensors == plain.tensors
        for other in plain.tensors:
            if other != f"{name}.weight":
                assert plain.read(other).tobytes() == merged.read(other).tobytes()


def test_products_do_not_depend_on_where_a_piece_begins() -> None:
    rng = np.random.default_rng(0)
    b, a = rng.standard_normal((33, 7), np.float32), rng.standard_normal((7, 65), np.float32)
    whole = product(b, a)
    assert np.allclose(whole, b.astype(np.float64) @ a, atol=1e-5)
    for row in range(33):
        assert product(b[row : row + 1], a).tobytes() == whole[row : row + 1].tobytes()


def test_tensors_that_were_trained_as_a_whole_take_the_others_place(base: Path, tmp_path: Path) -> None:
    norm, mix = np.linspace(0, 1, 64), np.linspace(1, 2, 64)
    file = lora(tmp_path / "l.safetensors", {**pair(), "blocks.0.ln1.weight": norm, "blocks.1.att.x_r": mix})
    with open_checkpoint(Origin(base, file, 8)) as found:
        assert found.tensors["blocks.1.att.x_r"].shape == (1, 1, 64)
        assert found.read("blocks.1.att.x_r").shape == (1, 1, 64)
        for name, wanted in (("blocks.0.ln1.weight", norm), ("blocks.1.att.x_r", mix)):
            expected = rounded("bf16", wanted.astype(np.float32))
            assert np.array_equal(bf16_to_float32(found.read(name)).reshape(-1), expected)
        assert not found.is_plain


def test_a_prefix_that_all_names_have_is_taken_off(base: Path, tmp_path: Path) -> None:
    plain = lora(tmp_path / "a.pth", pair())
    prefixed = lora(tmp_path / "b.pth", {f"module.model.{name}": values for name, values in pair().items()})
    with open_checkpoint(Origin(base, plain, 8)) as a, open_checkpoint(Origin(base, prefixed, 8)) as b:
        assert a.read(f"{KEY}.weight").tobytes() == b.read(f"{KEY}.weight").tobytes()


def test_the_reference_runs_what_was_merged(base: Path, tmp_path: Path) -> None:
    tensors = pair(seed=3)
    file = lora(tmp_path / "l.pth", tensors)
    with open_checkpoint(Origin(base, file, 4)) as merged, open_checkpoint(base) as plain:
        delta = tensors[f"{KEY}.lora_B"].astype(np.float64) @ tensors[f"{KEY}.lora_A"]
        by_hand = [
            checkpoints.array_entry(
                name,
                rounded("bf16", plain.float32(name) + delta.astype(np.float32))
                if name == f"{KEY}.weight"
                else plain.float32(name),
                "bf16",
            )
            for name in plain.tensors
        ]
        checkpoints.write_pth(tmp_path / "merged.pth", by_hand)
        with open_checkpoint(tmp_path / "merged.pth") as wanted:
            tokens = [1, 2, 3, 4]
            found = logits(merged, tokens)
            assert np.abs(found - logits(wanted, tokens)).max() < 0.02 * np.abs(found - logits(plain, tokens)).max()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, r"no tensors|no LoRA"),
        ({"blocks.0.ln1.weight": np.ones(64)}, r"no LoRA: there are no tensors \*\.lora_A and \*\.lora_B"),
        ({f"base_model.model.{KEY}.lora_A.weight": np.ones((4, 64))}, r"no LoRA.*names of PEFT's own adapters"),
        ({f"base_model.model.{KEY}.lora_A.default.weight": np.ones((4, 64))}, r"no LoRA.*names of PEFT's own adapters"),
        ({f"{KEY}.lora_B.weight": np.ones((64, 4))}, r"no LoRA.*names of PEFT's own adapters"),
        ({f"{KEY}.lora_magnitude_vector": np.ones(64)}, r"no LoRA.*names of PEFT's own adapters"),
        ({f"{KEY}.bone": np.ones((8, 64))}, "Bone and DiSHA have no alpha; give none"),
        ({f"{KEY}.lora_A": np.ones((4, 64))}, rf"{KEY} has lora_A and no lora_B"),
        ({f"{KEY}.lora_B": np.ones((64, 4))}, rf"{KEY} has lora_B and no lora_A"),
        (
            pair("blocks.9.att.key"),
            r"blocks\.9\.att\.key\.lora_A is for .*\.weight, which the checkpoint does not have",
        ),
        (pair(rows=65), r"lora_B lora_A is \[65, 64\], and blocks\.1\.att\.key\.weight is \[64, 64\]"),
        (pair(columns=32), r"lora_B lora_A is \[64, 32\]"),
        (pair(rank=0), r"lora_A \[0, 64\] and lora_B \[64, 0\] have no common rank"),
        ({f"{KEY}.lora_A": np.ones((4, 64)), f"{KEY}.lora_B": np.ones((64, 5))}, "no common rank of 1 or more"),
        ({f"{KEY}.lora_A": np.ones(64), f"{KEY}.lora_B": np.ones((64, 1))}, r"is f32 \[64\], no matrix"),
        (
            {**pair(), "blocks.0.att.mystery": np.ones(64)},
            r"blocks\.0\.att\.mystery is none of the checkpoint's tensors",
        ),
        ({**pair(), "ln_out.weight": np.ones(63)}, r"ln_out\.weight is f32 \[63\] and \[64\] in the checkpoint"),
        ({**pair(), f"{KEY}.init_lora_A": np.ones((4, 64))}, "PiSSA has no alpha; give none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    base: Path, tmp_path: Path, tensors: Mapping[str, Any], says: str
) -> None:
    file = lora(tmp_path / "l.pth", tensors)
    with pytest.raises(WorkerError, match=says) as caught:
        open_checkpoint(Origin(base, file, 8))
    assert str(caught.value).startswith("l.pth: ")
    assert "\n" not in str(caught.value)


def began(seed: int = 2) -> dict[str, Any]:
    return {name.replace("lora", "init_lora"): values for name, values in pair(seed=seed).items()}


def near(found: Any, wanted: Any) -> bool:
    return bool(np.abs(found - wanted).max() <= np.abs(wanted).max() * 2.0**-8)


@pytest.mark.parametrize("apart", [True, False], ids=["two files", "one file"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_pissa_takes_what_it_began_with_off(base: Path, tmp_path: Path, prefix: str, apart: bool) -> None:
    trained, first = pair(), began()
    init = lora(tmp_path / "i.pth", {f"{prefix}{name}": values for name, values in first.items()}) if apart else None
    file = lora(tmp_path / "l.pth", trained if apart else trained | first)
    with open_checkpoint(base) as plain, open_checkpoint(Origin(base, file, None, init=init)) as merged:
        weight = plain.float32(f"{KEY}.weight").astype(np.float64)
        a, b, a0, b0 = (each.astype(np.float64) for each in (*trained.values(), *first.values()))
        assert near(merged.float32(f"{KEY}.weight"), weight - b0 @ a0 + b @ a)
        pieces = [merged.read(f"{KEY}.weight", at, min(7, 64 - at)) for at in range(0, 64, 7)]
        assert np.array_equal(np.concatenate(pieces), merged.read(f"{KEY}.weight"))


@pytest.mark.parametrize("name", ["bone", "disha"])
@pytest.mark.parametrize("size", [8, 64])
def test_bone_changes_each_block_by_itself(base: Path, tmp_path: Path, name: str, size: int) -> None:
    """As merge_disha.py: rearrange(W, '(a r1) (b r2) -> a b r1 r2') @ D + D."""
    blocks = np.random.default_rng(3).standard_normal((64 // size, size, size)).astype(np.float32) / 8
    file = lora(tmp_path / "l.pth", {f"{KEY}.{name}": blocks})
    with open_checkpoint(base) as plain, open_checkpoint(Origin(base, file)) as merged:
        weight = plain.float32(f"{KEY}.weight").astype(np.float64)
        cut = weight.reshape(64 // size, size, 64 // size, size).transpose(0, 2, 1, 3)
        change = (cut @ blocks + blocks).transpose(0, 2, 1, 3).reshape(64, 64)
        assert near(merged.float32(f"{KEY}.weight"), weight + change)
        pieces = [merged.read(f"{KEY}.weight", at, min(7, 64 - at)) for at in range(0, 64, 7)]
        assert np.array_equal(np.concatenate(pieces), merged.read(f"{KEY}.weight"))


@pytest.mark.parametrize("rank", [1, 8, 10, 64])
def test_disha_is_added_to_each_slice_of_columns(base: Path, tmp_path: Path, rank: int) -> None:
    """As merge_disha.py; 10 does not divide the columns, and the last slice has 4 of them."""
    added = np.random.default_rng(4).standard_normal((rank, 64)).astype(np.float32)
    file = lora(tmp_path / "l.pth", {f"{KEY}.disha": added})
    with open_checkpoint(base) as plain, open_checkpoint(Origin(base, file)) as merged:
        weight = plain.float32(f"{KEY}.weight").astype(np.float64)
        wanted = np.array([[weight[o, i] + added[i % rank, o] for i in range(64)] for o in range(64)])
        assert near(merged.float32(f"{KEY}.weight"), wanted)
        pieces = [merged.read(f"{KEY}.weight", at, min(7, 64 - at)) for at in range(0, 64, 7)]
        assert np.array_equal(np.concatenate(pieces), merged.read(f"{KEY}.weight"))


@pytest.mark.parametrize(
    ("tensors", "init", "says"),
    [
        ({f"{KEY}.bone": np.ones((64, 8))}, None, r"is \[64, 8\], which fits no"),
        ({f"{KEY}.bone": np.ones((7, 8, 8))}, None, r"is \[7, 8, 8\], which fits no"),
        ({f"{KEY}.disha": np.ones((65, 64))}, None, r"is \[65, 64\], which fits no"),
        ({"blocks.9.att.key.bone": np.ones((8, 64))}, None, "which the checkpoint does not have"),
        ({"blocks.0.ln1.bone": np.ones((8, 64))}, None, r"ln1\.weight \[64\]"),
        (pair(), pair(), r"PiSSA began with tensors \*\.init_lora_A"),
        (pair(), {k: v for k, v in began().items() if k.endswith("A")}, "what PiSSA began with is not given"),
        (pair(), {k.replace("key", "value"): v for k, v in began().items()}, "which was not trained"),
        ({**pair(), **pair("blocks.1.att.value")}, began(), r"value: what PiSSA began with is not given"),
    ],
)
def test_what_other_adapters_do_not_fit_is_refused(
    base: Path, tmp_path: Path, tensors: Mapping[str, Any], init: Mapping[str, Any] | None, says: str
) -> None:
    file = lora(tmp_path / "l.pth", tensors)
    with pytest.raises(WorkerError, match=says):
        open_checkpoint(Origin(base, file, None, init=None if init is None else lora(tmp_path / "i.pth", init)))


@pytest.mark.parametrize("alpha", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_no_alpha_to_merge_with(base: Path, tmp_path: Path, alpha: float | None) -> None:
    with pytest.raises(WorkerError, match="a number above 0"):
        open_checkpoint(Origin(base, lora(tmp_path / "l.pth", pair()), alpha))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["lora_A", "lora_B"])
def test_values_that_are_no_numbers(base: Path, tmp_path: Path, bad: float, which: str) -> None:
    tensors = pair()
    tensors[f"{KEY}.{which}"][1, 1] = bad
    with (
        open_checkpoint(Origin(base, lora(tmp_path / "l.pth", tensors), 8)) as found,
        pytest.raises(WorkerError, match=rf"l\.pth: {KEY}\.{which} holds a NaN or an infinity"),
    ):
        found.read(f"{KEY}.weight")


def test_an_adapter_in_a_model_format_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"fmgg" + bytes(100))
    with pytest.raises(WorkerError):
        open_checkpoint(Origin(base, tmp_path / "x.bin", 8))


# ---- initial states ---------------------------------------------------------------------------------------------


def states(layers: int = 2, shape: tuple[int, ...] = (1, 64, 64), seed: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {f"blocks.{i}.att.time_state": rng.standard_normal(shape, np.float32) for i in range(layers)}


def test_states_go_along_into_formats_that_have_a_place(base: Path, tmp_path: Path) -> None:
    file = lora(tmp_path / "s.pth", states(), "bf16")
    with open_checkpoint(Origin(base, state=file)) as found:
        architecture = architecture_of(found.tensors)
        assert architecture.extra == ()
        name = "blocks.1.att.time_state"
        assert np.array_equal(found.float32(name), rounded("bf16", states()[name]))
        for item in FORMATS.values():
            held = item.held(architecture, found.tensors)
            has = item.name.startswith(("safetensors", "web-rwkv"))
            assert (name in held) == has, item.name
            assert (item.left_out(held, found.tensors) == []) == has
    for kind, has in (("safetensors", True), ("ggml-f32", False)):
        with source_of(kind, Origin(base, state=file)) as found:
            assert ("blocks.0.att.time_state" in found.tensors) == has


def source_of(name: str, origin: Origin) -> Checkpoint:
    """What an artifact of this format is compared with."""
    return Task(Path(), origin, Path(), None, FORMATS[name]).open_source()


def test_a_checkpoint_with_states_is_a_checkpoint(tmp_path: Path) -> None:
    entries = checkpoints.entries("6", "f32", **SIZES)
    entries += [checkpoints.array_entry(name, values) for name, values in states().items()]
    checkpoints.write_pth(tmp_path / "m.pth", entries)
    with open_checkpoint(tmp_path / "m.pth") as found:
        assert architecture_of(found.tensors).extra == ()
    other = lora(tmp_path / "s.pth", states(seed=6))
    with open_checkpoint(Origin(tmp_path / "m.pth", state=other)) as found:
        assert np.array_equal(found.float32("blocks.0.att.time_state"), states(seed=6)["blocks.0.att.time_state"])
    with source_of("gguf-f16", Origin(tmp_path / "m.pth")) as found:
        assert not any("time_state" in name for name in found.tensors)


def test_states_beside_a_lora_come_along(base: Path, tmp_path: Path) -> None:
    file = lora(tmp_path / "l.pth", {**pair(), **states()})
    with open_checkpoint(Origin(base, file, 8)) as found:
        assert np.array_equal(found.float32("blocks.0.att.time_state"), states()["blocks.0.att.time_state"])


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (states(1), r"blocks\.1\.att\.time_state is missing"),
        (states(3), r"blocks\.2\.att\.time_state is of no layer of the model"),
        (states(shape=(2, 32, 32)), r"is f32 \[2, 32, 32\], not floats of \[1, 64, 64\]"),
        ({**states(), "ln_out.weight": np.ones(64)}, r"ln_out\.weight is none"),
        (pair(), r"it holds blocks\.1\.att\.key\.lora_A and the like"),
    ],
)
def test_states_that_do_not_fit(base: Path, tmp_path: Path, tensors: Mapping[str, Any], says: str) -> None:
    with pytest.raises(WorkerError, match=says):
        open_checkpoint(Origin(base, state=lora(tmp_path / "s.pth", tensors)))


@pytest.mark.parametrize("name", ["s.pth", "s.safetensors"])
def test_states_alone(tmp_path: Path, name: str) -> None:
    named = {f"module.{key}": value for key, value in states(3, (2, 8, 8)).items()}
    found = initial_states(lora(tmp_path / name, named, "bf16"), 3, 128)
    assert found.shape == (3, 2, 8, 8)
    for layer, values in enumerate(found):
        assert np.array_equal(values, rounded("bf16", named[f"module.blocks.{layer}.att.time_state"]))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "no tensors in it"),
        ({"emb.weight": np.ones((4, 4))}, "emb.weight and the like"),
        ({**states(), "ln_out.weight": np.ones(64)}, r"ln_out\.weight is none"),
        (
            {name: values for name, values in states(3).items() if ".1." not in name},
            "blocks.1.att.time_state is missing",
        ),
        ({**states(1, (1, 4, 4)), "blocks.1.att.time_state": np.ones((2, 4, 4))}, "for every layer"),
        (states(1, (1, 4, 8)), "for every layer"),
        (states(1, (4, 4)), "for every layer"),
        (states(4, (1, 4, 4)), "blocks.3.att.time_state is of no layer"),
        (states(3, (1, 8, 8)), r"states of \[1, 8, 8\]; the model has 16 numbers"),
        ({name: np.full((1, 4, 4), np.nan) for name in states(3)}, "NaN"),
    ],
)
def test_what_is_no_file_of_states(tmp_path: Path, tensors: Mapping[str, Any], says: str) -> None:
    with pytest.raises(WorkerError, match=says):
        initial_states(lora(tmp_path / "s.pth", tensors), 3, 16)


def test_version_4_has_no_such_state(tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "4", **SIZES)
    with pytest.raises(WorkerError, match="version 4 has no state that could be set"):
        open_checkpoint(Origin(source, state=lora(tmp_path / "s.pth", states())))


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.attn.k_proj.lora_A.weight",
        "base_model.model.blocks.0.att.key.lora_B.default.weight",
        "blocks.0.att.key.lora_A.weight",
        "blocks.0.att.key.lora_A",
        "base_model.model.blocks.0.att.key.lora_magnitude_vector",
        "base_model.model.emb.lora_embedding_A",
        "blocks.0.att.key.bone",
        "blocks.0.ffn.value.disha",
    ],
)
def test_an_adapter_that_is_given_as_a_model_is_called_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    checkpoints.write_safetensors(path, [checkpoints.array_entry(name, np.zeros((4, 64), np.float32))])
    assert "They look like an adapter's: " in str(describe(path)["problem"])


def test_initial_states_that_are_given_as_a_model_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    checkpoints.write_pth(path, [checkpoints.array_entry("blocks.0.att.time_state", np.zeros((1, 64, 64), np.float32))])
    assert "They are initial states, which go along with a checkpoint" in str(describe(path)["problem"])
