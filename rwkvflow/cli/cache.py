"""`rwkvflow cache`: looking after the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.text import shown
from rwkvflow.cli.options import store_option


@click.group()
@store_option
@click.pass_context
def cache(context: click.Context, store: Path | None) -> None:
    """List, check and shrink the store."""
    from rwkvflow.store.store import Store, default_root

    context.obj = Store(store or default_root())


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
        click.echo(f"{entry.digest[7:19]}  {entry.size / 1e6:>10.1f} MB  {steps}")
    click.echo(f"{sum(entry.size for entry in rows) / 1e6:.1f} MB in {store.root}")


@cache.command("verify")
@click.pass_obj
def cache_verify(store: Any) -> None:
    """Hash everything in the store and remove what is damaged; the next run makes it again."""
    from rwkvflow.base.errors import StoreError
    from rwkvflow.store.collect import verify

    with store.using():
        damaged = verify(store)
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
        )
    freed = sum(entry.size for entry in gone) / 1e6
    click.echo(f"{len(gone)} {'would be ' if dry_run else ''}removed, {freed:.1f} MB")


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


@cache.command("models")
@click.option("--empty", is_flag=True, help="Remove all of them")
@click.pass_obj
def cache_models(store: Any, empty: bool) -> None:
    """List the models that were downloaded or converted for commands without a recipe, largest first."""
    from rwkvflow.app.models import forget, kept

    if empty:
        click.echo(f"{forget(store.root) / 1e6:.1f} MB removed")
        return
    found = kept(store.root)
    for model in found:
        click.echo(shown(f"{model.size / 1e6:>10.1f} MB  {model.source}  {model.folder}"))
    click.echo(f"{sum(model.size for model in found) / 1e6:.1f} MB in {len(found)} models")
