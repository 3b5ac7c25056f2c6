"""What a GGUF takes from the folder of a hybrid: tokenizer, special tokens, chat template; and what it cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.beside import read_beside
from rwkvflow.worker.formats.gguf.bpe import read_bpe
from rwkvflow.worker.formats.gguf.tokens import CONTROL, NORMAL, UNUSED, vocabulary
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import hybrid_folders

FIRST = 256 + len(hybrid_folders.MERGES)  # the id of <|endoftext|>


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hybrid_folders.make(tmp_path / "m", layers=1, width=32)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_qwen2s_tokenizer_is_taken_whole(folder: Path) -> None:
    found = vocabulary(288, None, folder)
    assert (found.model, found.pre, found.template) == ("gpt2", "qwen2", hybrid_folders.TEMPLATE)
    assert found.special == (("bos", 256), ("eos", FIRST + 2), ("padding", FIRST))
    assert found.tokens[FIRST : FIRST + 4] == (b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>", b"[PAD266]")
    assert found.kinds[FIRST - 1 : FIRST + 4] == (NORMAL, CONTROL, CONTROL, CONTROL, UNUSED)
    assert len(found.tokens) == len(found.kinds) == 288
    assert found.merges[0] == b"t h"


def test_a_tokenizer_that_is_named_is_taken_with_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "tokenizer.json"
    named.write_bytes((folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").unlink()
    assert vocabulary(288, named, folder).template == hybrid_folders.TEMPLATE
    with pytest.raises(WorkerError, match=r"no tokenizer.json beside the model.*download the whole folder"):
        vocabulary(288, None, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda cut: cut["pretokenizers"][0].update(behavior="Removed"),
        lambda cut: cut["pretokenizers"][0].update(invert=True),
        lambda cut: cut["pretokenizers"][0]["pattern"].update(Regex=r"\p{N}{1,3}"),
        lambda cut: cut["pretokenizers"][1].update(use_regex=True),
        lambda cut: cut["pretokenizers"].append({"type": "Digits"}),
        lambda cut: cut["pretokenizers"].reverse(),
        lambda cut: cut.update(pretokenizers=None),
    ],
)
def test_a_text_that_is_cut_in_another_way_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    changed(folder / "tokenizer.json", lambda content: change(content["pre_tokenizer"]))
    with pytest.raises(WorkerError, match="it cuts a text into words by Sequence"):
        read_bpe(folder / "tokenizer.json")


def test_special_tokens_are_those_of_tokenizer_config_before_config(folder: Path) -> None:
    added = {token: FIRST + index for index, token in enumerate(hybrid_folders.SPECIAL)}
    changed(folder / "config.json", lambda content: content.update(bos_token_id=3, eos_token_id=4, pad_token_id=5))
    own = folder / "tokenizer_config.json"
    said = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "no such token"}
    changed(own, lambda content: content.update(said))
    assert read_beside(folder, added, 288).special == (("bos", 3), ("eos", FIRST), ("padding", 5))
    own.unlink()
    assert read_beside(folder, added, 288).special == (("bos", 3), ("eos", 4), ("padding", 5))
    assert read_beside(folder, added, 4).special == (("bos", 3),)  # others are no tokens of the model
    (folder / "config.json").unlink()
    assert read_beside(folder, added, 288).special == ()


def test_a_template_may_be_one_of_several_or_a_file(folder: Path) -> None:
    own = folder / "tokenizer_config.json"
    (folder / "chat_template.jinja").write_text("{{ file }}", encoding="utf-8")
    assert read_beside(folder, {}, 288).template == hybrid_folders.TEMPLATE
    several = [{"name": "tools", "template": "{{ tools }}"}, {"name": "default", "template": "{{ default }}"}]
    changed(own, lambda content: content.update(chat_template=several))
    assert read_beside(folder, {}, 288).template == "{{ default }}"
    changed(own, lambda content: content.pop("chat_template"))
    assert read_beside(folder, {}, 288).template == "{{ file }}"
    (folder / "chat_template.jinja").unlink()
    assert read_beside(folder, {}, 288).template is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'"\\ud800"', b'{"a": "\\ud800"}', b"\xff", b"[" * 100_000])
def test_a_broken_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(WorkerError, match=r"tokenizer_config\.json is not"):
        read_beside(folder, {}, 288)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(WorkerError, match=r"chat_template\.jinja is no text in UTF-8"):
        read_beside(folder, {}, 288)


def test_a_format_that_does_not_know_the_folder_says_so(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        architecture, tensors = architecture_of(checkpoint.tensors), checkpoint.tensors
    with pytest.raises(WorkerError, match=r"gguf-f16: the folder of the model, with its tokenizer, is not known"):
        FORMATS["gguf-f16"].expected_size(architecture, tensors)
    assert FORMATS["safetensors"].beside(folder) is FORMATS["safetensors"]
