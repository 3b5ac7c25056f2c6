"""Locks: one text for each, written whole or not at all, and compared with recipes in words."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from rwkvflow.base.errors import DocumentError, LockError
from rwkvflow.base.names import part_problem
from rwkvflow.documents.load import load_document, load_lock, lock_from_text
from rwkvflow.documents.lock import (
    Lock,
    LockedBase,
    LockedEngine,
    LockedFile,
    LockedImage,
    LockedPart,
    LockedWheel,
    LockedWheels,
    disagreements,
    recipe_digest,
)
from rwkvflow.documents.lock_text import dump_lock, lock_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.sources import source_problem

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=24) | st.sampled_from(
    ["no", "3.10", "1e5", "64e-5", "~", "", "a: b", "- x", "*x", "2.13.0+cpu", "\x85", "\u2028", "\ufeff", "\x7f", "#"]
)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64) | st.sampled_from(["0" * 64, "1e" + "3" * 62])
odd = st.sampled_from(["no", "3.10", "1e5", "64e-5", "~", "a: b", "- x", "*x", "2.13.0+cpu", "#", "null", "é", "漢"])
names = odd | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12).filter(
    lambda text: part_problem(text) is None
)
sources = names.filter(lambda text: source_problem(text, folder=True) is None)
parts = st.builds(LockedPart, sha256=hashes, size=st.integers(0, 9))
files = sources.flatmap(
    lambda source: st.builds(
        LockedFile,
        source=st.just(source),
        resolved=st.just(source),
        sha256=hashes,
        size=st.integers(0, 1 << 50),
        files=st.none() | st.dictionaries(names, parts, max_size=2),
    )
)
wheels = st.lists(
    st.builds(
        LockedWheel, name=names, version=names, filename=names, sha256=hashes, size=st.none() | st.integers(0, 9)
    ),
    max_size=3,
).map(tuple)
digests = hashes.map("sha256:{}".format)
bases = st.builds(
    LockedBase,
    reference=st.sampled_from(["debian:bookworm", "no", "1e5"]),
    digest=digests,
    kind=st.sampled_from(["registry", "local"]),
)
images = st.builds(
    LockedImage,
    python=st.sampled_from(["3.9", "3.10"]),
    base=st.none() | bases,
    platforms=st.dictionaries(
        st.sampled_from(["linux-x86_64", "macos-arm64", "linux-aarch64"]),
        st.builds(LockedWheels, worker=wheels, toolchain=wheels, installer=wheels),
        max_size=2,
    ),
)
engines = (
    st.builds(LockedEngine, kind=st.just("builtin"), resolved=st.just("builtin"), digest=st.none() | digests)
    | st.builds(LockedEngine, kind=st.just("folder"), resolved=sources, digest=digests)
    | st.builds(LockedEngine, kind=st.just("git"), resolved=st.just(f"https://x/y@{'c' * 40}"), digest=st.none())
)
locks = st.builds(
    Lock,
    recipe=texts,
    models=st.dictionaries(names, files, max_size=3),
    tokenizers=st.dictionaries(names, files, max_size=2),
    images=st.dictionaries(names, images, max_size=2),
    engine=engines,
)

SMALL = Lock(recipe="r", models={}, images={}, engine=LockedEngine(kind="builtin", resolved="builtin"))


@given(locks)
@example(SMALL)
def test_what_is_written_reads_back_the_same(lock: Lock) -> None:
    text = lock_text(lock)
    assert lock_from_text(text, "x.lock.yaml") == lock
    assert lock_text(lock_from_text(text, "x.lock.yaml")) == text


@given(locks)
def test_other_yaml_readers_understand_it(lock: Lock) -> None:
    assert yaml.safe_load(lock_text(lock))["engine"]["resolved"] == lock.engine.resolved


@given(locks, st.randoms(use_true_random=False))
def test_order_does_not_reach_the_text(lock: Lock, random: object) -> None:
    reversed_lock = Lock(
        recipe=lock.recipe,
        models=dict(reversed(lock.models.items())),
        tokenizers=dict(reversed(lock.tokenizers.items())),
        images={
            name: LockedImage(
                python=image.python,
                base=image.base,
                platforms={
                    platform: LockedWheels(
                        worker=item.worker[::-1], toolchain=item.toolchain[::-1], installer=item.installer[::-1]
                    )
                    for platform, item in reversed(image.platforms.items())
                },
            )
            for name, image in reversed(lock.images.items())
        },
        engine=lock.engine,
    )
    assert lock_text(reversed_lock) == lock_text(lock)


def test_the_text_is_as_reviewers_know_it() -> None:
    lock = fitting(recipe())
    assert (
        lock_text(lock).split("\n\n", 1)[1]
        == f"""\
version: 1
recipe: {lock.recipe}
models:
  a:
    source: a.pth
    resolved: a.pth
    sha256: {"ab" * 32}
    size: 7
  b:
    source: hf://o/n@main/b.pth
    resolved: hf://o/n@{"c" * 40}/b.pth
    sha256: "{"1" * 64}"
    size: 8
tokenizers: {{}}
images:
  py3.11:
    python: "3.11"
    platforms:
      linux-x86_64:
        worker:
        - name: numpy
          version: "2.4"
          filename: numpy-2.4.whl
          sha256: {"ab" * 32}
        toolchain:
        - name: ziglang
          version: "0.17"
          filename: ziglang-0.17.whl
          sha256: {"ab" * 32}
        installer: []
engine:
  kind: builtin
  resolved: builtin
"""
    )


def test_writing_is_atomic_keeps_the_mode_and_is_silent_where_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "r.lock.yaml"
    assert dump_lock(SMALL, path) is True
    assert load_lock(path) == SMALL
    assert load_document(path) == "lock"
    path.chmod(0o640)
    before = path.stat().st_ino
    assert dump_lock(SMALL, path) is False
    assert path.stat().st_ino == before
    other = SMALL.model_copy(update={"recipe": "s"})
    assert dump_lock(other, path) is True
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("old")
    link = tmp_path / "r.lock.yaml"
    link.symlink_to("real.yaml")
    dump_lock(SMALL, link)
    assert link.is_symlink()
    assert load_lock(tmp_path / "real.yaml") == SMALL


def test_a_failure_leaves_the_old_lock_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.lock.yaml"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LockError, match="cannot be written: No space left on device"):
        dump_lock(SMALL, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_or_damaged_lock_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.lock.yaml"
    with pytest.raises(LockError, match="there is no lock"):
        load_lock(path)
    path.write_text(lock_text(SMALL).replace("kind: builtin", "kind: bulitin"))
    with pytest.raises(
        DocumentError, match=r"engine\.kind: expected one of builtin, git, folder, .*did you mean 'builtin'"
    ):
        load_lock(path)
    path.write_text("<<<<<<< ours\n" + lock_text(SMALL))
    with pytest.raises(DocumentError, match=r"r\.lock\.yaml:1:1: the file holds an unresolved merge conflict"):
        load_lock(path)


def recipe(**changes: object) -> Recipe:
    data: dict[str, object] = {
        "name": "r",
        "models": [{"name": "a", "source": "a.pth"}, {"name": "b", "source": "hf://o/n@main/b.pth"}],
        "formats": ["ggml-f16"],
    }
    return Recipe.model_validate(data | changes)


def wheel(name: str, version: str) -> LockedWheel:
    return LockedWheel(name=name, version=version, filename=f"{name}-{version}.whl", sha256="ab" * 32)


def fitting(subject: Recipe) -> Lock:
    """The lock of the recipe above."""
    return Lock(
        recipe=recipe_digest(subject),
        models={
            "a": LockedFile(source="a.pth", resolved="a.pth", sha256="ab" * 32, size=7),
            "b": LockedFile(
                source="hf://o/n@main/b.pth", resolved=f"hf://o/n@{'c' * 40}/b.pth", sha256="1" * 64, size=8
            ),
        },
        images={
            "py3.11": LockedImage(
                python="3.11",
                platforms={
                    "linux-x86_64": LockedWheels(worker=(wheel("numpy", "2.4"),), toolchain=(wheel("ziglang", "0.17"),))
                },
            )
        },
        engine=LockedEngine(kind="builtin", resolved="builtin"),
    )


def test_a_lock_fits_its_recipe_whatever_else_changes() -> None:
    lock = fitting(recipe())
    assert disagreements(recipe(), lock) == []
    for changes in (
        {"name": "other"},
        {"formats": ["ggml-q5_1", "safetensors"]},
        {"smoke": {"tokens": 7}},
        {"publish": [{"to": "out"}]},
        {"models": list(reversed(recipe().model_dump()["models"]))},
        {"engine": {"cmake": {"A": True}}},
        {"matrix": {"exclude": [{"model": "a"}]}},
    ):
        assert disagreements(recipe(**changes), lock) == [], changes


A, B = {"name": "a", "source": "a.pth"}, {"name": "b", "source": "hf://o/n@main/b.pth"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": [A]}, ["models.b: is in the lock, no longer in the recipe"]),
        ({"models": [A, B, A | {"name": "c"}]}, ["models.c: is in the recipe, not in the lock"]),
        (
            {"models": [A, B | {"source": "b.pth"}]},
            ["models.b: source was hf://o/n@main/b.pth in the lock, is b.pth in the recipe"],
        ),
        (
            {"models": [A | {"sha256": "0" * 64}, B]},
            [f"models.a: sha256 was {'ab' * 32} in the lock, is {'0' * 64} in the recipe"],
        ),
        ({"models": [A | {"tokenizer": "t.json"}, B]}, ["tokenizers.a: is in the recipe, not in the lock"]),
        (
            {"image": {"name": "py3.11", "python": "3.12"}},
            ["images.py3.11: python was 3.11 in the lock, is 3.12 in the recipe"],
        ),
        (
            {"image": {"python": "3.12"}},
            [
                "images.py3.12: is in the recipe, not in the lock",
                "images.py3.11: is in the lock, no longer in the recipe",
            ],
        ),
        (
            {"image": {"name": "py3.11", "torch": "2.13.0"}},
            ["images.py3.11 (linux-x86_64): torch was absent in the lock, is 2.13.0 in the recipe"],
        ),
        (
            {"image": {"wheels": ["tokenizers==0.20.3"]}},
            ["images.py3.11 (linux-x86_64): the wheel tokenizers==0.20.3 is in the recipe, not in the lock"],
        ),
        (
            {"engine": {"toolchain": "system"}},
            ["images.py3.11 (linux-x86_64): toolchain was zig in the lock, is system in the recipe"],
        ),
        (
            {"engine": {"source": {"git": "https://x/y.git"}}},
            ["engine: source was builtin in the lock, is https://x/y.git in the recipe"],
        ),
        ({"engine": {"source": {"path": "e"}}}, ["engine: source was builtin in the lock, is e in the recipe"]),
        ({"image": {"base": "debian:bookworm"}}, ["the recipe changed in a part that the lock depends on"]),
    ],
)
def test_a_lock_that_does_not_fit_says_how(changes: dict[str, object], expected: list[str]) -> None:
    found = disagreements(recipe(**changes), fitting(recipe()))
    assert [message[: len(start)] for message, start in zip(found, expected, strict=True)] == expected
    assert recipe_digest(recipe(**changes)) != recipe_digest(recipe())


def test_the_base_and_torch_of_a_lock_are_compared() -> None:
    subject = recipe(image={"torch": "2.13.0", "base": "debian:bookworm"})
    lock = fitting(subject)
    platform = LockedWheels(worker=(wheel("torch", "2.13.0+cpu"),), toolchain=(wheel("cmake", "4"),))
    base = LockedBase(reference="debian:bookworm", digest="sha256:" + "0" * 64, kind="registry")
    image = LockedImage(python="3.11", base=base, platforms={"linux-x86_64": platform})
    lock = lock.model_copy(update={"images": {"py3.11-torch2.13.0": image}})
    assert disagreements(subject, lock) == []
    assert disagreements(recipe(image={"torch": "2.13.0", "base": "debian:trixie"}), lock) == [
        "images.py3.11-torch2.13.0: base was debian:bookworm in the lock, is debian:trixie in the recipe"
    ]
    other = recipe(image={"name": "py3.11-torch2.13.0", "torch": "2.12.0", "base": "debian:bookworm"})
    assert disagreements(other, lock) == [
        "images.py3.11-torch2.13.0 (linux-x86_64): torch was 2.13.0+cpu in the lock, is 2.12.0 in the recipe"
    ]


def test_the_commit_of_a_git_engine_is_compared() -> None:
    source = {"git": "https://x/y.git", "commit": "a" * 40}
    subject = recipe(engine={"source": source})
    lock = fitting(subject)
    engine = LockedEngine(kind="git", resolved=f"https://x/y.git@{'a' * 40}")
    lock = lock.model_copy(update={"engine": engine})
    assert disagreements(subject, lock) == []
    changed = recipe(engine={"source": source | {"commit": "b" * 40}})
    assert disagreements(changed, lock) == [f"engine: commit was {'a' * 40} in the lock, is {'b' * 40} in the recipe"]
