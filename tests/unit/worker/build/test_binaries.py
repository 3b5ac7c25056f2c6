"""Choosing the library of a build, and reading what a binary shows of itself."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.worker.build import binaries, elf
from rwkvflow.worker.build.messages import cmake_errors, failure
from rwkvflow.worker.errors import WorkerError

BUILT = ["CMakeCache.txt", "CMakeFiles/3.25/CompilerIdC/librwkv.so", "bin/librwkv.so.1.2", "libggml.so", "librwkv.a"]


def test_the_library_is_the_one_shared_match() -> None:
    assert binaries.choose_library(BUILT, "**/librwkv.*") == "bin/librwkv.so.1.2"


@pytest.mark.parametrize(
    ("names", "glob", "message"),
    [
        (BUILT, "**/lib*.so*", r"matches several libraries:\n    bin/librwkv\.so\.1\.2\n    libggml\.so\n"),
        (
            BUILT,
            "**/libnone.*",
            r"no shared library matches .* the build made:\n    bin/librwkv\.so\.1\.2\n    libggml",
        ),
        (["librwkv.a"], "**/librwkv.*", r"the build made: none, only static ones: librwkv\.a\n.*BUILD_SHARED_LIBS"),
    ],
)
def test_no_or_several_libraries_are_listed(names: list[str], glob: str, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        binaries.choose_library(names, glob)


def test_the_tool_is_executable_and_alone() -> None:
    assert binaries.choose_tool(["bin/rwkv", "rwkv.dir/x"], lambda name: True) == "bin/rwkv"
    assert binaries.choose_tool(["bin/rwkv"], lambda name: False) is None
    assert binaries.choose_tool(["a/rwkv", "b/rwkv"], lambda name: True) is None


def test_a_path_in_a_binary_is_found_and_shown_hidden(tmp_path: Path) -> None:
    library = tmp_path / "librwkv.so"
    library.write_bytes(b"\0\1x/secret/build/source/a.c\0")
    with pytest.raises(WorkerError, match=r"holds paths of this machine.*:\n    x@ROOT@/source/a\.c\n") as caught:
        binaries.check({"lib/librwkv.so": library}, [], {"/secret/build": "@ROOT@"})
    assert "/secret" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file of this machine")
def test_this_interpreters_libraries_are_read() -> None:
    data = Path(sys.executable).resolve().read_bytes()
    assert elf.is_elf(data)
    assert ".dynsym" in elf.section_names(data)
    assert any(name.startswith("libc.so") for name in elf.needed(data))


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1), st.booleans())
def test_damaged_elf_files_are_refused(noise: bytes, table: int, count: int, wide: bool) -> None:
    head = b"\x7fELF" + bytes([2 if wide else 1, 1]) + bytes(26)
    if wide:
        head += bytes(8) + struct.pack("<QIHHHHHH", table, 0, 64, 0, 0, 64, count, 0)
    else:
        head += struct.pack("<IIHHHHHH", table % 2**32, 0, 52, 0, 0, 40, count, 0)
    for read in (elf.section_names, elf.needed, elf.is_stripped):
        try:
            read(head + noise)
        except WorkerError as error:
            assert "damaged" in str(error)  # noqa: PT017 - any other error fails the test


def test_cmakes_own_words() -> None:
    lines = [
        "-- Looking for x",
        "CMake Error at CMakeLists.txt:3 (find_package):",
        '  By not providing "FindX.cmake"',
        "",
        "  second paragraph",
        "",
        "-- Configuring incomplete, errors occurred!",
    ]
    assert cmake_errors(lines) == [lines[1], lines[2], lines[4]]
    message = failure("configure", [*lines, "CMake Error: Could not find X"], 1, "zig")
    assert "toolchain: system" in message
    assert "Looking for" not in message


def test_a_silent_failure_shows_the_last_lines() -> None:
    assert "last words" in failure("build", ["first", "last words"], 137, "zig")
