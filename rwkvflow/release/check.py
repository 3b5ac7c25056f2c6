"""Whether a folder is the release that it says it is: sums, statement, lock, signature; nothing missing, nothing extra.

Three lists are held against the files and against each other. SHA256SUMS lists all but itself and the signature, the
statement all but itself, SHA256SUMS and the signature, and the signature all but itself. Who changes a file must change
every list that holds it; who cannot sign cannot change the last one, so a key is what protects against malice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import PublishError, RwkvflowError
from rwkvflow.base.hashing import file_digest
from rwkvflow.release.catalogue import catalogue_problems
from rwkvflow.release.known_faults import known_faults
from rwkvflow.release.names import (
    CATALOGUE,
    LOCK,
    PROVENANCE,
    QUALITY,
    RECIPE,
    SIGNATURE,
    SUMS,
    UNLISTED_IN_STATEMENT,
    UNLISTED_IN_SUMS,
    belongs,
    is_plain,
    quality_report,
    smoke_report,
)
from rwkvflow.release.provenance.material_check import material_problems
from rwkvflow.release.provenance.statement import dependencies, read_statement
from rwkvflow.release.quality import ArtifactFigures, differences, full_differences, read_quality
from rwkvflow.release.sums import parse_sums

if TYPE_CHECKING:
    from rwkvflow.documents.lock import Lock

HASHERS = 4  # files hashed at once


@dataclass
class Findings:
    """What was looked at, what is wrong, and what could not be looked at. `bytes` were hashed.

    `problems` say that it is not what was published, `faults` what is wrong with files as they were published.
    """

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    name: str = ""
    files: int = 0
    bytes: int = 0


def total_size(folder: Path) -> int:
    """Bytes that a check will hash."""
    return sum((folder / path).stat().st_size for path, kind in _walk(folder) if kind == "file")


def check_release(folder: Path, *, key: Path | None = None, on_bytes: Callable[[int], None] | None = None) -> Findings:
    """Check everything that can be checked; all problems are found, not only the first.

    `key` is the public key that the release has to be signed with. `on_bytes` is told what was hashed, from several
    threads. Raises PublishError where the folder is no release at all.
    """
    if not folder.is_dir():
        raise PublishError(f"there is no folder {folder}", remedy="name the folder of a release")
    if not (folder / SUMS).is_file() and not (folder / PROVENANCE).is_file():
        raise PublishError(
            f"{folder} is no release of rwkvflow: it has neither {SUMS} nor {PROVENANCE}",
            remedy="name the folder that a recipe publishes to",
        )
    found = Findings()
    digests = _hash(folder, found, on_bytes)
    sums = _sums(folder, digests, found)
    statement = _statement(folder, found)
    subjects = _subjects(statement, found)
    _files(digests, sums, subjects, found)
    if statement is not None:
        found.name = _printable(str(_external(statement).get("name", "")))[:200]
        _inputs(folder, statement, digests, found)
    unchanged = {path: digest for path, digest in digests.items() if (sums or {}).get(path, digest) == digest}
    _quality(folder, unchanged, found)
    _signature(folder, key, statement, digests, found)
    found.files = len(digests)
    found.faults = [_printable(fault) for fault in known_faults(folder, unchanged)]
    found.problems = [_printable(problem) for problem in found.problems]
    return found


# ---- files -----------------------------------------------------------------------------------------------------


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """(POSIX path, "file" | "other") of all that is part of a release; links are never followed."""
    for top, folders, files in os.walk(folder):
        for name in sorted([*files, *(name for name in folders if (Path(top) / name).is_symlink())]):
            path = Path(top) / name
            relative = path.relative_to(folder).as_posix()
            if belongs(relative):
                yield relative, "file" if path.is_file() and not path.is_symlink() else "other"


def _hash(folder: Path, found: Findings, on_bytes: Callable[[int], None] | None) -> dict[str, str]:
    names = []
    for path, kind in _walk(folder):
        if not is_plain(path):
            found.problems.append(f"{path}: a file of a release is not called so")
        elif kind != "file":
            found.problems.append(f"{path}: a link or a device; a release holds plain files only")
        else:
            names.append(path)
            found.bytes += (folder / path).stat().st_size

    def digest(path: str) -> str | OSError:
        try:
            return file_digest(folder / path, on_bytes).removeprefix("sha256:")
        except OSError as error:
            return error

    digests = {}
    with ThreadPoolExecutor(HASHERS) as pool:
        for path, result in zip(names, pool.map(digest, names), strict=True):
            if isinstance(result, OSError):
                found.problems.append(f"{path}: cannot be read: {result.strerror}")
            else:
                digests[path] = result
    return digests


def _sums(folder: Path, digests: Mapping[str, str], found: Findings) -> dict[str, str] | None:
    if SUMS not in digests:
        found.problems.append(f"{SUMS} is missing")
        return None
    listed, problems = parse_sums((folder / SUMS).read_bytes().decode("utf-8", "replace"))
    found.problems += [f"{SUMS} was edited: {problem}" for problem in problems]
    return listed


def _statement(folder: Path, found: Findings) -> dict[str, Any] | None:
    path = folder / PROVENANCE
    if not path.is_file() or path.is_symlink():
        found.problems.append(f"{PROVENANCE} is missing")
        return None
    try:
        return read_statement(path.read_bytes())
    except ValueError as error:
        found.problems.append(f"{PROVENANCE} was edited or damaged: {error}")
        return None


def _subjects(statement: Mapping[str, Any] | None, found: Findings) -> dict[str, str] | None:
    if statement is None:
        return None
    subjects: dict[str, str] = {}
    for subject in statement["subject"]:
        name, sha256 = subject.get("name", ""), subject["digest"].get("sha256", "")
        if subjects.setdefault(name, sha256) != sha256:
            found.problems.append(f"{PROVENANCE} was edited: it gives two digests for {name}")
    return subjects


def _files(
    digests: Mapping[str, str],
    sums: Mapping[str, str] | None,
    subjects: Mapping[str, str] | None,
    found: Findings,
) -> None:
    """Hold each file against the two lists, and say which of the three was changed where two agree."""
    for path in sorted({*digests, *(sums or {}), *(subjects or {})}):
        lists = {}
        if sums is not None and path not in UNLISTED_IN_SUMS:
            lists[SUMS] = sums.get(path)
        if subjects is not None and path not in UNLISTED_IN_STATEMENT:
            lists[PROVENANCE] = subjects.get(path)
        if problem := _problem(path, digests.get(path), lists):
            found.problems.append(problem)
    for name in UNLISTED_IN_SUMS & set(sums or {}):
        found.problems.append(f"{SUMS} was edited: it lists {name}")
    for name in UNLISTED_IN_STATEMENT & set(subjects or {}):
        found.problems.append(f"{PROVENANCE} was edited: it lists {name}")
    if not found.problems:
        if sums is not None:
            found.checked.append(f"{SUMS}: {len(sums)} files, each with the bytes that it lists; none missing or extra")
        if subjects is not None:
            found.checked.append(f"{PROVENANCE}: an in-toto statement about {len(subjects)} files, the same ones")


def _problem(path: str, actual: str | None, lists: Mapping[str, str | None]) -> str | None:
    said = {name: value for name, value in lists.items() if value is not None}
    silent = [name for name in lists if name not in said]
    if actual is None:
        return f"{path} is missing; it is listed in {_and(said)}" if said else None
    if not lists:
        return None
    if not said:
        return f"{path} is extra: nothing lists it"
    wrong = [name for name, value in said.items() if value != actual]
    if not wrong:
        return f"{silent[0]} was edited: it does not list {path}, which {_and(said)} does" if silent else None
    if len(wrong) < len(said):
        right = _and(set(said) - set(wrong))
        return f"{wrong[0]} was edited: for {path} it gives another sha256 than {right} and the file"
    expected = sorted(set(said.values()))
    if len(expected) > 1:
        return f"{path}: {SUMS}, {PROVENANCE} and the file each give another sha256"
    if path == PROVENANCE:
        return f"{path} was edited: its sha256 is {actual}, in {_and(said)} it is {expected[0]}"
    return f"{path} was changed: its sha256 is {actual}, in {_and(said)} it is {expected[0]}"


def _and(names: Any) -> str:
    return " and ".join(sorted(names, reverse=True))


def _printable(text: str) -> str:
    """Names may come from anybody: nothing of them may act on a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# ---- what went in ----------------------------------------------------------------------------------------------


def _external(statement: Mapping[str, Any]) -> dict[str, Any]:
    external = statement["predicate"]["buildDefinition"].get("externalParameters", {})
    return external if isinstance(external, dict) else {}


def _inputs(folder: Path, statement: Mapping[str, Any], digests: Mapping[str, str], found: Findings) -> None:
    """Hold what the statement says went in against the lock and the recipe of the release."""
    before = len(found.problems)
    stated = dependencies(statement)
    recipe = _external(statement).get("recipe")
    digest = recipe.get("digest") if isinstance(recipe, dict) else None
    claimed = digest.get("sha256") if isinstance(digest, dict) else None
    for path, value in ((LOCK, stated.get(LOCK, {}).get("sha256")), (RECIPE, claimed)):
        if path in digests and digests[path] != value:
            found.problems.append(f"{PROVENANCE} was edited: it was not made from this {path}")
    lock = _lock(folder, digests, found)
    found.problems += [f"{PROVENANCE} was edited: {problem}" for problem in material_problems(statement, lock)]
    if len(found.problems) == before:
        count = len({name.split("/")[1] for name in stated if name.startswith("model/")})
        found.checked.append(
            f"{LOCK}: pins what {PROVENANCE} says went in: {count} checkpoint{'s' if count != 1 else ''}, "
            f"{len(stated) - 1} inputs in all"
        )


def _lock(folder: Path, digests: Mapping[str, str], found: Findings) -> Lock | None:
    from rwkvflow.documents.load import load_lock

    if LOCK not in digests:
        return None
    try:
        return load_lock(folder / LOCK)
    except RwkvflowError as error:
        found.problems.append(f"{LOCK} cannot be read: {str(error).splitlines()[0]}")
        return None


def _quality(folder: Path, digests: Mapping[str, str], found: Findings) -> None:
    """Hold the figures of the quality file against the smoke reports beside the artifacts.

    `digests` are those of files that are as they were listed; what is wrong with the others is said already.
    """
    if not (folder / QUALITY).is_file():
        return
    before = len(found.problems)
    try:
        quality = read_quality((folder / QUALITY).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        found.problems.append(f"{QUALITY} cannot be read: {error}")
        return
    reports: dict[str, dict[str, Any]] = {}
    for item in quality.artifacts:
        if not is_plain(item.path) or not (folder / item.path).exists():
            found.problems.append(f"{QUALITY}: the release has no {item.path}")
        elif item.sha256 is not None and digests.get(item.path, item.sha256) != item.sha256:
            found.problems.append(f"{QUALITY}: {item.path} is another file than the one that was measured")
        report = smoke_report(item.path)
        if report not in digests:
            continue
        try:
            told = json.loads((folder / report).read_bytes())
            differing = differences(item, told)
            reports[item.path] = told
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            found.problems.append(f"{report} cannot be read: {error}")
            continue
        if differing:
            found.problems.append(f"{QUALITY}: {item.path} has another {differing[0]} than {report}")
        if problem := _by_domain(folder, digests, item):
            found.problems.append(problem)
    if len(found.problems) == before:
        count = len(quality.artifacts)
        found.checked.append(f"{QUALITY}: {count} artifact{'s' if count != 1 else ''}, as their smoke reports say")
    problems = catalogue_problems(folder, digests, reports)
    found.problems += problems
    if not problems and (folder / CATALOGUE).is_file():
        found.checked.append(f"{CATALOGUE}: the files of the release, its lock and its recipe")


def _by_domain(folder: Path, digests: Mapping[str, str], item: ArtifactFigures) -> str | None:
    """What is wrong with the figures by domain; None for nothing."""
    report = quality_report(item.path)
    if report not in digests:
        return None if item.domains is None else f"{QUALITY}: the release has no {report}"
    try:
        differing = full_differences(item, json.loads((folder / report).read_bytes()))
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return f"{report} cannot be read"
    return f"{QUALITY}: {item.path} has other {differing[0]} than {report}" if differing else None


# ---- the signature ---------------------------------------------------------------------------------------------


def _signature(
    folder: Path,
    key: Path | None,
    statement: Mapping[str, Any] | None,
    digests: Mapping[str, str],
    found: Findings,
) -> None:
    signed_by = _external(statement).get("signedBy") if statement is not None else None
    if SIGNATURE not in digests:
        if key is not None or signed_by:
            why = "the release is to be checked with a key" if key else f"{PROVENANCE} says that the release is signed"
            found.problems.append(f"{SIGNATURE} is missing, and {why}")
        else:
            found.notes.append("not signed: whoever can change all of its files can make them agree again")
        return
    if key is None:
        by = signed_by.get("sha256") if isinstance(signed_by, dict) else None
        of = f" by the key whose public half has the SHA-256 {by}" if by else ""
        found.notes.append(f"{SIGNATURE} was not checked: it is said to be{of}; give the public key with --key")
        return
    from rwkvflow.release.provenance.signature import SignatureProblem, check_signature

    others = {path: sha256 for path, sha256 in digests.items() if path != SIGNATURE}
    try:
        check_signature((folder / SIGNATURE).read_bytes(), key, others)
    except SignatureProblem as error:
        found.problems.append(f"{SIGNATURE}: {error}")
    else:
        found.checked.append(f"{SIGNATURE}: {len(others)} files, signed with {key.name}")
