"""What README.md and docs/ say is true: recipes load, commands parse, links lead somewhere, tables are the code's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml

from rwkvflow.base.errors import DocumentError
from rwkvflow.cli import cli
from rwkvflow.documents.check.workflow import INPUTS
from rwkvflow.documents.load import load_workflow, recipe_from_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.store.store import Store
from scripts import docs_site, docs_tables, terminal_svg

ROOT = Path(__file__).resolve().parents[2]
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDERS = {"STEP", "RECIPE", "FILE", "SOURCE", "PATH"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is that of its first line of content."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").split("\n")
    start, language = 0, None
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if language is None:
            start, language = number + 1, line.removeprefix("```").strip()
        else:
            yield Block(named(page), start, language, "\n".join(lines[start - 1 : number - 1]) + "\n")
            language = None
    assert language is None, f"{named(page)}:{start}: the block is not closed"


def named(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


# ---- generated parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", docs_tables.FILES)
def test_what_is_made_from_the_code_is_up_to_date(name: str) -> None:
    there = (ROOT / name).read_text(encoding="utf-8")
    assert there == docs_tables.updated(name), "run: python scripts/docs_tables.py --write"


def test_every_command_and_option_is_on_the_page() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    for words, command in docs_tables.commands():
        if len(words) > 1:
            assert f"## {' '.join(words)}\n" in page
        for option in command.params:
            if isinstance(option, click.Option):
                assert f"`{option.opts[-1]}" in page or len(words) == 1, f"{' '.join(words)} {option.opts[-1]}"


def test_every_key_of_the_documents_is_on_its_page() -> None:
    for document, page in (
        ("recipe", "docs/reference/recipe.md"),
        ("workflow", "docs/reference/workflow.md"),
        ("lock", "docs/reference/lock.md"),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        for key in _keys(docs_tables.schema(document)):
            assert f"| `{key}` |" in text, f"{page} lacks {key}"


def _keys(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        properties = node.get("properties")
        if isinstance(properties, dict):
            yield from properties
        for value in node.values():
            yield from _keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keys(value)


def test_every_folder_of_the_store_is_explained(tmp_path: Path) -> None:
    Store(tmp_path)
    (block,) = [block for block in blocks("text") if block.page == "docs/concepts/store.md"]
    told = {line.split("/")[0] for line in block.text.splitlines()}
    assert {path.name for path in tmp_path.iterdir()} <= told


# ---- YAML ------------------------------------------------------------------------------------------------------------

WHOLE: Mapping[str, str] = {
    "name": "name: example",
    "models": "models: [{name: mine, source: mine.pth}]",
    "formats": "formats: [ggml-f16, ggml-q4_0, ggml-q5_1, ggml-q8_0, safetensors]",
}


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_document_or_a_part_of_one(block: Block, tmp_path: Path) -> None:
    keys = set(yaml.safe_load(block.text))
    try:
        if keys <= set(Workflow.model_fields):
            _workflow(block.text, tmp_path)
        else:
            assert keys <= {*Recipe.model_fields, "image"}, f"{block}: neither a recipe's keys nor a workflow's"
            _recipe(block.text, keys, tmp_path)
    except DocumentError as error:
        pytest.fail(f"{block}: {error}")


def _recipe(text: str, keys: set[str], folder: Path) -> None:
    (folder / "sample.txt").write_text("Once upon a time.", encoding="utf-8")
    missing = "".join(f"{line}\n" for key, line in WHOLE.items() if key not in keys)
    recipe_from_text(text + missing, "recipe.yaml", folder)


def _workflow(text: str, folder: Path) -> None:
    for stage in yaml.safe_load(text).get("extra", ()):
        for what in stage.get("inputs", {}).values():
            if what not in INPUTS:
                (folder / what).parent.mkdir(parents=True, exist_ok=True)
                (folder / what).write_text("", encoding="utf-8")
    path = folder / "workflow.yaml"
    path.write_text(text, encoding="utf-8")
    load_workflow(path)


def test_a_wrong_key_in_a_page_would_be_found(tmp_path: Path) -> None:
    text = "engine: {patches: [{name: a, files: [x], pattern: a, replace: b, expects: any}]}\n"
    with pytest.raises(DocumentError, match="did you mean 'expect'"):
        _recipe(text, {"engine"}, tmp_path)


# ---- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A command that a page shows. `whole` is False in running text, where arguments may be left out."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def calls() -> list[Call]:
    found: dict[Call, None] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():  # a command may go on in the next line
            for words in _simple_commands(line):
                found[Call(block.page, words, True)] = None
    for page in PAGES:
        for text in re.findall(r"`([^`]+)`", prose(page).replace("\n", " ")):
            if re.match(r"(rwkvflow|make|python) [a-z]", text):
                found[Call(named(page), tuple(shlex.split(text)), False)] = None
    return list(found)


def _simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of shell, without what they are redirected to."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if set(word) <= set("|&;"):
            if words:
                yield tuple(words)
            words, skip = [], False
        elif set(word) <= set("<>"):
            skip = True
        elif not skip:
            words.append(word)
    if words:
        yield tuple(words)


@pytest.mark.parametrize("call", calls(), ids=str)
def test_commands_exist_and_take_these_options(call: Call) -> None:
    program, *arguments = call.words
    if program == "rwkvflow":
        _check_rwkvflow(arguments, call.whole)
    elif program == "make":
        targets = re.findall(r"^([a-z0-9 ]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments[0] in " ".join(targets).split()
    elif program == "python" and arguments[0].startswith("scripts/"):
        assert (ROOT / arguments[0]).is_file()


def _check_rwkvflow(arguments: list[str], whole: bool) -> None:
    command: click.Command = cli
    context = click.Context(cli, info_name="rwkvflow")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"there is no command {arguments[0]}"
        command, context, arguments = found, click.Context(found, info_name=found.name, parent=context), arguments[1:]
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    except click.BadOptionUsage:
        if whole:
            raise
        return  # "see --only" in a sentence needs no value
    assert not rest or isinstance(command, click.Group)
    for parameter in command.params:
        value = values.get(parameter.name or "")
        given = isinstance(value, str)
        if whole and parameter.required and isinstance(parameter, click.Argument) and parameter.nargs == 1:
            assert given, f"{parameter.human_readable_name} is missing"
        if given and isinstance(parameter.type, click.Choice) and value not in PLACEHOLDERS:
            parameter.type.convert(value, parameter, context)


@pytest.mark.parametrize("text", ["run my.yaml --sandbx host", "runn my.yaml", "run", "run a.yaml --sandbox vm"])
def test_a_wrong_command_in_a_page_would_be_found(text: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        _check_rwkvflow(text.split(), True)


# ---- Python ----------------------------------------------------------------------------------------------------------


def test_the_format_in_the_readme_is_a_format() -> None:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo

    (block,) = [block for block in blocks("python") if block.page == "README.md"]
    module = types.ModuleType("blob")
    sys.modules["blob"] = module
    try:
        exec(compile(block.text, "README.md", "exec"), module.__dict__)  # noqa: S102 - our own page
    finally:
        del sys.modules["blob"]
    (blob,) = module.FORMATS
    tensors = {
        "emb.weight": TensorInfo("emb.weight", "bf16", (4, 3)),
        "head.weight": TensorInfo("head.weight", "f32", (4, 3)),
    }
    layout = blob.layout(_any_architecture(Architecture), tensors)
    assert layout.size == 2 * (12 + 12)
    assert [slot.offset for slots in layout.slots.values() for slot in slots] == [0, 24]


def _any_architecture(kind: type) -> object:
    return object.__new__(kind)  # the format looks at nothing of it


def test_the_script_in_the_workflow_page_runs(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("python") if block.page == "docs/reference/workflow.md"]
    (tmp_path / "size.py").write_text(block.text, encoding="utf-8")
    (tmp_path / "artifact").write_bytes(bytes(10))
    subprocess.run([sys.executable, "size.py", "artifact", "size.json"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "size.json").read_text(encoding="utf-8")) == {"bytes": 10}


# ---- links, names, words ---------------------------------------------------------------------------------------------


def links() -> list[tuple[Path, str]]:
    return [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)\s]+)\)", prose(page))]


@pytest.mark.parametrize(
    ("page", "target"), links(), ids=lambda value: named(value) if isinstance(value, Path) else value
)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    if re.match(r"[a-z]+:", target):
        return
    name, _, fragment = target.partition("#")
    path = page.parent / unquote(name) if name else page
    assert path.exists()
    if fragment:
        headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
        assert fragment in [docs_tables.anchor(heading) for heading in headings]


def test_the_file_layout_is_that_of_the_repository() -> None:
    (block,) = [block for block in blocks("text") if block.page == "README.md" and "Makefile" in block.text]
    folders: dict[int, Path] = {0: ROOT}
    for line in block.text.splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = folders[indent] / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), f"{name} is not there"
        folders[indent + 1] = path


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_in_the_text_exist(page: Path) -> None:
    for path in re.findall(r"`((?:rwkvflow|images|recipes|scripts|tests|docs)/[\w./-]*)`", prose(page)):
        there = path.partition("NAME")[0]  # of a file that a reader is to make, the folder
        assert (ROOT / there).exists(), f"{named(page)}: {path}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        found = {(page.parent / target.partition("#")[0]).resolve() for there, target in links() if there == page}
        waiting += sorted(path for path in found - seen if path in PAGES)
    assert seen == set(PAGES), f"no link leads to {sorted(map(named, set(PAGES) - seen))}"


def test_every_page_stands_in_one_of_the_four_rooms() -> None:
    assert {path.parent.name for path in PAGES if path not in FRONT} <= {
        "guides",
        "concepts",
        "reference",
        "contribute",
    }


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """mkdocs.yml has tags of its own, which no plain YAML loader knows; the navigation has one page a line."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (\S+\.md)$", text[text.index("nav:\n  - ") :], re.MULTILINE)
    assert sorted(listed) == sorted(docs_site.site_path(named(page)) for page in PAGES)


@pytest.mark.parametrize(
    ("source", "link", "turned"),
    [
        ("README.md", "docs/guides/ci.md#a-store-that-all-share", "guides/ci.md#a-store-that-all-share"),
        ("README.md", "LICENSE", "LICENSE.txt"),
        ("CONTRIBUTING.md", "docs/contribute/glossary.md", "glossary.md"),
        ("CONTRIBUTING.md", "README.md#formats", "../index.md#formats"),
        ("docs/guides/ci.md", "../../README.md#exit-codes", "../index.md#exit-codes"),
        ("docs/guides/ci.md", "../concepts/store.md", "../concepts/store.md"),
        ("docs/guides/ci.md", "#here", "#here"),
        ("docs/guides/ci.md", "https://example.org/README.md", "https://example.org/README.md"),
    ],
)
def test_links_are_turned_towards_the_site(source: str, link: str, turned: str) -> None:
    assert docs_site.relinked(f"see [this]({link}).", source) == f"see [this]({turned})."


def test_every_target_of_the_makefile_is_explained() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([a-z0-9 ]+):(.*)$", text, re.MULTILINE)
    assert all("## " in rest for _, rest in rules)
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert sorted(phony.split()) == sorted(" ".join(names for names, _ in rules).split())


def test_the_changelog_has_the_sections_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    sections = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", [*PAGES, *sorted((ROOT / "docs/images").glob("*"))], ids=named)
def test_nothing_names_a_machine_of_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"/(?:work|tmp|root|home)/[a-z]\w*|[a-z0-9.-]+\.(?:internal|corp|lan)\b", text)
    assert [item for item in found if not item.startswith("/home/user")] == []


# ---- troubleshooting -------------------------------------------------------------------------------------------------


def _sources() -> str:
    """All code, with strings that go over several lines joined."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "rwkvflow").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_the_messages_that_are_explained_are_messages() -> None:
    sources = _sources()
    page = (ROOT / "docs/guides/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in sources, f"no message says {part.strip()!r}"


# ---- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_is_whole_and_fetches_nothing() -> None:
    text = (ROOT / "docs/images/run.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314 - our own picture
    words = " ".join("".join(node.itertext()) for node in root.iter()).replace("\xa0", " ")
    assert "rwkvflow run" in words or "make demo" in words
    assert "perplexity" in words
    assert "published to" in words
    assert re.findall(r"(?:url\(|href=.|src=.)\s*[\"']?https?:", text) == []
    assert "@font-face" not in text


def test_a_screen_shows_what_a_terminal_would() -> None:
    screen = terminal_svg.Screen()
    screen.feed("\x1b[?25l\x1b[32mgo\x1b[0m\nbar 1\r\x1b[2Kbar 2\n\x1b[1A\x1b[2Klast\r\n")
    assert screen.ansi(80) == "\x1b[0;32mgo\n\x1b[0;mlast"


def test_a_long_line_is_cut() -> None:
    screen = terminal_svg.Screen()
    screen.feed("0123456789")
    assert screen.ansi(5) == "\x1b[0;m0123…"


def test_a_command_is_recorded_in_a_terminal() -> None:
    script = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns); sys.exit(3)"
    written, code = terminal_svg.record([sys.executable, "-c", script], 77)
    assert (written.replace("\r", ""), code) == ("True 77\n", 3)


def test_no_item_of_a_list_stands_inside_a_line() -> None:
    """A text that was wrapped anew may have swallowed the items of a list."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", lambda block: re.sub(r"[^\n]", "", block[0]), page.read_text(), flags=re.M | re.S)
        found += [
            f"{page.name}:{number}"
            for number, line in enumerate(text.splitlines(), 1)
            if re.search(r"[.;:)] (\*|-|[0-9]+\.) (\*\*|[A-Z`])", line) and not line.startswith("|")
        ]
    assert found == []
