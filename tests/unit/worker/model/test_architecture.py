"""Version and sizes from tensors, and what is said of tensors that contradict each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import Architecture, architecture_of, version_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import ALL_VERSIONS, VERSIONS
from tests.helpers import checkpoints

Shapes = dict[str, tuple[int, ...]]


def infos(shapes: Shapes, dtype: str = "bf16") -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape) for name, shape in shapes.items()}


def read(shapes: Shapes) -> Architecture:
    return architecture_of(infos(shapes))


def complaint(shapes: Shapes) -> str:
    with pytest.raises(WorkerError) as error:
        read(shapes)
    return str(error.value)


@given(
    st.sampled_from(VERSIONS),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([8, 64]),
    st.integers(1, 300),
    st.integers(1, 99),
)
@settings(deadline=None)
def test_sizes_of_every_version(version: str, layers: int, heads: int, size: int, vocab: int, ffn: int) -> None:
    width = heads * size
    shapes = checkpoints.shapes(version, layers, width, vocab, size, ffn)
    found = read(shapes)
    assert (found.version, found.n_layer, found.n_embd, found.n_vocab) == (version, layers, width, vocab)
    assert (found.n_ffn, found.n_att, found.dtype, found.extra) == (ffn, width, "bf16", ())
    assert (found.n_head, found.head_size) == ((None, None) if version == "4" else (heads, size))
    ranks = checkpoints.lora_ranks(version, width)
    if version == "7" and layers == 1:
        del ranks["v"]  # layer 0 has none
    assert found.lora == ranks
    assert list(found.lora) == sorted(found.lora)


def test_the_versions_are_those_of_the_maker() -> None:
    assert vars(checkpoints)["VERSIONS"] == VERSIONS


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_missing_tensor_is_named(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(VERSIONS))
    shapes = checkpoints.shapes(version, layers=2, width=64)
    name = data.draw(st.sampled_from(sorted(shapes)))
    del shapes[name]
    text = complaint(shapes)
    # Without what tells the version it is another one, whose own tensors are then named.
    assert name in text or "not the tensors of" in text or version_of(infos(shapes)) != version


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_wrong_shape_is_named(data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(VERSIONS))
    shapes = checkpoints.shapes(version, layers=2, width=64)
    name = data.draw(st.sampled_from([name for name in sorted(shapes) if name != "emb.weight"]))
    axis = data.draw(st.integers(0, len(shapes[name]) - 1))
    wrong = list(shapes[name])
    wrong[axis] += data.draw(st.integers(1, 3))
    shapes[name] = tuple(wrong)
    text = complaint(shapes)
    # Layer 0 gives n_ffn, n_att, heads and ranks, and layer 1 the rank of v, which layer 0 lacks: there the tensors
    # that disagree with them are named instead.
    told = name.startswith(("blocks.0.", "blocks.1.att.v1", "blocks.1.att.v2"))
    assert name in text or told or version_of(infos(shapes)) != version
    assert any(part in text for part in ("blocks.", "head.weight", "ln_out"))


def test_all_problems_are_told_up_to_a_limit() -> None:
    shapes = checkpoints.shapes("7", layers=3, width=64)
    for name in ("blocks.1.att.k_k", "blocks.2.ln1.bias", "blocks.1.ffn.x_k"):
        del shapes[name]
    text = complaint(shapes)
    for name in ("blocks.1.att.k_k is missing", "blocks.2.ln1.bias is missing", "blocks.1.ffn.x_k is missing"):
        assert name in text
    for name in list(shapes):
        if ".ln" in name:
            del shapes[name]
    text = complaint(shapes)
    assert text.count("is missing") <= 12
    assert "more" in text


@pytest.mark.parametrize("version", ["5.0", "5.1"])
def test_per_head_decay_in_any_rank(version: str) -> None:
    shapes = checkpoints.shapes(version, layers=1, width=128)
    for shape in ((2,), (2, 1), (2, 1, 1)):
        shapes["blocks.0.att.time_decay"] = shape
        assert read(shapes).version == version


def test_a_true_5_1_is_told_from_5_2() -> None:
    shapes = checkpoints.shapes("5.1", layers=1, width=128)
    assert read(shapes).version == "5.1"
    shapes["blocks.0.att.time_decay"] = shapes["blocks.0.att.time_faaaa"] = (2, 64)
    assert read(shapes).version == "5.2"


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2"])
def test_time_first_by_either_name_but_not_both(version: str) -> None:
    shapes = checkpoints.shapes(version, layers=1, width=64)
    for old, new in (("time_first", "time_faaaa"), ("time_faaaa", "time_first")):
        if (shape := shapes.pop(f"blocks.0.att.{old}", None)) is not None:
            shapes[f"blocks.0.att.{new}"] = shape
            break
    assert shape is not None
    assert read(shapes).version == version
    shapes["blocks.0.att.time_first"] = shapes["blocks.0.att.time_faaaa"] = shape
    assert "two names of one tensor" in complaint(shapes)


def test_version_7_may_have_values_mixed_in_layer_0() -> None:
    shapes = checkpoints.shapes("7", layers=2, width=64)
    for name in ("v0", "v1", "v2"):
        shapes[f"blocks.0.att.{name}"] = shapes[f"blocks.1.att.{name}"]
    assert read(shapes).lora["v"] == 32
    del shapes["blocks.0.att.v1"]
    assert "blocks.0.att.v1 is missing" in complaint(shapes)


def test_ranks_must_agree_between_layers() -> None:
    shapes = checkpoints.shapes("7", layers=2, width=64)
    shapes |= {"blocks.1.att.g1": (64, 16), "blocks.1.att.g2": (16, 64)}
    assert "blocks.1.att.g2 has rank 16, and layers before it have 32" in complaint(shapes)


def test_unknown_tensors_are_listed() -> None:
    shapes = checkpoints.shapes("7", layers=1, width=64) | {"blocks.0.ffn.x_e": (4, 4), "foo": (1,)}
    assert read(shapes).extra == ("blocks.0.ffn.x_e", "foo")


@pytest.mark.parametrize(("vocab", "guess"), [(256, "bytes"), (50277, "20b"), (65536, "world"), (320, None)])
def test_the_tokenizer_by_the_vocabulary(vocab: int, guess: str | None) -> None:
    found = read(checkpoints.shapes("4", layers=1, width=64, vocab=vocab))
    assert found.tokenizer_guess == guess
    assert found.to_dict()["tokenizer_guess"] == guess


def test_the_dtype_is_that_of_most_bytes() -> None:
    tensors = infos(checkpoints.shapes("4", layers=1, width=64))
    for name in tensors:
        if "time" in name:
            tensors[name] = TensorInfo(name, "f32", tensors[name].shape)
    assert architecture_of(tensors).dtype == "bf16"
    tensors["head.weight"] = TensorInfo("head.weight", "i8", (320, 64))
    with pytest.raises(WorkerError, match=r"head\.weight is i8, not one of f64, f32, f16, bf16"):
        architecture_of(tensors)


def remove(name: str) -> Callable[[Shapes], object]:
    return lambda shapes: shapes.pop(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.clear(), "not the tensors of an RWKV checkpoint"),
        (remove("emb.weight"), "emb.weight is missing"),
        (lambda s: s.update({"emb.weight": (3,)}), "emb.weight is [3], not [vocabulary, embedding]"),
        (lambda s: s.update({"emb.weight": (0, 64)}), "no vocabulary"),
        (lambda s: s.update({"emb.weight": (320, 65)}), "not [any, 65]"),
        (lambda s: s.update({"blocks.5.ln1.weight": (64,)}), "without blocks.2, 3, 4"),
        (lambda s: s.update({"blocks.999999999.x": (64,)}), "the names of its layers"),
        (lambda s: s.update({"blocks.9999999999999.x": (64,)}), "no name of a layer"),
        (lambda s: s.update({"blocks.01.x": (64,)}), "no name of a layer"),
        (lambda s: s.update({"blocks.0.att.time_faaaa": (3, 21)}), "[heads, size] that make 64"),
        (lambda s: s.update({"blocks.0.att.time_faaaa": (64,)}), "[heads, size] that make 64"),
        (lambda s: s.update({"blocks.0.att.time_faaaa": ()}), "[heads, size] that make 64"),
        (lambda s: (s.pop("blocks.0.ln0.weight"), s.pop("blocks.0.ln0.bias")), "ChatRWKV converted"),
    ],
)
def test_what_makes_no_model(change: Callable[[Shapes], object], words: str) -> None:
    shapes = checkpoints.shapes("6", layers=2, width=64)
    change(shapes)
    assert words in complaint(shapes)


def test_names_without_a_layer_number() -> None:
    assert "names of its layers" in complaint({"blocks.x.att.r_k": (1, 64), "emb.weight": (3, 64)})


def test_a_hugging_face_folder_is_recognized() -> None:
    assert "Hugging Face" in complaint({"rwkv.blocks.0.attention.key.weight": (4, 4)})


@given(
    st.dictionaries(
        st.sampled_from(sorted(checkpoints.shapes("7", 2, 64)) + sorted(checkpoints.shapes("5.1", 2, 64)) + ["x"]),
        st.lists(st.integers(0, 70), max_size=4).map(tuple),
    ),
    st.sampled_from(VERSIONS),
)
@settings(deadline=None, max_examples=300)
def test_no_set_of_tensors_crashes(changes: Shapes, version: str) -> None:
    shapes = checkpoints.shapes(version, layers=2, width=64) | changes
    try:
        found = read(shapes)
    except WorkerError:
        return
    assert found.n_layer == 2


def test_it_needs_no_numpy() -> None:
    code = "import sys, rwkvflow.worker.model.architecture; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_two_layers_that_name_one_tensor_otherwise_are_refused() -> None:
    """`time_first` is a logarithm, `time_faaaa` is not, and the rwkv package takes one name for all layers."""
    for version in ("5.1", "5.2"):
        shapes = checkpoints.shapes(version, layers=2, width=64, vocab=64)
        for other in (0, 1):
            tensors = {}
            for name, shape in shapes.items():
                name = name.replace("time_faaaa", "time_first") if name.startswith(f"blocks.{other}.") else name
                tensors[name] = TensorInfo(name, "bf16", shape)
            with pytest.raises(WorkerError, match="is called otherwise than "):
                architecture_of(tensors)


@pytest.mark.parametrize("version", sorted(ALL_VERSIONS))
def test_every_tensor_of_a_version_holds_floating_point(version: str) -> None:
    shapes = checkpoints.shapes(version, layers=2, width=64, vocab=64)
    for odd in shapes:
        tensors = {name: TensorInfo(name, "i8" if name == odd else "f32", shape) for name, shape in shapes.items()}
        with pytest.raises(WorkerError, match=f"{odd} is i8, not one of f64, f32, f16, bf16"):
            architecture_of(tensors)
