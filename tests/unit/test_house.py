"""The house itself: the lock of the development environment, the hooks, the files that editors and git read."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")


def test_the_lock_has_every_dependency_at_a_version_that_fits() -> None:
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", LOCK, re.MULTILINE))
    wanted = [
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == PROJECT["name"]:
            continue  # an extra that names another
        assert name in pinned, f"{name} is not in requirements-dev.txt: make lock"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, but {pinned[name]} is pinned: make lock"


def test_the_lock_has_hashes_and_no_address() -> None:
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in LOCK


def test_the_hooks_need_no_repository_elsewhere_and_their_tools_are_dependencies() -> None:
    document = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in document["repos"]] == ["local"]
    hooks = document["repos"][0]["hooks"]
    tools = {Path(hook["entry"].split()[0]).name for hook in hooks} - {"python"}
    names = {Requirement(text).name for text in PROJECT["optional-dependencies"]["dev"]}
    assert {tool if tool in names else f"{tool}-py" for tool in tools} <= names
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "rwkvflow" / "py.typed").is_file()


#: Classes that share a name on purpose, with the reason.
SHARED_NAMES = {
    "Card": "the schema of a recipe has its section's name; formats from outside import the other",
    "Model": "the schema of a recipe has its entry's name; programs import the other from rwkvflow.api",
}


def test_a_class_has_a_name_of_its_own() -> None:
    """Whoever searches for a name finds one thing."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "rwkvflow").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert twice.keys() == SHARED_NAMES.keys(), {n: twice[n] for n in twice.keys() - SHARED_NAMES.keys()}


def test_types_are_checked_everywhere() -> None:
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert mypy["strict"]
    assert set(mypy["files"]) == {"rwkvflow", "scripts", "tests"}
    assert {path.parent.name for path in ROOT.glob("*/*.py")} <= {*mypy["files"], "images"}
    assert len(mypy["exclude"]) == 2, "what is PyTorch throughout, and what was made by another version"


#: What takes the name of a format apart: a family's name cut off, or the name split at its dash.
APART = re.compile(
    r"""\b(?:startswith|endswith|removeprefix|removesuffix)\(\(?["'](?:ggml|gguf|onnx|chatrwkv|ncnn|transformers"""
    r"""|safetensors|web-rwkv|faster-rwkv)\b|\b\w*(?:format|family)[\w.]*\.(?:r?partition|r?split)\("""
)


def test_only_a_formats_folder_takes_a_formats_name_apart() -> None:
    wrong = []
    for path in sorted((ROOT / "rwkvflow").rglob("*.py")):
        if "formats" in path.relative_to(ROOT).parts[:-1]:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        wrong += [f"{path.name}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if APART.search(line)]
    assert not wrong, "\n".join(wrong)
    assert APART.search('if format.startswith("gguf-"):')
    assert APART.search('family, _, kind = row.format.partition("-")')


def test_nothing_reads_our_own_output_with_sed() -> None:
    """Commands print what scripts want alone, as `engine build --print-path` does."""
    paths = [
        ROOT / "Makefile",
        *(ROOT / ".ci").iterdir(),
        *(ROOT / "rwkvflow").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    paths += [*(ROOT / "rwkvflow").rglob("*.j2"), ROOT / "README.md"]
    found = [path for path in paths if re.search(r"(?m)(?:^|[\s|;`'\"(])sed [-\"'s]", path.read_text(encoding="utf-8"))]
    assert found == []


def test_no_test_changes_the_clock_of_the_whole_process() -> None:
    """Servers that run beside it would wait as long as that clock says. A module's own `time` is replaced instead."""
    pattern = re.compile(r"""\.time\.(monotonic|perf_counter)["']|setattr\(time, ["'](monotonic|perf_counter|sleep)""")
    assert pattern.search('setattr("rwkvflow.display.live.time.monotonic", x)')
    wrong = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "setattr(" in line and pattern.search(line) and path != Path(__file__)
    ]
    assert wrong == []
