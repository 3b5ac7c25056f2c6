"""What zig compiles of its own before it links is compiled once, and no more of it than is needed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from rwkvflow.base.shipped import shipped
from rwkvflow.worker.build import toolchain

ziglang = pytest.importorskip("ziglang")
pytest.importorskip("cmake")
pytest.importorskip("ninja")

PROJECT = """\
cmake_minimum_required(VERSION 3.21)
project(small C)
include(CheckFunctionExists)
check_function_exists(strtol HAS_STRTOL)
if(NOT HAS_STRTOL)
  message(FATAL_ERROR "zig links nothing")
endif()
add_library(small SHARED small.c)
"""


def test_what_cmake_tries_out_is_linked_with_the_runtime_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(toolchain.CACHE_VARIABLE, str(tmp_path / "cache"))
    tools = toolchain.prepare("zig", None, tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(PROJECT)
    (source / "small.c").write_text("int small(void) { return 1; }\n")
    settings = ("-DCMAKE_BUILD_TYPE=Release", "-S", str(source), "-B", str(tmp_path / "build"))
    for command in ((*tools.arguments, *settings), ("--build", str(tmp_path / "build"))):
        done = subprocess.run([tools.cmake, *command], env=dict(tools.env), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    made = sorted(path.name for path in (tmp_path / "cache").rglob("lib*_rt.a"))
    assert made == ["libcompiler_rt.a"]  # another for debugging, and its checks of undefined behaviour: seconds more


def test_llama_cpps_part_of_the_standard_library_is_in_the_pinned_zig() -> None:
    text = (shipped("images/llama.cpp") / "CMakeLists.txt").read_text()
    folder = Path(ziglang.__file__).parent / "lib"
    units = re.findall(r"rwkvflow_standard\((\S+) \"\$\{\w+\}\" (libcxx|libcxxabi) ([^)$]+)\)", text)
    wanted = [folder / library / "src" / f"{name}.cpp" for _, library, names in units for name in names.split()]
    assert len(wanted) > 50
    assert [path for path in wanted if not path.is_file()] == []
