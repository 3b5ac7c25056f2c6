"""Where a recipe starts from: one that ships with rwkvflow, or a checkpoint that somebody picks out of a repository."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rwkvflow.base.errors import FetchError, UsageError
from rwkvflow.base.outputs import write_text
from rwkvflow.base.shipped import shipped
from rwkvflow.base.text import bytes_text
from rwkvflow.documents.pages import without_page
from rwkvflow.documents.sources import HubSource, SourceError, parse_source
from rwkvflow.documents.yaml.nearest import nearest
from rwkvflow.engine.parts import is_later

#: Of a repository with more checkpoints, the versions of no more than these are asked for.
ASKED = 12
_BARE = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class CheckpointChoice:
    """A checkpoint of a repository: its source, its bytes (None where the hub does not say), and its version."""

    source: str
    size: int | None
    version: str | None

    def __str__(self) -> str:
        version = f"RWKV-{self.version}" if self.version else ""
        size = bytes_text(self.size) if self.size else ""
        return f"{self.source}  {version}  {size}".rstrip()


def recipes() -> dict[str, str]:
    """The recipes that ship with rwkvflow by name, each with the first sentence of its first comment."""
    found = {}
    for path in sorted(shipped("recipes").glob("*.yaml")):
        if path.name.endswith(".lock.yaml"):
            continue  # in a checkout, what a run wrote beside its recipe
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# "):
                break
            lines.append(line[2:].strip())
        found[path.stem] = " ".join(lines).partition(". ")[0].rstrip(".")
    return found


def copy_recipe(name: str, output: Path) -> list[Path]:
    """Copy a shipped recipe to `output`, and beside it the checkpoints that it names. Returns what was written.

    Raises UsageError for a name that none has, and where `output` or a checkpoint is there already.
    """
    there = recipes()
    if name not in there:
        near = nearest(name, there)
        raise UsageError(
            f"no recipe that ships with rwkvflow is called {name!r}",
            remedy=f"did you mean {near}?" if near else f"there are {', '.join(there)}",
        )
    source = shipped(f"recipes/{name}.yaml")
    text = source.read_text(encoding="utf-8")
    beside = [part for part in re.findall(r"source: (demo/[\w.-]+\.pth)", text) if (source.parent / part).is_file()]
    for part in beside:
        if (output.parent / part).exists():
            raise UsageError(f"{output.parent / part} exists already", remedy="name another folder with --output")
    # There a release goes beside the folder of recipes, here beside the recipe.
    text = text.replace(f"recipes/{name}.yaml", str(output)).replace("to: ../out/", "to: out/")
    write_text(output, text, [source], force=False)
    for part in beside:
        target = output.parent / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / part, target)
    return [output, *(output.parent / part for part in beside)]


def choices(text: str) -> list[CheckpointChoice] | None:
    """The checkpoints among which `text`, a repository of the hub, leaves the choice; None where it leaves none.

    A repository with a config.json is one model in itself. Raises FetchError where the repository cannot be listed,
    and UsageError where it has no checkpoint.
    """
    try:
        source = parse_source(text, folder=True)
    except SourceError:
        return None
    if not isinstance(source, HubSource) or source.path:
        return None
    from rwkvflow.net.http import Connection, Policy
    from rwkvflow.net.hub import Hub

    with Connection(Policy(attempts=3), None) as connection:
        listed = Hub.of_environment().sizes(source.repo, source.revision, connection)
    if "config.json" in listed:
        return None
    names = sorted(name for name in listed if name.endswith((".pth", ".safetensors")) and not is_later(name))
    if not names:
        raise UsageError(f"{source} has no checkpoint", remedy="name a repository with .pth or .safetensors files")
    found = [f"{source}/{name}" for name in names]
    versions = {each: _version(each) for each in found[:ASKED]}
    return [CheckpointChoice(each, listed[name], versions.get(each)) for name, each in zip(names, found, strict=True)]


def _version(text: str) -> str | None:
    from rwkvflow.lock.header import describe_source

    with suppress(UsageError, FetchError):
        architecture = describe_source(text)["architecture"]
        return str(architecture["version"]) if architecture else None
    return None


def source_meant(text: str) -> str:
    """`text`, or hf://… where it is a bare owner/name or a page of the hub, and nothing here is called so."""
    if Path(text).exists():
        return text
    return f"hf://{text}" if _BARE.fullmatch(text) else without_page(text)
