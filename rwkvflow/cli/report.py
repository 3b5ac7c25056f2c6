"""`rwkvflow report`: what a run did, as one page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.outputs import write_text
from rwkvflow.cli.options import DocumentPath, store_option


@click.command()
@click.argument("run", type=DocumentPath())
@click.option(
    "-o", "--output", type=DocumentPath(exists=False), help="File to write; default: <name>.report.html in this folder"
)
@click.option("--list", "listing", is_flag=True, help="List the kept runs of the recipe RUN, latest first")
@click.option("--back", type=click.IntRange(min=0), default=0, metavar="N", help="Report the Nth run before the latest")
@store_option
def report(run: Path, output: Path | None, listing: bool, back: int, store: Path | None) -> None:
    """Write a self-contained HTML page about RUN: a recipe (its latest run), or the file of a run's events.

    The page shows what ran and for how long, what was cached, logs, quality, patches, and where the artifacts are.
    """
    from rwkvflow.display.report import report_html
    from rwkvflow.display.report_data import gather
    from rwkvflow.store.history import runs
    from rwkvflow.store.store import Store, default_root, run_id

    kept = Store(store or default_root())
    files = [run] if run.suffix == ".jsonl" else runs(kept, run_id(run))
    if listing:
        for path in files:
            data = gather(path, kept, Path.cwd())
            when = datetime.fromtimestamp(data.started, UTC)
            click.echo(f"{when:%Y-%m-%d %H:%M:%S} UTC  {data.status:<11} {data.seconds:>8.1f} s  {path}")
        return
    if back >= len(files):
        before = f"only {len(files)} of its runs are kept" if files else "no run of it is kept"
        raise UsageError(f"{run}: {before}", remedy="rwkvflow run it first, with this store")
    target = output or Path(f"{run.stem}.report.html")
    data = gather(files[back], kept, target.absolute().parent)
    write_text(target, report_html(data), [run, files[back]], force=True)
    click.echo(f"{target} written", err=True)
