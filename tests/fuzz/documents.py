"""Readers of what a recipe's author writes, and of what else is text: documents, names of places, templates."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rwkvflow.base.shipped import shipped
from tests.fuzz.reader import Reader, either

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("demo.yaml", "demo-torch.yaml", "all-formats.yaml")
WORDS: tuple[bytes, ...] = (
    b"models:\n",
    b"  - name: x\n",
    b"formats: [ggml-f16]\n",
    b"publish:\n",
    b"hf://a/b@main/c.pth",
    b"&x ",
    b"*x",
    b"<<: ",
)
WORDS += (
    b"extra:\n",
    b"limits: {perplexity: 0.1}\n",
    b"image: {python: '3.11'}\n",
    b"2h",
    b"5GB",
    b"null",
    b"!!python/object ",
)


def _recipes(folder: Path) -> list[bytes]:
    return [(ROOT / "recipes" / name).read_bytes() for name in RECIPES]


def _recipe(data: bytes, folder: Path) -> None:
    from rwkvflow.documents.load import recipe_from_text
    from rwkvflow.documents.lock import recipe_digest
    from rwkvflow.documents.yaml.source import decode
    from rwkvflow.plan.matrix import expand

    recipe = recipe_from_text(decode(data, "x.yaml"), "x.yaml", folder)
    expand(recipe)
    recipe_digest(recipe)


def _workflows(folder: Path) -> list[bytes]:
    own = (
        "stages:\n  convert: {memory: 4GiB, time: 1h, cores: 2}\nextra:\n"
        "  - {name: look, command: [python3, in/script, out/x], inputs: {script: look.py}, outputs: [x]}\n"
        "store:\n  trust:\n    - {name: ann, key: 'ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='}\n"
    )
    return [shipped("workflow.yaml").read_bytes(), own.encode()]


def _workflow(data: bytes, folder: Path) -> None:
    from rwkvflow.documents.load import load_workflow

    (folder / "w.yaml").write_bytes(data)
    load_workflow(folder / "w.yaml")


def _locks(folder: Path) -> list[bytes]:
    from rwkvflow.documents.lock_text import lock_text
    from tests.helpers.releases import lock_of, zeros

    return [lock_text(lock_of({"a": ("hf://x/y@" + "0" * 40 + "/a.pth", zeros(folder / "a", "7"))})).encode()]


def _lock(data: bytes, folder: Path) -> None:
    from rwkvflow.documents.load import lock_from_text
    from rwkvflow.documents.lock import files_beside, pinned_files
    from rwkvflow.documents.lock_text import lock_text
    from rwkvflow.documents.yaml.source import decode

    lock = lock_from_text(decode(data, "x.lock.yaml"), "x.lock.yaml")
    list(pinned_files(lock))
    files_beside(lock)
    lock_text(lock)


def _any_document(data: bytes, folder: Path) -> None:
    from rwkvflow.documents.load import load_document

    (folder / "d.yaml").write_bytes(data)
    load_document(folder / "d.yaml")


def _places(folder: Path) -> list[bytes]:
    return [
        *(
            b"hf://owner/name@main/a/b.pth",
            b"https://u:p@example.org/x.pth?a=b#c",
            b"models/x.pth",
            b"~/x",
            b"C:\\x.pth",
        ),
        *(b"oci://registry.example:5000/me/models:v1", b"s3://bucket/folder", b"hf://me/my-models", b"../out/x"),
        *(b"git+ssh://git@host/x.git", b"https://github.com/a/b.git", b"../repo", b"python:3.11@sha256:" + b"0" * 64),
    ]


def _place(data: bytes, folder: Path) -> None:
    """Sources, destinations, repositories, images, names of files: any text in any of these places."""
    from rwkvflow.base.errors import RwkvflowError
    from rwkvflow.base.names import part_problem, path_problem
    from rwkvflow.documents.destinations import parse_destination
    from rwkvflow.documents.sources import git_url, local_repository, parse_repository, parse_source, public_url
    from rwkvflow.documents.template import guess_name
    from rwkvflow.documents.yaml.units import any_bytes, seconds, size_bytes, split_bytes
    from rwkvflow.net.http import retry_after, scrub
    from rwkvflow.sandbox.image.dockerfile import split_reference
    from rwkvflow.store.keys import parse_public
    from rwkvflow.store.trust import date

    text = data.decode("utf-8", "replace")
    public_url(text), guess_name(text), scrub(text), retry_after(text, 1e9)
    part_problem(text), path_problem(text)

    def parsed(parse: Any) -> None:
        found = parse(text)
        str(found)
        for name in ("name", "page", "identity"):
            getattr(found, name, None)
        if callable(purl := getattr(found, "package_url", None)):
            purl()

    places = (parse_source, parse_destination, parse_repository, git_url, local_repository, split_reference)
    either(RwkvflowError, [partial(parsed, each) for each in (*places, parse_public, date)])
    for unit in (seconds, any_bytes, size_bytes, split_bytes):
        with suppress(ValueError):  # which pydantic tells
            unit(text)


def _requirement_files(folder: Path) -> list[bytes]:
    return [f"numpy==2.4.6 --hash=sha256:{'a' * 64}\n# x\nsafetensors==0.8.0 \\\n  --hash=sha256:{'b' * 64}\n".encode()]


def _requirements(data: bytes, folder: Path) -> None:
    from rwkvflow.sandbox.image.archive import parse_requirements

    parse_requirements(data.decode("utf-8", "replace"))


def _template_seeds(folder: Path) -> list[bytes]:
    package = ROOT / "rwkvflow/release/model_card/templates"
    return [
        *(path.read_bytes() for path in sorted(package.glob("*.j2"))),
        b"{% for x in files %}{{ x.path|e }}{% endfor %}",
    ]


def _template(data: bytes, folder: Path) -> None:
    """As far as it goes without a process: parsed in the sandbox, and its line of a mistake found. Never rendered."""
    from jinja2 import TemplateError

    from rwkvflow.base.errors import PublishError
    from rwkvflow.release.model_card.card import environment_of

    try:
        environment_of().from_string(data.decode("utf-8", "replace"))
    except (TemplateError, RecursionError) as error:
        raise PublishError("the card's template") from error


def _chats(folder: Path) -> list[bytes]:
    from rwkvflow.engine.prompts import template

    metadata = {"chat_template": template()}
    return [json.dumps(metadata).encode(), json.dumps({"chat_template": "rwkv-world", "x": 1}).encode()]


def _chat_template(data: bytes, folder: Path) -> None:
    """The chat template beside a stranger's model: looked at, and never rendered."""
    from rwkvflow.release.known_faults import known_faults

    (folder / "tokenizer_config.json").write_bytes(data)
    known_faults(folder, ["tokenizer_config.json"])


YAML = (
    "documents/load",
    "documents/yaml/source",
    "documents/yaml/words",
    "documents/yaml/nearest",
    "documents/explain",
)
READERS = {
    "recipe": Reader(
        "recipes",
        (
            *YAML,
            "documents/recipe",
            "documents/parts",
            "documents/check/recipe",
            "documents/check/formats",
            "documents/check/torch",
            "documents/combine",
            "plan/matrix",
        ),
        _recipes,
        _recipe,
        text=True,
        words=WORDS,
    ),
    "workflow": Reader(
        "workflows", ("documents/workflow", "documents/check/workflow"), _workflows, _workflow, text=True, words=WORDS
    ),
    "lock": Reader("locks", ("documents/lock", "documents/check/lock"), _locks, _lock, text=True, words=WORDS),
    "document": Reader(
        "any document",
        ("documents/load",),
        lambda folder: [*_recipes(folder), *_workflows(folder), *_locks(folder)],
        _any_document,
        text=True,
        words=WORDS,
    ),
    "places": Reader(
        "sources, destinations, keys, dates, names",
        (
            "documents/sources",
            "documents/destinations",
            "documents/template",
            "documents/yaml/units",
            "base/names",
            "sandbox/image/dockerfile",
        ),
        _places,
        _place,
        text=True,
        words=(
            b"://",
            b"@",
            b"..",
            b"%2e",
            b"[::1]",
            b"[",
            b":",
            b"~",
            b"hf://",
            b"oci://",
            b"file:",
            b"?",
            b"#",
            b"\\",
        ),
    ),
    "requirements": Reader(
        "requirements of an image", ("sandbox/image/archive",), _requirement_files, _requirements, text=True
    ),
    "template": Reader(
        "templates of cards, parsed",
        ("base/jinja_process",),
        _template_seeds,
        _template,
        text=True,
        words=(
            b"{%",
            b"%}",
            b"{{",
            b"}}",
            b"{#",
            b"{% for x in y %}",
            b"{% endfor %}",
            b"{% raw %}",
            b"|e",
            b"()" * 40,
        ),
    ),
    "chat-template": Reader(
        "chat templates beside models", ("release/known_faults",), _chats, _chat_template, text=True
    ),
}
