"""The build-engine task on real CMake projects, with the compilers that this machine has."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base import hashing
from rwkvflow.worker.build import elf
from rwkvflow.worker.protocol import parse
from rwkvflow.worker.tasks import build_engine

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECTS = Path(__file__).resolve().parent / "projects"
GOLDEN = ROOT / "tests" / "golden" / "cmake_patch"
LIBRARY = {"linux": "librwkv.so", "darwin": "librwkv.dylib"}.get(sys.platform, "librwkv.so")
NATIVE = {"library": "**/libnative.*"}

HAS = {
    "zig": all(importlib.util.find_spec(name) for name in ("ziglang", "cmake", "ninja")),
    "system": bool(shutil.which("cc") and shutil.which("cmake") and (shutil.which("ninja") or shutil.which("make"))),
}
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into ELF files")


def needs(toolchain: str) -> None:
    if not HAS[toolchain]:
        what = "the packages ziglang, cmake and ninja" if toolchain == "zig" else "cc, cmake and ninja or make"
        pytest.skip(f"toolchain {toolchain}: this machine lacks {what}")


@dataclass(frozen=True)
class Built:
    """How a worker ended. `engine` need not exist."""

    code: int
    stdout: str
    stderr: str
    engine: Path

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.engine / "build.json").read_text())
        return facts

    @property
    def matches(self) -> dict[str, int]:
        return {rule["name"]: rule["matches"] for rule in self.facts["rules"] if rule["matches"]}

    @property
    def diff(self) -> str:
        return (self.engine / "patch.diff").read_text()

    @property
    def library(self) -> Path:
        return self.engine / "lib" / LIBRARY


Build = Callable[..., Built]


@pytest.fixture(scope="session")
def zig_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return os.environ.get("RWKVFLOW_ZIG_CACHE") or str(tmp_path_factory.mktemp("zig-cache"))


@pytest.fixture
def build(tmp_path: Path, zig_cache: str) -> Build:
    """Run the task as a sandbox does: in/, out/ and a request in a working directory of its own."""

    def run(
        project: str | Path, params: dict[str, Any], where: str = "work", env: dict[str, str] | None = None
    ) -> Built:
        needs(params.get("toolchain", "zig"))
        folder = tmp_path / where
        (folder / "in").mkdir(parents=True)
        (folder / "out").mkdir()
        source = PROJECTS / project
        shutil.copytree(source, folder / "in" / "source", ignore=shutil.ignore_patterns("__pycache__"))
        request = {
            "task": "build-engine",
            "params": params,
            "jobs": [{"id": "engine/test", "params": {}, "outputs": {"engine": "out/engine"}}],
        }
        (folder / "in" / "request.json").write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", "rwkvflow.worker", "in/request.json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RWKVFLOW_ZIG_CACHE": zig_cache, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        built = Built(done.returncode, done.stdout, done.stderr, folder / "out" / "engine")
        left = sorted(path.name for path in (folder / "out").iterdir())
        assert left == (["engine"] if done.returncode == 0 else []), done.stdout + done.stderr
        return built

    return run


def fine(built: Built) -> Built:
    assert built.code == 0, built.stdout + built.stderr
    return built


def message(built: Built) -> str:
    assert built.code == 1, built.stdout + built.stderr
    assert "Traceback" not in built.stderr
    return built.stderr


def machine_paths(tmp_path: Path, zig_cache: str) -> list[str]:
    return [str(tmp_path), str(ROOT), str(zig_cache), str(Path(sys.prefix).resolve()), platform.release()]


@pytest.mark.parametrize("toolchain", ["zig", "system"])
def test_native_flags_and_paths_are_gone(build: Build, tmp_path: Path, zig_cache: str, toolchain: str) -> None:
    built = fine(build("native", {**NATIVE, "toolchain": toolchain}))
    data = built.library.read_bytes()
    assert elf.strings_with(data, machine_paths(tmp_path, zig_cache)) == []
    if elf.is_elf(data):
        assert elf.is_stripped(data)
        assert ".note.gnu.build-id" not in elf.section_names(data)
    library = ctypes.CDLL(str(built.library))
    library.native_paths.restype = ctypes.c_char_p
    paths = [library.native_paths(which).decode() for which in range(5)]
    assert paths == [
        "/rwkvflow/source/native.c",
        "/rwkvflow/build",
        "/rwkvflow/source:/rwkvflow/build",
        "/rwkvflow/source/data",
        "/rwkvflow/source/helper.c",
    ]
    assert library.native_beyond_baseline() == 0
    assert library.native_width() == 64
    # The compile commands as they were built, not as CMake wrote them.
    added = [line for line in built.diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    removed = [line for line in built.diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert any("-march=native" in line for line in removed)
    assert not any("=native" in line or " -g " in line or "-rpath" in line for line in added)
    assert {"native-baseline", "native-tuning", "debug-info", "path-in-definition", "rpath"} <= set(built.matches)
    for text in (built.diff, (built.engine / "build.json").read_text()):
        assert not [path for path in machine_paths(tmp_path, zig_cache) if path in text]


def test_the_diff_is_golden(build: Build) -> None:
    needs("zig")
    target = "x86_64-linux-gnu.2.17"
    built = fine(build("native", {**NATIVE, "target": target}))
    expected = GOLDEN / "native-project.diff"
    changes = "".join(line + "\n" for line in built.diff.splitlines() if line[:1] in "+-")
    if os.environ.get("RWKVFLOW_UPDATE_GOLDEN"):
        expected.write_text(changes)
    assert changes == expected.read_text()
    assert built.facts["target"] == target
    assert built.facts["platform"] == "linux-x86_64"


@pytest.mark.parametrize("toolchain", ["zig", "system"])
def test_the_same_bytes_from_everywhere(build: Build, toolchain: str) -> None:
    params = {**NATIVE, "toolchain": toolchain}
    one = fine(build("native", params, "here"))
    other = fine(
        build(
            "native",
            params,
            "some where/else, entirely (2)",
            {
                "CFLAGS": "-O0 -DX",
                "CXXFLAGS": "-O0",
                "LDFLAGS": "-Wl,-x",
                "TZ": "Asia/Tokyo",
                "LANG": "de_DE.UTF-8",
                "HOME": "/",
            },
        )
    )
    assert hashing.tree_digest(one.engine) == hashing.tree_digest(other.engine)
    (output,) = [m["output"] for line in one.stdout.splitlines() if (m := parse(line)) and "output" in m]
    assert output["job"] == "engine/test"
    assert "sha256:" + output["sha256"] == hashing.tree_digest(one.engine)


def test_make_is_used_where_there_is_no_ninja(build: Build, tmp_path: Path) -> None:
    needs("system")
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cc", "c++", "cmake", "make", "sh", "as", "ld", "ar", "ranlib", "uname", "strip", "touch"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    ninja = fine(build("native", {**NATIVE, "toolchain": "system"}, "ninja"))
    make = fine(build("native", {**NATIVE, "toolchain": "system"}, "make", {"PATH": str(tools)}))
    assert "flags.make" in make.diff
    assert make.matches["file-prefix-make"] == 2
    assert hashing.file_digest(make.library) == hashing.file_digest(ninja.library)
    # Neither generator writes its files again, although their inputs are newer.
    change = {"name": "greeting", "files": ["**/flags.make"], "pattern": "before", "replace": "after", "expect": "1"}
    params = {"library": "**/libstubborn.*", "toolchain": "system", "patches": [change]}
    stubborn = fine(build("stubborn", params, "stubborn", {"PATH": str(tools)}))
    assert b"after" in stubborn.library.read_bytes()


@pytest.mark.parametrize("toolchain", ["zig", "system"])
def test_cmake_does_not_undo_the_patches(build: Build, toolchain: str) -> None:
    change = {"name": "greeting", "files": ["build.ninja"], "pattern": "before", "replace": "after", "expect": "1"}
    if toolchain == "system" and not shutil.which("ninja"):
        pytest.skip("no ninja on this machine")
    built = fine(build("stubborn", {"library": "**/libstubborn.*", "toolchain": toolchain, "patches": [change]}))
    data = built.library.read_bytes()
    assert b"after" in data
    assert b"before" not in data
    assert built.matches["greeting"] == 1


def test_a_build_that_undoes_a_patch_is_told(build: Build) -> None:
    change = {"name": "bye", "files": ["greeting.h"], "pattern": "before", "replace": "after"}
    params = {"library": "**/libstubborn.*", "patches": [change], "cmake": {"STUBBORN_REGENERATES": True}}
    assert re.search(r"greeting\.h was written again during the build", message(build("stubborn", params)))


@pytest.mark.parametrize("toolchain", ["zig", "system"])
def test_a_wrong_processor_is_put_right(build: Build, toolchain: str) -> None:
    wrong = {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "armv7l"}
    if not sys.platform.startswith("linux"):
        pytest.skip("pretends to be another Linux machine")
    built = fine(build("native", {**NATIVE, "toolchain": toolchain, "cmake": wrong}))
    assert built.matches["processor-name"] == 2
    assert ctypes.CDLL(str(built.library)).native_width() == 64
    plain = fine(build("native", {**NATIVE, "toolchain": toolchain}, "plain"))
    assert hashing.file_digest(built.library) == hashing.file_digest(plain.library)


@on_linux
def test_another_target(build: Build) -> None:
    built = fine(build("native", {**NATIVE, "target": "aarch64-linux-gnu.2.17"}))
    data = built.library.read_bytes()
    assert int.from_bytes(data[18:20], "little") == 183  # EM_AARCH64
    assert "-mcpu=generic" in built.diff
    assert built.facts["platform"] == "linux-aarch64"


def test_what_a_recipe_expects_is_checked(build: Build) -> None:
    change = {"name": "mine", "files": ["**/*.ninja"], "pattern": "-march=sparc", "replace": ""}
    text = message(build("native", {**NATIVE, "patches": [change]}))
    assert "patch rule 'mine': 0 matches, expected 1+" in text
    assert "nearest lines:\n    build.ninja:" in text


def test_a_failed_configuration_shows_cmakes_words(build: Build) -> None:
    text = message(build("broken", {"library": "**/libbroken.*"}))
    assert "BROKEN_BACKEND must name a backend" in text
    assert "this line is not the reason" not in text


def test_a_failed_compilation_shows_the_compilers_words(build: Build, tmp_path: Path) -> None:
    text = message(build("broken", {"library": "**/libbroken.*", "cmake": {"BROKEN_BACKEND": "cpu"}}))
    assert "@SOURCE@/broken.c:1:" in text
    assert "undeclared" in text
    assert str(tmp_path) not in text


def test_a_missing_library_says_what_to_do(build: Build) -> None:
    text = message(build("lacking", {"library": "**/liblacking.*"}))
    assert "NoSuchBlas" in text
    assert "toolchain: system" in text


def test_a_library_that_nothing_matches(build: Build) -> None:
    assert "the build made:\n    libnative." in message(build("native", {}))


@on_linux
@pytest.mark.parametrize("toolchain", ["zig", "system"])
def test_a_program_that_runs_during_the_build(build: Build, toolchain: str) -> None:
    params: dict[str, Any] = {"library": "**/libinner.*", "toolchain": toolchain, "cmake": {"TWO_RUNS": True}}
    text = message(build("two", params, "without"))
    assert "engine.cmake: {CMAKE_SKIP_RPATH: false, CMAKE_BUILD_RPATH_USE_ORIGIN: true}" in text
    params["cmake"] |= {"CMAKE_SKIP_RPATH": False, "CMAKE_BUILD_RPATH_USE_ORIGIN": True}
    fine(build("two", params, "with"))


@on_linux
def test_a_library_that_would_leave_another_behind(build: Build) -> None:
    assert "needs libinner.so, which this build made as well" in message(build("two", {"library": "**/libouter.*"}))


def test_a_path_that_is_baked_in_while_building(build: Build, tmp_path: Path) -> None:
    text = message(build("two", {"library": "**/libinner.*", "cmake": {"TWO_LEAKS": True}}))
    assert "holds paths of this machine" in text
    assert "@BUILD@/data" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"target": "sparc9-linux-gnu"}, "unknown architecture: 'sparc9'"),
        ({"target": "x86_64-beos"}, "unknown system 'beos'"),
        ({"target": "--help"}, "no zig target triple"),
        ({"toolchain": "system", "target": "wasm32-wasi"}, "builds for its own machine only"),
        ({"cmake": {"A B": "1"}}, "no name of a CMake variable"),
        ({"cmake": {"CMAKE_TOOLCHAIN_FILE": "x"}}, "is set by rwkvflow"),
        ({"folder": "../.."}, "leads out of the source"),
        ({"patches": [{"name": "a", "files": ["x"], "pattern": "x", "replace": ""}] * 2}, "two rules are called a"),
    ],
)
def test_bad_parameters(build: Build, params: dict[str, Any], expected: str) -> None:
    assert expected in message(build("native", {**NATIVE, **params}))


def test_a_missing_toolchain_says_what_to_install(build: Build, tmp_path: Path) -> None:
    text = message(build("native", NATIVE, env={"RWKVFLOW_TOOLCHAIN": str(tmp_path / "none")}))
    assert "lacks ziglang" in text
    assert "pip install ziglang cmake ninja" in text
    text = message(build("native", {"toolchain": "system"}, "other", env={"PATH": str(tmp_path / "none")}))
    assert "needs a C compiler" in text
    assert "apt-get install build-essential" in text


def test_read_only_sources_are_built(build: Build, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(PROJECTS / "native", source)
    for path in (*source.iterdir(), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        fine(build(source, NATIVE))
    finally:
        source.chmod(0o755)
        (tmp_path / "work" / "in" / "source").chmod(0o755)


def test_the_images_engine_is_reused(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("zig")
    built = fine(build("native", NATIVE))
    kept, prebuilt = tmp_path / "kept", tmp_path / "prebuilt"
    shutil.copytree(built.engine, kept)
    shutil.copytree(built.engine, prebuilt)
    monkeypatch.setattr(build_engine, "PREBUILT", prebuilt)
    monkeypatch.chdir(tmp_path / "work")

    class Built2(Exception):
        pass

    def refuse(*arguments: object) -> None:
        raise Built2

    monkeypatch.setattr(build_engine, "BuildRun", refuse)

    def run(params: dict[str, Any]) -> None:
        shutil.rmtree("out/engine", ignore_errors=True)
        jobs = [{"id": "x", "params": {}, "outputs": {"engine": "out/engine"}}]
        build_engine.run({"task": "build-engine", "params": params, "jobs": jobs})

    run(NATIVE)
    assert hashing.tree_digest(Path("out/engine")) == hashing.tree_digest(prebuilt)
    with pytest.raises(Built2):
        run({**NATIVE, "cmake": {"OTHER": "1"}})
    assert "made from another source or other options" in capsys.readouterr().out
    Path("in/source/native.c").write_text("int changed;")
    with pytest.raises(Built2):
        run(NATIVE)
    shutil.copyfile(PROJECTS / "native" / "native.c", "in/source/native.c")
    (prebuilt / "lib" / LIBRARY).write_bytes(b"damaged")
    with pytest.raises(Built2):
        run(NATIVE)
    assert "is damaged" in capsys.readouterr().out
    (prebuilt / "build.json").write_text("{")
    with pytest.raises(Built2):
        run(NATIVE)
    # An image with several engines keeps each in a folder of its own; the name is not what counts.
    shutil.rmtree(prebuilt)
    shutil.copytree(kept, prebuilt / "custom")
    run({**NATIVE, "name": "other"})
    assert hashing.tree_digest(Path("out/engine")) == hashing.tree_digest(kept)


def test_progress_is_told(build: Build) -> None:
    built = fine(build("native", NATIVE))
    labels = [m["progress"]["label"] for line in built.stdout.splitlines() if (m := parse(line)) and "progress" in m]
    assert list(dict.fromkeys(labels)) == ["configure", "patch", "build", "strip", "collect", "done"]
