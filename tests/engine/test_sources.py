"""The engine's sources keep their order: headers stand alone, and rooms use only those below them.

A header (.h) can be included by itself, once, anywhere. Text that needs something defined before it is .inc, and stands
where it is included.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.engine.encoder import ENGINE, any_compiler, compilers

SRC = ENGINE / "src"
# Lowest first: a room includes itself and those above it in this list. The instruction sets' rooms are for nobody else.
ROOMS = (
    *("base", "quantize", "tokenizer", "kernels/common", "kernels/x86", "kernels/arm", "sampling"),
    *("model", "eval", "api"),
)
LEAVES = ("kernels/x86", "kernels/arm")
HEADERS = sorted(path.relative_to(ENGINE).as_posix() for path in ENGINE.rglob("*.h"))
INCLUDE = re.compile(r'^#(?:include|define RWKV_QUANTIZED_KERNELS) "([^"]+)"', re.MULTILINE)


def sources() -> dict[str, list[str]]:
    """What each file below src/ includes of the others, both relative to src/."""
    files = (path for path in SRC.rglob("*") if path.suffix in (".cc", ".h", ".inc"))
    known = {path.relative_to(SRC).as_posix(): INCLUDE.findall(path.read_text(encoding="utf-8")) for path in files}
    public = {path.name for path in (ENGINE / "include").iterdir()}
    for name, wanted in known.items():
        unknown = [each for each in wanted if each not in known and each not in public]
        assert not unknown, f"{name} includes {unknown}: write the path relative to src/"
    return {name: [each for each in wanted if each in known] for name, wanted in known.items()}


def room(name: str) -> str:
    return name.rpartition("/")[0]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_stands_alone(header: str, tmp_path: Path) -> None:
    if "/x86/" in header and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("of another processor")
    flags = ["-mavx2", "-mfma", "-mf16c"] if "/x86/" in header else []
    flags += ["-std=gnu++20", "-nostdinc++", "-fno-exceptions", "-Wno-psabi", f"-I{ENGINE / 'include'}", f"-I{SRC}"]
    source = tmp_path / "twice.cc"
    source.write_text(f'#include "{ENGINE / header}"\n#include "{ENGINE / header}"\n')
    # zig wants something to come of it.
    what = [source, "-c", "-o", tmp_path / "twice.o"]
    done = subprocess.run(
        [*compilers()[any_compiler()], *flags, *map(str, what)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_file_includes_itself_through_others() -> None:
    try:
        TopologicalSorter(sources()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of includes: {' <- '.join(error.args[1])}")


def test_rooms_use_only_those_below_them() -> None:
    found = sources()
    assert {room(name) for name in found} == set(ROOMS)
    wrong = [
        f"{name} includes {each}"
        for name, wanted in found.items()
        for each in wanted
        if ROOMS.index(room(each)) > ROOMS.index(room(name)) or (room(each) in LEAVES and room(each) != room(name))
    ]
    assert not wrong


def test_only_headers_are_included_once() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in SRC.rglob("*") if path.suffix in (".h", ".inc")}
    assert not [path.name for path in text if ("#pragma once" in text[path]) != (path.suffix == ".h")]


def test_every_file_is_compiled() -> None:
    lists = (ENGINE / "CMakeLists.txt").read_text(encoding="utf-8")
    named = {path.replace("${x86}", "src/kernels/x86").replace("${arm}", "src/kernels/arm") for path in lists.split()}
    named = {path.rstrip(")") for path in named}
    assert not [name for name in sources() if name.endswith(".cc") and f"src/{name}" not in named]


def test_the_documents_name_every_set_of_kernels() -> None:
    """kernels/common/sets.h is the one list; the table in docs/concepts/engine.md says what each of them is for."""
    listed = re.findall(
        r"^    X\((\w+), \w+, ", (SRC / "kernels/common/sets.h").read_text(encoding="utf-8"), re.MULTILINE
    )
    page = (ENGINE.parents[1] / "docs/concepts/engine.md").read_text(encoding="utf-8")
    section = page.split("\n## Kernels\n")[1].split("\n## ")[0]
    described = re.findall(r"^\| `(\w+)` \| ", section, re.MULTILINE)
    assert len(listed) > 5
    assert sorted(described) == sorted(listed)


@pytest.mark.skipif(find_spec("clang_format") is None, reason="the package clang-format is not here")
def test_all_files_have_one_style() -> None:
    root = ENGINE.parents[1]
    mine = [*ENGINE.rglob("*"), *(root / "tests/engine").glob("*"), *(root / "tests/engine/fuzz").glob("*")]
    mine += [*(root / "scripts").glob("*"), *(root / "images/llama.cpp").glob("*")]
    files = sorted(path for path in mine if path.suffix in (".cc", ".c", ".h", ".inc"))
    assert len(files) > 70
    program = "from clang_format import clang_format; clang_format()"
    command = [sys.executable, "-c", program, f"--style=file:{root / '.clang-format'}", "--dry-run", "-Werror"]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
