"""A recipe and a workflow of a stranger's: every text in them is of a known kind, and each kind has its bounds.

The places are those of the schema. A key that is added some day fails `test_every_text_has_a_kind` until this table
says what may stand there.
"""

from __future__ import annotations

import copy
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel

from rwkvflow.base.errors import DocumentError
from rwkvflow.documents.load import load_workflow, recipe_from_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.lock.outside import named_files

SHA, COMMIT = "ab" * 32, "c" * 40
# What is a path, and what a terminal or a log would take for more than text.
PARTS = ["", ".", "..", "../x", "/etc/passwd", "a/../../b", "a/b", "a\\b", "a\nb", "a\0b", "a\x1b[2Jb", "a\u202eb"]
LEADING_OUT = ["..", "../x", "../../x", "/etc/passwd", "a/../../b", "a\nb", "a\x1b[2Jb"]
WICKED = {
    # One part of a path, or less: a name, a version, a number with a unit.
    "part": PARTS,
    # A path below a folder that is not the machine's, such as a repository's.
    "below": LEADING_OUT,
    # Where a checkpoint, an adapter or a tokenizer is: anywhere, and only ever read as such a file.
    "source": [
        "",
        " ",
        "hf://o/../x",
        "hf://o/n/../x",
        "ftp://x/y",
        "https://u:p@x/y",
        "http://x/y",
        "a\nb",
        "a\x1b[2Jb",
    ],
    # A clone URL. (A path is held by `named_files`.)
    "git": ["", "-x", "--upload-pack=id", "ext::sh -c id", "http://x/y", "git://x/y", "https://u:p@x/y", "a\nb"],
    "branch": ["", "..", "-x", "--x", "a..b", "/a", "a b", "a\nb", "a\x1b[2Jb"],
    "requirement": ["", "..", "/etc/passwd", "x @ file:///etc/passwd", "x @ https://x/y", "--index-url x", "x\n--pre"],
    "repository": ["", "..", "../x", "/etc/passwd", "a/b/c", "a/../b", "a\nb", "a\x1b[2Jb/c"],
    "place": ["", "hf://o", "hf://o/..", "oci://x", "oci://../x:y", "javascript://x/y", "a\nb", "a\x1b[2Jb"],
    "image": ["", "..", "../x", "/x", "-x", "a b", "a\nb", "a\x1b[2Jb"],
    # A file that goes into a release: in the recipe's folder, which lock/test_outside.py shows for each.
    "file": ["a\nb", "a\x1b[2Jb", "a\0b"],
    "expression": ["(", "[", "(?P<x", "\\"],
    "specifier": ["..", "/etc/passwd", "a\nb", "\x1b[2J"],
    "glob": ["../../zzz*", "zzz", "\x1b[2J"],
    # Shown, spelt out; never a path, an option or a program. See test_report.py, test_card.py, redteam/test_files.py.
    "text": [],
}
#: Every text of a recipe. `*` stands for an item of a list, and for a key of a mapping where `(key)` follows.
PLACES = {
    "name": "part",
    "models.*.name": "part",
    "models.*.source": "source",
    "models.*.sha256": "part",
    "models.*.lora.source": "source",
    "models.*.lora.init": "source",
    "models.*.lora.sha256": "part",
    "models.*.state.source": "source",
    "models.*.state.sha256": "part",
    "models.*.tokenizer": "source",
    "models.*.imatrix.text": "file",
    "models.*.ignore_tensors.*": "text",  # globs of names of tensors
    "formats.*": "part",
    "formats.*.format": "part",
    "formats.*.split": "part",
    "formats.*.tensor_types.*": "part",
    "formats.*.tensor_types.*(key)": "expression",
    "formats.*.output_type": "part",
    "formats.*.embedding_type": "part",
    "formats.*.target.size": "part",
    "formats.*.target.types.*": "part",
    "formats.*.strategy": "part",
    "split": "part",
    "images.*.base": "image",
    "images.*.python": "part",
    "images.*.torch": "part",
    "images.*.wheels.*": "requirement",
    "images.*.name": "part",
    "engine.source": "part",
    "engine.source.git": "git",
    "engine.source.ref": "branch",
    "engine.source.commit": "part",
    "engine.source.submodules.*": "below",
    "engine.source.folder": "below",
    "engine.source.path": "file",
    "engine.toolchain": "part",
    "engine.target": "part",
    "engine.targets.*": "part",
    "engine.library": "below",
    "engine.cmake.*": "text",  # -D options of a build that runs in the sandbox
    "engine.cmake.*(key)": "part",
    "engine.patches.*.name": "part",
    "engine.patches.*.files.*": "below",
    "engine.patches.*.pattern": "expression",
    "engine.patches.*.replace": "text",
    "engine.patches.*.expect": "part",
    "engine.patches.*.when.*": "text",
    "engine.patches.*.when.*(key)": "part",
    "smoke.prompts.*": "text",
    "smoke.text": "file",
    "smoke.quality": "part",
    "smoke.limits.*(key)": "part",
    "smoke.limits.*.domains.*(key)": "part",
    "publish.*.to": "place",
    "publish.*.branch": "branch",
    "publish.*.tag": "branch",
    "card.template": "file",
    "card.title": "text",
    "card.about": "text",
    "card.license": "part",
    "card.license_name": "text",
    "card.license_link": "text",
    "card.language.*": "part",
    "card.base_model.*": "repository",
    "card.tags.*": "text",
    "card.library_name": "text",
    "card.pipeline_tag": "text",
    "card.quantized_by": "text",
    "sign.key": "file",
    "matrix.exclude.*.model": "glob",
    "matrix.exclude.*.format": "glob",
    "matrix.exclude.*.image": "glob",
    "matrix.include.*.model": "glob",
    "matrix.include.*.format": "glob",
    "matrix.include.*.image": "glob",
}
#: Those of a workflow, which is yours: what of it becomes a path is a name all the same.
WORKFLOW = {
    **{
        f"stages.{stage}.{key}": "part"
        for stage in (
            "fetch",
            "wheels",
            "image",
            "engine",
            "convert",
            "imatrix",
            "reference",
            "quality",
            "measure",
            "smoke",
            "publish",
        )
        for key in ("time", "memory", "disk")
    },
    "trust.*.key": "part",
    "trust.*.name": "part",
    "trust.*.before": "part",
    "extra.*.time": "part",
    "extra.*.memory": "part",
    "extra.*.disk": "part",
    "extra.*.name": "part",
    "extra.*.each": "part",
    "extra.*.needs": "part",
    "extra.*.command.*": "text",  # runs in the sandbox
    "extra.*.inputs.*": "file",
    "extra.*.inputs.*(key)": "part",
    "extra.*.outputs.*": "part",
}


def texts(kind: Any, at: str = "") -> Iterator[str]:
    """Where a type has text, as `PLACES` writes it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from texts(arguments[0], at)
    elif origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from texts(one, at)
    elif origin is tuple:
        yield from texts(arguments[0], f"{at}.*")
    elif origin is dict:
        if list(texts(arguments[0])):
            yield f"{at}.*(key)"
        yield from texts(arguments[1], f"{at}.*")
    elif origin is Literal:
        if any(isinstance(one, str) for one in arguments):
            yield at
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from texts(field.annotation, f"{at}.{name}".lstrip("."))
    elif kind is str:
        yield at
    else:
        assert kind in (int, float, bool, type(None)), f"{at}: say here what a {kind} is"


@pytest.mark.parametrize(("document", "table"), [(Recipe, PLACES), (Workflow, WORKFLOW)])
def test_every_text_has_a_kind(document: type[BaseModel], table: dict[str, str]) -> None:
    assert set(texts(document)) == set(table)
    assert set(table.values()) <= set(WICKED)


def test_every_file_is_one_that_must_be_inside() -> None:
    """A file of a recipe that goes into a release is in `named_files`, and with it in the table of test_outside.py."""
    recipe = recipe_from_text(yaml.safe_dump(BASE), "r.yaml", Path())
    named = {re.sub(r"^models\.\w+", "models.*", key) for key in named_files(recipe)}
    assert named <= {place for place, kind in PLACES.items() if kind in ("file", "git")}
    from tests.unit.lock.test_outside import KEYS

    held = {re.sub(r"^models\.\w+", "models.*", key) for key in KEYS}
    assert {place for place, kind in PLACES.items() if kind in ("file", "git")} == held


BASE: dict[str, Any] = {
    "name": "r",
    "models": [{"name": "m", "source": "m.pth", "tokenizer": "bytes"}],
    "formats": ["ggml-f16"],
    "images": [{"python": "3.11"}],
}
#: What has to stand around a place for it to be looked at.
AROUND: dict[str, dict[str, Any]] = {
    "models.*.lora": {"source": "l.pth", "alpha": 1.0},
    "models.*.state": {"source": "s.pth"},
    "formats.*.tensor_types": {"format": "gguf-q4_k_m-mixed"},
    "formats.*.target": {"format": "gguf-mixed", "size": "1GB"},
    "formats.*.output_type": {"format": "gguf-q4_k_m"},
    "formats.*.embedding_type": {"format": "gguf-q4_k_m"},
    "formats.*.format": {},
    "formats.*.split": {"format": "ggml-f16"},
    "formats.*.strategy": {"format": "chatrwkv"},
    "engine.source.ref": {"git": "https://example.org/e"},
    "engine.source.commit": {"git": "https://example.org/e"},
    "engine.source.submodules": {"git": "https://example.org/e"},
    "engine.source.folder": {"git": "https://example.org/e"},
    "engine.patches.*": {"name": "p", "files": ["x"], "pattern": "x", "replace": "y"},
    "publish.*": {"to": "hf://o/n"},
}


def with_text(base: dict[str, Any], place: str, text: str, around: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document with a text at a place, and around it what the place needs."""
    document = copy.deepcopy(base)
    is_key = place.endswith("(key)")
    parts = place.removesuffix(".*(key)").split(".")
    node: Any = document
    for index, part in enumerate(parts):
        here, last = ".".join(parts[: index + 1]), index == len(parts) - 1
        following = None if last else parts[index + 1]
        needs = around.get(here, around.get(".".join(parts[: index + 2])) if following is not None else None)
        fresh: Any = text if last and not is_key else [] if following == "*" and _is_list(here) else dict(needs or {})
        if part == "*" and isinstance(node, list):
            if last and not is_key:
                node[:] = [text]
            elif not node or not isinstance(node[0], dict):
                node[:] = [copy.deepcopy(fresh)]
            node = node[0]
        else:
            name = "x" if part == "*" else part
            if (last and not is_key) or name not in node or not isinstance(node[name], dict | list):
                node[name] = copy.deepcopy(fresh)
            node = node[name]
    if is_key:
        node[text] = {"logits": 1.0} if "limits" in place else "x"
    return document


def _is_list(place: str) -> bool:
    return place.rsplit(".", 1)[-1] not in ("cmake", "when", "inputs", "limits")


def cases(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(place, text) for place, kind in table.items() for text in WICKED[kind]]


@pytest.mark.parametrize("place", [place for place, kind in PLACES.items() if WICKED[kind]])
def test_no_text_of_a_recipe_leads_anywhere(place: str, tmp_path: Path) -> None:
    for text in WICKED[PLACES[place]]:
        document = with_text(BASE, place, text, AROUND)
        with pytest.raises(DocumentError) as caught:
            recipe_from_text(yaml.safe_dump(document), "r.yaml", tmp_path)
        found = [finding for finding in caught.value.findings if _meant(place, finding.path)]
        assert found, (place, text, document, str(caught.value))
        assert str(caught.value).replace("\n", "").isprintable()


def _meant(place: str, path: str) -> bool:
    """Whether a finding is about the place, or what holds it."""
    parts = [r"(\[.*?\]|\.[^.]*)" if part == "*" else rf"\.{part}" for part in place.replace("*(key)", "*").split(".")]
    least = next((index for index, part in enumerate(parts) if index and part.startswith("(")), len(parts) - 1)
    return any(re.fullmatch("".join(parts[:count]), f".{path}") for count in range(max(1, least), len(parts) + 1))


EXTRA: dict[str, Any] = {"extra": [{"name": "e", "command": ["true"], "outputs": ["x"]}]}


@pytest.mark.parametrize("place", [place for place, kind in WORKFLOW.items() if WICKED[kind]])
def test_no_name_of_a_workflow_leads_anywhere(place: str, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    for text in WICKED[WORKFLOW[place]]:
        path.write_text(yaml.safe_dump(with_text(EXTRA, place, text, {})), encoding="utf-8")
        with pytest.raises(DocumentError) as caught:
            load_workflow(path)
        assert any(_meant(place, finding.path) for finding in caught.value.findings), (place, text, str(caught.value))
