"""What a workflow must fulfil beyond types."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rwkvflow.documents.sources import control_character
from rwkvflow.documents.workflow import ExtraStage, Stages
from rwkvflow.documents.yaml.nearest import did_you_mean, one_of, shown
from rwkvflow.documents.yaml.source import DocumentSource
from rwkvflow.documents.yaml.units import seconds, size_bytes

INPUTS = ("artifact", "checkpoint", "engine", "smoke")
_ARTIFACT_ONLY = ("artifact", "smoke")
_RESERVED = ("request.json",)


def check_workflow(source: DocumentSource, folder: Path) -> None:
    """Add findings to `source`; inputs of extra stages that are files must exist below or beside `folder`."""
    for pattern in ("stages.*.time", "stages.*.memory", "extra.*.time", "extra.*.memory"):
        parse = seconds if pattern.endswith("time") else size_bytes
        for path, text in source.texts(pattern):
            try:
                zero = parse(text) == 0
            except ValueError:
                continue  # the type check has said so
            if zero:
                source.add(path, "a limit of nothing; leave the key out for no limit")
    built_in = tuple(Stages.model_fields)
    seen: dict[str, int] = {}
    for path, name in source.texts("extra.*.name"):
        first = seen.setdefault(name.casefold(), int(path[1]))
        if name in built_in:
            source.add(path, f"{shown(name)} is the name of a built-in stage ({one_of(built_in)})")
        elif first != path[1]:
            source.add(path, f"duplicate stage {shown(name)}; the first is extra[{first}]")
    for path, stage in source.each("extra.*"):
        if isinstance(stage, dict):
            _extra(source, path, stage, folder)


def _extra(source: DocumentSource, place: tuple[str | int, ...], stage: dict[str, object], folder: Path) -> None:
    command = stage.get("command")
    for index, argument in enumerate(command if isinstance(command, list) else []):
        if isinstance(argument, str) and ("\0" in argument or (index == 0 and not argument.strip())):
            source.add((*place, "command", index), "the program has no name" if not index else "a NUL in an argument")
    outputs = stage.get("outputs")
    names = outputs if isinstance(outputs, list) else []
    for index, name in enumerate(names):
        if name in names[:index]:
            source.add((*place, "outputs", index), f"duplicate output {shown(str(name))}")
    inputs = stage.get("inputs")
    for name, what in inputs.items() if isinstance(inputs, dict) else []:
        if not isinstance(what, str):
            continue
        path = (*place, "inputs", name)
        if name in _RESERVED:
            source.add(path, f"in/{name} is taken by rwkvflow; choose another name", at_key=True)
        if what in _ARTIFACT_ONLY and stage.get("each") == "model":
            source.add(path, f"{shown(what)} exists for each artifact, and this stage runs for each model")
        elif what == "smoke" and stage.get("needs", _default("needs")) != "smoke":
            source.add(path, "the smoke report exists only after smoke; add needs: smoke")
        elif what not in INPUTS and (problem := _file_problem(what, folder)):
            source.add(path, problem)


def _default(field: str) -> object:
    return ExtraStage.model_fields[field].default


def _file_problem(what: str, folder: Path) -> str | None:
    if not what or control_character(what):
        return "no name of a file"
    if PurePosixPath(what).is_absolute():
        return f"{shown(what)} is absolute; name a file or folder relative to the workflow"
    if not (folder / what).exists():
        return (
            f"neither one of {one_of(INPUTS)} nor a file or folder beside the workflow: "
            f"{shown(what)}{did_you_mean(what, INPUTS)}"
        )
    return None
