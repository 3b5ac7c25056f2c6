"""One read of a checkpoint into files of several formats, each proved before it is put in place; without a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.app import proof
from rwkvflow.app.library import find_library
from rwkvflow.base.errors import RwkvflowError, SmokeFailed, StoreError, UsageError
from rwkvflow.base.events import Listener, Notice, StepProgress
from rwkvflow.base.files import remove
from rwkvflow.base.outputs import beside, check_output, is_own, mark, put, refuse_name
from rwkvflow.documents.formats import file_name, folder_name, suffixes

if TYPE_CHECKING:
    from rwkvflow.worker.conversion.convert import ConversionOutcome
    from rwkvflow.worker.conversion.jobs import ConversionJob
    from rwkvflow.worker.formats.mix import Mix
    from rwkvflow.worker.model.about import About
    from rwkvflow.worker.model.origin import Origin


@dataclass(frozen=True)
class Order:
    """What to convert. `reads` are files that must not be written to; `folder`: the target is one, made if needed."""

    origin: Origin
    reads: tuple[Path, ...]
    formats: tuple[str, ...]
    target: Path
    folder: bool
    split: int | None = None
    force: bool = False
    check: bool = True
    threads: int | None = None
    library: Path | None = None
    store: Path | None = None
    imatrix: Path | None = None
    tensor_types: tuple[str, ...] = ()  # REGEX=TYPE
    dry_run: bool = False  # only say what would be written
    about: About | None = None  # what files say of their model, where they have a place for it


@dataclass(frozen=True)
class _Place:
    """Where a format's file goes; `split_to` is the folder instead where it had to be split, `stem` its files'."""

    format: str
    target: Path
    split_to: Path | None
    stem: str
    partial: Path


def told_of(source: str) -> About | None:
    """What files say of a model from elsewhere; None for one of this machine, whose path is nobody's business."""
    from rwkvflow.documents.sources import is_remote
    from rwkvflow.documents.template import guess_name
    from rwkvflow.stages.about import about
    from rwkvflow.worker.model.about import about_of

    return about_of(about(None, guess_name(source), source)) if is_remote(source) else None


def foresee(order: Order, source: str) -> None:
    """Refuse what would be refused with the checkpoint at hand, before it is downloaded from `source`, if it has to be.

    `order` names it as the file that it will be. Raises UsageError for a place that is taken or of another format, and
    for a version, as the header says it, that a format cannot hold; RwkvflowError for a file besides that is none.
    """
    from rwkvflow.lock.header import tensors_of_source
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.formats.gguf.imatrix import read_imatrix
    from rwkvflow.worker.model.architecture import architecture_of

    _sound_places(order)
    try:
        _mix(order)
        if order.imatrix:
            read_imatrix(order.imatrix)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    if order.origin.path.exists() or (tensors := tensors_of_source(source)) is None:
        return  # it was fetched before, and nothing is asked of whoever has it; or its header cannot be had by itself
    try:
        version = architecture_of(tensors).version
    except WorkerError:
        return  # said of the file itself, with all that is known of it then
    _can_hold(version, order.formats, order.origin.path.name)


def _sound_places(order: Order) -> list[_Place]:
    """Where the files go. Raises UsageError for places that cannot be, and for options that no format has a use for."""
    from rwkvflow.worker.formats import FORMATS

    if order.imatrix and not any(FORMATS[name].weighs for name in order.formats):
        raise UsageError(
            f"--imatrix: {', '.join(order.formats)} is not quantized with one",
            remedy="quantized gguf-* formats are, but for gguf-q8_0",
        )
    places = _places(order)
    for place in places:
        targets = {place.target, place.split_to or place.target} if order.split else {place.target}
        for target in sorted(targets):
            check_output(target, order.reads, force=order.force)
        if place.split_to is None:
            _fits(place.target, place.format)
    return places


def carry_out(order: Order, emit: Listener) -> Iterator[str]:
    """Lines that say what was written, and how near it is to the checkpoint.

    Raises UsageError for a place that is taken, SmokeFailed where a file is over its format's limits: it is then not
    put in place, and the others are.
    """
    from rwkvflow.worker.conversion.convert import ConversionJob
    from rwkvflow.worker.conversion.convert import convert as run
    from rwkvflow.worker.errors import NoSpaceError, WorkerError
    from rwkvflow.worker.formats.base import Split
    from rwkvflow.worker.formats.gguf.imatrix import read_imatrix

    places = _sound_places(order)
    version = _look(order.origin, order.formats)
    try:
        weights = read_imatrix(order.imatrix) if order.imatrix else None
        mix = _mix(order)
        jobs = [
            ConversionJob(
                p.format,
                p.format,
                p.partial,
                Split(order.split, p.stem) if order.split else None,
                weights,
                order.about,
                mix,
            )
            for p in places
        ]
        if order.dry_run:
            yield from _sizes(order.origin, places, jobs)
            return
        library = find_library(order.library, order.store, emit)
        if order.folder:
            order.target.mkdir(parents=True, exist_ok=True)
        outcomes = run(
            order.origin,
            library,
            jobs,
            threads=order.threads,
            on_progress=lambda done, total, tensor: emit(StepProgress("convert", done, total, "B", tensor)),
        )
        for warning in dict.fromkeys(warning for outcome in outcomes for warning in outcome.warnings):
            emit(Notice(warning, "warning"))
        yield from _judged(order, library, list(zip(places, outcomes, strict=True)), version, emit)
    except NoSpaceError as error:
        raise StoreError(f"{order.target}: {error}") from error
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    finally:
        for place in places:
            remove(place.partial)


def _mix(order: Order) -> Mix | None:
    """The types of single tensors. Raises UsageError where no format takes them, WorkerError for what is no type."""
    from rwkvflow.worker.formats import FORMATS
    from rwkvflow.worker.formats.mix import mix_of

    if order.tensor_types and not any(FORMATS[name].mixes for name in order.formats):
        raise UsageError(f"--tensor-type: {', '.join(order.formats)} has one type", remedy="quantized gguf-* take some")
    rules = []
    for text in order.tensor_types:
        rule, equals, kind = text.rpartition("=")
        if not equals:
            raise UsageError(f"--tensor-type: {text} is not REGEX=TYPE", remedy="such as channel_mix_value=q6_k")
        rules.append((rule, kind))
    return mix_of(rules)


def _sizes(origin: Origin, places: Sequence[_Place], jobs: Sequence[ConversionJob]) -> Iterator[str]:
    """Each file and its size, which follows from names and shapes alone. Raises RwkvflowError where one cannot be."""
    from rwkvflow.worker.conversion.jobs import format_of
    from rwkvflow.worker.formats import too_large
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.read.open import open_checkpoint

    with open_checkpoint(origin) as checkpoint:
        architecture, tensors = architecture_of(checkpoint.tensors), checkpoint.tensors
    for place, job in zip(places, jobs, strict=True):
        if (item := format_of(job, origin)) is None:
            continue
        why = item.refuse(architecture)
        size = 0 if why else item.expected_size(architecture, item.held(architecture, tensors))
        if why := why or too_large(item, size):
            raise RwkvflowError(why)
        yield f"{place.target} {size} bytes"


def _fits(target: Path, name: str) -> None:
    """Raise UsageError where the ending of a file's name is that of another format."""
    endings = {suffix.rpartition(".")[2] for suffix in suffixes().values() if "." in suffix}
    own = suffixes().get(name, "").rpartition(".")
    if own[1] and target.suffix[1:] in endings - {own[2]}:
        raise UsageError(f"{target.name} ends as another format does; {name} is written to .{own[2]} files")


def _look(source: Origin, formats: Sequence[str]) -> str:
    """The model's version. Says what is wrong with it, or with these formats of it, before librwkv is looked for."""
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.model.architecture import architecture_of
    from rwkvflow.worker.model.strangers import refuse_unknown
    from rwkvflow.worker.read.open import open_checkpoint

    try:
        with open_checkpoint(source) as checkpoint:
            architecture = architecture_of(checkpoint.tensors)
            refuse_unknown(checkpoint.tensors, architecture)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    _can_hold(architecture.version, formats, source.path.name)
    return architecture.version


def _can_hold(version: str, formats: Sequence[str], name: str) -> None:
    """Raise UsageError where a format holds no model of this version."""
    from rwkvflow.worker.formats import FORMATS, able_to_hold
    from rwkvflow.worker.model.variants import version_named

    if bad := [each for each in formats if version not in FORMATS[each].versions]:
        raise UsageError(
            f"{name} is {version_named(version)}, which {' and '.join(bad)} cannot hold",
            remedy=f"these can: {able_to_hold(version)}",
        )


def _judged(
    order: Order, library: Path, made: Sequence[tuple[_Place, ConversionOutcome]], version: str, emit: Listener
) -> Iterator[str]:
    failures = [f"{place.format}: {outcome.failure}" for place, outcome in made if outcome.failure is not None]
    whole = [(place, outcome) for place, outcome in made if outcome.failure is None]
    wanted = [
        place for place, _ in whole if order.check and proof.provable(place.format, version) and place.partial.is_file()
    ]
    proofs: dict[str, proof.Proof] = {}
    if wanted:
        for place in wanted:
            proof.need_memory(place.partial)
        emit(Notice("comparing with the checkpoint in fp32"))
        files = [(place.format, place.partial) for place in wanted]
        proofs = {found.format: found for found in proof.prove(order.origin, library, files, _mix(order))}
    unproved = []
    for place, outcome in whole:
        found = proofs.get(place.format)
        if found is not None and found.problems:
            unproved += [f"{place.format}: {problem}" for problem in found.problems]
            continue
        yield _placed(place, outcome, found)
        for remark in () if found is None else found.remarks:
            emit(Notice(f"{place.format}: {remark}", "warning"))
        if order.check and found is None:
            emit(Notice(f"{place.format} is not tested here: a recipe does that (`rwkvflow init`)"))
    if failures:
        raise RwkvflowError("; ".join(failures) if len(made) > 1 else str(made[0][1].failure))
    if unproved:
        raise SmokeFailed(
            "not put in place, for it is too far from the checkpoint:\n  " + "\n  ".join(unproved),
            remedy="take a format that keeps more, or say --no-check to have it nevertheless",
        )


def _placed(place: _Place, outcome: ConversionOutcome, found: proof.Proof | None) -> str:
    target = place.split_to if place.split_to is not None and place.partial.is_dir() else place.target
    if place.partial.is_dir():
        mark(place.partial)
    put(place.partial, target)
    total = outcome.written.size if outcome.written else 0
    digest = f" sha256:{outcome.written.sha256}" if outcome.written and outcome.written.sha256 else ""
    line = f"{target} {total} bytes{digest}"
    if found is None:
        return line
    return (
        f"{line}\n  proved by librwkv: perplexity {found.perplexity:.4g} ({found.rise:+.2%}), logits {found.logits:.2g}"
    )


def _places(order: Order) -> list[_Place]:
    from rwkvflow.worker.formats import FORMATS

    refuse_name(order.target)
    source = order.origin.path
    model = re.sub(r"(-00001-of-[0-9]{5})?(\.(safetensors|bin)\.index\.json|\.[^.]*)$", "", source.resolve().name)
    inside = order.folder or (order.target.is_dir() and not is_own(order.target))
    found = []
    for name in order.formats:
        target, split_to = order.target, None
        if inside:  # a folder of the user's is where the result goes
            made, stem = folder_name(model, name)
            target, split_to = order.target / file_name(model, name), order.target / made
        else:
            ending = f".{FORMATS[name].suffix.rpartition('.')[2]}"
            stem = target.name.removesuffix(ending) or target.name
        found.append(_Place(name, target, split_to, stem, beside(target)))
    return found
