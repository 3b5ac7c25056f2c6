"""The workflow: how stages are carried out, and extra stages of the user's own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from rwkvflow.documents.parts import Many, Name, Strict

DURATION = r"^[0-9]{1,9}(\.[0-9]{1,6})?(s|m|h)$"
STORE_KEY = r"^ed25519:[A-Za-z0-9+/]{43}=$"
DAY = r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$"
SIZE = r"^[0-9]{1,9}(\.[0-9]{1,6})?(MiB|GiB)$"

Duration = Annotated[str, StringConstraints(pattern=DURATION)]
Size = Annotated[str, StringConstraints(pattern=SIZE)]


class StageLimits(Strict):
    """Limits of one stage; a key left out means no limit."""

    time: Duration | None = Field(default=None, description="90s, 30m or 2h; stopped, and failed, after that")
    retries: int = Field(default=0, ge=0, le=20, description="Tries after the first")
    memory: Size | None = Field(default=None, description="512MiB or 4GiB; the most that a command may use")
    disk: Size | None = Field(
        default=None, description="2GiB; the most that outputs and scratch of a command may occupy"
    )
    cores: float | None = Field(default=None, gt=0, description="Processor time; results never depend on it")


class Stages(Strict):
    """Limits of each built-in stage."""

    fetch: StageLimits = Field(
        default=StageLimits(), description="Downloads of checkpoints, tokenizers and engine sources"
    )
    wheels: StageLimits = Field(default=StageLimits(), description="Downloads of wheels")
    image: StageLimits = Field(default=StageLimits(), description="The container image or virtual environment")
    engine: StageLimits = Field(default=StageLimits(), description="Building the native engine")
    imatrix: StageLimits = Field(
        default=StageLimits(), description="The importance matrix of a model, where the recipe wants one"
    )
    measure: StageLimits = Field(
        default=StageLimits(), description="What each matrix loses in each type, where a recipe has a target"
    )
    convert: StageLimits = Field(default=StageLimits(), description="All formats of a model in one read")
    reference: StageLimits = Field(default=StageLimits(), description="The fp32 reference of a model")
    smoke: StageLimits = Field(default=StageLimits(), description="Each artifact against the reference")
    quality: StageLimits = Field(
        default=StageLimits(), description="Each artifact over several domains, where the recipe wants it"
    )
    publish: StageLimits = Field(default=StageLimits(), description="Checksums, provenance, and the way to their place")


class ExtraStage(StageLimits):
    """A command of the user's own, run in the image for each artifact or each model.

    The command finds its inputs at in/<name> and must leave each output at out/<name>. It is never a shell line.
    """

    name: Name = Field(description="Part of the identifiers of its steps")
    each: Literal["artifact", "model"] = Field(default="artifact", description="What it runs for")
    needs: Literal["convert", "smoke"] = Field(default="convert", description="What must have succeeded before")
    command: Many[str] = Field(min_length=1, description="Program and arguments; no shell reads them")
    inputs: dict[Name, str] = Field(
        default_factory=dict,
        description="name: what; `artifact`, `checkpoint`, `engine`, `smoke`, or a file or folder "
        "relative to the workflow",
    )
    outputs: Many[Name] = Field(min_length=1, description="What it leaves at out/<name>")
    publish: bool = Field(default=False, description="Publish the outputs beside the artifact")


class StoreKey(Strict):
    """A key whose signed records of a remote store count."""

    key: Annotated[str, StringConstraints(pattern=STORE_KEY)] = Field(
        description="Public key, as `rwkvflow cache keys` prints it"
    )
    name: Name = Field(description="Whose it is, for messages")
    before: Annotated[str, StringConstraints(pattern=DAY)] | None = Field(
        default=None, description="Day from which on what it signs counts for nothing, as 2026-11-30"
    )


class Workflow(Strict):
    """workflow.yaml as a whole."""

    version: Literal[1] = Field(default=1, description="Of the workflow's format, not of your workflow")
    allow_outside: bool = Field(
        default=False, description="Recipes may name templates, texts, keys and engine sources outside of their folder"
    )
    trust: Many[StoreKey] = Field(
        default=(), description="Keys whose records in a remote store count; none: everybody's do"
    )
    stages: Stages = Field(default=Stages(), description="Limits; a stage left out keeps the shipped ones")
    extra: Many[ExtraStage] = Field(default=(), description="Stages of your own")
