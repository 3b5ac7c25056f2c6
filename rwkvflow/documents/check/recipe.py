"""What a recipe must fulfil beyond types: names that exist, that are unique, that go together.

The checks look at the document itself, not at the model, so that they also speak where types are wrong elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from rwkvflow.base.names import path_problem
from rwkvflow.documents.check.formats import listed_formats, unknown_format
from rwkvflow.documents.destinations import Destination, parse_destination, takers
from rwkvflow.documents.formats import file_name, is_format
from rwkvflow.documents.lock import SHIPPED_CALIBRATION
from rwkvflow.documents.recipe import image_name
from rwkvflow.documents.sources import SourceError, control_character, git_url, source_problem
from rwkvflow.documents.yaml.nearest import did_you_mean, nearest, one_of, shown
from rwkvflow.documents.yaml.source import DocumentSource, Path_, render_path

TOKENIZERS = ("auto", "bytes", "world")


def check_recipe(source: DocumentSource, folder: Path) -> None:
    """Add findings to `source`. `folder` is where the recipe stands; texts and `card.template` are looked up there."""
    _unique(source, source.texts("models.*.name"), "model")
    _models(source, folder)
    formats = _formats(source)
    images = _images(source)
    _file_names(source, formats)
    _engine(source)
    _smoke(source, folder, formats)
    _publish(source)
    _card(source, folder)
    _matrix(source, formats, images)
    for key in ("engine.source.path", "sign.key"):
        for path, text in source.texts(key):
            if control := control_character(text):
                source.add(path, f"the control character {control} cannot stand in a path")


def _unique(source: DocumentSource, found: Iterable[tuple[Path_, str]], what: str, *, fold: bool = True) -> None:
    """Names must differ in more than case: some file systems cannot tell them apart otherwise."""
    first: dict[str, tuple[Path_, str]] = {}
    for path, name in found:
        before = first.setdefault(name.casefold() if fold else name, (path, name))
        if before[0] != path:
            case = "" if before[1] == name else f" (it differs from {shown(before[1])} in case only)"
            source.add(path, f"duplicate {what} {shown(name)}{case}; the first is {render_path(before[0])}")


def _models(source: DocumentSource, folder: Path) -> None:
    for key, may_be_folder in {"source": True, "lora.source": False, "lora.init": False, "state.source": False}.items():
        for path, text in source.texts(f"models.*.{key}"):
            if problem := source_problem(text, folder=may_be_folder):
                source.add(path, problem)
    for path, text in source.texts("models.*.imatrix.text"):
        if text != SHIPPED_CALIBRATION and (control_character(text) or not (folder / text).is_file()):
            what = f"there is no file {shown(text)} beside the recipe"
            source.add(path, f"{what}; {SHIPPED_CALIBRATION} is the text that ships")
    for path, text in source.texts("models.*.tokenizer"):
        if text in TOKENIZERS:
            continue
        looks_like_source = "/" in text or ":" in text or text.endswith(".json")
        if not looks_like_source:
            near = did_you_mean(text, TOKENIZERS)
            source.add(
                path,
                f"unknown tokenizer {shown(text)}; known are {one_of(TOKENIZERS)}, "
                f"or the source of a tokenizer.json{near}",
            )
        elif problem := source_problem(text):
            source.add(path, problem)


def _formats(source: DocumentSource) -> list[str]:
    """The recipe's formats, those that matrix.include adds last."""
    found = listed_formats(source)
    _unique(source, [(path, name) for path, name in found if is_format(name)], "format", fold=False)
    formats = list(dict.fromkeys(name for _, name in found))
    for _, name in source.texts("matrix.include.*.format"):
        if is_format(name) and name not in formats:
            formats.append(name)
    return formats


def _images(source: DocumentSource) -> list[str]:
    """Names of the images, default names filled in."""
    names: list[str] = []
    labels: list[tuple[Path_, str]] = []
    places = [*source.each("images.*"), *source.each("image")]
    for place, image in places:
        if not isinstance(image, dict):
            continue
        values = {key: value for key, value in image.items() if isinstance(value, str)}
        name = values.get("name") or image_name(values.get("python", "3.11"), values.get("torch"))
        names.append(name)
        if len(values) == len(image.keys() - {"wheels"}):  # else a wrong type would look like a duplicate
            labels.append(((*place, "name") if "name" in values else place, name))
    _unique(source, labels, "image")
    for pattern in ("images.*.wheels.*", "image.wheels.*"):
        for path, text in source.texts(pattern):
            if problem := _requirement_problem(text):
                source.add(path, problem)
    return names or [image_name("3.11", None)]


def _requirement_problem(text: str) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"{shown(text)} is no requirement such as tokenizers==0.20.3"
    if requirement.url is not None:
        return "a wheel comes from the package index by name and version; a URL cannot be locked"
    if requirement.name.lower() == "torch":
        return 'PyTorch goes into the key torch, e.g. torch: "2.13.0"'
    return None


def _file_names(source: DocumentSource, formats: Sequence[str]) -> None:
    """No two artifacts may have the same file name, on any file system."""
    first: dict[str, tuple[str, str]] = {}
    for path, model in source.texts("models.*.name"):
        for name in formats:
            if not is_format(name):
                continue
            before = first.setdefault(file_name(model, name).casefold(), (model, name))
            if before != (model, name) and before[0].casefold() != model.casefold():
                source.add(
                    path,
                    f"its {name} gets the file name {shown(file_name(model, name))}, "
                    f"as {shown(before[0])} in {before[1]} does; rename one",
                )


def _engine(source: DocumentSource) -> None:
    for path, url in source.texts("engine.source.git"):
        try:
            git_url(url)
        except SourceError as error:
            source.add(path, str(error))
    for path, reference in source.texts("engine.source.ref"):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]*", reference) or ".." in reference:
            source.add(path, f"{shown(reference)} is no branch or tag")
    for path, text in source.texts("engine.source.submodules.*"):
        if problem := path_problem(text):
            source.add(path, f"no path of a submodule: {problem}")
    for pattern in ("engine.source.folder", "engine.library", "engine.patches.*.files.*"):
        for path, text in source.texts(pattern):
            if text.startswith("/") or ".." in PurePosixPath(text).parts or control_character(text):
                source.add(path, f"{shown(text)} must stay below its folder: no leading / and no ..")
    _targets(source)
    _unique(source, source.texts("engine.patches.*.name"), "patch rule")
    for path, text in source.texts("engine.cmake.*"):
        if control_character(text):
            source.add(path, "a control character cannot stand in a CMake option")
    for path, rule in source.each("engine.patches.*"):
        if isinstance(rule, dict) and isinstance(rule.get("pattern"), str):
            _regular_expression(source, path, rule["pattern"], rule.get("replace"))
    for path, specifier in source.texts("engine.patches.*.when.cmake"):
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(specifier)
        except InvalidSpecifier:
            source.add(path, f"{shown(specifier)} is no version specifier such as >=3.25")


def _targets(source: DocumentSource) -> None:
    from rwkvflow.worker.build.toolchain import target_platform
    from rwkvflow.worker.errors import WorkerError

    further = source.texts("engine.targets.*")
    for path, target in [*source.texts("engine.target"), *further]:
        try:
            target_platform(target)
        except WorkerError as error:
            source.add(path, str(error))
    _unique(source, further, "target")
    if further and any(text == "system" for _, text in source.texts("engine.toolchain")):
        source.add(further[0][0], "the system's compiler builds for its own machine only; write toolchain: zig")


def _regular_expression(source: DocumentSource, rule: Path_, pattern: str, replacement: object) -> None:
    path = (*rule, "pattern")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        where = f" at character {error.pos + 1}" if error.pos is not None else ""
        source.add(path, f"not a regular expression: {error.msg}{where}")
        return
    except (OverflowError, RecursionError):
        source.add(path, "not a regular expression: too large")
        return
    if not isinstance(replacement, str):
        return
    # A template is only parsed where something matches: the empty groups of this one do, under the same names.
    names = {index: name for name, index in compiled.groupindex.items()}
    groups = range(1, compiled.groups + 1)
    stand_in = "".join(f"(?P<{names[index]}>)" if index in names else "()" for index in groups)
    try:
        re.sub(stand_in, replacement, "")
    except re.error as error:
        source.add((*rule, "replace"), f"not a replacement for its pattern: {error.msg}")
    except IndexError as error:
        source.add((*rule, "replace"), f"not a replacement for its pattern: {error}")


def _smoke(source: DocumentSource, folder: Path, formats: Sequence[str]) -> None:
    known = [name for name in formats if is_format(name)]
    for path, _ in source.each("smoke.limits.*"):
        name = str(path[-1])
        if name in formats:
            continue
        if not is_format(name):
            source.add(path, unknown_format(name), at_key=True)
        else:
            near = f"; did you mean {shown(meant)}?" if (meant := nearest(name, known)) else ""
            source.add(path, f"{shown(name)} is not among the recipe's formats{near}", at_key=True)
    if not any(text == "full" for _, text in source.texts("smoke.quality")):
        for path, _ in source.each("smoke.limits.*.domains.*"):
            source.add(path, "limits by domain are held where smoke has quality: full", at_key=True)
            break
    for path, text in source.texts("smoke.text"):
        if not text or control_character(text) or not (folder / text).is_file():
            source.add(path, f"there is no file {shown(text)} beside the recipe")
    for path, prompt in source.texts("smoke.prompts.*"):
        if not prompt:
            source.add(path, "the prompt is empty")


def _publish(source: DocumentSource) -> None:
    places: list[tuple[Path_, str]] = []
    for path, entry in source.each("publish.*"):
        if not isinstance(entry, dict) or not isinstance(to := entry.get("to"), str):
            continue
        try:
            place = parse_destination(to)
        except SourceError as error:
            source.add((*path, "to"), str(error))
            continue
        if problem := place.problem():
            source.add((*path, "to"), problem)
        else:
            places.append(((*path, "to"), place.identity()))
        _publish_options(source, path, entry, place)
    _unique(source, places, "place")


def _publish_options(source: DocumentSource, path: Path_, entry: Mapping[str, object], place: Destination) -> None:
    for key, value in entry.items():
        kinds = takers(key)
        if value is None or not kinds:
            continue
        if type(place) not in kinds:
            schemes = " and ".join(f"{kind.schemes[0]}://" for kind in kinds)
            source.add((*path, key), f"only {schemes} knows {key}", at_key=True)
        elif place.has(key):
            source.add((*path, key), f"the {key} stands in `to` already", at_key=True)
        elif (check := place.options[key]) is not None and isinstance(value, str):
            try:
                check(value)
            except SourceError as error:
                source.add((*path, key), str(error))


def _card(source: DocumentSource, folder: Path) -> None:
    for path, text in source.texts("card.template"):
        if not text or control_character(text) or not (folder / text).is_file():
            source.add(path, f"there is no file {shown(text)} beside the recipe")
    for path, text in source.texts("sign.key"):
        if "-----BEGIN" in text:
            source.add(path, "this is the key itself; put it into a file that is not committed, and name the file")


def _matrix(source: DocumentSource, formats: Sequence[str], images: Sequence[str]) -> None:
    models = [name for _, name in source.texts("models.*.name")]
    pools = {"model": models, "format": formats, "image": images}
    for section in ("exclude", "include"):
        for key, pool in pools.items():
            for path, pattern in source.texts(f"matrix.{section}.*.{key}"):
                if any(fnmatchcase(name, pattern) for name in pool) or not pool:
                    continue
                if key == "format" and section == "include" and not re.search(r"[*?\[]", pattern):
                    source.add(path, unknown_format(pattern))
                else:
                    near = did_you_mean(pattern, pool)
                    source.add(path, f"{shown(pattern)} matches no {key} of this recipe{near}")
        for path, rule in source.each(f"matrix.{section}.*"):
            if rule == {}:
                source.add(path, "the rule is empty; name a model, a format or an image")
