"""Readers of what servers answer: the hub, registries, package indexes, git; and of what clients ask of ours."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.mutate import SEPARATOR
from tests.fuzz.reader import Reader, either

DIGEST = "sha256:" + "0" * 64
HEADERS = (
    *(
        b"200\n",
        b"302\n",
        b"401\n",
        b"404\n",
        b"429\n",
        b"503\n",
        b"WWW-Authenticate: Bearer ",
        b"WWW-Authenticate: Basic ",
    ),
    *(b'realm="https://auth.test/t"', b"Location: ", b"//cdn.test/x", b"/x", b"Retry-After: 5", b"Content-Length: 9"),
    *(
        b"Content-Encoding: gzip",
        b"Content-Type: text/html; charset=x",
        b"X-Error-Code: ",
        b"X-Error-Message: ",
        b"ETag: ",
    ),
    *(
        b"X-Linked-Size: ",
        b"X-Linked-ETag: ",
        b"X-Repo-Commit: ",
        b"Transfer-Encoding: chunked",
        b"Link: <https://x>; rel=next",
    ),
)
_KEPT: dict[str, Any] = {}


@contextmanager
def _answering(answer: Any) -> Iterator[None]:
    """httpx gets these answers, and no network."""
    import httpx

    client = partial(httpx.Client, transport=httpx.MockTransport(answer))
    with _no_certificates(), mock.patch.object(httpx, "Client", client):
        yield


def _no_certificates() -> Any:
    """Nobody is connected to: reading all certificates of the system would be four fifths of an execution."""
    if "context" not in _KEPT:
        _KEPT["context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return mock.patch.object(ssl, "create_default_context", return_value=_KEPT["context"])


def _parts(data: bytes) -> list[bytes]:
    return data.split(SEPARATOR)


def _manifests(folder: Path) -> list[bytes]:
    bundle = "application/vnd.dev.sigstore.bundle.v0.3+json"
    layer = {"mediaType": bundle, "digest": DIGEST, "size": 2}
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": [{"digest": DIGEST}]}
    parts = [
        {"schemaVersion": 2, "layers": [layer], "config": {}},
        {**index, "layers": [layer], "subject": {"digest": "SUBJECT"}},
    ]
    row = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": DIGEST,
        "size": 9,
        "artifactType": bundle,
    }
    about = {
        "schemaVersion": 2,
        "config": {},
        "layers": [{**layer, "digest": "BLOB"}],
        "subject": {"digest": "SUBJECT"},
    }
    answers = [parts[0], {**index, "manifests": [row]}, about, {"mediaType": bundle}]
    whole = [json.dumps(part).encode() for part in answers]
    tag = [whole[0], b'{"errors": []}', whole[2], whole[3], whole[1]]  # no list of referrers: the fallback tag
    return [*(json.dumps(part).encode() for part in parts), SEPARATOR.join(whole), SEPARATOR.join(tag)]


def _registry(data: bytes, folder: Path) -> None:
    """A registry that says this of a tag, of what refers to it, of that, of a blob, and of the fallback tag.

    What is not there is answered as what stands before it. What it says is its subject is the image.
    """
    import httpx

    from rwkvflow.base.hashing import text_digest
    from rwkvflow.net.http import Policy
    from rwkvflow.net.oci_referrers import attached

    parts = _parts(data)
    digests = {b"SUBJECT": text_digest(parts[0]).encode(), b"BLOB": text_digest(parts[min(3, len(parts) - 1)]).encode()}

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.endswith("/manifests/v1"):
            return httpx.Response(200, content=parts[0])
        at = 1 if "/referrers/" in path else 3 if "/blobs/" in path else 4 if "/manifests/sha256-" in path else 2
        about = parts[min(at, len(parts) - 1)]
        for name, digest in digests.items():
            about = about if at == 3 else about.replace(name, digest)
        return httpx.Response(404 if at == 1 and b'"errors"' in about else 200, content=about)

    with _answering(answer):
        list(attached("oci://registry.test/team/model:v1", 50, Policy(attempts=1)))


def _configs(folder: Path) -> list[bytes]:
    config = {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"]}, "rootfs": {"diff_ids": [DIGEST]}}
    machine = {"os": "linux", "architecture": "amd64"}
    rows = [
        {"digest": DIGEST, "platform": {**machine, "architecture": "arm64"}},
        {"digest": "MANIFEST", "platform": machine},
    ]
    whole = [{"manifests": rows}, {"config": {"digest": "CONFIG", "size": 9}, "layers": []}, config]
    return [
        json.dumps({**config, "config": {"digest": "SELF", "mediaType": "x"}}).encode(),
        json.dumps(config).encode(),
        *(SEPARATOR.join(json.dumps(part).encode() for part in whole[start:]) for start in (0, 1)),
    ]


def _config(data: bytes, folder: Path) -> None:
    """An image's configuration, before it is pulled: an index, a manifest and a configuration, or the last of these.

    A digest pins the first; what is in it is a stranger's, and so is all that it names.
    """
    import httpx

    from rwkvflow.base.errors import UsageError
    from rwkvflow.base.hashing import text_digest
    from rwkvflow.net.http import Policy
    from rwkvflow.net.oci_image import image_config

    parts = _parts(data)[-3:]
    if len(parts) == 1:
        parts.insert(0, b'{"config": {"digest": "CONFIG"}}')
    parts[-2] = parts[-2].replace(b"CONFIG", text_digest(parts[-1]).encode())
    parts[0] = parts[0].replace(b"MANIFEST", text_digest(parts[-2]).encode())
    known = {text_digest(part): part for part in parts}

    def answer(request: httpx.Request) -> httpx.Response:
        found = known.get(request.url.path.rpartition("/")[2])
        return httpx.Response(404 if found is None else 200, content=found or b"")

    with _answering(answer):
        found = image_config("registry.test/a", text_digest(parts[0]), "linux-x86_64", Policy(attempts=1))
        other = image_config("registry.test/a", text_digest(parts[-1]), "linux-x86_64", Policy(attempts=1))
    if found is None and other is None:
        raise UsageError("there is no such image")


def _challenges(folder: Path) -> list[bytes]:
    return [
        b'401\nWWW-Authenticate: Bearer realm="https://auth.test/token",service="registry",scope="a"\n\n{"token":"x"}',
        b'500\nRetry-After: 1\n\n{"errors":[{"code":"DENIED","message":"no"}]}',
        b'200\nContent-Length: 3\n\n{"schemaVersion": 2}',
        b"302\nLocation: https://cdn.test/blob\n\n",
        SEPARATOR.join(
            (
                b'401\nWWW-Authenticate: Bearer realm="https://auth.test/token?a=b",service="registry",scope="r:a:pull"\n\n',
                b'200\n\n{"token": "x", "access_token": "y", "expires_in": 60}',
                b"307\nLocation: /v2/elsewhere?x=y\n\n",
                b'200\nContent-Length: 20\nDocker-Content-Digest: x\n\n{"schemaVersion": 2 }',
                b"429\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\n\n",
                b'401\nWWW-Authenticate: Basic realm="r"\n\n{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}',
            )
        ),
    ]


def _challenge(data: bytes, folder: Path) -> None:
    """Status, headers and body of every answer are a stranger's: one after another, and the last again and again."""
    import httpx

    from rwkvflow.base.errors import PublishError
    from rwkvflow.documents.destinations import OciDestination
    from rwkvflow.net.http import Policy
    from rwkvflow.net.oci_registry import OciRegistry
    from rwkvflow.net.progress import Told

    answers = [_answer(part) for part in _parts(data)]

    def answer(request: httpx.Request) -> httpx.Response:
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        return httpx.Response(status, headers=headers, content=body)  # type: ignore[arg-type]

    place = OciDestination.parse("oci://registry.test/team/model:v1")
    with _answering(answer), OciRegistry(place, Policy(attempts=1, first_delay_s=0), Told()) as registry:
        calls = (lambda: registry.manifest("v1"), lambda: registry.blob(DIGEST, 99), lambda: registry.has(DIGEST, 2))
        either(PublishError, calls)


def _answer(data: bytes) -> tuple[int, list[tuple[bytes, ...]], bytes]:
    """Status, headers and body of "200\\nName: value\\n\\nbody"."""
    first, _, rest = data.partition(b"\n")
    head, _, body = rest.partition(b"\n\n")
    status = int(first) if first.isdigit() and len(first) == 3 and first >= b"200" else 200
    return status, [tuple(line.split(b": ", 1)) for line in head.split(b"\n") if b": " in line], body


def _hub_answers(folder: Path) -> list[bytes]:
    lfs = {"sha256": "0" * 64, "size": 3, "pointerSize": 1}
    siblings: list[Any] = [{"rfilename": "x.pth", "size": 3, "lfs": lfs}]
    info: dict[str, Any] = {
        **{"id": "a/b", "modelId": "a/b", "sha": "0" * 40, "private": False, "tags": []},
        "lastModified": "2026-01-01T00:00:00.000Z",
        "siblings": siblings,
        "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "0" * 40}],
    }
    tree = [
        {
            "type": "file",
            "path": "x.pth",
            "size": 3,
            "oid": "1" * 40,
            "lfs": {"oid": "0" * 64, "size": 3, "pointerSize": 1},
        }
    ]
    more = [
        {"rfilename": name, "size": None, "blobId": "2" * 40} for name in ("a/b.safetensors", "README.md", "x.json")
    ]
    refs = {"branches": info["branches"], "tags": [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": "1" * 40}]}
    whole = [json.dumps(part).encode() for part in ({**info, "siblings": [*siblings, *more]}, refs)]
    errors = [
        b"404\nX-Error-Code: EntryNotFound\nX-Error-Message: Entry not found\n\n",
        b"404\nX-Error-Code: RevisionNotFound\n\n{}",
        b"403\nX-Error-Code: GatedRepo\nX-Error-Message: no\n\n",
        b"401\nX-Error-Message: Invalid credentials\n\n",
        b'200\nETag: "x"\nX-Linked-ETag: "%s"\nX-Linked-Size: 3\nX-Repo-Commit: %s\n\n' % (b"a" * 64, b"0" * 40),
        b"302\nLocation: https://cdn.test/x\nX-Linked-Size: 3\nX-Repo-Commit: %s\n\n" % (b"0" * 40),
    ]
    return [json.dumps(info).encode(), json.dumps(tree).encode(), *(SEPARATOR.join([*whole, one]) for one in errors)]


def _hub(data: bytes, folder: Path) -> None:
    """The hub's answers, through its own library: of a repository, of its revisions, and of a file of it."""
    import httpx

    from rwkvflow.base.errors import RwkvflowError
    from rwkvflow.documents.sources import HubSource
    from rwkvflow.net.http import Connection, Policy
    from rwkvflow.net.hub import Hub, library

    http = _http_of_the_hub()
    clients = library()
    parts = _parts(data)

    def answer(request: Any) -> Any:
        path = request.url.path
        at = 0 if len(parts) < 3 else 1 if path.endswith("/refs") else 0 if path.startswith("/api/") else 2
        if at < 2:
            return _json(http, parts[min(at, len(parts) - 1)])
        status, headers, body = _answer(parts[2])
        return http.Response(status, headers=headers, content=body)

    def get(url: str, **options: Any) -> Any:
        return httpx.Response(200, content=parts[min(1, len(parts) - 1)])

    clients.set_client_factory(lambda: http.Client(transport=http.MockTransport(answer)))
    hub = Hub("https://hub.test", None)
    with (
        _no_certificates(),
        mock.patch.object(httpx, "get", get),
        Connection(Policy(attempts=1), None) as connection,
    ):
        calls = (
            lambda: hub.files("a/b", None, connection),
            lambda: hub.sizes("a/b", None, connection),
            lambda: hub.resolve(HubSource("a/b", "x.pth", None), connection),
        )
        either(RwkvflowError, calls)


def _http_of_the_hub() -> Any:
    """The HTTP library that huggingface_hub was made with."""
    from huggingface_hub.utils import _http

    if "http" not in _KEPT:
        _KEPT["http"] = __import__(type(_http.default_client_factory()).__module__.partition(".")[0])
    return _KEPT["http"]


def _json(http: Any, data: bytes) -> Any:
    headers = {
        "content-type": "application/json",
        "x-repo-commit": "0" * 40,
        "etag": '"x"',
        "content-length": str(len(data)),
    }
    return http.Response(200, headers=headers, content=data)


def _indexes(folder: Path) -> list[bytes]:
    rows = [
        {"filename": "a-1.0-py3-none-any.whl", "url": "a.whl", "hashes": {"sha256": "b" * 64}, "requires-python": ">=3"}
    ]
    html = (
        f'<base href="/x/"><a href="../f/a-2.0-py3-none-any.whl#sha256={"a" * 64}" data-requires-python="&gt;=3">x</a>'
    )
    names = (
        "a-3.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "A-1!2.0rc1-1-py2.py3-none-any.whl",
        "a-1.tar.gz",
        "a-2.0.zip",
    )
    more = [
        {
            **{"filename": name, "url": f"https://files.test/{name}", "hashes": {}, "yanked": number == 1, "size": 3},
            **{"requires-python": "<4,>=3.9,!=3.10.*", "core-metadata": {"sha256": "c" * 64}, "provenance": None},
        }
        for number, name in enumerate(names)
    ]
    meta = {"api-version": "1.1"}
    links = "".join(f'<a href="//f.test/{name}#sha256={"d" * 64}" data-yanked>{name}</a><br>' for name in names)
    return [
        b"json" + json.dumps({"files": rows, "meta": meta}).encode(),
        b"html" + html.encode(),
        json.dumps({"files": [*more, *rows], "meta": meta, "versions": ["1.0"], "name": "a"}).encode(),
        f"<!DOCTYPE html><html><body>{links}{html}</body></html>".encode(),
    ]


def _index(data: bytes, folder: Path) -> None:
    import httpx

    from rwkvflow.net.packages.package_index import best_wheel, files_of, wheels_of
    from rwkvflow.net.packages.pip_settings import PipSettings
    from rwkvflow.net.packages.target import Target

    named = data[:4] in (b"json", b"html")
    kind = "application/vnd.pypi.simple.v1+json" if data[:4] == b"json" or data[:1] == b"{" else "text/html"

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": kind}, content=data[4:] if named else data)

    settings = PipSettings(indexes=("https://u:p@index.test/simple",))
    target = Target("3.11", "linux-x86_64")
    with _answering(answer):
        best_wheel(files_of("a", settings), target)
        wheels_of("a", settings, target)


def _ls_remote(folder: Path) -> list[bytes]:
    c = "0123456789abcdef0123456789abcdef01234567"
    return [
        f"{c}\tHEAD\n{c}\trefs/heads/main\n{c}\trefs/tags/v1\n{c}\trefs/tags/v1^{{}}\n".encode(),
        b"submodule.x.path a/b\n",
    ]


def _git(data: bytes, folder: Path) -> None:
    """What git prints of a stranger's repository."""
    from rwkvflow.base.errors import RwkvflowError
    from rwkvflow.net import git

    lines = data.decode("utf-8", "replace").splitlines()
    with mock.patch.object(git, "_git", return_value=lines):
        found = [partial(git.resolve_git, "https://host.test/a/b.git", ref) for ref in (None, "main", "v1", "absent")]
        either(RwkvflowError, [*found, partial(git._named, lines, ["a/b"], "https://host.test/a/b.git")])


# ---- what clients ask -----------------------------------------------------------------------------------------------


def _bodies(folder: Path) -> list[bytes]:
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
    }
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "12"},
    ]
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
             {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "1", "output": "12"}]  # fmt: skip
    bodies = [
        {"messages": messages, "tools": [tool], "tool_choice": "required", "max_tokens": 3, "n": 2, "stop": ["\n"]},
        {"messages": messages[:2], "response_format": form, "chat_template_kwargs": {"enable_thinking": False}},
        {
            "messages": messages[:2],
            "reasoning_effort": "low",
            "logit_bias": {"5": 1.0},
            "logprobs": True,
            "top_logprobs": 2,
        },
        {"prompt": ["a", "b"], "grammar": 'root ::= "a" | "b"', "echo": True, "logprobs": 3, "seed": -1},
        {
            "input": items,
            "instructions": "x",
            "tools": [{"type": "function", "name": "weather"}],
            "text": {"format": {"type": "text"}},
        },
        {"input": "x", "encoding_format": "base64"},
        {"tokens": [1, 2, 3]},
        {"content": "x", "with_pieces": True},
    ]
    return [json.dumps(body).encode() for body in bodies]


def _body(data: bytes, folder: Path) -> None:
    """The same body at every address."""
    from rwkvflow.serve.errors import ApiError
    from rwkvflow.serve.openai import chat, responses, schema
    from rwkvflow.serve.openai.work import schema_of, stops_of

    def asked(kind: Any) -> None:
        try:
            request: Any = schema.parse(kind, data)
            if isinstance(request, schema.Respond):
                chat.asked(responses.as_chat(request))
            if isinstance(request, schema.Chat):
                chat.asked(request)
            if isinstance(request, schema.Completion):
                stops_of(request.stop)
                schema_of(request.response_format)
        except ApiError as refused:
            json.dumps(refused.body(), ensure_ascii=False).encode()
            raise

    kinds = (schema.Chat, schema.Completion, schema.Respond, schema.Embedding)
    either(ApiError, [partial(asked, kind) for kind in (*kinds, schema.Tokenize, schema.Detokenize, schema.KeepState)])


def _grammars(folder: Path) -> list[bytes]:
    gbnf = 'root ::= item+\nitem ::= "- " [a-z]{1,3} ( "x" | [^\\n] )* "\\n"\nws ::= [ \\t]*\n'
    lark = 'start: "a" word*\nword: /[a-z]+/ " "\n'
    schemas = [
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": ["x", "y"]}},
            "required": ["a"],
        },
        {
            "anyOf": [{"type": "string", "pattern": "^a+$", "maxLength": 5}, {"$ref": "#/$defs/x"}],
            "$defs": {"x": {"type": "null"}},
        },
    ]
    return [gbnf.encode(), lark.encode(), *(json.dumps(schema).encode() for schema in schemas)]


class _Bytes:
    """Our tokenizer's face, with a token a byte."""

    name, size = "bytes", 256

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def encode(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _grammar(data: bytes, folder: Path) -> None:
    """A grammar in GBNF or Lark, or a schema; then some tokens that it allows are taken."""
    from rwkvflow.serve.batching.grammar import Grammars
    from rwkvflow.serve.errors import ApiError

    if "grammars" not in _KEPT:
        _KEPT["grammars"] = Grammars(_Bytes(), 256)  # type: ignore[arg-type]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ApiError(400, "no text") from None
    try:
        found: Any = json.loads(text, parse_constant=str)  # which a request's reader refuses
        json.dumps(found, ensure_ascii=False).encode()  # as a body is checked
    except (ValueError, RecursionError):
        found = None
    grammars = _KEPT["grammars"]
    masked = grammars.of_schema(found, "x") if isinstance(found, dict | bool) else grammars.of_text(text)
    for _ in range(8):
        try:
            allowed = masked.allowed()
        except ValueError:  # which ends the answer
            return
        masked.take(int(allowed.nonzero()[0][0]))


def _texts(folder: Path) -> list[bytes]:
    call = '```json\n{"name": "weather", "arguments": {"city": "x"}}\n```'
    return [b"<think>a\nb</think>\n\nThe owl.", call.encode(), f"<think>\n</think>{call} and more".encode()]


def _text(data: bytes, folder: Path) -> None:
    """What a model writes, in pieces: all of it is told, however it is cut."""
    from rwkvflow.serve.openai.answer import Parser

    text = data.decode("utf-8", "replace")[:4096]
    for options in (
        {},
        {"think": True},
        {"think": False},
        {"tools": ("weather",)},
        {"called": True, "tools": ("weather",)},
    ):
        told = []
        for step in (1, 7, len(text) or 1):
            parser = Parser(**options)
            parts = [delta for at in range(0, len(text), step) for delta in parser.put(text[at : at + step])]
            parts += parser.end()
            json.dumps([[part.reasoning, part.content, part.call] for part in parts])
            told.append(("".join(part.reasoning for part in parts), "".join(part.content for part in parts)))
        assert len(set(told)) == 1, told


def _api_error() -> type[Exception]:
    from rwkvflow.serve.errors import ApiError

    return ApiError


READERS = {
    "registry": Reader(
        "manifests and referrers of registries",
        ("net/oci_registry", "net/oci_referrers"),
        _manifests,
        _registry,
        text=True,
    ),
    "image-config": Reader("configurations of images", ("net/oci_image",), _configs, _config, text=True),
    "challenge": Reader(
        "status and headers of registries",
        ("net/oci_registry", "net/http"),
        _challenges,
        _challenge,
        text=True,
        words=HEADERS,
    ),
    "hub": Reader("the hub's answers", ("net/hub",), _hub_answers, _hub, text=True, words=HEADERS),
    "index": Reader("pages of package indexes", ("net/packages/package_index",), _indexes, _index, text=True),
    "git": Reader("what git tells of a repository", ("net/git",), _ls_remote, _git, text=True),
    "request": Reader(
        "requests to serve",
        ("serve/openai/schema", "serve/openai/chat", "serve/openai/responses", "serve/openai/work", "engine/prompts"),
        _bodies,
        _body,
        errors=(_api_error(),),
        text=True,
    ),
    "answer": Reader(
        "what models write",
        ("serve/openai/answer",),
        _texts,
        _text,
        text=True,
        words=(b"<think>", b"</think>", b"```json\n", b"```"),
    ),
    "grammar": Reader(
        "grammars and JSON schemas",
        ("serve/batching/grammar",),
        _grammars,
        _grammar,
        errors=(_api_error(),),
        text=True,
        words=(
            b"::=",
            b"root ::= ",
            b"|",
            b"*",
            b"+",
            b"?",
            b"{2,5}",
            b"[a-z]",
            b'"x"',
            b"(",
            b")",
            b'"$ref": "#"',
            b'"allOf"',
        ),
    ),
}
