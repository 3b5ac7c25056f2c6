"""Requests are read strictly, and whatever is wrong with one is said in the API's own words."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from rwkvflow.base.errors import UsageError
from rwkvflow.engine.choosing import mask_of
from rwkvflow.serve.batching.grammar import Grammars, unknown_keywords
from rwkvflow.serve.errors import ApiError
from rwkvflow.serve.guard import Guard, Rules, host_name, hosts_for
from rwkvflow.serve.openai.schema import Chat, Completion, Embedding, parse
from rwkvflow.serve.shelf import find_models

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({*Chat.model_fields, *Completion.model_fields, *Embedding.model_fields})


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([Chat, Completion, Embedding]),
    body=st.binary(max_size=40)
    | JSON.map(lambda found: json.dumps(found).encode())
    | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4).map(lambda found: json.dumps(found).encode()),
)
def test_any_body_is_a_request_or_an_error(kind: Any, body: bytes) -> None:
    found: Any = None
    with contextlib.suppress(ApiError):
        found = parse(kind, body)
    if found is None:
        with pytest.raises(ApiError) as refused:
            parse(kind, body)
        assert refused.value.status == 400
        json.dumps(refused.value.body(), ensure_ascii=False).encode()


def test_what_is_wrong_is_named() -> None:
    for body, param in (
        ({"prompt": "a", "tempereature": 1}, "tempereature"),
        ({"prompt": "a", "temperature": "1"}, "temperature"),
        ({"prompt": "a", "stream_options": {"x": 1}}, "stream_options.x"),
        ({"prompt": "a", "n": 17}, "n"),
    ):
        with pytest.raises(ApiError) as refused:
            parse(Completion, json.dumps(body).encode())
        assert refused.value.param == param
        assert param in refused.value.message


# ---- who may call ------------------------------------------------------------------------------------------------


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("in")(scope, receive, send)


def status(rules: Rules, path: str = "/v1/models", method: str = "GET", **headers: str) -> int:
    async def ask() -> int:
        transport = httpx.ASGITransport(Guard(_app, rules))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
            return (await client.request(method, path, headers=headers)).status_code

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("value", "name"),
    [("localhost", "localhost"), ("LocalHost:80", "localhost"), ("[::1]:8080", "::1"), ("127.0.0.1:1", "127.0.0.1"),
     ("a@localhost", "localhost"), ("localhost.evil.example", "localhost.evil.example"), ("", ""), ("[", "")],
)  # fmt: skip
def test_names_of_hosts(value: str, name: str) -> None:
    assert host_name(value) == name


ANY = "0.0.0.0"  # noqa: S104 - nothing is bound to it


def test_who_passes() -> None:
    assert status(Rules()) == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", ANY):
        assert status(Rules(), host=host) == 421
    assert status(Rules(hosts_for(ANY, ())), host=ANY) == 421
    assert status(Rules(hosts_for(ANY, ["Models.example"])), host="models.example:1") == 200
    assert status(Rules(frozenset({"*"})), host="anything") == 200
    for origin in ("http://localhost:8081", "https://localhost:8080", "null", "http://evil.example"):
        assert status(Rules(), origin=origin) == 403
    assert status(Rules(), origin="http://localhost:8080") == 200
    assert status(Rules(keys=("a",))) == 401
    assert status(Rules(keys=("a", "b")), authorization="bearer b") == 200
    assert status(Rules(keys=("a",)), authorization="Bearer ") == 401
    assert status(Rules(keys=("a",)), path="/") == status(Rules(keys=("a",)), path="/health") == 200


# ---- grammars ----------------------------------------------------------------------------------------------------


class ByteTokens:
    """As much of librwkv's tokenizer of bytes as grammars need."""

    name, size = "bytes", 256

    def encode(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token else b""


def write(grammar: Any, text: str) -> str:
    """How far the text is allowed, with `!` where nothing more may come."""
    for at, byte in enumerate(text.encode()):
        allowed = mask_of(grammar.allowed(), 256)
        if not allowed[byte]:
            return text[:at] + ("!" if allowed.nonzero()[0].tolist() == [0] else "")
        grammar.take(byte)
    return text + ("!" if mask_of(grammar.allowed(), 256).nonzero()[0].tolist() == [0] else "")


def test_masks_hold_to_a_schema() -> None:
    grammars = Grammars(ByteTokens(), 256)  # type: ignore[arg-type]
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for text, held in (
        ('{"a": 22}', '{"a": 22}!'),
        ('{"a": 3', '{"a": '),
        ('{"b', '{"'),
        (" {", ""),
        ('{"a": 1}x', '{"a": 1}!'),
    ):
        assert write(grammars.of_schema(schema, "x"), text) == held
    assert write(grammars.of_text('root ::= "yes" | "no"'), "yes?") == "yes!"
    for bad in ("root ::= (", "start: nothing", ""):
        with pytest.raises(ApiError) as refused:
            grammars.of_text(bad)
        assert refused.value.status == 400


@pytest.mark.parametrize(
    ("schema", "unknown"),
    [
        ({"type": "object", "properties": {"typ": {"type": "string"}}}, []),
        ({"typ": "string"}, ["typ"]),
        ({"properties": {"a": {"items": {"anyOf": [{}, {"x": 1}]}}}}, ["properties.a.items.anyOf.1.x"]),
        ({"$defs": {"x": {"formt": "date"}}, "not": {"y": 1}}, ["$defs.x.formt", "not.y"]),
        ({"enum": [{"x": 1}], "const": {"y": 1}, "default": {"z": 1}}, []),
        ({"x-guidance": {"lenient": True}}, ["x-guidance"]),
        (True, []),
    ],
)
def test_keywords_that_nobody_looks_at_are_found(schema: Any, unknown: Sequence[str]) -> None:
    assert [path + name for path, name in unknown_keywords(schema)] == unknown


# ---- models ------------------------------------------------------------------------------------------------------


def test_a_release_is_its_ggml_files(tmp_path: Path) -> None:
    release = tmp_path / "world"
    (release / "m" / "smoke").mkdir(parents=True)
    for name, data in (("m-Q8_0.bin", b"fmgg12"), ("m-Q4_0.bin", b"fmgg"), ("m.st", b"fmgg"), ("notes.bin", b"text")):
        (release / "m" / name).write_bytes(data)
    (release / "m" / "smoke" / "m-Q8_0.bin.json").write_text('{"passed": true}')
    artifact = {"path": "m/m-Q8_0.bin", "format": "ggml-q8_0", "sha256": "ab", "kl_divergence": 0.01}
    others = [{"path": "m/m.st", "format": "web-rwkv"}, {"path": "m/gone.bin", "format": "ggml-f16"}]
    others += [{"path": "m/x.gguf", "format": "no-such-format"}, {"path": "m/notes.bin", "format": "ggml-f16"}]
    (release / "quality.json").write_text(json.dumps({"artifacts": [artifact, *others]}))
    (entry,) = find_models([release])
    assert (entry.name, entry.size, entry.release) == ("m-Q8_0", 6, release)
    assert (entry.facts["verdict"], entry.facts["kl_divergence"], entry.facts["sha256"]) == ("passed", 0.01, "ab")
    # A GGUF is a model too, and two of one name are told apart by their endings.
    (release / "m" / "m-Q8_0.gguf").write_bytes(b"GGUF")
    (release / "m" / "m-Q4_K_M.gguf").write_bytes(b"GGUF")
    of_gguf = [{"path": f"m/m-{kind}.gguf", "format": f"gguf-{kind.lower()}"} for kind in ("Q8_0", "Q4_K_M")]
    (release / "quality.json").write_text(json.dumps({"artifacts": [artifact, *others, *of_gguf]}))
    assert [entry.name for entry in find_models([release])] == ["m-Q8_0.bin", "m-Q8_0.gguf", "m-Q4_K_M"]
    for name in ("m-Q8_0.gguf", "m-Q4_K_M.gguf"):
        (release / "m" / name).unlink()
    (release / "quality.json").unlink()
    assert [entry.name for entry in find_models([release])] == ["m-Q4_0", "m-Q8_0"]
    assert [entry.name for entry in find_models([release / "m" / "m-Q4_0.bin"])] == ["m-Q4_0"]
    for wrong, words in (
        ([release / "m" / "notes.bin"], "no ggml"),
        ([release / "m" / "smoke"], "holds no"),
        ([release / "gone.bin"], "no file"),
        ([release, release], "two models"),
    ):
        with pytest.raises(UsageError, match=words):
            find_models(wrong)
