"""LangChain's client for OpenAI, unchanged, in an environment of its own that is kept between runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from uv import find_uv_bin

from .conftest import Running

MODEL = "rwkv7-demo-q8_0"
WANTED = "langchain-openai==1.7.4"
PROGRAM = """
import json, sys
from typing import Literal
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

url, model = sys.argv[1:]
chat = ChatOpenAI(base_url=url, api_key="none", model=model, temperature=0.8, seed=3, max_tokens=24)
turns = [SystemMessage("Tell stories."), HumanMessage("Once there was a fox."), AIMessage("Yes."), HumanMessage("And?")]
told = chat.invoke(turns)
streamed = "".join(chunk.content for chunk in chat.stream(turns))
form = {"title": "place", "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}
formed = chat.with_structured_output(form, method="json_schema").invoke("Where?")
def weather(city: Literal["Oslo", "Rome"]) -> str:
    "The weather of a city."
long = ChatOpenAI(base_url=url, api_key="none", model=model, seed=3, max_tokens=200)
called = long.bind_tools([weather], tool_choice="weather").invoke("Where?")
answers = chat.batch(["Once", "there", "was"])
vectors = OpenAIEmbeddings(base_url=url, api_key="none", model=model, check_embedding_ctx_length=False)
print(json.dumps({
    "text": told.content, "usage": told.usage_metadata["output_tokens"], "streamed": streamed, "formed": formed,
    "calls": [call["name"] for call in called.tool_calls], "answers": len(answers),
    "size": len(vectors.embed_query("fox")),
}))
"""


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir("langchain")) / WANTED
    python = folder / "bin" / "python"
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        uv = find_uv_bin()
        for command in (["venv", "-q", str(folder)], ["pip", "install", "-q", "-p", str(python), WANTED]):
            done = subprocess.run([uv, *command], capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.skip(f"uv cannot bring {WANTED}: {done.stderr[-300:]}")
        (folder / "done").touch()
    return python


def test_langchain_speaks_with_it(python: Path, server: Running) -> None:
    command = [str(python), "-c", PROGRAM, f"{server.url}/v1", MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["text"]
    assert told["streamed"] == told["text"]
    assert 0 < told["usage"] <= 24
    assert told["formed"]["city"] in ("Oslo", "Rome")
    assert told["calls"] == ["weather"]
    assert told["answers"] == 3
    assert told["size"] == 128
