"""`rwkvflow run` and what belongs to it: plan, explain, lock, and the report of what a run did."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.outputs import write_text
from rwkvflow.base.text import shown
from rwkvflow.cli.options import (
    DocumentPath,
    allow_outside_option,
    prepared_run,
    recipe_argument,
    request_of,
    run_options,
    sandbox_option,
    store_option,
    workflow_option,
)


@click.command()
@recipe_argument
@run_options
@click.option(
    "--executor",
    default="local",
    show_default=True,
    envvar="RWKVFLOW_EXECUTOR",
    metavar="WHERE",
    help="Who carries out commands: local, dask (workers on this machine), dask=4, dask=tls://host:8786",
)
@click.option("--executor-insecure", is_flag=True, help="Take a scheduler without TLS that is not on this machine")
@click.option("--tls-ca", type=DocumentPath(), help="Certificate that the cluster's are signed by (PEM)")
@click.option("--tls-cert", type=DocumentPath(), help="Certificate of yours for the cluster (PEM)")
@click.option("--tls-key", type=DocumentPath(), help="Its private key (PEM)")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one per line")
@click.option("-v", "--verbose", is_flag=True, help="Also show cached steps and the output of commands")
def run(recipe: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Carry out a recipe: lock, fetch, build, convert, smoke, publish.

    Finished steps are not repeated; a run that failed or was interrupted continues from there. With --executor dask,
    the workers of a cluster carry out the commands; this machine fetches and publishes.
    """
    from rwkvflow.app import pipeline
    from rwkvflow.display import display_for
    from rwkvflow.execute.cluster.connection import Certificates, check_asked
    from rwkvflow.execute.cluster.fitness import parse_executor

    executor = parse_executor(options["executor"], insecure=options["executor_insecure"])
    files = (options["tls_ca"], options["tls_cert"], options["tls_key"])
    certificates = Certificates(*(str(path) if path else None for path in files))
    check_asked(executor, certificates)
    with closing(display_for(as_json=as_json, verbose=verbose)) as display:
        prepared = pipeline.prepare(request_of(recipe, options), display)
        if executor.kind == "local":
            finished = pipeline.execute(prepared, display)
        else:
            from rwkvflow.app.clusters.connect import Cluster, elsewhere

            with elsewhere(prepared, Cluster(executor, certificates), display) as cluster:
                finished = pipeline.execute(prepared, display, elsewhere=cluster)
    finished.check()


@click.command()
@recipe_argument
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one per line")
@click.option("-v", "--verbose", is_flag=True, help="Also show cached steps and the output of commands")
@click.option(
    "--lease",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    envvar="RWKVFLOW_LEASE",
    metavar="SECONDS",
    help="Take over a step whose worker has given no sign of life for so long",
)
@click.option(
    "--round",
    "round_",
    default="",
    envvar="RWKVFLOW_ROUND",
    metavar="NAME",
    help="Count failures of workers with this name alone; default: those since this one began",
)
def work(recipe: Path, as_json: bool, verbose: bool, lease: float, round_: str, **options: Any) -> None:
    """Be one of several workers that share RECIPE's steps through a remote store.

    Each step is carried out by one of them, which claims it first; the work of one that dies is taken over. A step that
    fails is tried by another, and then left by all. Nothing is published; `rwkvflow publish` does that once, when all
    workers have ended.
    """
    from dataclasses import replace

    from rwkvflow.app import pipeline
    from rwkvflow.display import display_for
    from rwkvflow.store.remote import Remote

    if options["remote"] is None:
        raise UsageError("workers share their steps through a remote store", remedy="name it with --remote")
    with closing(display_for(as_json=as_json, verbose=verbose)) as display:
        request = replace(request_of(recipe, options), publish=False)
        prepared = pipeline.prepare(request, display)
        assert isinstance(prepared.store.remote, Remote)  # noqa: S101 - one was named
        finished = pipeline.execute(prepared, display, leases=prepared.store.remote.leases(lease, round_))
    finished.check()


@click.command()
@recipe_argument
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("-v", "--verbose", is_flag=True, help="Also show the limits of each step")
def plan(recipe: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Show what a run would do, and why. Writes the lock if it is missing.

    The exact size of each artifact is shown where its checkpoint is on this machine, or its server tells its header.
    """
    from rwkvflow.app.explain import standing
    from rwkvflow.app.sizes import sizes
    from rwkvflow.display.words import duration

    prepared = prepared_run(recipe, options)
    rows = standing(prepared)
    expected = {f"convert/{name}": size for name, size in sizes(prepared).items()}
    if as_json:
        listed = [row.__dict__ | ({"bytes": size} if (size := expected.get(row.step)) else {}) for row in rows]
        click.echo(json.dumps(listed, indent=2))
        return
    click.echo(f"sandbox {prepared.sandbox.name}: {prepared.why_sandbox}")
    for row in rows:
        mark = {"cached": "=", "run": "+", "waits": "?"}[row.state]
        limits = prepared.plan.steps[row.step].limits
        bounds = [duration(limits.time_s)] if limits.time_s else []
        bounds += [f"{limits.memory / 2**30:g} GiB"] if limits.memory else []
        file = f"  {expected[row.step]} bytes" if row.step in expected else ""
        at_most = f"  (at most {', '.join(bounds)})" if verbose and bounds else ""
        click.echo(shown(f"{mark} {row.step:<48} {row.state:<7} {row.why}{file}{at_most}".rstrip()))
    if expected:
        once = {name.partition("@")[0]: size for name, size in expected.items()}  # images make the same bytes
        click.echo(f"{len(once)} artifacts, {sum(once.values())} bytes")


@click.command()
@click.argument("step")
@recipe_argument
@run_options
def explain(step: str, recipe: Path, **options: Any) -> None:
    """Show the inputs of STEP and what changed in them."""
    from rwkvflow.app.explain import explanation

    for line in explanation(prepared_run(recipe, options), step):
        click.echo(shown(line))


@click.command()
@recipe_argument
@workflow_option
@sandbox_option
@store_option
@allow_outside_option
@click.option("--fresh", is_flag=True, help="Resolve everything again: hub branches move, wheels may be newer")
def lock(
    recipe: Path, workflow: Path | None, sandbox: str, store: Path | None, allow_outside: bool, fresh: bool
) -> None:
    """Pin every input to its digest, in recipe.lock.yaml.

    Entries that still agree with the recipe are kept, unless --fresh is given. Prints the changes as a diff.
    """
    from rwkvflow.app.pipeline import Request, relock
    from rwkvflow.display import display_for
    from rwkvflow.documents.lock import lock_path

    with closing(display_for(as_json=False, verbose=False)) as display:
        asked = Request(recipe, workflow=workflow, sandbox=sandbox, store=store, allow_outside=allow_outside)
        changes = relock(asked, display, fresh=fresh)
    for change in changes:
        click.echo(shown(change))
    click.echo(f"{lock_path(recipe)} {'written' if changes else 'is up to date'}")


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
