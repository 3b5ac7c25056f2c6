"""What a message advises is what its reader can do: change the recipe in a sandbox, and add a package without one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from rwkvflow.worker import advice
from rwkvflow.worker.advice import given_by_recipe
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf import tokens as gguf_tokens
from rwkvflow.worker.formats.transformers import layout as transformers_layout
from rwkvflow.worker.model import tokenizers
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.strangers import refuse_unknown
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.smoke import judge
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[4]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def said(call: Callable[[], object]) -> str:
    try:
        found = call()
    except WorkerError as error:
        return str(error)
    return found.note if isinstance(found, tokenizers.PseudoRandom) else str(found)  # type: ignore[return-value]


def unknown_tensor() -> None:
    shapes = checkpoints.shapes("7", width=64) | {"blocks.0.att.riddle": (3,)}
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    refuse_unknown(tensors, architecture_of(tensors))


def folder_of_20b() -> list[str]:
    tensors = {n: TensorInfo(n, "bf16", s) for n, s in checkpoints.shapes("4", width=64, vocab=50277).items()}
    remarks: list[str] = []
    transformers_layout.tokenizer_files(architecture_of(tensors), None, remarks)
    return remarks


def far_off() -> list[str]:
    figures = judge.QualityFigures(9.0, 1, 0.0, 9.0, 9.0, None, 0)
    return judge.problems("ggml-f16", figures, {"logits": 0.1, "perplexity": 0.1})


#: Each message, and what it names without a recipe.
MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "world": (lambda: tokenizers.open_tokenizer("world", 65536), "pip install rwkv"),
    "world by its size": (lambda: tokenizers.open_tokenizer("auto", 65536), "pip install rwkv"),
    "gguf": (lambda: gguf_tokens._by_size.__wrapped__(65536), "pip install rwkv"),
    "20b": (lambda: tokenizers.open_tokenizer("auto", 50277), "--tokenizer FILE"),
    "no file": (lambda: tokenizers.open_tokenizer("tokenizer.json", 50277), "--tokenizer FILE"),
    "a folder of 20b": (folder_of_20b, "--tokenizer FILE"),
    "unknown tensors": (unknown_tensor, "--ignore-tensors GLOB"),
    "over the limits": (far_off, "allows"),
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("recipe", [False, True])
def test_each_message_advises_what_can_be_done(name: str, recipe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tokenizers, gguf_tokens, transformers_layout):
        monkeypatch.setattr(module, "world_vocabulary", lambda: None)
    call, without = MESSAGES[name]
    with given_by_recipe() if recipe else nullcontext():
        text = said(call)
    of_recipe = re.search(r"`wheels`|in the recipe|the recipe's", text)
    assert (of_recipe is not None) == recipe, text
    assert recipe or without in text, text


def test_a_json_tokenizer_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(WorkerError, match="pip install tokenizers"):
        tokenizers.Json(tmp_path / "tokenizer.json")


def test_what_is_named_is_a_dependency_or_an_extra() -> None:
    package = (ROOT / "rwkvflow").rglob("*.py")
    named = {name for path in package for name in re.findall(r"rwkvflow\[(\w+)\]", path.read_text(encoding="utf-8"))}
    call = re.compile(r"""advice\.install\(["']([\w-]+)["'](?:, ["'](\w+)["'])?\)""")
    modules = (ROOT / "rwkvflow").rglob("*.py")
    calls = {pair for path in modules for pair in call.findall(path.read_text(encoding="utf-8"))}
    assert {"serve", "sign"} <= named <= set(EXTRAS)
    assert calls == {("pyrwkv-tokenizer", "rwkv"), ("tokenizers", "")}
    for package, beside in calls:
        wanted = beside or package
        assert any(re.match(rf"{wanted}\b", text) for text in PROJECT["dependencies"]), f"{wanted} is no dependency"
    assert advice.install("a", "b") == "run: pip install b"
