"""What is said beside the weights is true: templates, tokenizers, runtimes and the commands of a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.engine.prompts import template
from rwkvflow.release.artifacts import Row
from rwkvflow.release.model_card.runtimes import runtimes
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.chatrwkv.layout import of_strategy
from rwkvflow.worker.formats.chatrwkv.strategy import normal, parse
from rwkvflow.worker.formats.gguf.tokens import vocabulary
from rwkvflow.worker.formats.transformers.layout import _world
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.tokenizers import WORLD, PseudoRandom, open_tokenizer, world_vocabulary
from tests.helpers import checkpoints

STRATEGIES = (
    "cpu fp32",
    "cpu bf16",
    "cuda fp16",
    "cuda fp16i8",
    "cuda:1 fp16",
    "cuda fp16 *10 -> cpu fp32",
    "cuda:0 fp16i8 *10+ -> cpu fp32 *1",
    "cuda fp16i8 *6 -> cuda fp16 *0+ -> cpu fp32",
)


def row(name: str, path: str, **facts: Any) -> Row:
    return Row("m", name, path, "sha256:" + "0" * 64, 1, ("i",), {}, facts, (path,))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_cards_command_has_the_strategy_that_the_file_was_made_for(strategy: str) -> None:
    item = of_strategy(strategy)
    (found,) = runtimes([row(item.name, "m/x.pth", architecture={"version": "4"})])
    ((_, (command,)),) = found.commands
    assert f"'{normal(strategy)}'" in command
    said = command.split("RWKV('m/x', '")[1].split("')")[0]
    assert parse(said) == parse(strategy)


def test_a_template_is_jinja_and_renders_as_the_model_was_trained() -> None:
    if world_vocabulary() is None:
        pytest.skip("the World vocabulary is not installed")
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    text = vocabulary(WORLD).template
    assert text == template()
    folder = _world(b"", template())
    assert json.loads(folder["tokenizer_config.json"])["chat_template"] == text
    turn = {"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True}
    for trim in (False, True):
        environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
        rendered = environment.from_string(text)
        assert rendered.render(turn) == "User: hi\n\nAssistant:"
        assert rendered.render(turn, enable_thinking=False) == "User: hi\n\nAssistant: <think>\n</think>"
        assert rendered.render(turn, enable_thinking=True) == "User: hi\n\nAssistant: <think>"


def test_web_rwkv_has_no_5_0() -> None:
    shapes = checkpoints.shapes("5.0", layers=1, width=64, vocab=64)
    architecture = architecture_of({name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()})
    assert "cannot hold version 5.0" in (FORMATS["web-rwkv"].refuse(architecture) or "")


@pytest.mark.parametrize("rows", [65530, 65535, 70_000, 50277])
def test_the_world_tokenizer_is_for_its_own_number_of_rows(rows: int, tmp_path: Path) -> None:
    if world_vocabulary() is None:
        pytest.skip("the World vocabulary is not installed")
    with pytest.raises(WorkerError, match=f"this model has {rows}"):
        open_tokenizer("world", rows)
    assert open_tokenizer("world", WORLD).name == "world"


@pytest.mark.parametrize("rows", [50277, 50304])
def test_rows_of_the_pile_are_the_20b_tokenizers(rows: int) -> None:
    found = open_tokenizer("auto", rows)
    assert isinstance(found, PseudoRandom)
    assert "20B" in (found.note or "")
    shapes = checkpoints.shapes("7", layers=1, width=64, vocab=rows)
    architecture = architecture_of({name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()})
    assert architecture.tokenizer_guess == "20b"


def test_a_20b_tokenizer_is_refused_for_a_world_model(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{index} {bytes([97 + index % 26, index // 26 + 1])!r} 2\n" for index in range(1, 300)))
    with pytest.raises(WorkerError, match=r"300 ids, the model a vocabulary of 65536: it is another model's"):
        open_tokenizer("tokenizer.json", WORLD, path)
    assert open_tokenizer("tokenizer.json", 320, path).name == "world"  # padded
