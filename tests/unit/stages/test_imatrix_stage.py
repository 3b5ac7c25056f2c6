"""An importance matrix that a recipe asks for: its step, its text in the lock, and what is made with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.base.errors import DocumentError, LockError, UsageError
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.lock import Lock, LockedFile, disagreements, locked_parts, pinned_files
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock.outside import check_inside
from rwkvflow.plan.step import LocalInput, Ref
from tests.unit.stages.test_llama_stages import lock_of, plan_of, recipe_of

PLAIN = """\
name: x
models: [{name: a, source: a.pth}]
formats: [ggml-f16, gguf-q8_0, gguf-q4_k_m, gguf-q8_0-mixed]
"""
PLAIN = PLAIN.replace(", gguf-q8_0-mixed", ', {format: gguf-q8_0-mixed, tensor_types: {"ffn": q4_k}}')
SHIPPED = PLAIN.replace("a.pth", "a.pth, imatrix: {}")
MINE = PLAIN.replace("a.pth", "a.pth, imatrix: {text: texts/mine.txt, chunks: 7}")
STEP = "imatrix/a@py3.11"


def convert(name: str) -> str:
    return f"convert/a/{name}@py3.11"


def of_texts(recipe: Recipe, lock: Lock) -> list[str]:
    return [text for text in disagreements(recipe, lock) if text.startswith("texts.")]


def test_a_recipe_without_one_has_no_trace_of_it() -> None:
    steps = plan_of(PLAIN).steps
    assert not [name for name in steps if "imatrix" in name]
    assert "texts" not in str(locked_parts(recipe_of(PLAIN)))
    assert not {"imatrix", "mix"} & steps[convert("gguf-q4_k_m")].params["job"].keys()


def test_it_is_a_step_and_what_can_be_weighed_is_made_with_it() -> None:
    steps, plain = plan_of(SHIPPED).steps, plan_of(PLAIN).steps
    step = steps[STEP]
    assert step.params["params"] == {
        "tokenizer": "auto",
        "group_norm_eps": None,
        "text": "calibration.txt",
        "chunks": 128,
        "chunk_size": 512,
    }
    assert set(step.inputs) == {"checkpoint", "text", "engine", "environment"}
    assert isinstance(step.inputs["text"], LocalInput)
    for name in ("gguf-q4_k_m", "gguf-q8_0-mixed"):
        assert steps[convert(name)].inputs["imatrix"] == Ref(STEP, "imatrix")
        assert steps[convert(name)].params["job"]["imatrix"] == "a-imatrix.gguf"
    for name in ("ggml-f16", "gguf-q8_0"):
        assert steps[convert(name)].params == plain[convert(name)].params
        assert steps[convert(name)].inputs == plain[convert(name)].inputs


def test_a_text_of_the_recipes_is_pinned_and_fetched_like_other_files(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"no file .texts/mine\.txt. beside the recipe; calibration is the text"):
        recipe_from_text(MINE, "x.yaml", tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mine.txt").write_text("mine", encoding="utf-8")
    recipe = recipe_from_text(MINE, "x.yaml", tmp_path)
    assert locked_parts(recipe)["models"]["a"]["text"] == "texts/mine.txt"
    bare = lock_of(recipe)
    assert of_texts(recipe, bare) == ["texts.a: is in the recipe, not in the lock"]
    pin = LockedFile(source="texts/mine.txt", resolved="texts/mine.txt", sha256="1" * 64, size=4)
    lock = bare.model_copy(update={"texts": {"a": pin}})
    assert not of_texts(recipe, lock)
    assert ("texts.a", "texts/mine.txt", pin) in list(pinned_files(lock))
    other = lock.model_copy(update={"texts": {"a": pin.model_copy(update={"source": "b.txt"})}})
    assert of_texts(recipe, other) == ["texts.a: source was b.txt in the lock, is texts/mine.txt in the recipe"]
    assert of_texts(recipe_of(PLAIN), lock) == ["texts.a: is in the lock, no longer in the recipe"]


def test_a_text_outside_of_the_recipes_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    folder = tmp_path / "recipe"
    folder.mkdir()
    text = MINE.replace("texts/mine.txt", "../mine.txt")
    with pytest.raises(UsageError, match=r"models\.a\.imatrix\.text: \.\./mine\.txt"):
        check_inside(recipe_from_text(text, "x.yaml", folder), folder)


def test_the_plan_reads_the_pinned_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mine.txt").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lock = lock_of(recipe_of(MINE))
    with pytest.raises(LockError, match="does not know the files of a"):
        plan_of(MINE, lock)
    pin = LockedFile(source="texts/mine.txt", resolved="texts/mine.txt", sha256="1" * 64, size=4)
    steps = plan_of(MINE, lock.model_copy(update={"texts": {"a": pin}})).steps
    assert steps["fetch/a/text"].params == {"sha256": "1" * 64, "size": 4}
    assert steps[STEP].inputs["text"] == Ref("fetch/a/text", "file")
    assert (steps[STEP].params["params"]["text"], steps[STEP].params["params"]["chunks"]) == ("mine.txt", 7)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ('{format: ggml-q4_0, tensor_types: {"ffn": q4_k}}', "only quantized gguf-"),
        ('{format: gguf-q4_k_m, tensor_types: {"ffn(": q4_k}}', "no regular expression"),
        ('{format: gguf-q4_k_m, tensor_types: {"ffn": q4_k_m}}', "no type of a tensor; there are f32, f16"),
        ("{format: gguf-q4_k_m, output_type: q9}", "no type of a tensor"),
        ("gguf-q4_k_m-mixed", "wants tensor_types"),
        ("{format: gguf-q4_k_m-mixed}", "wants tensor_types"),
    ],
)
def test_types_of_tensors_that_are_none_are_refused(entry: str, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        recipe_of(f"name: x\nmodels: [{{name: a, source: a.pth}}]\nformats: [{entry}]\n")


def test_types_of_tensors_reach_conversion_and_judge_in_their_order() -> None:
    text = "formats: [{format: gguf-q4_k_m, tensor_types: {z: q6_k, a: q5_k}, output_type: q8_0, embedding_type: q4_k}]"
    steps = plan_of(f"name: x\nmodels: [{{name: a, source: a.pth}}]\n{text}\n").steps
    wanted = {"tensor_types": [("z", "q6_k"), ("a", "q5_k")], "output_type": "q8_0", "embedding_type": "q4_k"}
    assert steps[convert("gguf-q4_k_m")].params["job"]["mix"] == wanted
    assert steps["smoke/a/gguf-q4_k_m@py3.11"].params["job"]["mix"] == wanted
