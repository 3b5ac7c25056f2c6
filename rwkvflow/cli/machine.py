"""Commands about this machine: doctor, the native engine, the shell's completion, man pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.base.text import shown
from rwkvflow.cli.options import prepared_run, recipe_argument, run_options, run_stages, store_option


@click.group()
def engine() -> None:
    """Build the native engine, and show how it was patched."""


@engine.command("build")
@recipe_argument
@run_options
@click.option("--print-path", is_flag=True, help="Print only the path of librwkv's folder, for scripts")
def engine_build(recipe: Path, print_path: bool, **options: Any) -> None:
    """Build only the engine of RECIPE, and print where it is."""
    from rwkvflow.app import pipeline

    prepared, finished = run_stages(recipe, options, ["engine"])
    if print_path:
        click.echo(pipeline.librwkv_folder(prepared, finished))
        return
    for line in pipeline.where(prepared, finished):
        click.echo(shown(line))


@engine.command()
@recipe_argument
@run_options
def diff(recipe: Path, **options: Any) -> None:
    """Show how the files that CMake wrote were patched."""
    from rwkvflow.app.explain import engine_patches

    for line in engine_patches(prepared_run(recipe, options)):
        click.echo(shown(line))


@click.command()
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


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: rwkvflow completion bash > ~/.local/share/bash-completion/completions/rwkvflow
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"there is no completion for {shell}")
    click.echo(
        kind(click.get_current_context().find_root().command, {}, "rwkvflow", "_RWKVFLOW_COMPLETE").source(), nl=False
    )


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def man(folder: Path) -> None:
    """Write man pages, one for each command, into FOLDER.

    For yourself: rwkvflow man ~/.local/share/man/man1
    """
    from rwkvflow.display.manual import pages

    root = click.get_current_context().find_root().command
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(root):
        (folder / f"{name}.1").write_text(text, encoding="utf-8")
        click.echo(folder / f"{name}.1")
