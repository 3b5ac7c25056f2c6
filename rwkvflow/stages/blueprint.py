"""What all stages build their Steps from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rwkvflow.base.hashing import file_digest, text_digest, tree_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.formats import outside
from rwkvflow.documents.lock import Lock
from rwkvflow.documents.parts import FormatEntry
from rwkvflow.documents.recipe import Image, Model, Recipe
from rwkvflow.documents.workflow import StageLimits, Workflow
from rwkvflow.documents.yaml.units import seconds, size_bytes
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import LocalInput, Ref, StepLimits, canonical
from rwkvflow.worker.formats.outside import FormatPackage

WORKER_COMMAND = ("python3", "-m", "rwkvflow.worker", "in/request.json")
#: Modules of the engine that the worker imports, itself or through others.
ENGINE_CODE = ("__init__.py", "binding.py", "errors.py", "importance.py", "parts.py", "prompts.py", "tokenizer.py")


@dataclass(frozen=True)
class Blueprint:
    """The documents of one run, and where they came from."""

    recipe: Recipe
    recipe_path: Path
    workflow: Workflow
    workflow_path: Path
    lock: Lock
    sandbox: str  # "docker" | "host"
    platform: str  # "linux-x86_64"
    artifacts: tuple[Artifact, ...]

    @property
    def folder(self) -> Path:
        """Relative paths in the recipe start here."""
        return self.recipe_path.parent

    @cached_property
    def images(self) -> Mapping[str, Image]:
        """Images that some artifact is made in, by name."""
        used = {artifact.image for artifact in self.artifacts}
        return {image.name: image for image in self.recipe.images if image.name in used}

    @cached_property
    def models(self) -> Mapping[str, Model]:
        """Models that some artifact is made of, by name."""
        used = {artifact.model for artifact in self.artifacts}
        return {model.name: model for model in self.recipe.models if model.name in used}

    @cached_property
    def builtin_engine(self) -> LocalInput:
        """librwkv's sources."""
        return LocalInput(tree_digest(PACKAGE / "engine"), PACKAGE / "engine")

    @cached_property
    def format_packages(self) -> tuple[FormatPackage, ...]:
        """The installed packages that formats of this run come from."""
        return tuple(outside(artifact.format for artifact in self.artifacts).values())

    @cached_property
    def format_digests(self) -> dict[str, dict[str, str]]:
        """Version and tree digest of each of these packages, by name."""
        return {
            item.name: {"version": item.version, "digest": tree_digest(item.folder)} for item in self.format_packages
        }

    @cached_property
    def own_worker(self) -> LocalInput:
        """Our own code that runs inside the sandbox."""
        return LocalInput(tree_digest(PACKAGE / "worker"), PACKAGE / "worker")

    @cached_property
    def worker(self) -> LocalInput:
        """The code that runs inside the sandbox.

        Its digest is also that of what it imports of the engine (the chat template, say, which stands in artifacts),
        and of formats from outside.
        """
        code: dict[str, Any] = {
            "worker": self.own_worker.digest,
            "engine": {name: file_digest(PACKAGE / "engine" / name) for name in ENGINE_CODE},
            **({"formats": self.format_digests} if self.format_packages else {}),
        }
        engine = (LocalInput(digest, PACKAGE / "engine" / name) for name, digest in code["engine"].items())
        formats = (LocalInput(self.format_digests[item.name]["digest"], item.folder) for item in self.format_packages)
        return LocalInput(text_digest(canonical(code)), PACKAGE / "worker", (self.own_worker, *engine, *formats))

    def limits(self, stage: str, *, cores: float | None = None, beside: bool = False) -> StepLimits:
        """Limits of a stage from the workflow; `cores` and `beside` where the workflow names no cores."""
        own: StageLimits = getattr(self.workflow.stages, stage)
        return replace(limits_of(own, cores=cores), beside=beside and own.cores is None)


def image_step(image: str) -> str:
    """Id of the step that makes an environment."""
    return f"image/{image}"


def environment(image: str) -> Ref:
    """What an environment is made of, as canonical JSON: equal on every machine for equal locks."""
    return Ref(image_step(image), "environment")


def consumers_step(image: str) -> str:
    """Id of the step that makes the environment of consumers, where they have one of their own."""
    return f"image/{image}+consumers"


def limits_of(stage: StageLimits, *, cores: float | None = None) -> StepLimits:
    """Limits as a Step carries them."""
    return StepLimits(
        time_s=seconds(stage.time) if stage.time else None,
        memory=size_bytes(stage.memory) if stage.memory else None,
        cores=stage.cores if stage.cores is not None else cores,
        retries=stage.retries,
        disk=size_bytes(stage.disk) if stage.disk else None,
    )


def unused_stages(recipe: Recipe) -> list[str]:
    """The stages of the workflow that a recipe has no step of, as it does not ask for what they make."""
    asked = {
        "imatrix": any(model.imatrix for model in recipe.models),
        "measure": any(isinstance(item, FormatEntry) and item.target for item in recipe.formats),
        "quality": recipe.smoke.quality == "full",
    }
    return [stage for stage, wanted in asked.items() if not wanted]
