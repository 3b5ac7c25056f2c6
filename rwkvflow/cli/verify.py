"""`rwkvflow verify`: whether a release is what it says it is, and whether it can be made again."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwkvflow.base.errors import PublishError, UsageError

if TYPE_CHECKING:
    from rwkvflow.release.check import Findings


@click.command()
@click.argument("target", metavar="RELEASE")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) that the release must be signed with",
)
@click.option(
    "--rebuild", "again", is_flag=True, help="Also rebuild it from its recipe and lock, and compare all bytes"
)
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
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
    "--allow-outside",
    is_flag=True,
    help="For --rebuild: let the recipe name texts, keys and engine sources outside of its folder",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON")
def verify(
    target: str,
    key: Path | None,
    again: bool,
    recipe: Path | None,
    sandbox: str,
    allow_outside: bool,
    as_json: bool,
) -> None:
    """Check the checksums, statement, lock and signature of a release.

    RELEASE is a folder, or hf://owner/name[@revision], which is downloaded first. No file may be missing or extra.
    Prints what was checked and every problem; the exit code is 9 if there is one. So it is for files that are as they
    were published, and that an older version of rwkvflow made wrongly.
    """
    if recipe is not None and not again:
        raise UsageError("--recipe says where --rebuild finds local files", remedy="add --rebuild, or leave it out")
    with _here(target) as folder:
        found = _checked(folder, key)
        if again and not found.problems:
            _rebuild(folder, recipe, sandbox, allow_outside, found)
    told = {"name": found.name, "files": found.files, "bytes": found.bytes}
    if as_json:
        lists = {"checked": found.checked, "notes": found.notes, "problems": found.problems, "faults": found.faults}
        click.echo(json.dumps({"release": target, **told, **lists}, indent=2, ensure_ascii=False))
    else:
        for line in found.checked:
            click.echo(f"ok      {line}")
        for line in found.notes:
            click.echo(f"note    {line}")
        for line in found.problems:
            click.echo(f"WRONG   {line}")
        for line in found.faults:
            click.echo(f"FAULT   {line}")
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
        click.echo(f"{found.name}: {found.files} files, {found.bytes / 1e6:.1f} MB, all as published")


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


def _rebuild(folder: Path, recipe: Path | None, sandbox: str, allow_outside: bool, found: Findings) -> None:
    from rwkvflow.app.rebuild import rebuild
    from rwkvflow.display import display_for

    display = display_for(as_json=False, verbose=False)
    try:
        compared = rebuild(folder, display, recipe=recipe, sandbox=sandbox, allow_outside=allow_outside)
    finally:
        display.close()
    found.problems += compared.problems
    found.notes += [f"rebuild: {note}" for note in compared.notes]
    if compared.same and not compared.problems:
        found.checked.append(f"rebuild: {len(compared.same)} files made again, each with the same bytes")
