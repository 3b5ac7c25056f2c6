"""A GGUF that brings a chat template of somebody else's: the server and `rwkvflow chat` write conversations by it."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from rwkvflow.engine import Library, Model
from rwkvflow.engine.sampling import Sampling
from rwkvflow.engine.session import generate
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.model.tokenizers import Bytes
from tests.engine import gguf_files

from .conftest import ROOT, Running, Start

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} ; {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
PROMPT = "[user] Once there was a fox. ; [assistant] "
STOPS = ("; [user]",)


@pytest.fixture(scope="module")
def file(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("brought")
    job = ConversionJob("x", "gguf-q8_0", root / "plain.gguf")
    (outcome,) = convert(ROOT / "recipes" / "demo" / "rwkv7-demo.pth", library.path, [job])
    assert outcome.failure is None
    value = struct.pack("<Q", len(TEMPLATE)) + TEMPLATE.encode()
    data = gguf_files.with_pair(job.path.read_bytes(), "tokenizer.chat_template", 8, value)
    (root / "brought.gguf").write_bytes(data)
    return root / "brought.gguf"


@pytest.fixture(scope="module")
def expected(file: Path, library: Library) -> str:
    with Model(file, library) as model:
        pieces = generate(model, PROMPT, Bytes(), max_tokens=24, sampling=Sampling(temperature=0), seed=1, stops=STOPS)
        return "".join(pieces)


def test_the_server_asks_by_it(file: Path, expected: str, start: Start) -> None:
    server: Running = start(release=file)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)
    messages = [{"role": "user", "content": "Once there was a fox."}]
    applied = client.post("../apply-template", body={"messages": messages, "model": "brought"}, cast_to=object)
    assert applied == {"prompt": PROMPT}
    told = client.chat.completions.create(
        model="brought",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        seed=1,
        max_tokens=24,
    )
    assert told.choices[0].message.content == expected.lstrip()
    with pytest.raises(openai.BadRequestError, match="a chat template of its own"):
        client.chat.completions.create(
            model="brought",
            messages=messages,  # type: ignore[arg-type]
            tools=[{"type": "function", "function": {"name": "f"}}],
        )


def test_chat_asks_by_it_too(file: Path, expected: str, library: Library) -> None:
    def chat(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rwkvflow", "chat", file, "-n", "24", "--temperature", "0", "--seed", "1"]
        return subprocess.run(
            [*map(str, command), "--library", str(library.path), *more],
            input="Once there was a fox.\n",
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )

    done = chat()
    assert (done.returncode, done.stdout) == (0, expected.lstrip() + "\n"), done.stderr
    assert chat("--template", "rwkv").stdout != done.stdout
    refused = chat("--user", "Me")
    assert refused.returncode == 2
    assert "--template rwkv" in refused.stderr
