"""`rwkvflow cache`: looking after the store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.text import bytes_text, shown
from rwkvflow.cli.options import recipe_argument, request_of, run_options, store_option


@click.group()
@store_option
@click.pass_context
def cache(context: click.Context, store: Path | None) -> None:
    """List, check and shrink the store."""
    from rwkvflow.store.store import Store, default_root

    context.obj = Store(store or default_root())


def _counter(word: str) -> Callable[[object], None]:
    """Shows how far it is, on a terminal: a store may hold millions of files."""
    shows, count, last = sys.stderr.isatty(), 0, 0.0

    def one(_: object) -> None:
        nonlocal count, last
        count += 1
        if shows and time.monotonic() - last > 0.2:
            last = time.monotonic()
            click.echo(f"\r{count} {word} ", nl=False, err=True)

    return one


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.pass_obj
def cache_ls(store: Any, as_json: bool) -> None:
    """List the content of the store, largest first."""
    from rwkvflow.store.collect import entries

    rows = entries(store)
    if as_json:
        click.echo(json.dumps([{"digest": e.digest, "size": e.size, "steps": e.steps} for e in rows], indent=2))
        return
    for entry in rows:
        steps = shown(", ".join(entry.steps[:3])) or "(unused)"
        click.echo(f"{entry.digest[7:19]}  {bytes_text(entry.size):>10}  {steps}")
    click.echo(f"{bytes_text(sum(entry.size for entry in rows))} in {store.root}")


@cache.command("verify")
@click.pass_obj
def cache_verify(store: Any) -> None:
    """Hash everything in the store and remove what is damaged; the next run makes it again."""
    from rwkvflow.base.errors import StoreError
    from rwkvflow.store.collect import verify

    with store.using():
        damaged = verify(store, on_entry=_counter("looked at"))
    for damage in damaged:
        click.echo(shown(f"{damage.digest}: {damage.message}"))
    if damaged:
        raise StoreError(f"{len(damaged)} damaged, removed", remedy="run the recipe again to make them anew")
    click.echo("all intact")


@cache.command("gc")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Also remove what was not used for this many days",
)
@click.option("--max-size", metavar="SIZE", help="Then remove the oldest until this much is left, e.g. 20GiB")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed")
@click.pass_obj
def cache_gc(store: Any, older_than: float | None, max_size: str | None, dry_run: bool) -> None:
    """Remove what no finished step uses."""
    from rwkvflow.documents.yaml.units import any_bytes
    from rwkvflow.store.collect import collect

    try:
        most = None if max_size is None else any_bytes(max_size)
    except ValueError as error:
        raise UsageError(f"--max-size: {error}") from None
    with store.exclusive():
        gone = collect(
            store,
            older_than_days=older_than,
            max_bytes=most,
            dry_run=dry_run,
            on_entry=_counter("removed"),
            on_look=_counter("looked at"),
        )
    freed = bytes_text(sum(entry.size for entry in gone))
    click.echo(f"{len(gone)} {'would be ' if dry_run else ''}removed, {freed}")


@cache.command("forget-remote")
@click.argument("url", required=False)
@click.pass_obj
def cache_forget_remote(store: Any, url: str | None) -> None:
    """Forget what remote stores said of finished steps.

    Only what the store at URL said, where it is given. What was made here stays, and so do all files.
    """
    from rwkvflow.base.hashing import text_digest
    from rwkvflow.store.collect import forget_remote

    with store.exclusive():
        count = forget_remote(store, text_digest(url).removeprefix("sha256:")[:16] if url else None)
    click.echo(f"{count} record{'' if count == 1 else 's'} forgotten")


@cache.command("trust")
@click.argument("key")
@click.option("--name", default="", metavar="NAME", help="Whose key it is")
@click.pass_obj
def cache_trust(store: Any, key: str, name: str) -> None:
    """Count KEY's records in remote stores, and from now on only those of trusted keys.

    KEY is ed25519:… or a public key's PEM file. A recipe cannot say whom you trust.
    """
    from rwkvflow.store.trust import add

    added = add(store.root, key, name)
    click.echo(shown(f"{added.key} {added.name}".rstrip() + " is trusted"))


@cache.command("keys")
@click.option(
    "--new",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Make a private key, and print its public half",
)
@click.option(
    "--of",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Print the public half of a private key",
)
@click.pass_obj
def cache_keys(store: Any, new: Path | None, of: Path | None) -> None:
    """List the keys whose records in remote stores count."""
    from rwkvflow.store.keys import load_signer, new_key
    from rwkvflow.store.trust import kept_keys

    signers = [*([new_key(new)] if new else []), *([load_signer(of)] if of else [])]
    if signers:
        for signer in signers:
            click.echo(signer.key)
        return
    found = kept_keys(store.root)
    for key in found:
        until = f"  revoked: only what it signed before {key.before}" if key.before else ""
        click.echo(shown(f"{key.key}  {key.name or '-'}{until}" + (f"  ({key.why})" if key.why else "")))
    if not found:
        click.echo("none: whoever may write to a remote store decides what its steps made")


@cache.command("revoke")
@click.argument("key")
@click.option(
    "--before", metavar="DATE", help="Keep what it signed before this day or time (UTC); default: nothing of it counts"
)
@click.pass_obj
def cache_revoke(store: Any, key: str, before: str | None) -> None:
    """Let KEY, or the key of that name, count no more, or only for what it signed before a date.

    The date is held against the signature's, and against the time at which the store says that the record was written.
    """
    from rwkvflow.store.trust import NEVER, date, revoke

    revoked = revoke(store.root, key, date(before) if before else NEVER)
    kept = f"what it signed before {revoked.before} counts" if before else "nothing that it signed counts"
    click.echo(shown(f"{revoked.key} {revoked.name}".rstrip() + f" is revoked; {kept}"))


@cache.command("audit")
@recipe_argument
@run_options
@click.option("--sample", default="5%", show_default=True, metavar="SHARE", help="How much of it to make again")
@click.option("--purge", is_flag=True, help="Remove what a liar signed from the remote store too")
@click.pass_obj
def cache_audit(own: Any, /, recipe: Path, sample: str, purge: bool, **options: Any) -> None:
    """Make a sample of what the remote store said of RECIPE's steps again, and drop all of whoever said what is not so.

    Engines and artifacts are checked, whose bytes are the same everywhere. The key of a liar is revoked.
    """
    import threading

    from rwkvflow.app.audit import audit, share_of
    from rwkvflow.app.pipeline import prepare
    from rwkvflow.base.errors import StepFailed, StoreError
    from rwkvflow.display import display_for

    share = share_of(sample)
    with closing(display_for(as_json=False, verbose=False)) as display:
        prepared = prepare(request_of(recipe, {**options, "store": options["store"] or own.root}), display)
        with prepared.store.using():
            found = audit(prepared, share, display, threading.Event(), purge=purge)
    for line in (*(f"ok      {step}" for step in found.same), *(f"unclear {text}" for text in found.unclear)):
        click.echo(shown(line))
    for step in found.lies:
        click.echo(shown(f"LIE     {step}"))
    for liar in found.liars:
        click.echo(shown(f"dropped what came from {liar}: {found.dropped} records"))
    if found.lies:
        raise StoreError(
            f"the remote store said what is not so of {len(found.lies)} of {len(found.same) + len(found.lies)} steps",
            remedy="run the recipe again; and tell the others, who can revoke that key as well",
        )
    if found.unclear:
        raise StepFailed(f"{len(found.unclear)} steps could not be made again")
    checked = len(found.same)
    click.echo(
        f"{checked} of {found.known} steps made again, each with the same bytes" if checked else "nothing to check"
    )


@cache.command("models")
@click.option("--empty", is_flag=True, help="Remove all of them")
@click.pass_obj
def cache_models(store: Any, empty: bool) -> None:
    """List the models that were downloaded or converted for commands without a recipe, largest first."""
    from rwkvflow.app.models import forget, kept

    if empty:
        click.echo(f"{bytes_text(forget(store.root))} removed")
        return
    found = kept(store.root)
    for model in found:
        click.echo(shown(f"{bytes_text(model.size):>10}  {model.source}  {model.folder}"))
    click.echo(f"{bytes_text(sum(model.size for model in found))} in {len(found)} models")
