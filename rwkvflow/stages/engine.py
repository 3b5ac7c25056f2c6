"""Engine: configure, patch what CMake wrote, build, strip; in the environment, so that it needs no compiler here.

librwkv is always built, for it also encodes the artifacts. A recipe that names another engine has that one built
besides, and smoke runs the artifacts with it. llama.cpp is built if a format of the run is tested with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rwkvflow.documents.lock import LLAMA
from rwkvflow.documents.recipe import Git
from rwkvflow.plan.step import Input, Ref, Step
from rwkvflow.stages import fetch, llama
from rwkvflow.stages.blueprint import WORKER_COMMAND, Blueprint, environment, image_step

BUILTIN, CUSTOM = "librwkv", "custom"
TARGETS = {
    "linux-x86_64": "x86_64-linux-gnu.2.17",
    "linux-aarch64": "aarch64-linux-gnu.2.17",
    "macos-x86_64": "x86_64-macos",
    "macos-arm64": "aarch64-macos",
    "windows-x86_64": "x86_64-windows-gnu",  # no sandbox is there; the wheel brings librwkv
    "windows-aarch64": "aarch64-windows-gnu",
}


@dataclass(frozen=True)
class EngineBuild:
    """One engine to build: the task's parameters, and where its sources come from."""

    request: dict[str, Any]
    source: Input


def builds(blueprint: Blueprint, image: str | None = None) -> dict[str, EngineBuild]:
    """The engines of a recipe, or of one of its images, by name."""
    found = _builds(blueprint)
    if llama.wanted(blueprint, image):
        engine = blueprint.recipe.engine
        request: dict[str, Any] = {
            "toolchain": engine.toolchain,
            "target": TARGETS[blueprint.platform],
            "cmake": {},
            "patches": [],
            "library": "**/librwkvflow-llama.*",
            "folder": ".",
            "stem": "libllama",
        }
        found[LLAMA] = EngineBuild(request, llama.SOURCE)
    return found


def _builds(blueprint: Blueprint) -> dict[str, EngineBuild]:
    engine = blueprint.recipe.engine
    target = engine.target or TARGETS[blueprint.platform]
    common = {"toolchain": engine.toolchain, "target": target}
    request = {
        **common,
        "cmake": dict(engine.cmake),
        "patches": [rule.model_dump(mode="json") for rule in engine.patches],
        "library": engine.library,
        "folder": engine.source.folder if isinstance(engine.source, Git) else ".",
    }
    if engine.source == "builtin":
        return {BUILTIN: EngineBuild(request, blueprint.builtin_engine)}
    return {
        BUILTIN: EngineBuild(plain_request(blueprint.platform) | common, blueprint.builtin_engine),
        CUSTOM: EngineBuild(request, fetch.engine_source(blueprint)),
    }


def cross_builds(blueprint: Blueprint) -> dict[str, EngineBuild]:
    """The recipe's engine for each of `engine.targets`, by target."""
    used = _builds(blueprint)[_used_name(blueprint)]
    return {
        target: EngineBuild({**used.request, "target": target}, used.source)
        for target in blueprint.recipe.engine.targets
    }


def cross(blueprint: Blueprint, target: str) -> Ref:
    """The recipe's engine for another machine, as the first image's toolchain builds it."""
    return Ref(f"engine/{_used_name(blueprint)}.{target}@{_first(blueprint)}", "engine")


def _used_name(blueprint: Blueprint) -> str:
    return BUILTIN if blueprint.recipe.engine.source == "builtin" else CUSTOM


def _first(blueprint: Blueprint) -> str:
    return next(iter(blueprint.images))


def plain_request(platform: str) -> dict[str, Any]:
    """The task's parameters for librwkv where a recipe says nothing of the engine."""
    return {
        "toolchain": "zig",
        "target": TARGETS[platform],
        "cmake": {},
        "patches": [],
        "library": None,
        "folder": ".",
    }


def builtin(image: str) -> Ref:
    """librwkv as built in an image: a folder with lib/, bin/, patch.diff, build.json."""
    return Ref(f"engine/{BUILTIN}@{image}", "engine")


def llama_cpp(image: str) -> Ref:
    """llama.cpp as built in an image: lib/libllama.so with rwkvflow's interface to it."""
    return Ref(f"engine/{LLAMA}@{image}", "engine")


def used(blueprint: Blueprint, image: str) -> Ref:
    """The engine that the recipe names."""
    return Ref(f"engine/{_used_name(blueprint)}@{image}", "engine")


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step an engine and image, and one a further target."""
    for image in blueprint.images:
        for name, build in builds(blueprint, image).items():
            yield _step(blueprint, f"engine/{name}@{image}", name, build, image)
    for target, build in cross_builds(blueprint).items():
        yield _step(blueprint, cross(blueprint, target).step, _used_name(blueprint), build, _first(blueprint))


def _step(blueprint: Blueprint, step: str, name: str, build: EngineBuild, image: str) -> Step:
    """The step. What zig builds is made of its wheels alone, so that all images with the same ones share a build.

    What the machine's compiler builds is made of the whole environment.
    """
    params: dict[str, Any] = {"task": "build-engine", "params": {"name": name, **build.request}, "job": {}}
    inputs: dict[str, Input] = {"source": build.source}
    if build.request["toolchain"] == "zig":
        params["toolchain"] = _toolchain(blueprint, image)
    else:
        inputs["environment"] = environment(image)
    return Step(
        id=step,
        stage="engine",
        action="sandbox",
        command=WORKER_COMMAND,
        params=params,
        inputs=inputs,
        outputs=("engine",),
        code=blueprint.own_worker.digest,
        environment=image_step(image),
        limits=blueprint.limits("engine"),
        local={"trusted": is_shipped(build.request, name)},
    )


def _toolchain(blueprint: Blueprint, image: str) -> list[list[str]]:
    """The wheels of the compiler, CMake and Ninja: file name and hash, sorted; [] where the lock has none."""
    wheels = blueprint.lock.images[image].platforms.get(blueprint.platform)
    return sorted([wheel.filename, wheel.sha256] for wheel in (wheels.toolchain if wheels else ()))


def is_shipped(request: Mapping[str, Any], name: str) -> bool:
    """Whether a build runs code that ships with rwkvflow, or is pinned by it, and nothing else."""
    return name in (BUILTIN, LLAMA) and not (request["cmake"] or request["patches"])
