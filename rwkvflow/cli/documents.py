"""Commands about documents: validate, init, render, schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.outputs import write_text
from rwkvflow.base.text import shown
from rwkvflow.cli.options import DocumentPath, prepared_run, recipe_argument, refuse_recipe, run_options


@click.command()
@click.argument("documents", nargs=-1, required=True, type=DocumentPath())
def validate(documents: tuple[Path, ...]) -> None:
    """Check recipes, workflows and locks; print every error as file:line:column."""
    from rwkvflow.base.errors import DocumentError, Finding
    from rwkvflow.documents.load import load_document, load_recipe
    from rwkvflow.lock.fit import check_recipe_files, check_recipe_versions

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
        loaded, folder = load_recipe(recipe), recipe.absolute().parent
        check_recipe_files(loaded, folder, recipe)
        check_recipe_versions(loaded, folder, recipe)


@click.command()
@recipe_argument
@run_options
@click.option("--image", "image_name", help="Which image, if the recipe has several")
def render(recipe: Path, image_name: str | None, **options: Any) -> None:
    """Print the Dockerfile of RECIPE's image."""
    from rwkvflow.app.explain import dockerfiles

    texts = dockerfiles(prepared_run(recipe, options))
    if image_name is not None and image_name not in texts:
        raise UsageError(f"there is no image {image_name}; there are {', '.join(texts)}")
    click.echo("\n".join(texts[name] for name in ([image_name] if image_name else texts)), nl=False)


@click.command()
@click.argument("source", required=False)
@click.option("-o", "--output", type=DocumentPath(exists=False), help="File to write; default: standard output")
@click.option("--full", is_flag=True, help="Write every key of a recipe: what it means, and its default")
@click.option("--from", "name", metavar="NAME", help="Copy a recipe that ships with rwkvflow, with its checkpoints")
@click.option("--list", "as_list", is_flag=True, help="List the recipes that ship with rwkvflow")
def init(source: str | None, output: Path | None, full: bool, name: str | None, as_list: bool) -> None:
    """Write a commented recipe for a checkpoint.

    SOURCE is a path, https://…, hf://owner/name/file, or owner/name: a repository of the hub, whose checkpoints are
    then listed to choose from. `--from demo` copies a recipe that runs as it is, with its two tiny checkpoints.
    """
    from rwkvflow.app import starts
    from rwkvflow.documents.template import recipe_template

    if as_list:
        for each, purpose in starts.recipes().items():
            click.echo(f"{each:<14} {purpose}")
        return
    if (source is None) == (name is None):
        raise UsageError("init takes a SOURCE, or --from NAME", remedy="rwkvflow init --list lists the names")
    if name is not None and full:
        raise UsageError("--full is for a SOURCE; --from copies a recipe as it is")
    if name is not None:
        written = starts.copy_recipe(name, output or Path(f"{name}.yaml"))
        click.echo(f"{', '.join(map(str, written))} written; next: rwkvflow run {written[0]}", err=True)
        return
    refuse_recipe(source or "")
    source = _chosen(starts.source_meant(source or ""))
    from rwkvflow.lock.header import is_hybrid

    text = recipe_template(source, hybrid=is_hybrid(source, Path()))
    _refuse_unknown(source)
    if full:
        from rwkvflow.documents.load import recipe_from_text
        from rwkvflow.documents.yaml.full import full_text

        where = output or Path("recipe.yaml")
        head = "# A recipe for rwkvflow with every key. What stands behind #, without a space, is to be switched on.\n"
        text = f"{head}\n{full_text(recipe_from_text(text, str(where), where.parent))}"
    if output is None:
        click.echo(text, nl=False)
        return
    write_text(output, text, [Path(source)], force=False)
    click.echo(f"{output} written; next: rwkvflow run {output}", err=True)


def _chosen(source: str) -> str:
    """The source, or of a repository's checkpoints the one that the person picks. Raises UsageError to list them."""
    from rwkvflow.app.starts import choices

    found = choices(source)
    if found is None or len(found) == 1:
        return found[0].source if found else source
    if not sys.stdin.isatty():
        lines = "".join(f"\n    {each}" for each in found)
        raise UsageError(f"{source} has {len(found)} checkpoints", remedy=f"name one of them: {lines}")
    for number, each in enumerate(found, 1):
        click.echo(f"{number:>3}  {shown(str(each))}", err=True)
    picked = click.prompt("Which one", type=click.IntRange(1, len(found)), err=True)
    return found[picked - 1].source


def _refuse_unknown(source: str) -> None:
    """Raises UsageError where the checkpoint is at hand, or its header can be had, and is none of the versions."""
    from rwkvflow.lock.header import refuse_source

    refuse_source(source, Path())


@click.command()
@click.argument("document", type=click.Choice(["recipe", "workflow", "lock", "catalogue", "quality"]), default="recipe")
def schema(document: Literal["recipe", "workflow", "lock", "catalogue", "quality"]) -> None:
    """Print the JSON Schema of a document, for editors, or of a release's JSON files, for programs."""
    from rwkvflow.documents.schema import printed, schema_for, schema_text

    if document == "quality":
        from rwkvflow.release.quality import Quality

        click.echo(printed(schema_for(document, Quality)), nl=False)
        return
    if document == "catalogue":
        from rwkvflow.release.catalogue import Catalogue

        click.echo(printed(schema_for(document, Catalogue)), nl=False)
        return
    click.echo(schema_text(document), nl=False)
