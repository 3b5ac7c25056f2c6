"""Commands about documents: validate, init, render, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from rwkvflow.base.errors import UsageError
from rwkvflow.base.outputs import write_text
from rwkvflow.cli.options import DocumentPath, prepared_run, recipe_argument, run_options


@click.command()
@click.argument("documents", nargs=-1, required=True, type=DocumentPath())
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
@click.argument("source")
@click.option("-o", "--output", type=DocumentPath(exists=False), help="File to write; default: standard output")
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


@click.command()
@click.argument("document", type=click.Choice(["recipe", "workflow", "lock"]), default="recipe")
def schema(document: Literal["recipe", "workflow", "lock"]) -> None:
    """Print the JSON Schema of a document, for editors."""
    from rwkvflow.documents.schema import schema_text

    click.echo(schema_text(document), nl=False)
