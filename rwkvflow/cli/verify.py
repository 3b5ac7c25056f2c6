"""`rwkvflow verify` and `choose`: whether a release is what it says it is, and which of its files to run."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import PublishError, UsageError
from rwkvflow.base.text import bytes_text, json_shown, shown

if TYPE_CHECKING:
    from rwkvflow.release.check import Findings


def _existing() -> click.Path:
    return click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("target", metavar="RELEASE")
@click.option("--key", type=_existing(), help="Public key (PEM) that the release must be signed with")
@click.option(
    "--rebuild", "again", is_flag=True, help="Also rebuild it from its recipe and lock, and compare all bytes"
)
@click.option(
    "--recipe",
    type=_existing(),
    help="For --rebuild: the recipe whose folder holds the checkpoints that the release names by path",
)
@click.option(
    "--sandbox",
    type=click.Choice(["auto", "docker", "host"]),
    default="auto",
    show_default=True,
    help="For --rebuild: where commands run",
)
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="RWKVFLOW_STORE",
    help="For --rebuild: take from this store what was downloaded before, and nothing else",
)
@click.option(
    "--allow-outside",
    is_flag=True,
    help="For --rebuild: let the recipe name texts, keys and engine sources outside of its folder",
)
@click.option(
    "--attest", type=_existing(), metavar="KEY", help="For --rebuild: sign a statement that all bytes came out equal"
)
@click.option("--attest-as", default="", metavar="NAME", help="For --attest: who says so; default: the key's SHA-256")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="For --attest: file to write; default: named as the release and the key",
)
@click.option(
    "--attach",
    metavar="PLACE",
    help="For --attest: also attach the statement to the image oci://registry/name:tag, which --attestations reads",
)
@click.option(
    "--require-rebuilds",
    "wanted",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also require that N trusted people have made it again with the same bytes",
)
@click.option(
    "--rebuilder",
    "rebuilders",
    multiple=True,
    metavar="NAME=KEY",
    help="For --require-rebuilds: a trusted person's public key (PEM)",
)
@click.option(
    "--rebuilder-identity",
    "identities",
    nargs=2,
    multiple=True,
    metavar="IDENTITY ISSUER",
    help="For --require-rebuilds: a trusted identity that signs without a key, and who vouches for it",
)
@click.option(
    "--trust-root", type=_existing(), help="For --rebuilder-identity: Sigstore's trusted root (JSON), if not the public"
)
@click.option(
    "--attestations",
    "places",
    multiple=True,
    metavar="PLACE",
    help="For --require-rebuilds: also look in a file, a folder, hf://owner/name or oci://registry/name:tag",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON")
def verify(target: str, key: Path | None, again: bool, as_json: bool, **options: Any) -> None:
    """Check the checksums, statement, lock and signature of a release.

    RELEASE is a folder, or hf://owner/name[@revision], which is downloaded first. No file may be missing or extra.
    Prints what was checked and every problem; the exit code is 9 if there is one. So it is for files that are as they
    were published, and that an older version of rwkvflow made wrongly.
    """
    if options["recipe"] is not None and not again:
        raise UsageError("--recipe says where --rebuild finds local files", remedy="add --rebuild, or leave it out")
    if options["attest"] is not None and not again:
        raise UsageError("--attest says that the release was made again", remedy="add --rebuild")
    if options["attach"] is not None and options["attest"] is None:
        raise UsageError("--attach attaches what --attest writes", remedy="add --rebuild --attest KEY")
    wanted = options["wanted"]
    if wanted is not None and wanted > len(options["rebuilders"]) + len(options["identities"]):
        raise UsageError(
            f"--require-rebuilds {wanted} needs as many people whom you trust",
            remedy="name them: --rebuilder ann=ann.pub",
        )
    if options["attest"] is not None:
        from rwkvflow.release.provenance.signature import private_key

        private_key(options["attest"], ed25519=True)  # before what takes long
    offer: list[str] = []
    lacks = False
    with _here(target) as folder:
        found = _checked(folder, key)
        if again and not found.problems:
            offer = _rebuild(folder, target, options, found)
        if wanted is not None and not found.problems:
            lacks = not _require(folder, wanted, options, found)
    _tell(found, target, as_json, lacks=lacks)
    for line in offer if not as_json else ():
        click.echo(line)


def _tell(found: Findings, target: str, as_json: bool, *, lacks: bool) -> None:
    """Print what was found. Raises PublishError for problems and for faults."""
    told = {"name": found.name, "files": found.files, "bytes": found.bytes}
    if as_json:
        lists = {"checked": found.checked, "notes": found.notes, "problems": found.problems, "faults": found.faults}
        click.echo(json.dumps({"release": target, **told, **lists}, indent=2, ensure_ascii=False))
    else:
        for line in found.checked:
            click.echo(f"ok      {shown(line)}")
        for line in found.notes:
            click.echo(f"note    {shown(line)}")
        for line in found.problems:
            click.echo(f"WRONG   {line}")
        for line in found.faults:
            click.echo(f"FAULT   {line}")
    if lacks:
        raise PublishError(
            f"{target}: too few have made it again",
            remedy="have others run `rwkvflow verify --rebuild --attest KEY`; --attestations names where they say so",
        )
    if found.problems:
        count = len(found.problems)
        raise PublishError(
            f"{target} is not what it says it is: {count} problem{'s' if count > 1 else ''}",
            remedy="download it again, or publish it again from its recipe",
        )
    if found.faults:
        count = len(found.faults)
        raise PublishError(
            f"{target} is as it was published, and {count} of its files {'are' if count > 1 else 'is'} wrong",
            remedy="publish it again from its recipe with this version of rwkvflow, and do not use those files",
        )
    if not as_json:
        click.echo(f"{found.name}: {found.files} files, {bytes_text(found.bytes)}, all as published")


@contextmanager
def _here(target: str) -> Iterator[Path]:
    """The release as a folder of this machine; what is elsewhere is fetched into one first."""
    if target.startswith("hf://"):
        from rwkvflow.net.snapshot import fetch_repository

        with tempfile.TemporaryDirectory(prefix="rwkvflow-verify-") as folder:
            commit = fetch_repository(
                target, Path(folder), on_file=lambda path: click.echo(f"fetching {path}", err=True)
            )
            click.echo(f"{target} is at commit {commit}", err=True)
            yield Path(folder)
        return
    if "://" in target:
        raise UsageError(
            f"{target} cannot be read",
            remedy="name a folder or hf://owner/name[@revision]; download other places into a folder first",
        )
    yield Path(target)


def _checked(folder: Path, key: Path | None) -> Findings:
    from rwkvflow.release.check import check_release, total_size

    if not sys.stderr.isatty() or not folder.is_dir():
        return check_release(folder, key=key)
    bar: Any = click.progressbar(length=total_size(folder), label="hashing", file=sys.stderr)
    one_at_a_time = threading.Lock()

    def on_bytes(count: int) -> None:
        with one_at_a_time:
            bar.update(count)

    with bar:
        return check_release(folder, key=key, on_bytes=on_bytes)


def _rebuild(folder: Path, target: str, options: dict[str, Any], found: Findings) -> list[str]:
    """Make it again; what to say of an attestation, where one was written."""
    from rwkvflow.app.rebuild import rebuild
    from rwkvflow.display import display_for

    with closing(display_for(as_json=False, verbose=False)) as display:
        compared = rebuild(
            folder,
            display,
            recipe=options["recipe"],
            sandbox=options["sandbox"],
            allow_outside=options["allow_outside"],
            store=options["store"],
        )
    found.problems += compared.problems
    found.notes += [f"rebuild: {note}" for note in compared.notes]
    if not compared.same or compared.problems:
        return []
    count = len(compared.same)
    found.checked.append(f"rebuild: {count} files made again, each with the same bytes ({compared.sandbox})")
    if options["attest"] is None:
        return []
    from rwkvflow.app.vouching import attest, offers

    path = attest(folder, compared, options["attest"], who=options["attest_as"], output=options["output"])
    if options["attach"] is not None:
        from rwkvflow.net.oci_referrers import attach

        return [f"{path} says so; it is attached as {attach(options['attach'], path.read_bytes())}"]
    return [f"{path} says so; to offer it to whoever published the release:", *offers(found.name, path, target)]


def _require(folder: Path, wanted: int, options: dict[str, Any], found: Findings) -> bool:
    """Hold the release against who else made it; whether they are enough."""
    from rwkvflow.app.vouching import rebuilders_of, vouched

    rebuilders = rebuilders_of(options["rebuilders"], options["identities"], options["trust_root"])
    vouching = vouched(folder, options["places"], rebuilders)
    for name, words in vouching.by.items():
        found.checked.append(f"rebuilt by {name} with the same bytes ({words})")
    found.notes += vouching.notes
    if (problem := vouching.problem(wanted, rebuilders)) is not None:
        found.problems.append(shown(problem))
    return problem is None


@click.command()
@click.argument("release", metavar="RELEASE")
@click.option("--memory", "size", required=True, metavar="SIZE", help="Memory that there is for the model, such as 2GB")
@click.option("--runtime", metavar="NAME", help="Only files that this program reads, such as llama.cpp")
@click.option("--model", metavar="NAME", help="Only files of this model of the release")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
def choose(release: str, size: str, runtime: str | None, model: str | None, as_json: bool) -> None:
    """Say which file of RELEASE loses least in so much memory.

    RELEASE is a release folder, its catalogue.json or quality.json, or a hub repository with a release, owner/name or
    hf://owner/name. All files are listed with what running them takes, about, how many times less memory a token reads
    than with 16 bits a weight, and how far they are from the checkpoint; the best that fits is marked.
    """
    from rwkvflow.app.models import release_files
    from rwkvflow.display import display_for
    from rwkvflow.release.choose import best, choices
    from rwkvflow.worker.formats.runtimes import BY_NAME

    memory = _bytes(size)
    if runtime is not None and runtime not in BY_NAME:
        raise UsageError(f"--runtime: {runtime} is not known", remedy=f"there are {', '.join(BY_NAME)}")
    with closing(display_for(as_json=False, verbose=False)) as display:
        name, every = release_files(release, display)
    if model is not None and model not in (known := {item.model for item in every}):
        raise UsageError(f"--model: there is no {model}", remedy=f"there are {', '.join(sorted(known))}")
    found = choices(every, runtime, model)
    if not found:
        raise UsageError(f"{name} has no file that {runtime or 'a known program'} reads")
    chosen = best(found, memory)
    if as_json:
        rows = [asdict(item) | {"memory": item.memory, "best": item is chosen} for item in found]
        click.echo(json_shown(json.dumps(rows, indent=2, ensure_ascii=False)))
    else:
        width = max(len(shown(item.path)) for item in found)
        for item in found:
            loss = "not measured" if item.kl_divergence is None else f"KL {item.kl_divergence:.2g}"
            speed = "" if item.speed_class is None else f"{item.speed_class:g}x"
            mark = "*" if item is chosen else " " if item.memory <= memory else "-"
            line = f"{mark} {shown(item.path):<{width}}  {bytes_text(item.size):>9}  about {bytes_text(item.memory):>9}"
            click.echo(f"{line}  {speed:>5}  {loss:<12}  {shown(', '.join(item.runtimes))}")
    if chosen is None:
        least = min(found, key=lambda item: item.memory)
        raise UsageError(f"nothing fits into {size}: {least.path} takes about {bytes_text(least.memory)}")


def _bytes(text: str) -> int:
    from rwkvflow.documents.yaml.units import any_bytes

    try:
        return any_bytes(text)
    except ValueError as error:
        raise UsageError(f"--memory: {error}") from None
