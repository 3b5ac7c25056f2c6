"""`rwkvflow matrix`, `ci` and `publish`: many jobs make what one run would, and it is published once."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from rwkvflow.base.errors import PublishError, UsageError
from rwkvflow.base.outputs import write_text
from rwkvflow.cli.options import ArtifactId, DocumentPath, recipe_argument, request_of, run_options

if TYPE_CHECKING:
    from rwkvflow.documents.recipe import Recipe
    from rwkvflow.plan.ci import CiSettings

_by = click.option(
    "--by",
    type=click.Choice(["artifact", "model", "format", "image"]),
    default="artifact",
    show_default=True,
    help="Make one job for each of these",
)


@click.command()
@recipe_argument
@_by
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "github", "gitlab", "slurm", "kubernetes"]),
    default="text",
    show_default=True,
    help="Form of the list: for GitHub's strategy.matrix, a child pipeline of GitLab's, or workers on a cluster",
)
@click.option("--workers", type=int, help="For slurm and kubernetes: how many; default: one an artifact, at most 16")
@click.option("--image", default="", metavar="NAME", help="For kubernetes: the image that has rwkvflow in it")
@click.option(
    "--sandbox",
    type=click.Choice(["docker", "host"]),
    default="host",
    show_default=True,
    help="For slurm and kubernetes: where commands of the workers run",
)
@click.option("--workflow", type=DocumentPath(), help="For slurm and kubernetes: limits, which say what a worker needs")
@click.option(
    "--only", multiple=True, metavar="ID", type=ArtifactId(), help="Select artifacts: model/format@image, globs allowed"
)
def matrix(
    recipe: Path, by: Literal["artifact", "model", "format", "image"], style: str, only: tuple[str, ...], **options: Any
) -> None:
    """List the identifiers of RECIPE's artifacts, as `--only` takes them, or the CI jobs that make them.

    With slurm or kubernetes, write a file that starts workers, which share the steps through a remote store.
    """
    from rwkvflow.documents.load import load_recipe
    from rwkvflow.plan import ci as workflows
    from rwkvflow.plan.matrix import expand, select

    if style in ("slurm", "kubernetes"):
        click.echo(_cluster(recipe, style, options), nl=False)
        return
    found = workflows.jobs(select(expand(load_recipe(recipe)), only), by)
    if style == "text":
        for job in found:
            click.echo(job.only)
    elif style == "json":
        click.echo(json.dumps(workflows.listing(found), indent=2))
    elif style == "github":
        click.echo(json.dumps(workflows.github_matrix(found), separators=(",", ":")))
    else:
        click.echo(workflows.dump(workflows.gitlab_jobs(found)), nl=False)


def _cluster(recipe: Path, style: str, options: dict[str, Any]) -> str:
    from rwkvflow.documents.load import load_recipe, load_workflow
    from rwkvflow.plan import cluster
    from rwkvflow.plan.matrix import expand
    from rwkvflow.stages.blueprint import limits_of, unused_stages

    loaded = load_recipe(recipe)
    workflow = load_workflow(options["workflow"])
    stages = [getattr(workflow.stages, name) for name in type(workflow.stages).model_fields]
    unused = [getattr(workflow.stages, name) for name in unused_stages(loaded)]
    used = [stage for stage in stages if not any(stage is other for other in unused)]
    memory, cores = cluster.needs([limits_of(stage) for stage in (*used, *workflow.extra)])
    workers = options["workers"] if options["workers"] is not None else min(16, len(expand(loaded)))
    settings = cluster.ClusterSettings(
        loaded.name,
        recipe.as_posix(),
        workers,
        options["sandbox"],
        options["image"],
        memory,
        cores,
        options["workflow"].as_posix() if options["workflow"] else "",
    )
    return cluster.slurm(settings) if style == "slurm" else cluster.kubernetes(settings)


@click.group()
def ci() -> None:
    """Write CI workflows that make a recipe's artifacts in parallel and publish them once."""


def _ci_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--sandbox",
            type=click.Choice(["docker", "host"]),
            default="host",
            show_default=True,
            help="Sandbox of the jobs; docker needs a base image that the runners can pull",
        ),
        click.option("--package", help="Requirement that pip installs in the jobs; default: this version of rwkvflow"),
        click.option(
            "--secret", multiple=True, default=("HF_TOKEN",), show_default=True, help="Secret that the jobs may use"
        ),
        click.option("-o", "--output", type=DocumentPath(exists=False), help="File to write; default: standard output"),
        _by,
        recipe_argument,
    ):
        function = option(function)
    return function


@ci.command()
@_ci_options
@click.option("--schedule", metavar="CRON", help='Also run at these times (UTC), with a fresh lock: "17 4 * * 1"')
def github(**options: Any) -> None:
    """Write two GitHub Actions workflows: one that makes, publishes and attests, and one that calls it.

    RECIPE is its path in the repository. The second file is named as the first, with -build; without --output, both are
    printed.
    """
    from rwkvflow.plan.ci import github_reusable, github_workflow

    settings = _settings(options)
    output: Path | None = options["output"]
    name = output or Path(f"rwkvflow-{settings.name}.yml")
    called = name.with_name(f"{name.stem}-build{name.suffix}")
    texts = {name: github_workflow(settings, called.name), called: github_reusable(settings)}
    if output is None:
        click.echo("---\n".join(f"# {path.name}\n{text}" for path, text in texts.items()), nl=False)
        return
    for path, text in texts.items():
        _put(path, text, options["recipe"])


@ci.command()
@_ci_options
def gitlab(**options: Any) -> None:
    """Write a GitLab pipeline. RECIPE is its path in the repository. Secrets come from the project's variables."""
    from rwkvflow.plan.ci import gitlab_workflow

    settings = _settings(options)
    if options["output"] is None:
        click.echo(gitlab_workflow(settings), nl=False)
        return
    _put(options["output"], gitlab_workflow(settings), options["recipe"])


def _extras(recipe: Recipe) -> str:
    """Extras of rwkvflow that a recipe's places and its signature need."""
    from rwkvflow.publish.places import extras_of

    wanted = extras_of(recipe)
    return f"[{','.join(sorted(wanted))}]" if wanted else ""


def _package(recipe: Recipe) -> str:
    """What pip installs: this version; of a checkout, which no index has, the newest one."""
    from rwkvflow import __version__

    return f"rwkvflow{_extras(recipe)}" + ("" if "+" in __version__ else f"=={__version__}")


def _settings(options: dict[str, Any]) -> CiSettings:
    from rwkvflow.documents.load import load_recipe
    from rwkvflow.plan.ci import CiSettings

    recipe = load_recipe(options["recipe"])
    return CiSettings(
        name=recipe.name,
        recipe=options["recipe"].as_posix(),
        package=options["package"] or _package(recipe),
        sandbox=options["sandbox"],
        by=options["by"],
        secrets=tuple(options["secret"]),
        schedule=options.get("schedule"),
    )


def _put(path: Path, text: str, recipe: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, [recipe], force=True)
    click.echo(f"{path} written", err=True)


@click.command()
@recipe_argument
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON, one per line")
@click.option("-v", "--verbose", is_flag=True, help="Also show cached steps and the output of commands")
@click.option("--dry-run", is_flag=True, help="Only print what would change at each destination")
@click.option(
    "--sums",
    type=DocumentPath(exists=False),
    help="Also write the sha256 of every file that was published to this file, as sha256sum has it, for a signature",
)
def publish(recipe: Path, as_json: bool, verbose: bool, dry_run: bool, sums: Path | None, **options: Any) -> None:
    """Publish what `rwkvflow run --only` made in several jobs. Makes nothing itself; refuses if anything is missing."""
    from rwkvflow.app import explain, pipeline
    from rwkvflow.display import display_for
    from rwkvflow.execute.publishing import look_again, published_sums

    if options["only"]:
        raise UsageError("--only would publish a part of the release", remedy="leave it out")
    with closing(display_for(as_json=as_json, verbose=verbose)) as display:
        prepared = pipeline.publish_only(pipeline.prepare(request_of(recipe, options), display))
        if not prepared.plan.targets:
            raise UsageError(f"{recipe} names no place to publish to", remedy="add `publish:` to it")
        missing = explain.missing(prepared)
        if missing:
            names = "".join(f"\n  {name}: {why}" for name, why in missing.items())
            raise PublishError(
                f"nothing was published, for {len(missing)} of the steps that the release needs are missing:{names}",
                remedy="run the jobs that make them, with the same store or remote store: rwkvflow run --only ID",
            )
        if dry_run:
            for line in explain.publishing(prepared):
                click.echo(line)
            return
        look_again(prepared.store, prepared.plan)  # whoever asks for it by name wants to be sure
        finished = pipeline.execute(prepared, display, stages=frozenset({"publish"}))
    finished.check()
    if sums is not None:
        write_text(sums, published_sums(prepared.store, finished.outcomes), [recipe], force=True)
