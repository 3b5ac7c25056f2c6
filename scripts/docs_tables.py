"""Writes the parts of README.md and docs/ that are made from the code: `python scripts/docs_tables.py --write`.

A part stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. Without --write it says which files are out of
date and ends with 1.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

Parts = Mapping[str, Callable[[], str]]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    """A Markdown table; columns in `right` are aligned to the right."""
    rule = tuple("---:" if index in right else "---" for index in range(len(head)))
    cells = [head, rule, *(tuple(cell.replace("|", r"\|").replace("\n", " ") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def plain(text: str) -> str:
    """Text in which Markdown finds neither HTML nor emphasis; inline code stays what it is."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [part.replace("<", "&lt;").replace("*", r"\*") for part in parts[::2]]
    return "".join(parts)


def code(text: str) -> str:
    """Inline code; nothing for nothing."""
    return f"`{text}`" if text else ""


# ---- formats, exit codes, limits -------------------------------------------------------------------------------------


def formats() -> str:
    """The registry, one row per format."""
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.model.variants import label_of

    def shown(version: str) -> str:
        return version if version[0].isdigit() else label_of(version)

    rows = [
        (code(item.name), code(f"NAME{item.suffix}"), ", ".join(map(shown, sorted(item.versions))), item.consumer)
        for item in FORMATS.values()
    ]
    return table(("format", "what is made of a model called NAME", "RWKV versions", "tested with"), rows)


def limits() -> str:
    """What smoke allows each format where the recipe does not say."""
    from rwkvflow.worker.formats import FORMATS

    rows = [
        (code(item.name), f"{item.limits.logits:g}", f"{100 * item.limits.perplexity:g} %") for item in FORMATS.values()
    ]
    return table(("format", "`logits`", "rise of the perplexity"), rows, right=(1, 2))


VERSIONS = ("4", "5.0", "5.1", "5.2", "6", "7", "arwkv7", "rwkv6qwen2")
COLUMNS = (*VERSIONS[:6], "ARWKV-7", "QRWKV-6")


def runtimes() -> str:
    """Which program runs which version."""
    from rwkvflow.worker.formats.runtimes import RUNTIMES

    rows = [
        (runtime.name, *(runtime.runs.get(version) or runtime.instead.get(version, "–") for version in VERSIONS))
        for runtime in RUNTIMES
    ]
    remarks: dict[str, list[str]] = {}
    for runtime in RUNTIMES:
        for version, remark in runtime.remarks.items():
            remarks.setdefault(f"{runtime.name}, version %s: {remark}", []).append(version)
    return "\n".join(
        [table(("runtime", *COLUMNS), rows), "", *(text % " and ".join(found) for text, found in remarks.items())]
    )


def proofs() -> str:
    """Who computes the figures of each format and version; formats with the same row stand together."""
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.runtimes import proof_of

    found: dict[tuple[str, ...], list[str]] = {}
    for item in FORMATS.values():
        row = (item.family, *(proof_of(item, version) or "refused" for version in VERSIONS))
        found.setdefault(row, []).append(code(item.name))
    return table(("formats", *COLUMNS), [(", ".join(names), *row[1:]) for row, names in found.items()])


def half() -> str:
    """How formats are proved whose runtime computes in fp16."""
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.base import BOUNDED, EMULATED, RUN

    said = {
        RUN: "run in fp16 by the runtime itself, on the processor",
        EMULATED: "its operations are carried out in fp16, one by one, by the forward pass over what the file holds",
        BOUNDED: "run in fp32; it fails where the model passes what fp16 holds, and the report says *types only*",
    }
    rows = [(", ".join(code(n) for n, i in FORMATS.items() if i.half == how), text) for how, text in said.items()]
    return table(("formats", "how they are proved"), rows)


def config_keys() -> str:
    """What is done with each key of a Hugging Face model's config.json."""
    from rwkvflow.worker.maps.hf_config import COMPARED, IRRELEVANT, REFUSED, TAKEN

    rows = [(", ".join(map(code, COMPARED)), "compared with the tensors: refused where they say something else")]
    rows += [(code(name), "taken over: the embedding is the head as well") for name in TAKEN]
    rows += [(code(key.name), key.said) for key in REFUSED]
    rows += [(", ".join(map(code, keys)), f"not looked at: {why}") for why, keys in IRRELEVANT.items()]
    return table(("keys of config.json", "what is done with them"), rows)


def variants() -> str:
    """What is refused by name."""
    from rwkvflow.worker.model.variants import VARIANTS

    return table(("variant", "what it adds"), [(variant.name, variant.adds) for variant in VARIANTS])


def hybrids() -> str:
    """The two hybrids, by what is known of them."""
    from rwkvflow.worker.maps.hybrids import COMPARED, REFUSED, TAKEN
    from rwkvflow.worker.model.variants import KNOWN_HYBRIDS

    rows = [(one.label, code(one.name), ", ".join(map(code, one.called))) for one in KNOWN_HYBRIDS]
    keys = [
        (", ".join(map(code, TAKEN)), "taken over: no tensor tells them"),
        (", ".join(map(code, COMPARED)), "compared with the tensors: refused where they say something else"),
        (", ".join(map(code, REFUSED)), "refused unless they are what llama.cpp computes"),
    ]
    return "\n".join(
        [
            table(("hybrid", "as a version here, and in llama.cpp", "as its config.json calls it"), rows),
            "",
            table(("keys of its config.json", "what is done with them"), keys),
        ]
    )


def exit_codes() -> str:
    """The exit codes, one row per code."""
    from rwkvflow.base.errors import exit_codes as codes

    return table(("code", "meaning"), [(str(code), meaning) for code, meaning in codes().items()], right=(0,))


# ---- the house ------------------------------------------------------------------------------------------------------

TOP = (
    ("Makefile", "demo, test, and the parts of test; `make help` lists them"),
    ("workflow.yaml", "time, memory and retries of each stage"),
    ("recipes/", "the demo, the demo with PyTorch and in all formats, and the author's released models"),
    ("images/", "the Dockerfile's template, the pinned versions"),
    ("docs/", "guides, concepts, reference, and how to contribute"),
    ("scripts/", "training the demo models, benchmarks, the tables in these pages"),
)
TESTS = (
    ("unit/", "the rooms' own tests: no network, no Docker, enforced"),
    ("engine/", "builds the engine, and compares it with the reference"),
    ("e2e/", "real containers, servers and clients"),
    ("helpers/", "what tests share"),
)


def layers() -> str:
    """Where things live: the rooms of the package from high to low, as the test of imports has them."""
    from tests.helpers.layers import ROOMS, WORKER_ROOMS

    rows = [(0, name, text) for name, text in TOP] + [(0, "rwkvflow/", "")]
    package = ROOT / "rwkvflow"
    for room, text in ROOMS:
        rows.append((1, f"{room}/", text))
        if room == "worker":
            rows += [(2, f"{name}/", about) for name, about in WORKER_ROOMS if (package / room / name).is_dir()]
    rows += [(0, "tests/", ""), *((1, name, text) for name, text in TESTS)]
    width = max(2 * depth + len(name) for depth, name, _ in rows) + 1
    lines = [f"{'  ' * depth + name:<{width}} {text}".rstrip() for depth, name, text in rows]
    return "\n".join(["```text", *lines, "```"])


def picture() -> str:
    """The rooms as a mermaid diagram: an arrow for each import, but where another way round says the same."""
    from tests.helpers.layers import ROOMS, imported_rooms

    edges = imported_rooms(ROOT / "rwkvflow")
    lines = [f'  {room}["<b>{room}</b><br>{text.split(":")[0].split(";")[0]}"]' for room, text in ROOMS]
    for room, _ in ROOMS:
        below = edges[room]
        direct = [other for other, _ in ROOMS if other in below and not any(other in edges[via] for via in below)]
        lines += [f"  {room} --> {other}" for other in direct]
    return "\n".join(["```mermaid", "flowchart TB", *lines, "```"])


# ---- documents -------------------------------------------------------------------------------------------------------


def schema(document: str) -> dict[str, Any]:
    """The JSON Schema of a document."""
    from rwkvflow.documents.schema import schema_of

    return schema_of(document)  # type: ignore[arg-type]


def keys(document: str) -> str:
    """A table for each mapping of a document, from its JSON Schema."""
    described = schema(document)
    definitions = described.get("$defs", {})
    names = _places(described["properties"], definitions)
    names |= {name: place for name, place in PLACES.items() if name in names}
    sections = [_keys_of(described, names, definitions)]
    for name, place in names.items():
        about = plain(definitions[name].get("description", "").split("\n\n")[0])
        sections.append(
            "\n\n".join(filter(None, (f"### {place}", about, _keys_of(definitions[name], names, definitions))))
        )
    return "\n\n".join(sections)


def _places(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, str]:
    """Where each definition with keys stands first, in the order in which a reader meets them."""
    found: dict[str, str] = {}

    def walk(node: Any, place: str) -> None:
        if not isinstance(node, dict):
            return
        if isinstance(ref := node.get("$ref"), str):
            name = ref.rsplit("/", 1)[-1]
            if "properties" not in definitions[name]:
                walk(definitions[name], place)
            elif name not in found:
                found[name] = place
                for key, value in definitions[name]["properties"].items():
                    walk(value, f"{place}.{key}")
        for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            walk(choice, place)
        walk(node.get("items"), f"{place}[]")
        walk(node.get("additionalProperties"), f"{place}.NAME")
        for value in node.get("patternProperties", {}).values():
            walk(value, f"{place}.NAME")

    for key, value in properties.items():
        walk(value, key)
    return found


def _keys_of(schema: Mapping[str, Any], names: Mapping[str, str], definitions: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = []
    for key, value in schema["properties"].items():
        text = value.get("description", "")
        default = "required" if key in required else _default(value)
        rows.append((code(key), _kind(value, names, definitions), default, plain(text)))
    return table(("key", "value", "default", "meaning"), rows)


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None or default in ({}, []) or isinstance(default, dict):
        return ""
    if isinstance(default, list) and any(isinstance(item, dict) for item in default):
        return "one, of defaults"
    return code(json.dumps(default, ensure_ascii=False) if not isinstance(default, str) else default)


def _kind(value: Mapping[str, Any], names: Mapping[str, str], definitions: Mapping[str, Any]) -> str:
    """The type of a value in words."""
    if ref := value.get("$ref"):
        name = ref.rsplit("/", 1)[-1]
        if "properties" not in definitions[name]:
            return _kind(definitions[name], names, definitions)
        return f"[{names[name]}](#{anchor(names[name])})"
    if "const" in value:
        return code(json.dumps(value["const"]) if not isinstance(value["const"], str) else value["const"])
    if "enum" in value:
        choices = value["enum"]
        return "a format" if len(choices) > 6 else ", ".join(code(str(choice)) for choice in choices)
    for key in ("anyOf", "oneOf"):
        if key in value:
            kinds = [_kind(item, names, definitions) for item in value[key] if item.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}), names, definitions)}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties") or next(iter(value.get("patternProperties", {}).values()), None)
        return f"mapping to {_kind(inner, names, definitions)}" if isinstance(inner, dict) else "mapping"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}.get(
        str(value.get("type")), "text"
    )


# Where the first place of a definition does not say enough.
PLACES = {
    "Image": "images[]",
    "Git": "engine.source, from git",
    "LocalFolder": "engine.source, a folder",
    "Limit": "smoke.limits.FORMAT",
    "Combination": "matrix.exclude[], matrix.include[]",
    "StageLimits": "stages.STAGE",
    "LockedFile": "models.NAME, tokenizers.NAME, loras.NAME, states.NAME",
    "LockedPart": "models.NAME.files.FILE",
    "LockedWheels": "images.NAME.platforms.PLATFORM",
    "LockedWheel": "one wheel",
}


def anchor(heading: str) -> str:
    """The link target that GitHub makes of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link counts as its text
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


# ---- images and engine -----------------------------------------------------------------------------------------------


def pins() -> str:
    """images/pins.yaml, one row per package."""
    document = yaml.safe_load((ROOT / "images/pins.yaml").read_text(encoding="utf-8"))
    rows = []
    for role, packages in document.items():
        if isinstance(packages, list):  # names without versions
            continue
        for name, found in packages.items():
            entries = found if isinstance(found, list) else [found]
            shown = [f"{e['version']} (Python {e['python']})" if "python" in e else e["version"] for e in entries]
            rows.append((role, code(name), ", else ".join(shown)))
    return table(("role", "package", "version"), rows)


RULES = {
    "processor-name": "a wrong `CMAKE_SYSTEM_PROCESSOR` becomes the target's, and CMake is run again",
    "native-baseline": "`-march=native` (and `-mcpu=native`, where that chooses instructions) becomes the baseline",
    "native-tuning": "`-mtune=native` goes: tuning changes code as well",
    "foreign-instructions": "flags for instruction sets that the target's processors do not have go",
    "zig-level": "`-march=x86-64` in zig's spelling",
    "zig-level-numbered": "`-march=x86-64-v2` to `-v4` in zig's spelling",
    "zig-armv8": "`-march=armv8-a` in zig's spelling",
    "debug-info": "`-g` goes: what it adds is stripped anyway, and holds paths",
    "file-prefix": "`-ffile-prefix-map` for targets that lack it, so that `__FILE__` names no folder of the build",
    "file-prefix-absent": "the same for Ninja targets that have no flags at all",
    "file-prefix-make": "the same for Makefiles",
    "path-in-definition": "a build path in a `-D` definition becomes `/rwkvflow`",
    "path-in-generated": "a build path in generated headers and sources becomes `/rwkvflow`",
    "rpath": "an rpath into the build folder goes",
}


def patch_rules() -> str:
    """The shipped rules in their order, over all targets and toolchains."""
    from rwkvflow.worker.build.patch_rules import BASELINES, shipped_rules

    where: dict[str, dict[str, None]] = {}
    for platform in BASELINES:
        for toolchain in ("zig", "system"):
            for rule in shipped_rules(platform, toolchain):
                where.setdefault(rule.name, {})[f"{platform} {toolchain}"] = None
    if unknown := where.keys() ^ RULES.keys():
        raise SystemExit(f"scripts/docs_tables.py and the shipped patch rules disagree on {', '.join(sorted(unknown))}")
    return table(("rule", "what it does"), [(code(name), RULES[name]) for name in RULES])


def baselines() -> str:
    """The processors that `native` becomes."""
    from rwkvflow.worker.build.patch_rules import BASELINES

    rows = [(code(name), code(f"-mcpu={zig}"), code(flag)) for name, (zig, flag) in BASELINES.items()]
    return table(("target", "zig", "gcc, clang"), rows)


# ---- the command line ------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, groups before what is in them."""
    from rwkvflow.cli import cli

    def walk(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        yield words, command
        if isinstance(command, click.Group):
            for name in sorted(command.commands):
                yield from walk((*words, name), command.commands[name])

    yield from walk(("rwkvflow",), cli)


def command_line() -> str:
    """What --help says of every command. Not --help's own text: its layout changes with click's version."""
    every = [(words, command) for words, command in commands() if len(words) > 1]
    counts = Counter(_option(item) for _, command in every for item in _options(command))
    shared = [row for row in dict.fromkeys(counts) if counts[row] > 4]  # those of a run: many commands take them
    sections = []
    for words, command in every:
        about = plain(" ".join((command.help or "").split("\b")[0].split()))
        arguments = [_argument(item) for item in command.params if isinstance(item, click.Argument)]
        if isinstance(command, click.Group):
            arguments.append("COMMAND")
        usage = " ".join([*words, *(["[OPTIONS]"] if _options(command) else []), *arguments])
        parts = [f"## {' '.join(words)}", about, f"```text\n{usage}\n```"]
        if isinstance(command, click.Group):
            names = [f"[`{name}`](#{anchor(' '.join([*words, name]))})" for name in sorted(command.commands)]
            parts.append(f"Commands: {', '.join(names)}.")
        rows = [_option(item) for item in _options(command)]
        if own := [row for row in rows if row not in shared]:
            parts.append(table(("option", "meaning"), own))
        if len(rows) > len(own):
            which = ", ".join(row[0].split()[0].strip("`") for row in rows if row in shared)
            parts.append(f"[Options of a run](#options-of-a-run): {which}.")
        sections.append("\n\n".join(filter(None, parts)))
    sections.append("## Options of a run\n\n" + table(("option", "meaning"), shared))
    return "\n\n".join(sections)


def _options(command: click.Command) -> list[click.Option]:
    return [item for item in command.params if isinstance(item, click.Option) and not item.hidden]


def _argument(item: click.Argument) -> str:
    name = item.human_readable_name.upper()
    if isinstance(item.type, click.Choice):
        name = "|".join(map(str, item.type.choices))
    name += "..." if item.nargs == -1 else ""
    return name if item.required else f"[{name}]"


def _option(item: click.Option) -> tuple[str, str]:
    value = ""
    if not item.is_flag and not item.count:
        if isinstance(item.type, click.Choice):
            value = " " + "|".join(map(str, item.type.choices))
        else:
            value = f" {item.metavar or item.type.name.upper()}"
    names = ", ".join(
        code(name + (value if index == len(item.opts) - 1 else "")) for index, name in enumerate(item.opts)
    )
    notes = [item.help or ""]
    if item.show_default and isinstance(item.default, str | int | float):
        notes.append(f"Default: `{item.default}`.")
    if isinstance(item.envvar, str):
        notes.append(f"Also `${item.envvar}`.")
    if item.multiple:
        notes.append("May be given several times.")
    return names, plain(" ".join(note if note.endswith((".", "!", "?")) else f"{note}." for note in notes if note))


# ---- Python ----------------------------------------------------------------------------------------------------------

#: What a format outside of the package is written with; the worker must not know of rwkvflow.api.
FOR_FORMATS = {
    "FileFormat": "rwkvflow.worker.formats.base",
    "FolderFormat": "rwkvflow.worker.formats.base",
    "Limits": "rwkvflow.worker.formats.base",
    "Layout": "rwkvflow.worker.write.layout",
    "LayoutBuilder": "rwkvflow.worker.write.layout",
    "Encoding": "rwkvflow.worker.write.layout",
    "Architecture": "rwkvflow.worker.model.architecture",
    "TensorInfo": "rwkvflow.worker.model.tensorinfo",
    "Task": "rwkvflow.worker.formats.runner",
    "WorkerError": "rwkvflow.worker.errors",
}


def public_names() -> str:
    """The names of rwkvflow.api with the first sentence of each."""
    from rwkvflow import api

    return table(("name", "what it is"), [(code(name), _first_sentence(getattr(api, name))) for name in api.PUBLIC])


def format_names() -> str:
    """The names that a format needs, with the module and the first sentence of each."""
    rows = [
        (code(name), code(module), _first_sentence(getattr(importlib.import_module(module), name)))
        for name, module in FOR_FORMATS.items()
    ]
    return table(("name", "module", "what it is"), rows)


def _first_sentence(item: object) -> str:
    text = " ".join((inspect.getdoc(item) or "").split("\n\n")[0].split())
    return plain(re.split(r"(?<=[.!?]) ", text)[0])


# ---- putting it into the files ---------------------------------------------------------------------------------------

FILES: Mapping[str, Parts] = {
    "README.md": {"formats": formats, "layers": layers, "exit-codes": exit_codes},
    "docs/contribute/architecture.md": {"picture": picture, "layers": layers},
    "docs/reference/recipe.md": {"recipe-keys": lambda: keys("recipe")},
    "docs/reference/workflow.md": {"workflow-keys": lambda: keys("workflow")},
    "docs/reference/lock.md": {"lock-keys": lambda: keys("lock")},
    "docs/concepts/smoke.md": {"limits": limits},
    "docs/reference/proofs.md": {
        "runtimes": runtimes,
        "proofs": proofs,
        "half": half,
        "variants": variants,
        "hybrids": hybrids,
        "config": config_keys,
    },
    "docs/concepts/engine.md": {"patch-rules": patch_rules, "baselines": baselines},
    "docs/concepts/sandboxes.md": {"pins": pins},
    "docs/reference/python-api.md": {"public-names": public_names, "format-names": format_names},
    "docs/reference/cli.md": {"commands": command_line, "exit-codes": exit_codes},
}


def updated(name: str) -> str:
    """The text that a file should have."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for part, make in FILES[name].items():
        begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{name}: {begin} and {end} must each be there once")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    """Exit code 0 where every file is, or now is, as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="change the files instead of only comparing")
    write = parser.parse_args().write
    stale = []
    for name in FILES:
        text = updated(name)
        if text != (ROOT / name).read_text(encoding="utf-8"):
            stale.append(name)
            if write:
                (ROOT / name).write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'written' if write else 'out of date; run python scripts/docs_tables.py --write'}")
    return 1 if stale and not write else 0


if __name__ == "__main__":
    sys.exit(main())
