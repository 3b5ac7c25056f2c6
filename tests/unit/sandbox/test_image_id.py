"""An image's id depends on its layers and on what its containers do, and on nothing that a build writes besides."""

from __future__ import annotations

import hashlib
import io
import json
import os
import runpy
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.shipped import shipped
from rwkvflow.sandbox.image.image_id import CREATED, archive, configuration, image_id, settle

LAYERS = [f"sha256:{digit * 64}" for digit in "ab"]
FOUND: dict[str, Any] = {
    "Id": "sha256:" + "0" * 64,
    "Architecture": "amd64",
    "Os": "linux",
    "Config": {
        "Env": ["PATH=/bin", "X=ü"],
        "Cmd": ["python3"],
        "Labels": {"b": "1", "a": "2"},
        "User": "65534:65534",
        "WorkingDir": "/job",
        "Entrypoint": None,
        "OnBuild": [],
    },
    "RootFS": {"Type": "layers", "Layers": LAYERS},
}
WORDS = st.text(st.characters(codec="utf-8"), max_size=8)


def test_what_a_configuration_holds() -> None:
    value = json.loads(configuration(FOUND))
    assert value["config"] == {key: text for key, text in FOUND["Config"].items() if text}
    assert (value["architecture"], value["os"], value["created"]) == ("amd64", "linux", CREATED)
    assert value["rootfs"] == {"type": "layers", "diff_ids": LAYERS}
    assert [row["created"] for row in value["history"]] == [CREATED, CREATED], "a layer each"


@given(
    st.randoms(use_true_random=False),
    st.dictionaries(st.sampled_from(["Created", "Container", "Parent", "DockerVersion", "Comment", "Size"]), WORDS),
    st.dictionaries(st.sampled_from(["Hostname", "Domainname", "Image", "MacAddress", "AttachStdin"]), WORDS),
)
def test_no_time_no_order_and_no_name_of_a_build_is_in_it(
    random: Any, more: dict[str, str], of_the_build: dict[str, str]
) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        rows = [(key, shuffled(item)) for key, item in value.items()]
        random.shuffle(rows)
        return dict(rows)

    other = shuffled({**FOUND, **more, "Config": {**FOUND["Config"], **of_the_build}})
    assert configuration(other) == configuration(FOUND)


@pytest.mark.parametrize(
    "change",
    [
        {"Architecture": "arm64"},
        {"RootFS": {"Layers": LAYERS[::-1]}},
        {"Config": {**FOUND["Config"], "User": "0:0"}},
        {"Config": {**FOUND["Config"], "Labels": {"a": "3", "b": "1"}}},
        {"Config": {**FOUND["Config"], "Env": ["PATH=/sbin", "X=ü"]}},
    ],
)
def test_what_decides_what_an_image_does_is_in_it(change: dict[str, Any]) -> None:
    assert configuration({**FOUND, **change}) != configuration(FOUND)


def test_the_archive_names_all_layers_and_has_none() -> None:
    config = configuration(FOUND)
    data = archive(config, "rwkvflow/worker:x", LAYERS)
    assert data == archive(config, "rwkvflow/worker:x", LAYERS)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        names = opened.getnames()
        held = opened.extractfile("manifest.json")
        assert held is not None
        (row,) = json.load(held)
    assert names == [row["Config"], "manifest.json"]
    assert row["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
    assert row["RepoTags"] == ["rwkvflow/worker:x"]
    assert len(row["Layers"]) == len(LAYERS)


class Engine:
    """As far as settling asks one. `kind`: takes the archive, refuses it, or says yes and does nothing."""

    def __init__(self, kind: str) -> None:
        self.kind, self.names, self.images = kind, {"a/b:c": FOUND}, self

    def get(self, name: str) -> Any:
        found = self.names[name]

        def tag(repository: str, tag: str) -> None:
            self.names[f"{repository}:{tag}"] = found

        return SimpleNamespace(id=found["Id"], attrs=found, tag=tag)

    def load(self, data: bytes) -> None:
        if self.kind == "refuses":
            self.names["a/b:c"] = {**FOUND, "Id": "half an image"}
            raise docker.errors.ImageLoadError("no such file: layer.tar")
        if self.kind == "takes":
            self.names["a/b:c"] = {**FOUND, "Id": image_id(configuration(FOUND))}


@pytest.mark.parametrize("kind", ["takes", "refuses", "ignores"])
def test_an_engine_that_wants_the_layers_keeps_its_own_image(kind: str) -> None:
    engine: Any = Engine(kind)
    lines: list[str] = []
    settle("a/b:c", engine, lines.append)
    found = engine.get("a/b:c").id
    assert found == (image_id(configuration(FOUND)) if kind == "takes" else FOUND["Id"])
    (line,) = lines
    assert line.startswith(f"image {found}")
    assert ("no such file: layer.tar" in line) == (kind == "refuses")
    settle("a/b:c", engine, lines.append)
    assert len(lines) == (1 if kind == "takes" else 2), "a settled one is left alone"


TREES = st.dictionaries(
    st.sampled_from(["a", "b", "lib/x.so", "lib/y.so", "bin/tool", "share/a/b"]),
    st.tuples(st.binary(max_size=8), st.booleans(), st.integers(0, 1 << 31)),
    min_size=1,
)


@given(TREES, st.randoms(use_true_random=False), st.sampled_from([0o022, 0o077, 0o002]))
def test_what_is_placed_in_an_image_is_the_same_whenever_and_in_whatever_order_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, Any], random: Any, mask: int
) -> None:
    work = tmp_path_factory.mktemp("place")
    script = runpy.run_path(str(shipped("images/stage.py")))
    seen = []
    for name, umask in (("one", 0o022), ("two", mask)):
        rows = list(files.items())
        if name == "two":
            random.shuffle(rows)
        before = os.umask(umask)
        try:
            for path, (data, executable, time) in rows:
                file = work / name / "made" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                file.chmod((0o755 if executable else 0o644) & ~(umask & 0o077))
                os.utime(file, (time, time if name == "two" else 1))
            (work / name / "made" / "link").symlink_to("nowhere")
        finally:
            os.umask(before)
        script["place"](str(work / name / "made"), str(work / name / "root"), "opt/engine")
        seen.append(_tree(work / name / "root"))
    assert seen[0] == seen[1]
    assert {row[2] for row in seen[0].values()} == {0.0}
    assert {path for path in seen[0] if path.startswith("opt/engine/")} >= {f"opt/engine/{path}" for path in files}


def _tree(root: Path) -> dict[str, tuple[str | bytes, int, float]]:
    """By path: content, mode, time."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[path.relative_to(root).as_posix()] = (content, status.st_mode, status.st_mtime)
    return found


def test_what_is_no_file_is_not_placed(tmp_path: Path) -> None:
    script = runpy.run_path(str(shipped("images/stage.py")))
    (tmp_path / "made").mkdir()
    os.mkfifo(tmp_path / "made" / "pipe")
    with pytest.raises(SystemExit, match="pipe is neither a file nor a folder nor a link"):
        script["place"](str(tmp_path / "made"), str(tmp_path / "root"), "x")


def test_bytecode_and_its_folders_have_no_time_and_others_are_not_touched(tmp_path: Path) -> None:
    """A folder that is touched and stays as it was is in a layer with some storage drivers, and with others not."""
    script = runpy.run_path(str(shipped("images/stage.py")))
    site = tmp_path / "site"
    for name in ("a/b.py", "a-1.0.dist-info/METADATA"):
        (site / name).parent.mkdir(parents=True)
        (site / name).write_text("x = 1\n")
    for path in [*site.rglob("*"), site]:
        os.utime(path, (0, 0))
    before = {path: path.stat().st_ctime_ns for path in (site, site / "a-1.0.dist-info")}
    script["compile_all"](str(site))
    found = {path.name: path.stat().st_mtime for path in [site, *site.rglob("*")]}
    assert any(name.endswith(".pyc") for name in found)
    assert set(found.values()) == {0.0}
    assert {path: path.stat().st_ctime_ns for path in before} == before
