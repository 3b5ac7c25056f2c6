"""A lock of a stranger's: no name of it leads out of its folder, and none puts another file in a recipe's place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import DocumentError
from rwkvflow.base.names import checked_path, part_problem, path_problem
from rwkvflow.documents.load import lock_from_text
from rwkvflow.documents.lock import Lock
from rwkvflow.lock.pins import package, strangers
from rwkvflow.release.names import is_plain

SHA = "ab" * 32
COMMIT = "c" * 40
WHEEL = {"name": "numpy", "version": "2.4.6", "filename": "numpy-2.4.6-py3-none-any.whl", "sha256": SHA}


def pin(source: str, resolved: str | None = None, **more: Any) -> dict[str, Any]:
    return {"source": source, "resolved": resolved or source, "sha256": SHA, "size": 1, **more}


GOOD: dict[str, Any] = {
    "version": 1,
    "recipe": SHA,
    "models": {
        "one": pin("one.pth"),
        "two": pin("hf://o/n", f"hf://o/n@{COMMIT}", files={"config.json": {"sha256": SHA, "size": 1}}),
        "three": pin("https://example.org/x.pth#y", "https://example.org/x.pth"),
    },
    "tokenizers": {"one": pin("tokenizer.json")},
    "loras": {"one": pin("lora.pth")},
    "states": {"one": pin("state.pth")},
    "images": {
        "py3.11": {
            "python": "3.11",
            "base": {"reference": "debian:bookworm", "digest": f"sha256:{SHA}", "kind": "registry"},
            "platforms": {
                "linux-x86_64": {
                    "worker": [WHEEL],
                    "toolchain": [{**WHEEL, "name": "ninja"}],
                    "installer": [{**WHEEL, "name": "pip"}],
                }
            },
        }
    },
    "engine": {"kind": "git", "resolved": f"https://example.org/engine@{COMMIT}"},
    "packages": {"llama.cpp": package("llama.cpp").model_dump(mode="json")},
}
WICKED = [
    "..",
    ".",
    "",
    "../x",
    "../../../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "a\x1b[2Jb",
    "a\u202eb",
    "x" * 256,
]


def load(lock: dict[str, Any]) -> Lock:
    return lock_from_text(yaml.safe_dump(lock, allow_unicode=False), "x.lock.yaml")


#: Every place of a lock where a name becomes part of a path, and whether it is a key there.
PLACES: list[tuple[tuple[str | int, ...], bool]] = [
    *(((kind, "one"), True) for kind in ("models", "tokenizers", "loras", "states")),
    (("models", "two", "files", "config.json"), True),
    (("images", "py3.11"), True),
    (("images", "py3.11", "platforms", "linux-x86_64"), True),
    (("packages", "llama.cpp"), True),
    (("images", "py3.11", "python"), False),
    (("images", "py3.11", "base", "reference"), False),
    (("images", "py3.11", "base", "digest"), False),
    *(
        (("images", "py3.11", "platforms", "linux-x86_64", role, 0, key), False)
        for role in ("worker", "toolchain", "installer")
        for key in ("name", "version", "filename")
    ),
    *((("packages", "llama.cpp", key), False) for key in ("name", "version", "filename", "backend")),
]


def changed(place: tuple[str | int, ...], key: bool, value: str) -> dict[str, Any]:
    lock = copy.deepcopy(GOOD)
    node: Any = lock
    for part in place[:-1]:
        node = node[part]
    if key:
        node[value] = node.pop(place[-1])
    else:
        node[place[-1]] = value
    return lock


def test_the_good_one_is_good() -> None:
    assert strangers(load(GOOD)) == []


@pytest.mark.parametrize(("place", "key"), PLACES, ids=[".".join(map(str, place)) for place, _ in PLACES])
def test_no_name_of_a_lock_leads_anywhere(place: tuple[str | int, ...], key: bool) -> None:
    image = place[-1] == "reference"  # it has parts of its own, and is no path
    for name in WICKED:
        if (name or not key) and not (image and name.startswith("a/")):
            with pytest.raises(DocumentError):
                load(changed(place, key, name))


def test_every_text_of_a_lock_is_known_here() -> None:
    """A key that the lock gets some day is either free text or a name; this says which."""
    free = {("recipe",), ("engine", "resolved"), ("engine", "kind"), ("images", "*", "base", "kind")}
    free |= {(kind, "*", key) for kind in ("models", "tokenizers", "loras", "states") for key in ("source", "resolved")}
    checked = {
        tuple("*" if part in ("one", "two", "py3.11", "linux-x86_64", "llama.cpp", 0) else part for part in p)
        for p, key in PLACES
        if not key
    }
    found = {place for place in texts(GOOD) if place[-1] != "sha256"}
    assert found - free == checked


def texts(node: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    named = {"one", "two", "three", "py3.11", "linux-x86_64", "llama.cpp", "config.json"}
    for key, value in items:
        place = (*at, "*" if key in named or isinstance(key, int) else str(key))
        if isinstance(value, str):
            yield place
        yield from texts(value, place)


ELSEWHERE = [
    ("one.pth", "two.pth"),
    ("one.pth", "/etc/passwd"),
    ("one.pth", "hf://o/n/one.pth"),
    ("one.pth", "https://example.org/one.pth"),
    ("hf://o/n/a.pth", "a.pth"),
    ("hf://o/n/a.pth", f"hf://o/m@{COMMIT}/a.pth"),
    ("hf://o/n/a.pth", f"hf://evil/n@{COMMIT}/a.pth"),
    ("hf://o/n/a.pth", f"hf://o/n@{COMMIT}/b.pth"),
    ("hf://o/n/a.pth", "hf://o/n@main/a.pth"),
    ("hf://o/n/a.pth", "hf://o/n/a.pth"),
    (f"hf://o/n@{'d' * 40}/a.pth", f"hf://o/n@{COMMIT}/a.pth"),
    ("hf://o/n", f"hf://o/n@{COMMIT}/deep"),
    ("https://example.org/a.pth", "https://evil.example/a.pth"),
    ("https://example.org/a.pth", "https://example.org/b.pth"),
    ("https://example.org/a.pth", "a.pth"),
    ("https://example.org/a.pth", "http://example.org/a.pth"),
    ("one.pth", "one\n.pth"),
]


@pytest.mark.parametrize("kind", ["models", "tokenizers", "loras", "states"])
@pytest.mark.parametrize(("source", "resolved"), ELSEWHERE)
def test_what_is_resolved_belongs_to_its_source(kind: str, source: str, resolved: str) -> None:
    lock = copy.deepcopy(GOOD)
    lock[kind]["one"] = pin(source, resolved)
    with pytest.raises(DocumentError):
        load(lock)


@pytest.mark.parametrize(
    "engine",
    [
        {"kind": "git", "resolved": f"ext::sh -c id@{COMMIT}"},
        {"kind": "git", "resolved": f"--upload-pack=id@{COMMIT}"},
        {"kind": "git", "resolved": "https://example.org/engine@main"},
        {"kind": "git", "resolved": "https://example.org/engine"},
        {"kind": "git", "resolved": f"http://example.org/engine@{COMMIT}"},
        {"kind": "builtin", "resolved": "../engine"},
        {"kind": "folder", "resolved": "a\nb"},
    ],
)
def test_an_engine_comes_from_where_engines_come_from(engine: dict[str, str]) -> None:
    with pytest.raises(DocumentError):
        load({**GOOD, "engine": engine})


@pytest.mark.parametrize("key", ["name", "version", "filename", "sha256", "backend"])
def test_no_source_package_but_the_pinned_one_is_brought(key: str) -> None:
    other = {"sha256": "0" * 64, "filename": "evil-1.0.tar.gz", "backend": "evil"}.get(key, "evil")
    lock = copy.deepcopy(GOOD)
    lock["packages"]["llama.cpp"][key] = other
    assert strangers(load(lock)) == ["packages.llama.cpp: not the source package that this rwkvflow builds"]
    lock = copy.deepcopy(GOOD)
    lock["packages"]["evil"] = lock["packages"].pop("llama.cpp")
    assert strangers(load(lock)) == ["packages.evil: not the source package that this rwkvflow builds"]


@pytest.mark.parametrize("role", ["installer", "toolchain"])
def test_what_installs_and_builds_is_rwkvflows_own_choice(role: str) -> None:
    lock = copy.deepcopy(GOOD)
    lock["images"]["py3.11"]["platforms"]["linux-x86_64"][role].append({**WHEEL, "name": "evil"})
    assert strangers(load(lock)) == [f"images.py3.11 (linux-x86_64): evil is no {role} of rwkvflow's"]


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "b c", "~"]), max_size=6).map("/".join))
def test_a_checked_path_stays_below_its_folder(path: str) -> None:
    if path_problem(path) is None:
        assert is_plain(path)
        assert checked_path(path) == path
        folder = Path("/top/folder")
        joined = Path(folder, path)
        assert joined != folder
        assert joined.is_relative_to(folder)
        assert ".." not in joined.parts
        assert path.isprintable()
        assert all(part_problem(part) is None for part in path.split("/"))


@pytest.mark.parametrize("name", WICKED)
def test_nothing_wicked_is_a_part(name: str) -> None:
    assert part_problem(name)
    assert path_problem(f"a/{name}/b") or name in ("a/b",)
