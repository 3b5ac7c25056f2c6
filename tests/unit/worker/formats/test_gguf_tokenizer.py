"""The tokenizer that a recipe names is the one in a GGUF and in a Hugging Face folder, or an error that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.tokens import CONTROL, NORMAL, OWN, UNUSED, vocabulary
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.tokenizers import misfit_of_kind, open_tokenizer
from tests.helpers import checkpoints

BPE: dict[str, Any] = {
    "added_tokens": [
        {"id": 0, "content": "<|endoftext|>", "special": True},
        {"id": 5, "content": "  ", "special": False},
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "tokenizer"
    model = {**BPE["model"], **changes.pop("model", {})}
    path.write_text(json.dumps({**BPE, "model": model, **changes}), encoding="utf-8")
    return path


def test_tokens_merges_and_kinds(tmp_path: Path) -> None:
    words = vocabulary(8, written(tmp_path))
    assert (words.model, words.pre, words.merges) == ("gpt2", "gpt-2", (b"a b",))
    assert words.tokens == (b"<|endoftext|>", b"a", b"b", b"ab", b"[PAD4]", b"  ", b"[PAD6]", b"[PAD7]")
    assert words.kinds == (CONTROL, NORMAL, NORMAL, NORMAL, UNUSED, OWN, UNUSED, UNUSED)
    assert dict(words.special) == {"bos": 0, "eos": 0}
    pairs = vocabulary(8, written(tmp_path, model={"merges": [["a", "b"]]}))
    assert pairs == words
    composed = vocabulary(8, written(tmp_path, normalizer={"type": "NFC"}))
    assert "NFC" in (composed.remark or "")
    assert composed.pre == "olmo", "by which readers that normalize know to"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": {"type": "Unigram"}}, "its model is Unigram"),
        ({"model": {"byte_fallback": True}}, "byte_fallback"),
        ({"model": {"ignore_merges": True}}, "ignore_merges"),
        ({"model": {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "by Metaspace"),
        ({"pre_tokenizer": None}, "by nothing"),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "as ByteLevel does"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"normalizer": {"type": "Lowercase"}}, "by Lowercase"),
        ({"added_tokens": [{"id": 5, "content": "x", "special": False, "lstrip": True}]}, "'x' has lstrip"),
        ({"model": {"merges": ["a b c"]}}, "not a tokenizer.json of byte-level BPE"),
        ({"model": {"vocab": {"a": 2000}}}, "token ids up to 2000"),
    ],
)
def test_what_llama_cpp_would_read_otherwise_is_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=why):
        vocabulary(8, written(tmp_path, **changes))


@pytest.mark.parametrize("name", sorted(name for name, item in FORMATS.items() if item.tokenizer))
def test_every_format_with_a_tokenizer_takes_the_recipes_or_refuses_it(name: str, tmp_path: Path) -> None:
    shapes = checkpoints.shapes("7", layers=1, width=64, vocab=8)
    tensors = {tensor: TensorInfo(tensor, "bf16", shape) for tensor, shape in shapes.items()}
    architecture = architecture_of(tensors)
    written(tmp_path)
    writer = FORMATS[name].open(tmp_path / "out", architecture, tensors, tmp_path / "engine")
    writer.abort()
    written(tmp_path, model={"vocab": {"a": 1, "b": 9}})
    with pytest.raises(WorkerError, match="token ids up to 9, the model a vocabulary of 8"):
        FORMATS[name].open(tmp_path / "other", architecture, tensors, tmp_path / "engine")
    (tmp_path / "tokenizer").write_text("1 'a' 1\n2 'b' 1\n")
    FORMATS[name].open(tmp_path / "world", architecture, tensors, tmp_path / "engine").abort()


def test_formats_of_text_runtimes_have_a_place_for_a_tokenizer() -> None:
    assert {name for name, item in FORMATS.items() if item.tokenizer} == {
        name for name, item in FORMATS.items() if item.family in ("gguf", "mlx", "transformers")
    }


@pytest.mark.parametrize("rows", [1280, 50277, 65536])
def test_bytes_are_refused_for_a_vocabulary_of_another_tokenizer(rows: int) -> None:
    assert "it is another model's" in (misfit_of_kind("bytes", rows) or "")
    with pytest.raises(WorkerError, match="256 ids, the model a vocabulary of"):
        open_tokenizer("bytes", rows)
    assert misfit_of_kind("bytes", 256) is misfit_of_kind("bytes", 320) is misfit_of_kind("auto", rows) is None
