"""Image: the wheelhouse, and the environment that is made of it: a container image or a virtual environment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rwkvflow.base.errors import LockError
from rwkvflow.base.hashing import text_digest
from rwkvflow.documents.lock import LLAMA, LockedImage, LockedWheel, LockedWheels
from rwkvflow.documents.lock_text import requirements_text
from rwkvflow.plan.step import Ref, Step, canonical
from rwkvflow.sandbox.image.dockerfile import render_dockerfile
from rwkvflow.stages import engine, fetch, llama
from rwkvflow.stages.blueprint import Blueprint, image_step


def identity(blueprint: Blueprint, image: str) -> dict[str, Any]:
    """What of an environment can change a result of a command that runs in it, the worker's code left out."""
    locked = locked_image(blueprint, image)
    return {
        "sandbox": blueprint.sandbox,
        "platform": blueprint.platform,
        "python": locked.python,
        "base": locked.base.digest if blueprint.sandbox == "docker" and locked.base else None,
        "wheels": wheel_rows(locked_wheels(blueprint, image).worker),
    }


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """Two steps an image: wheels and environment."""
    for image in blueprint.images:
        locked, wheels = locked_image(blueprint, image), locked_wheels(blueprint, image)
        text = dockerfile(blueprint, image) if blueprint.sandbox == "docker" else ""
        every = {wheel.filename: wheel for wheel in (*wheels.installer, *wheels.toolchain, *wheels.worker)}
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
        yield Step(
            id=image_step(image),
            stage="image",
            action="environment",
            params={
                "identity": identity(blueprint, image),
                "toolchain": wheel_rows(wheels.toolchain),
                "installer": wheel_rows(wheels.installer),
                "engines": {name: build.request for name, build in engine.builds(blueprint, image).items()},
                "image": image,
                "dockerfile": text_digest(text),
            },
            inputs={
                "wheels": Ref(f"wheels/{image}", "wheels"),
                "worker": blueprint.worker,
                "builtin-engine": blueprint.builtin_engine,
                "engine": fetch.engine_source(blueprint),
                **({LLAMA: llama.SOURCE} if llama.wanted(blueprint, image) else {}),
            },
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
    """The rendered Dockerfile. Raises LockError where the lock pins no base image."""
    locked = locked_image(blueprint, image)
    if locked.base is None:
        raise LockError(
            f"the lock pins no base image for {image}",
            remedy="run `rwkvflow lock --sandbox docker` on a machine whose Docker engine has it",
        )
    return render_dockerfile(
        base=locked.base,
        python=locked.python,
        engines=sorted(engine.builds(blueprint, image)),
        toolchain=bool(locked_wheels(blueprint, image).toolchain),
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
        "installer.txt": wheels.installer,
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
