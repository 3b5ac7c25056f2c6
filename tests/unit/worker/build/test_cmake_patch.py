"""The patch rules' engine and the shipped rules, on texts alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.documents.recipe import PatchRule
from rwkvflow.worker.build import cmake_patch
from rwkvflow.worker.build.cmake_patch import CMakeRule, Report, Situation
from rwkvflow.worker.build.patch_rules import BASELINES, shipped_rules, with_recipe
from rwkvflow.worker.errors import WorkerError

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "cmake_patch"
ROOT = "/home/me/b"
PLACES = {"@SOURCE@": [f"{ROOT}/source"], "@BUILD@": [f"{ROOT}/build"], "@ROOT@": [ROOT]}
REDACT = {paths[0]: name for name, paths in PLACES.items()}
HERE = Situation("linux-x86_64", "linux-x86_64", "3.25.1", PLACES)


def rule(**changes: Any) -> CMakeRule:
    base = {"name": "r", "files": ["build.ninja"], "pattern": "-march=native", "replace": "-march=x86-64-v2"}
    return CMakeRule.from_json(base | changes)


def checked(rules: list[CMakeRule], files: Mapping[str, str], situation: Situation = HERE) -> dict[str, str]:
    texts, reports = cmake_patch.apply(rules, files, situation)
    cmake_patch.check(reports, files, sorted(files))
    return texts


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("build.ninja", "build.ninja", True),
        ("build.ninja", "sub/build.ninja", False),
        ("build.ninja", "buildxninja", False),
        ("**/flags.make", "flags.make", True),
        ("**/flags.make", "CMakeFiles/a.dir/flags.make", True),
        ("**/flags.make", "xflags.make", False),
        ("*.txt", "CMakeCache.txt", True),
        ("*.txt", "a/link.txt", False),
        ("CMakeFiles/*/CMakeSystem.cmake", "CMakeFiles/3.25.1/CMakeSystem.cmake", True),
        ("CMakeFiles/*/CMakeSystem.cmake", "CMakeFiles/a/b/CMakeSystem.cmake", False),
        ("CMakeFiles/**", "CMakeFiles/a/b", True),
        ("a[0-9].h", "a7.h", True),
        ("a[!0-9].h", "a7.h", False),
        ("**/lib?.so", "x/y/liba.so", True),
        ("a+(b).h", "a+(b).h", True),
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert cmake_patch.glob_matches(glob, path) is matches


@pytest.mark.parametrize(
    ("version", "specifier", "holds"),
    [
        ("3.25.1", ">=3.25", True),
        ("3.25.1", ">=3.25,<4", True),
        ("4.4.4", ">=3.25,<4", False),
        ("3.25", "==3.25.0", True),
        ("3.25.1", "==3.25.*", True),
        ("3.26.0", "==3.25.*", False),
        ("3.30.0", ">3.4", True),
        ("3.25.1", "!=3.25.1", False),
        ("3.27.0", "~=3.25", True),
        ("4.0.0", "~=3.25", False),
        ("4.1.0-rc1", "<=4.1", True),
        ("3.25.1", "", True),
    ],
)
def test_cmake_versions(version: str, specifier: str, holds: bool) -> None:
    assert cmake_patch.version_matches(version, specifier) is holds


def test_a_bad_version_specifier_names_the_rule() -> None:
    with pytest.raises(WorkerError, match=r"'r'.*'3\.x' is no version specifier"):
        checked([rule(when={"cmake": "3.x"})], {"build.ninja": "-march=native"})


def test_a_rule_in_a_request_is_the_recipes() -> None:
    document = PatchRule(name="n", files=("a", "b"), pattern="x", replace="y", expect="3", when={"host": "linux-*"})
    assert CMakeRule.from_json(document.model_dump(mode="json")) == CMakeRule(
        "n", ("a", "b"), "x", "y", "3", {"host": "linux-*"}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expect": "some"}, "expect must be"),
        ({"files": ["/etc/passwd"]}, "only files below the build folder"),
        ({"files": ["a/../../x"]}, "only files below the build folder"),
        ({"when": {"moon": "full"}}, "not moon"),
        ({"flags": "i"}, "unknown keys flags"),
    ],
)
def test_bad_rules_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerError, match=message) as caught:
        rule(**changes)
    assert "'r'" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "(["}, r"'r': pattern: unterminated"),
        ({"replace": r"\3"}, r"'r': replace: invalid group reference 3"),
        ({"replace": r"\g<none>"}, r"'r': replace: .*none"),
    ],
)
def test_bad_expressions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        checked([rule(**changes)], {"build.ninja": "-march=native"})


def test_rules_apply_in_order_to_their_files_only() -> None:
    files = {"build.ninja": "-march=native -march=native\n", "other": "-march=native"}
    rules = [rule(expect="2"), rule(name="second", pattern="x86-64-(v2)", replace=r"Y\1", expect="2")]
    texts, reports = cmake_patch.apply(rules, files, HERE)
    assert texts == {"build.ninja": "-march=Yv2 -march=Yv2\n", "other": "-march=native"}
    assert [report.total for report in reports] == [2, 2]
    assert files["build.ninja"] == "-march=native -march=native\n"


def test_lines_are_what_anchors_mean_and_bytes_survive() -> None:
    files = {"build.ninja": "a=1\r\nb=2\r\n\udcff"}
    assert checked([rule(pattern=r"^b=\d", replace="b=3")], files) == {"build.ninja": "a=1\r\nb=3\r\n\udcff"}


def test_conditions() -> None:
    files = {"build.ninja": "-march=native"}
    for when, applied in [
        ({"host": "linux-*"}, True),
        ({"host": "macos-*"}, False),
        ({"target": "*-x86_64", "cmake": ">=3.20"}, True),
        ({"target": "*-x86_64", "cmake": ">=4"}, False),
    ]:
        _, (report,) = cmake_patch.apply([rule(when=when)], files, HERE)
        assert (report.applied, report.total) == (applied, int(applied)), when
    # A rule that does not apply expects nothing.
    checked([rule(pattern="absent", when={"host": "macos-*"})], files)


def test_no_match_is_an_error_that_helps() -> None:
    files = {
        "build.ninja": "rule x\n  FLAGS = -O3 -march=haswell -mtune=haswell\n  FLAGS = -O2\n",
        "CMakeFiles/rules.ninja": "# nothing\n",
    }
    with pytest.raises(WorkerError) as caught:
        checked(
            [rule(name="baseline", files=["**/*.ninja"]), rule(name="silent", pattern="absent", expect="any")], files
        )
    assert str(caught.value) + "\n" == (GOLDEN / "no-match.txt").read_text()


def test_no_file_is_an_error_that_knows_the_nearest() -> None:
    with pytest.raises(
        WorkerError, match=r"no file below the build folder matches build\.nijna\n  there are: build\.ninja"
    ):
        checked([rule(files=["build.nijna"])], {"build.ninja": "-march=native"})


@pytest.mark.parametrize(("expect", "fine"), [("3", False), ("2", True), ("2+", True), ("3+", False), ("any", True)])
def test_expectations(expect: str, fine: bool) -> None:
    files = {"build.ninja": "-march=native", "sub/build.ninja": "-march=native"}
    one = rule(files=["**/build.ninja"], expect=expect)
    if fine:
        checked([one], files)
        return
    with pytest.raises(WorkerError, match=r"2 matches, expected") as caught:
        checked([one], files)
    assert "build.ninja (1), sub/build.ninja (1)" in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(WorkerError) as caught:
        checked([rule(name="one", pattern="absent1"), rule(name="two", pattern="absent2")], {"build.ninja": "x"})
    assert "'one'" in str(caught.value)
    assert "'two'" in str(caught.value)


def test_a_pattern_that_never_ends_is_stopped_and_named() -> None:
    slow = rule(name="slow", pattern="(a+)+$")
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"'slow': its pattern did not finish in build\.ninja within 0\.2 s"):
        cmake_patch.apply([slow], {"build.ninja": "a" * 60 + "b"}, HERE, seconds=0.2)
    assert time.monotonic() - start < 5


def test_placeholders_are_literal_paths() -> None:
    situation = Situation(
        "linux-x86_64", "linux-x86_64", "4.0", {"@SOURCE@": ["/a+b/(c)", "/real"], "@BUILD@": ["/x\\y"]}
    )
    texts = checked(
        [rule(files=["*"], pattern="@SOURCE@/data", replace=r"@BUILD@/data")],
        {"a": "/a+b/(c)/data", "b": "/real/data", "c": "/aab/c/data"},
        situation,
    )
    assert texts == {"a": "/x\\y/data", "b": "/x\\y/data", "c": "/aab/c/data"}


def test_reports_of_two_passes_are_one() -> None:
    one = rule(expect="2", files=["*"])
    _, first = cmake_patch.apply([one], {"a": "-march=native"}, HERE)
    _, second = cmake_patch.apply([one], {"b": "-march=native"}, HERE)
    (report,) = cmake_patch.merge(first, second)
    assert report == Report(one, True, {"a": 1, "b": 1})
    cmake_patch.check([report], {}, [])


def test_a_recipes_rule_takes_the_place_of_a_shipped_one() -> None:
    mine = rule(name="native-baseline")
    rules = with_recipe(shipped_rules("linux-x86_64", "zig"), [mine])
    assert [r for r in rules if r.name == "native-baseline"] == [mine]
    assert rules[-1] is mine


def _golden_files() -> dict[str, str]:
    places = {
        "CMakeCache.txt": "CMakeCache.txt",
        "CMakeSystem.cmake": "CMakeFiles/3.25.1/CMakeSystem.cmake",
        "build.ninja": "build.ninja",
        "config.h": "include/config.h",
        "flags.make": "CMakeFiles/lib.dir/flags.make",
    }
    return {path: (GOLDEN / f"{name}.in").read_text() for name, path in places.items()}


@pytest.mark.parametrize(
    ("platform", "toolchain"),
    [("linux-x86_64", "zig"), ("linux-x86_64", "system"), ("linux-aarch64", "zig"), ("linux-aarch64", "system")],
)
def test_shipped_rules(platform: str, toolchain: str) -> None:
    files = _golden_files()
    situation = Situation("linux-x86_64", platform, "3.25.1", PLACES)
    rules = list(shipped_rules(platform, toolchain))
    texts = checked(rules, files, situation)
    diff = cmake_patch.unified_diff(files, texts, REDACT)
    expected = GOLDEN / f"{platform}-{toolchain}.diff"
    if os.environ.get("RWKVFLOW_UPDATE_GOLDEN"):
        expected.write_text(diff)
    assert diff == expected.read_text()
    assert ROOT not in diff
    # What is patched stays as it is.
    assert checked(rules, texts, situation) == texts


@pytest.mark.parametrize("platform", [*BASELINES, "wasi-wasm32", "linux-riscv64"])
@pytest.mark.parametrize("toolchain", ["zig", "system"])
def test_nothing_native_is_left_on_any_platform(platform: str, toolchain: str) -> None:
    line = "  FLAGS = -march=native -mtune=native -mcpu=native -mcpu=native+dotprod -O3\n"
    texts = checked(list(shipped_rules(platform, toolchain)), {"build.ninja": line})
    assert "native" not in texts["build.ninja"]
    assert texts["build.ninja"].rstrip().endswith("-O3")


HARMLESS = st.sampled_from(
    [
        "-O3",
        "-mavx2",
        "-mf16c",
        "-fPIC",
        "-DX=1",
        "-Iinclude",
        "-std=c11",
        "-Wno-native",
        "-march=haswell",
        "-gline-tables-only",
    ]
)
NATIVE = st.sampled_from(["-march=native", "-mtune=native", "-mcpu=native", "-g", "-ggdb3"])


@given(st.lists(st.one_of(HARMLESS, NATIVE), max_size=12), st.sampled_from(["zig", "system"]))
def test_other_flags_survive_in_their_order(flags: list[str], toolchain: str) -> None:
    prefix = f"-ffile-prefix-map={ROOT}=/rwkvflow"
    text = f"  FLAGS = {' '.join([prefix, *flags])}\n"
    rules = list(shipped_rules("linux-x86_64", toolchain))
    after = checked(rules, {"build.ninja": text})["build.ninja"].split()[2:]
    added = {"-mcpu=x86_64_v2", "-march=x86-64-v2"}
    native = {"-march=native", "-mtune=native", "-mcpu=native", "-g", "-ggdb3"}
    assert [flag for flag in after if flag not in added] == [prefix, *(flag for flag in flags if flag not in native)]


@given(st.dictionaries(st.sampled_from("abcd"), st.text("xy\n", max_size=20), min_size=1), st.randoms())
def test_the_diff_knows_no_order_of_files(files: dict[str, str], random: Any) -> None:
    after = {name: text.replace("x", "z") for name, text in files.items()}
    names = list(files)
    random.shuffle(names)
    shuffled = {name: files[name] for name in names}
    diff = cmake_patch.unified_diff(files, after, {})
    assert diff == cmake_patch.unified_diff(shuffled, after, {})
    assert (diff == "") == (files == after)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=4), st.lists(st.integers(0, 40), min_size=2, max_size=4))
def test_line_numbers_tell_nothing_of_what_is_not_shown(one: list[int], other: list[int]) -> None:
    """CMake writes more lines on one machine than on another, and the published patch is the same."""

    def diff(gaps: list[int]) -> str:
        between = ["\n".join(f"line {number}" for number in range(gap)) for gap in gaps]
        near = "\nx\ny\nz\n-march=native\n-- odd\n++ odd\nx\ny\nz\n"
        text = near.join(between)
        return cmake_patch.unified_diff({"f": text}, {"f": text.replace("-march=native", "-O3")}, {})

    count = min(len(one), len(other))
    gaps = [[20 + gap for gap in gaps[:count]] for gaps in (one, other)]
    assert diff(gaps[0]) == diff(gaps[1])
    assert diff(gaps[0]).count("\n@@ -") == count - 1


def test_the_diff_hides_the_longest_path_first() -> None:
    diff = cmake_patch.unified_diff({"a": f"{ROOT}/source/x {ROOT}\n"}, {"a": "y\n"}, REDACT)
    assert "-@SOURCE@/x @ROOT@\n+y\n" in diff
