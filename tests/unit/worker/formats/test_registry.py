"""The registry: our own formats and those of installed packages; and nobody takes a format's name apart."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvflow.worker import formats as registry
from rwkvflow.worker.formats import FORMATS, outside
from rwkvflow.worker.formats.cards import card_of
from tests.helpers import outside as package

PACKAGE = Path(registry.__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for packages; what was imported from it is forgotten again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    outside.packages.cache_clear()
    yield tmp_path
    outside.packages.cache_clear()
    for name in [name for name in sys.modules if name.startswith("rwkvflow_blob")]:
        del sys.modules[name]


def test_an_installed_package_adds_its_formats(site: Path) -> None:
    package.install(site)
    importlib.invalidate_caches()
    found = registry._collect()
    assert list(found)[: len(FORMATS)] == list(FORMATS), "our own come first, as ever"
    assert found["blob"].suffix == "-F16.blob"
    (added,) = found.packages
    assert (added.name, added.version, added.module, added.folder) == (
        "rwkvflow-blob",
        "1.2",
        "rwkvflow_blob",
        site / "rwkvflow_blob",
    )
    assert found.broken == {}
    assert card_of(found["blob"], "7") is not None


def test_what_is_written_into_a_sandbox_is_found_there(site: Path, tmp_path: Path) -> None:
    package.install(site / "elsewhere")
    described = outside.FormatPackage("rwkvflow-blob", "1.2", "blob", "rwkvflow_blob", site / "elsewhere/rwkvflow_blob")
    (site / "rwkvflow_blob").symlink_to(described.folder)
    info = site / described.info
    info.mkdir()
    for name, text in described.metadata().items():
        (info / name).write_text(text)
    importlib.invalidate_caches()
    (found,) = outside.packages()
    assert (found.name, found.version, found.entry, found.module) == ("rwkvflow-blob", "1.2", "blob", "rwkvflow_blob")


def test_an_entry_point_that_leads_nowhere_is_told(site: Path) -> None:
    package.install(site)
    (site / "rwkvflow_blob-1.2.dist-info" / "entry_points.txt").write_text("[rwkvflow.formats]\nblob = os.path\n")
    importlib.invalidate_caches()
    found = registry._collect()
    assert list(found) == list(FORMATS)
    assert "rwkvflow-blob" in found.broken["entry points"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_what_runs_it_and_what_its_card_says(name: str) -> None:
    item = FORMATS[name]
    assert item.family
    folder = Path(str(sys.modules[type(item).__module__].__file__)).parent
    for module in (item.runner, item.card):
        assert (folder / f"{module.rpartition('.')[2]}.py").is_file(), module
    card = card_of(item, "7")
    assert card is not None
    assert card.text


# ---- nobody takes a format's name apart ---------------------------------------------------------------------------

SPLITTING = {"startswith", "endswith", "removeprefix", "removesuffix", "partition", "rpartition", "split", "rsplit"}
#: What holds the name of a format in code outside of the formats' folders.
NAMES = {"format", "format_name"}


def names_taken_apart(source: str) -> list[int]:
    """Lines that call a method that splits text on something called `format`, or look for a format's beginning."""
    known = {item.family for item in FORMATS.values()} | {name.split("-")[0] for name in FORMATS}
    beginnings = {f"{family}-" for family in known}
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in SPLITTING:
            continue
        subject = node.func.value
        called = subject.attr if isinstance(subject, ast.Attribute) else getattr(subject, "id", "")
        texts = [leaf.value for arg in node.args for leaf in ast.walk(arg) if isinstance(leaf, ast.Constant)]
        if called in NAMES or beginnings & {text for text in texts if isinstance(text, str)}:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if (PACKAGE / "worker" / "formats") not in path.parents],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_no_code_outside_of_the_formats_takes_a_name_apart(path: Path) -> None:
    assert names_taken_apart(path.read_text(encoding="utf-8")) == []


def test_a_name_that_is_taken_apart_is_found() -> None:
    assert names_taken_apart('a = row.format.partition("-")[0]\n') == [1]
    assert names_taken_apart('x = 1\nif name.startswith("ggml-"):\n    pass\n') == [2]
    assert names_taken_apart('if name.startswith(("x", "web-")):\n    pass\n') == [1]
    assert names_taken_apart('text.format(a=1)\nname.split("-")\n') == []
