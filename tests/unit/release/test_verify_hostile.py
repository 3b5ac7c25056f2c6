"""A release of somebody who can change all of its files, and makes the lists agree again: what is odd is found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.app.rebuild import rebuild
from rwkvflow.base.errors import EnvironmentMissing
from rwkvflow.base.events import silent
from rwkvflow.release.check import check_release
from rwkvflow.release.sums import sums_text
from tests.helpers.releases import made

Change = Callable[[list[dict[str, Any]]], None]
DEEP = b"[" * 200_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    made(root / "store").publish(root / "plain")
    return root / "plain"


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "release"))


def agree(folder: Path, *, statement: bool = True) -> None:
    """Make statement and sums say what the files are."""

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    path = folder / "provenance.json"
    if statement:
        content = json.loads(path.read_text())
        for subject in content["subject"]:
            if (folder / subject["name"]).is_file():
                subject["digest"]["sha256"] = digest(folder / subject["name"])
        for item in content["predicate"]["buildDefinition"]["resolvedDependencies"]:
            if item["name"] == "recipe.lock.yaml":
                item["digest"]["sha256"] = digest(folder / "recipe.lock.yaml")
        path.write_text(json.dumps(content))
    files = [item for item in folder.rglob("*") if item.is_file()]
    listed = {item.relative_to(folder).as_posix(): digest(item) for item in files}
    listed = {name: value for name, value in listed.items() if name not in ("SHA256SUMS", ".rwkvflow.json")}
    (folder / "SHA256SUMS").write_text(sums_text(listed))


def find(items: list[dict[str, Any]], start: str) -> dict[str, Any]:
    return next(item for item in items if item["name"].startswith(start))


def without(start: str) -> Change:
    return lambda items: items.remove(find(items, start))


def twice(start: str) -> Change:
    return lambda items: items.append(dict(find(items, start)))


MATERIALS: dict[str, tuple[Change, str]] = {
    **{
        f"no {start}": (without(start), "missing among what went in")
        for start in ("model/tiny7", "model/tiny4", "worker", "engine", "wheel/")
    },
    **{
        f"{start} twice": (twice(start), "2 times")
        for start in ("model/tiny7", "worker", "engine", "wheel/", "recipe.lock.yaml")
    },
    "a second digest": (
        lambda items: items.insert(0, {"name": "model/tiny7", "digest": {"sha256": "0" * 64}}),
        "model/tiny7 2 times",
    ),
    "a model besides": (
        lambda items: items.append({"name": "model/evil", "digest": {"sha256": "0" * 64}}),
        "model/evil went in",
    ),
    "a wheel besides": (
        lambda items: items.append({"name": "wheel/evil-1-py3-none-any.whl", "digest": {"sha256": "0" * 64}}),
        "wheel/evil-1-py3-none-any.whl went in",
    ),
    "another wheel": (lambda items: find(items, "wheel/")["digest"].update(sha256="0" * 64), "wheels that"),
    "a name that leads out": (lambda items: find(items, "model/").update(name="model/../../x"), "names a folder"),
    "an absolute name": (lambda items: find(items, "model/").update(name="/etc/passwd"), "an absolute path"),
    "no name": (lambda items: find(items, "model/").update(name=""), "an empty name"),
    "a name that acts": (lambda items: find(items, "model/").update(name="model/\x1b[2J"), "cannot be shown"),
}


@pytest.mark.parametrize("name", MATERIALS)
def test_odd_materials_are_found(name: str, release: Path) -> None:
    change, words = MATERIALS[name]
    path = release / "provenance.json"
    content = json.loads(path.read_text())
    change(content["predicate"]["buildDefinition"]["resolvedDependencies"])
    path.write_text(json.dumps(content))
    agree(release)
    problems = check_release(release).problems
    assert any(words in problem for problem in problems), problems
    assert all(problem.isprintable() for problem in problems)


def test_the_original_passes_and_agrees(release: Path) -> None:
    agree(release)
    assert check_release(release).problems == []


@pytest.mark.parametrize(
    "name", ["provenance.json", "quality.json", "catalogue.json", "recipe.lock.yaml", "smoke", "sbom.cdx.json"]
)
@pytest.mark.parametrize(
    "content", [DEEP, b'{"a":' * 100_000, b"\xff\xfe", b"", b"null", b"[]", b'"x"', b"{}", b"- " * 9999]
)
def test_no_document_of_a_release_ends_the_check(name: str, content: bytes, release: Path) -> None:
    path = next(release.rglob("smoke/*.json")) if name == "smoke" else release / name
    path.write_bytes(content)
    agree(release, statement=name != "provenance.json")
    found = check_release(release)
    assert found.problems or name == "sbom.cdx.json"
    assert all(problem.isprintable() for problem in found.problems)
    assert all(len(problem) < 2000 for problem in found.problems)


ODD: list[Any] = [None, [], {}, "x", 7, True, ["x"], {"x": 1}, {"digest": "x"}, {"digest": []}, [[]]]


@pytest.mark.parametrize(
    "place",
    [
        ("predicate", "buildDefinition", "externalParameters"),
        ("predicate", "buildDefinition", "externalParameters", "recipe"),
        ("predicate", "buildDefinition", "externalParameters", "name"),
        ("predicate", "buildDefinition", "externalParameters", "signedBy"),
        ("predicate", "buildDefinition", "internalParameters"),
        ("predicate", "buildDefinition", "resolvedDependencies"),
        ("predicate", "buildDefinition", "resolvedDependencies", 0),
        ("predicate", "buildDefinition", "resolvedDependencies", 0, "digest"),
        ("predicate", "runDetails"),
        ("predicate",),
        ("subject",),
        ("subject", 0),
        ("subject", 0, "digest"),
        ("subject", 0, "annotations"),
        ("subject", 3, "annotations"),
    ],
    ids=lambda place: ".".join(map(str, place)),
)
def test_no_odd_value_of_a_statement_ends_the_check(place: tuple[str | int, ...], release: Path) -> None:
    path = release / "provenance.json"
    original = path.read_text()
    for value in ODD:
        content = json.loads(original)
        node: Any = content
        for part in place[:-1]:
            node = node[part]
        node[place[-1]] = value
        path.write_text(json.dumps(content))
        assert check_release(release).problems


@pytest.mark.parametrize("path", ["../../../etc/passwd", "/etc/passwd", "tiny7/../../x"])
def test_quality_names_files_of_the_release_only(path: str, release: Path, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    content = json.loads((release / "quality.json").read_text())
    content["artifacts"][0]["path"] = path
    (release / "quality.json").write_text(json.dumps(content))
    agree(release)
    assert any(f"the release has no {path}" in problem for problem in check_release(release).problems)


def test_making_it_again_runs_nothing_on_the_host_unless_asked(
    release: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rwkvflow.app import pipeline
    from rwkvflow.sandbox import choose
    from rwkvflow.sandbox.host import HostSandbox

    ran: list[object] = []
    monkeypatch.setattr(choose, "choose", lambda *_: (HostSandbox(tmp_path / "environments"), "no Docker"))
    monkeypatch.setattr(pipeline, "execute", lambda *arguments: ran.append(arguments))
    with pytest.raises(EnvironmentMissing, match="may be anybody's"):
        rebuild(release, silent)
    assert ran == []
