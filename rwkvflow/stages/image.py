"""Image: the wheelhouse, and the environment that is made of it: a container image or a virtual environment.

Where a recipe, or a lock, brings packages that rwkvflow does not know, there are two: they are in the one in which
consumers and extra stages run, and not in the one that converts, computes references and judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rwkvflow.base.errors import LockError
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.lock import LLAMA, LockedImage, LockedWheel, LockedWheels
from rwkvflow.documents.lock_text import requirements_text
from rwkvflow.lock.pins import judging
from rwkvflow.plan.step import Input, Ref, Step, canonical
from rwkvflow.sandbox.image.dockerfile import render_dockerfile
from rwkvflow.stages import engine, fetch, llama
from rwkvflow.stages.blueprint import Blueprint, consumers_step, image_step


def identity(blueprint: Blueprint, image: str) -> dict[str, Any]:
    """What of an image can change a result of a command that runs in it, the worker's code left out."""
    return _identity(blueprint, image, locked_wheels(blueprint, image).worker)


def _identity(blueprint: Blueprint, image: str, wheels: tuple[LockedWheel, ...]) -> dict[str, Any]:
    locked = locked_image(blueprint, image)
    return {
        "sandbox": blueprint.sandbox,
        "platform": blueprint.platform,
        "python": locked.python,
        "base": locked.base.digest if blueprint.sandbox == "docker" and locked.base else None,
        "wheels": wheel_rows(wheels),
    }


def of_consumers(blueprint: Blueprint) -> dict[str, str]:
    """By image, the id of the step that makes the environment in which consumers and extra stages run."""
    found = {}
    for image in blueprint.images:
        wheels = locked_wheels(blueprint, image).worker
        found[image] = image_step(image) if judging(wheels) == wheels else consumers_step(image)
    return found


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """The wheels of an image, and its environment or both of them."""
    consumers = of_consumers(blueprint)
    for image in blueprint.images:
        locked, wheels = locked_image(blueprint, image), locked_wheels(blueprint, image)
        every = {wheel.filename: wheel for wheel in (*wheels.toolchain, *wheels.worker)}
        yield Step(
            id=f"wheels/{image}",
            stage="wheels",
            action="wheels",
            params={"python": locked.python, "platform": blueprint.platform, "wheels": wheel_rows(every.values())},
            inputs={},
            outputs=("wheels",),
            limits=blueprint.limits("wheels", cores=0),
            local={"wheels": [wheel.model_dump() for wheel in every.values()]},
        )
        yield _environment(
            blueprint,
            image,
            wheels.model_copy(update={"worker": judging(wheels.worker)}),
            {name: build.request for name, build in engine.builds(blueprint, image).items()},
            {
                "builtin-engine": blueprint.builtin_engine,
                "engine": fetch.engine_source(blueprint),
                **({LLAMA: llama.SOURCE} if llama.wanted(blueprint, image) else {}),
            },
        )
        if consumers[image] != image_step(image):  # engines are inputs of its commands
            yield _environment(blueprint, image, wheels.model_copy(update={"toolchain": ()}), {}, {}, consumers=True)


def _environment(
    blueprint: Blueprint,
    image: str,
    wheels: LockedWheels,
    engines: dict[str, Any],
    sources: dict[str, Input],
    *,
    consumers: bool = False,
) -> Step:
    locked = locked_image(blueprint, image)
    text = _dockerfile(blueprint, image, wheels, engines) if blueprint.sandbox == "docker" else ""
    return Step(
        id=consumers_step(image) if consumers else image_step(image),
        stage="image",
        action="environment",
        params={
            "identity": _identity(blueprint, image, wheels.worker),
            "toolchain": wheel_rows(wheels.toolchain),
            "engines": engines,
            "image": image,
            "dockerfile": text_digest(text),
        },
        inputs={"wheels": Ref(f"wheels/{image}", "wheels"), "worker": blueprint.worker, **sources},
        outputs=("environment",),
        limits=blueprint.limits("image"),
        local={
            "python": locked.python,
            "base": locked.base.model_dump() if locked.base else None,
            "requirements": requirements(wheels),
            "labels": labels(blueprint, image),
            "dockerfile": text,
            "formats": blueprint.format_packages,
        },
    )


def dockerfile(blueprint: Blueprint, image: str) -> str:
    """The rendered Dockerfile of what converts and judges. Raises LockError where the lock pins no base image."""
    return _dockerfile(blueprint, image, locked_wheels(blueprint, image), engine.builds(blueprint, image))


def _dockerfile(blueprint: Blueprint, image: str, wheels: LockedWheels, engines: Iterable[str]) -> str:
    locked = locked_image(blueprint, image)
    if locked.base is None:
        raise LockError(
            f"the lock pins no base image for {image}",
            remedy="run `rwkvflow lock --sandbox docker` on a machine whose Docker engine has it",
        )
    return render_dockerfile(
        base=locked.base,
        python=locked.python,
        engines=sorted(engines),
        toolchain=bool(wheels.toolchain),
        labels=labels(blueprint, image),
    )


def locked_image(blueprint: Blueprint, image: str) -> LockedImage:
    """The lock's entry; raises LockError where a Docker run lacks a base image."""
    locked = blueprint.lock.images.get(image)
    if locked is None:
        raise LockError(f"the lock does not know image {image}", remedy="run `rwkvflow lock`")
    if blueprint.sandbox == "docker" and locked.base is None:
        raise LockError(f"the lock pins no base image for {image}", remedy="run `rwkvflow lock` with Docker running")
    return locked


def locked_wheels(blueprint: Blueprint, image: str) -> LockedWheels:
    """The wheels of this run's platform."""
    wheels = locked_image(blueprint, image).platforms.get(blueprint.platform)
    if wheels is None:
        raise LockError(
            f"the lock has no wheels of image {image} for {blueprint.platform}", remedy="run `rwkvflow lock`"
        )
    return wheels


def wheel_rows(wheels: Any) -> list[list[str]]:
    """What a key says of wheels: file name and hash, sorted."""
    return sorted([wheel.filename, wheel.sha256] for wheel in wheels)


def requirements(wheels: LockedWheels) -> dict[str, str]:
    """pip's --require-hashes files by name, one a role."""
    roles: dict[str, tuple[LockedWheel, ...]] = {
        "toolchain.txt": wheels.toolchain,
        "worker.txt": wheels.worker,
    }
    return {name: requirements_text(role) for name, role in roles.items()}


def labels(blueprint: Blueprint, image: str) -> dict[str, str]:
    """Labels of the image: what of the recipe, the lock and the engine went into it."""
    recipe = {
        "image": blueprint.images[image].model_dump(mode="json"),
        "engine": blueprint.recipe.engine.model_dump(mode="json"),
    }
    lock = {
        "image": locked_image(blueprint, image).model_dump(mode="json"),
        "engine": blueprint.lock.engine.model_dump(mode="json"),
    }
    return {
        "org.opencontainers.image.title": f"rwkvflow worker {image}",
        "org.rwkvflow.recipe": text_digest(canonical(recipe)),
        "org.rwkvflow.lock": text_digest(canonical(lock)),
        "org.rwkvflow.engine": text_digest(
            canonical({name: build.request for name, build in engine.builds(blueprint, image).items()})
        ),
    }
