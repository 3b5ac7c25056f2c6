"""Dockerfiles against their golden files, and what must never get into one."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import LockError, UsageError
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.lock import LockedBase, LockedWheel
from rwkvflow.documents.lock_text import requirements_text
from rwkvflow.lock.pins import pinned
from rwkvflow.sandbox.image.dockerfile import (
    _exec,
    _pair,
    from_reference,
    pinned_reference,
    render_dockerfile,
    split_reference,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "dockerfiles"
DIGEST = "sha256:" + "0123456789abcdef" * 4
LOCAL = LockedBase(reference="rwkvflow-base:bookworm", digest=DIGEST, kind="local")
REGISTRY = LockedBase(reference="registry.example:5000/team/python:3.12-slim", digest=DIGEST, kind="registry")
LABELS = {"org.rwkvflow.recipe": "sha256:1", "org.rwkvflow.lock": "sha256:2", "org.rwkvflow.engine": "sha256:3"}
CASES = {
    "zig-local": {"base": LOCAL, "python": "3.11", "engines": ["librwkv"], "labels": LABELS},
    "system-registry": {
        "base": REGISTRY,
        "python": "3.12",
        "engines": ["custom", "librwkv"],
        "toolchain": False,
        "labels": LABELS,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text = render_dockerfile(**CASES[name])  # type: ignore[arg-type]
    path = GOLDEN / f"{name}.Dockerfile"
    if os.environ.get("RWKVFLOW_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "RWKVFLOW_UPDATE_GOLDEN=1 pytest … writes the new ones"


@pytest.mark.parametrize("name", CASES)
def test_classic_builder_without_network_can_build_it(name: str) -> None:
    text = render_dockerfile(**CASES[name])  # type: ignore[arg-type]
    assert "--mount" not in text
    assert "# syntax" not in text
    assert "--network" not in text
    assert "apt-get" not in text
    for line in text.splitlines():
        if line.startswith("RUN "):
            assert json.loads(line[4:])[0] == "python3", "no shell reads a RUN line"
    assert "{{" not in text


def test_final_stage_has_no_toolchain_and_no_root() -> None:
    text = render_dockerfile(**CASES["zig-local"])  # type: ignore[arg-type]
    final = text[text.index("FROM wheels AS worker") :]
    wheels = text[text.index("FROM base AS wheels") : text.index("FROM base AS toolchain")]
    assert "toolchain" not in final
    assert "toolchain" not in wheels
    assert [line for line in final.splitlines() if line.startswith("USER")] == ["USER 65534:65534"]
    assert text[text.index("AS engine-librwkv") :].index("USER 65534") < text[text.index("AS engine-librwkv") :].index(
        "rwkvflow.worker"
    ), "the engine is not built by root"


def test_no_base_means_no_dockerfile() -> None:
    assert render_dockerfile(base=None, python="3.11", engines=[]) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.11; rm -rf /"}, "no Python version"),
        ({"python": "3.11\n"}, "no Python version"),
        ({"engines": ["a b"]}, "no name of an engine"),
        ({"engines": ["x\nRUN evil"]}, "no name of an engine"),
        ({"engines": ["librwkv\n"]}, "no name of an engine"),
        ({"labels": {"a\nb": "c"}}, "no name of a label"),
        ({"labels": {"a": "c\nRUN evil"}}, "cannot hold"),
        ({"labels": {"a": "c\x85RUN evil"}}, "cannot hold"),
        ({"base": LockedBase(reference="x\nRUN evil", digest=DIGEST, kind="registry")}, "no image reference"),
        ({"base": LockedBase(reference="x", digest="sha256:0", kind="registry")}, "no image reference"),
        ({"base": LockedBase(reference="x", digest=DIGEST + "\n", kind="local")}, "no image reference"),
        ({"base": LockedBase(reference="x AS y", digest=DIGEST, kind="local")}, "no image reference"),
    ],
)
def test_hostile_values_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        render_dockerfile(**{**CASES["zig-local"], **change})  # type: ignore[arg-type]


@given(st.text(st.characters(codec="utf-8")))
def test_a_label_is_read_back_as_it_was_or_refused(value: str) -> None:
    """Docker reads "…" as a double-quoted shell word, with $ expanded; so a shell is the judge here."""
    try:
        line = _pair(("key", value))
    except UsageError:
        assert not value.isprintable()
        return
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(\\\\)*\$", line), "an unescaped $ would be expanded"
    assert shlex.split(line.replace("\\$", "$")) == [f"key={value}"]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_an_argument_list_stays_one_line_and_itself(argv: list[str]) -> None:
    try:
        line = _exec(argv)
    except UsageError:
        assert not all(item.isprintable() for item in argv)
        return
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == argv
    assert not line.endswith("\\"), "Docker would join it with the next line"


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("python", ("python", None, None)),
        ("python:3.11-slim", ("python", "3.11-slim", None)),
        ("localhost:5000/a/b:c", ("localhost:5000/a/b", "c", None)),
        (f"ghcr.io/a/b@{DIGEST}", ("ghcr.io/a/b", None, DIGEST)),
        (f"a:b@{DIGEST}", ("a", "b", DIGEST)),
    ],
)
def test_references(reference: str, parts: tuple[str, ...]) -> None:
    assert split_reference(reference) == parts


@pytest.mark.parametrize("bad", ["", "A", "a b", "a:", "a@sha256:12", "-a", "a//b", "a\n", "a:b\n", "x" * 401, "a$b"])
def test_no_references(bad: str) -> None:
    with pytest.raises(UsageError):
        split_reference(bad)


def test_pinned_and_from() -> None:
    assert pinned_reference(REGISTRY) == f"registry.example:5000/team/python@{DIGEST}"
    assert from_reference(pinned_reference(REGISTRY)) == pinned_reference(REGISTRY)
    assert pinned_reference(LOCAL) == f"docker-daemon:rwkvflow-base:bookworm@{DIGEST}"
    assert from_reference(pinned_reference(LOCAL)) == "rwkvflow/base:0123456789abcdef01234567"
    with pytest.raises(UsageError, match="not pinned"):
        from_reference("python:3.11-slim")


def test_pins() -> None:
    assert any(item.startswith("numpy==2.2") for item in pinned("3.10")["worker"])
    assert pinned("3.13")["worker"] != pinned("3.10")["worker"]
    assert pinned("3.11", "system")["toolchain"] == ()
    assert {item.split("==")[0] for item in pinned("3.11")["toolchain"]} == {"ziglang", "cmake", "ninja"}
    with pytest.raises(LockError, match=r"numpy .* Python 3\.8"):
        pinned("3.8")


def test_requirements_text() -> None:
    wheels = [
        LockedWheel(name="torch", version="2.13.0+cpu", filename="t.whl", sha256="b" * 64),
        LockedWheel(name="numpy", version="2.4.6", filename="n.whl", sha256="a" * 64),
    ]
    assert requirements_text(wheels) == (
        f"numpy==2.4.6 --hash=sha256:{'a' * 64}\ntorch==2.13.0+cpu --hash=sha256:{'b' * 64}\n"
    )
    with pytest.raises(LockError):
        requirements_text([LockedWheel(name="-r evil", version="1", filename="e.whl", sha256="a" * 64)])


def test_stage_script_tells_a_wrong_python() -> None:
    done = subprocess.run(
        [sys.executable, str(shipped("images/stage.py")), "check-python", "3.99"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "the recipe asks for 3.99" in done.stderr


def test_stage_script_tells_a_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    script = runpy.run_path(str(shipped("images/stage.py")))
    with pytest.raises(SystemExit, match=r"lacks cc, c\+\+, cmake, ninja or make"):
        script["check_toolchain"]()
    for name in ("cc", "c++", "cmake", "make"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    script["check_toolchain"]()
