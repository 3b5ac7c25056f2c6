"""`rwkvflow image`: base images and environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rwkvflow.base.text import shown
from rwkvflow.cli.options import recipe_argument, request_of, run_options, run_stages, sandbox_option, store_option


@click.group()
def image() -> None:
    """Manage base images and the environments that recipes run in."""


@image.command()
@click.option("--suite", default="bookworm", show_default=True, help="Debian release, which decides the Python version")
@click.option(
    "--package",
    "packages",
    multiple=True,
    help="Add a Debian package, such as mesa-vulkan-drivers",
)
@click.option("--tag", help="Name of the image; default: rwkvflow-base:<suite>[_<package>…]")
@click.option("--mirror", help="Debian mirror; default: the one this machine uses")
@store_option
def bootstrap(suite: str, packages: tuple[str, ...], tag: str | None, mirror: str | None, store: Path | None) -> None:
    """Make a base image from Debian packages, for sites without a registry. Needs mmdebstrap or debootstrap."""
    from rwkvflow.sandbox.image.bootstrap import bootstrap_image
    from rwkvflow.store.store import default_root

    made = bootstrap_image(
        suite,
        packages=packages,
        tag=tag,
        mirror=mirror,
        root=store or default_root(),
        on_line=lambda line: click.echo(shown(line), err=True),
    )
    click.echo(f"{made.reference} {made.digest}")


@image.command("ls")
@sandbox_option
@store_option
def image_ls(sandbox: str, store: Path | None) -> None:
    """List all environments, and the step that uses each."""
    from rwkvflow.app.pipeline import environments

    for tag, used in environments(sandbox, store):
        click.echo(shown(f"{tag[:24]}  {used or '(unused)'}"))


@image.command("prune")
@sandbox_option
@store_option
def image_prune(sandbox: str, store: Path | None) -> None:
    """Remove the environments that no finished step uses."""
    from rwkvflow.app.pipeline import environments

    gone = [tag for tag, used in environments(sandbox, store, remove=True) if not used]
    click.echo(f"{len(gone)} removed")


@image.command("build")
@recipe_argument
@run_options
def image_build(recipe: Path, **options: Any) -> None:
    """Build only the environments of RECIPE."""
    run_stages(recipe, options, ["image"])


@image.command("push")
@recipe_argument
@click.argument("place", metavar="oci://REGISTRY/NAME")
@run_options
def image_push(recipe: Path, place: str, **options: Any) -> None:
    """Push the environments of RECIPE to a registry, each under its image's name, and print them by digest."""
    from rwkvflow.app.explain import standing
    from rwkvflow.app.pipeline import prepare
    from rwkvflow.base.errors import EnvironmentMissing, UsageError
    from rwkvflow.documents.destinations import OciDestination
    from rwkvflow.sandbox.daemon import connect
    from rwkvflow.sandbox.docker import reference
    from rwkvflow.sandbox.image.image_push import push_image

    if not place.startswith("oci://"):
        raise UsageError(f"{place} is not a place for images", remedy="write oci://registry/name")
    options["sandbox"] = "docker"
    prepared = prepare(request_of(recipe, options), lambda event: None)
    rows = [row for row in standing(prepared) if prepared.plan.steps[row.step].action == "environment"]
    client = connect()
    for row in rows:
        name = str(prepared.plan.steps[row.step].params["image"])
        target = OciDestination.parse(f"{place}:{name}")
        if row.key is None or not prepared.sandbox.has(row.key):
            raise EnvironmentMissing(f"{row.step} has not been built", remedy=f"rwkvflow image build {recipe}")
        click.echo(push_image(client, reference(row.key), target, lambda line: click.echo(shown(line), err=True)))
