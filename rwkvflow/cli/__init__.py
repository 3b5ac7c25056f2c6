"""Commands and options, nothing else. Each command imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from rwkvflow import __version__
from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError, UsageError, exit_codes
from rwkvflow.base.outputs import write_text
from rwkvflow.base.text import json_shown, shown
from rwkvflow.cli.bench import bench, perplexity
from rwkvflow.cli.cache import cache
from rwkvflow.cli.ci import ci, matrix, publish
from rwkvflow.cli.engine import engine
from rwkvflow.cli.files import compare, convert
from rwkvflow.cli.generate import chat, generate
from rwkvflow.cli.image import image
from rwkvflow.cli.options import DocumentPath as _Path
from rwkvflow.cli.options import ModelPath, sandbox_option, store_option
from rwkvflow.cli.options import prepared_run as _prepare
from rwkvflow.cli.options import recipe_argument as _recipe
from rwkvflow.cli.options import request_of as _request
from rwkvflow.cli.options import run_options as _run_options
from rwkvflow.cli.report import report
from rwkvflow.cli.serve import serve
from rwkvflow.cli.verify import verify

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in exit_codes().items())
EXIT_CODES = f"\b\nExit codes:\n{_CODES}\n"


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rwkvflow")
def cli() -> None:
    """Turn RWKV checkpoints into verified, runnable artifacts, reproducibly."""


@cli.command()
@_recipe
@_run_options
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one per line")
@click.option("-v", "--verbose", is_flag=True, help="Also show cached steps and the output of commands")
def run(recipe: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Carry out a recipe: lock, fetch, build, convert, smoke, publish.

    Finished steps are not repeated; a run that failed or was interrupted continues from there.
    """
    from rwkvflow.app import pipeline
    from rwkvflow.display import display_for

    display = display_for(as_json=as_json, verbose=verbose)
    try:
        prepared = pipeline.prepare(_request(recipe, options), display)
        finished = pipeline.execute(prepared, display)
    finally:
        display.close()
    error = finished.error()
    if error is not None:
        raise error


@cli.command()
@_recipe
@_run_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("-v", "--verbose", is_flag=True, help="Also show the limits of each step")
def plan(recipe: Path, as_json: bool, verbose: bool, **options: Any) -> None:
    """Show what a run would do, and why. Writes the lock if it is missing."""
    from rwkvflow.app.explain import standing
    from rwkvflow.display.words import duration

    prepared = _prepare(recipe, options)
    rows = standing(prepared)
    if as_json:
        click.echo(json.dumps([row.__dict__ for row in rows], indent=2))
        return
    click.echo(f"sandbox {prepared.sandbox.name}: {prepared.why_sandbox}")
    for row in rows:
        mark = {"cached": "=", "run": "+", "waits": "?"}[row.state]
        limits = prepared.plan.steps[row.step].limits
        bounds = [duration(limits.time_s)] if limits.time_s else []
        bounds += [f"{limits.memory / 2**30:g} GiB"] if limits.memory else []
        at_most = f"  (at most {', '.join(bounds)})" if verbose and bounds else ""
        click.echo(f"{mark} {row.step:<48} {row.state:<7} {row.why}{at_most}".rstrip())


@cli.command()
@click.argument("step")
@_recipe
@_run_options
def explain(step: str, recipe: Path, **options: Any) -> None:
    """Show the inputs of STEP and what changed in them."""
    from rwkvflow.app.explain import explanation

    for line in explanation(_prepare(recipe, options), step):
        click.echo(shown(line))


@cli.command()
@_recipe
@sandbox_option
@store_option
@click.option("--fresh", is_flag=True, help="Resolve everything again: hub branches move, wheels may be newer")
def lock(recipe: Path, sandbox: str, store: Path | None, fresh: bool) -> None:
    """Pin every input to its digest, in recipe.lock.yaml.

    Entries that still agree with the recipe are kept, unless --fresh is given. Prints the changes as a diff.
    """
    from rwkvflow.app.pipeline import Request, relock
    from rwkvflow.display import display_for
    from rwkvflow.documents.lock import lock_path

    display = display_for(as_json=False, verbose=False)
    try:
        changes = relock(Request(recipe, sandbox=sandbox, store=store), display, fresh=fresh)
    finally:
        display.close()
    for change in changes:
        click.echo(shown(change))
    click.echo(f"{lock_path(recipe)} {'written' if changes else 'is up to date'}")


@cli.command()
@click.argument("documents", nargs=-1, required=True, type=_Path())
def validate(documents: tuple[Path, ...]) -> None:
    """Check recipes, workflows and locks; print every error as file:line:column."""
    from rwkvflow.base.errors import DocumentError, Finding
    from rwkvflow.documents.load import load_document, load_recipe
    from rwkvflow.lock.fit import check_recipe_versions

    recipes: list[Path] = []
    findings: list[Finding] = []
    for document in documents:
        try:
            kind = load_document(document)
            recipes += [document] if kind == "recipe" else []
            click.echo(f"{document}: a valid {kind}")
        except DocumentError as error:
            findings.extend(error.findings)
    if findings:
        raise DocumentError(findings)
    for recipe in recipes:
        check_recipe_versions(load_recipe(recipe), recipe.absolute().parent)


@cli.command()
@_recipe
@_run_options
@click.option("--image", "image_name", help="Which image, if the recipe has several")
def render(recipe: Path, image_name: str | None, **options: Any) -> None:
    """Print the Dockerfile of RECIPE's image."""
    from rwkvflow.app.explain import dockerfiles

    texts = dockerfiles(_prepare(recipe, options))
    if image_name is not None and image_name not in texts:
        raise UsageError(f"there is no image {image_name}; there are {', '.join(texts)}")
    click.echo("\n".join(texts[name] for name in ([image_name] if image_name else texts)), nl=False)


@cli.command()
@click.argument("source")
@click.option("-o", "--output", type=_Path(exists=False), help="File to write; default: standard output")
def init(source: str, output: Path | None) -> None:
    """Write a commented recipe for a checkpoint.

    SOURCE is a path, https://… or hf://owner/name/file.
    """
    from rwkvflow.documents.template import recipe_template

    text = recipe_template(source)
    _refuse_unknown(source)
    if output is None:
        click.echo(text, nl=False)
        return
    write_text(output, text, [Path(source)], force=False)
    click.echo(f"{output} written; next: rwkvflow run {output}", err=True)


def _refuse_unknown(source: str) -> None:
    """Raises UsageError where the checkpoint is at hand, or its header can be had, and is none of the versions."""
    from rwkvflow.lock.header import refuse_source

    refuse_source(source, Path())


@cli.command()
@click.argument("file", type=ModelPath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("--tensors", is_flag=True, help="List all tensors")
def inspect(file: Path, as_json: bool, tensors: bool) -> None:
    """Describe a model file. No code in it is run."""
    from rwkvflow.display.inspect import describe_lines
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.inspect import describe

    try:
        description = describe(file)
    except WorkerError as error:
        raise RwkvflowError(str(error)) from error
    if as_json:
        click.echo(json_shown(json.dumps(description, indent=2, ensure_ascii=False)))
        return
    for line in describe_lines(description, tensors=tensors):
        click.echo(shown(line))


@cli.command()
def formats() -> None:
    """List the formats that can be written."""
    from rwkvflow.worker.formats import FORMATS

    for entry in FORMATS.values():
        versions = " ".join(sorted(entry.versions))
        click.echo(f"{entry.name:<24} {entry.suffix:<22} versions {versions:<24} tested with {entry.consumer}")


@cli.command()
@click.argument("document", type=click.Choice(["recipe", "workflow", "lock"]), default="recipe")
def schema(document: Literal["recipe", "workflow", "lock"]) -> None:
    """Print the JSON Schema of a document, for editors."""
    from rwkvflow.documents.schema import schema_text

    click.echo(schema_text(document), nl=False)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@store_option
def doctor(as_json: bool, store: Path | None) -> None:
    """Check what this machine has and lacks, with a remedy for each problem."""
    from rwkvflow.sandbox.doctor import examine
    from rwkvflow.store.store import default_root

    checks = examine(store or default_root())
    if as_json:
        click.echo(json.dumps([check.__dict__ for check in checks], indent=2))
    for check in [] if as_json else checks:
        click.echo(f"{check.status:<8} {check.name:<16} {check.message}")
        if check.remedy:
            click.echo(f"{'':25} → {check.remedy}")
    if any(check.status == "missing" for check in checks):
        raise click.exceptions.Exit(EnvironmentMissing.exit_code)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: rwkvflow completion bash > ~/.local/share/bash-completion/completions/rwkvflow
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"there is no completion for {shell}")
    click.echo(kind(cli, {}, "rwkvflow", "_RWKVFLOW_COMPLETE").source(), nl=False)


cli.add_command(bench)
cli.add_command(cache)
cli.add_command(chat)
cli.add_command(ci)
cli.add_command(compare)
cli.add_command(convert)
cli.add_command(engine)
cli.add_command(generate)
cli.add_command(image)
cli.add_command(matrix)
cli.add_command(perplexity)
cli.add_command(publish)
cli.add_command(report)
cli.add_command(serve)
cli.add_command(verify)
