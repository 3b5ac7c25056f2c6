"""Publish: the artifacts whose smoke passed, gathered into a release. Tolerant: what failed is left out, and said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import UsageError
from rwkvflow.base.hashing import file_digest, text_digest, tree_digest
from rwkvflow.base.outputs import refuse_sources
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.documents.destinations import parse_destination
from rwkvflow.documents.formats import file_name, folder_name, splitting
from rwkvflow.documents.lock import LLAMA, LockedFile, pinned_files
from rwkvflow.documents.lock_text import lock_text
from rwkvflow.lock.local_files import local_path
from rwkvflow.lock.outside import named_files
from rwkvflow.plan.matrix import Artifact
from rwkvflow.plan.step import Input, LocalInput, Ref, Step
from rwkvflow.stages import convert, engine, extra, imatrix, llama, mixing, quality, smoke
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.stages.image import identity


def steps(blueprint: Blueprint) -> Iterator[Step]:
    """One step a destination."""
    if not blueprint.recipe.publish:
        return
    release, refs = release_of(blueprint)
    for index, publish in enumerate(blueprint.recipe.publish):
        place = parse_destination(publish.to)
        if (target := place.folder(blueprint.folder)) is not None:
            _spare_sources(blueprint, target)
        yield Step(
            id=f"publish/{index}" if len(blueprint.recipe.publish) > 1 else "publish",
            stage="publish",
            action=f"publish-{place.kind}",
            params={
                **publish.model_dump(mode="json", exclude_none=True),
                **place.given(),
                "release": {**release, "to": place.shown(publish.to)},
            },
            inputs=refs,
            outputs=("release",),
            code=tree_digest(PACKAGE / "publish"),
            limits=blueprint.limits("publish", cores=0),
            tolerant=True,
            local={"folder": str(blueprint.folder), **beside(blueprint)},
        )


def _spare_sources(blueprint: Blueprint, target: Path) -> None:
    """Raises UsageError where a release would replace a folder that holds what the recipe is made from."""
    recipe, sources = blueprint.recipe, [blueprint.recipe_path, blueprint.workflow_path]
    named = [resolved for _, resolved, _ in pinned_files(blueprint.lock)]
    sources += [path for source in named if (path := local_path(source, blueprint.folder)) is not None]
    sources += [blueprint.folder / Path(path).expanduser() for path in named_files(recipe).values()]
    refuse_sources(target, sources)


def beside(blueprint: Blueprint) -> dict[str, Any]:
    """What assemble() takes besides: the texts of lock and recipe, and where the key lies."""
    key = _key(blueprint)
    return {
        "lock": lock_text(blueprint.lock),
        "recipe": _recipe_text(blueprint),
        "key": None if key is None else str(key),
    }


def release_of(blueprint: Blueprint) -> tuple[dict[str, Any], dict[str, Input]]:
    """What the release is to hold, and the inputs that it is made of."""
    refs: dict[str, Input] = {}
    entries = []
    for which in blueprint.artifacts:
        refs[f"artifact/{which.id}"] = convert.artifact(which)
        refs[f"smoke/{which.id}"] = smoke.report(which)
        if measured := quality.wanted(blueprint, which):
            refs[f"quality/{which.id}"] = quality.report(which)
        if searched := mixing.target_of(blueprint, which.format) is not None:
            refs[f"types/{which.id}"] = mixing.types(which)
        if imatrix.wanted(blueprint, which):
            refs.setdefault(f"imatrix/{which.model}", imatrix.of(which))
        additions = {}
        for stage in blueprint.workflow.extra:
            if stage.publish:
                for output in stage.outputs:
                    name = f"extra/{stage.name}/{output}/{which.id}"
                    refs[name] = Ref(extra.step_id(stage, which), output)
                    additions[f"{stage.name}/{output}"] = name
        entries.append(
            {
                "id": which.id,
                "model": which.model,
                "format": which.format,
                "image": which.image,
                "file": f"{which.model}/{file_name(which.model, which.format)}",
                **_folder(blueprint, which),
                "extra": additions,
                **({"measured": True} if measured else {}),
                **({"searched": True} if searched else {}),
            }
        )
    for image in blueprint.images:
        refs[f"engine/{image}"] = engine.used(blueprint, image)
    for target in blueprint.recipe.engine.targets:
        refs[f"target/{target}"] = engine.cross(blueprint, target)
    release = {
        "name": blueprint.recipe.name,
        "entries": entries,
        "models": {name: {**_pin(blueprint.lock.models[name]), **_files(blueprint, name)} for name in blueprint.models},
        "tokenizers": {
            name: _pin(file) for name, file in blueprint.lock.tokenizers.items() if name in blueprint.models
        },
        **_adapters(blueprint),
        "images": {image: identity(blueprint, image) for image in blueprint.images},
        "engine": {
            "source": blueprint.lock.engine.resolved,
            "digest": blueprint.lock.engine.digest,
            "builds": {name: build.request for name, build in engine.builds(blueprint).items()},
        },
        **_packages(blueprint),
        **_targets(blueprint),
        "worker": blueprint.own_worker.digest,
        **({"formats": added} if (added := blueprint.format_digests) else {}),
        "lock": text_digest(lock_text(blueprint.lock)),
        "recipe": text_digest(_recipe_text(blueprint)),
        "smoke_text": Path(text).name if (text := blueprint.recipe.smoke.text) else None,
        "card": _card(blueprint),
        "key": _key_digest(blueprint),
        "epoch": _epoch(),
    }
    if (template := _template(blueprint)) is not None:
        refs["card-template"] = template
    return release, refs


def _folder(blueprint: Blueprint, which: Artifact) -> dict[str, str]:
    """What the artifact is called where it is a folder because its file would have been too large."""
    if blueprint.recipe.split_of(which.format) is None or which.format not in splitting():
        return {}
    return {"folder": f"{which.model}/{folder_name(which.model, which.format)[0]}"}


def _packages(blueprint: Blueprint) -> dict[str, Any]:
    """The source packages that were built to test formats with; nothing where none was."""
    if not llama.wanted(blueprint):
        return {}
    return {"packages": {LLAMA: llama.package(blueprint).model_dump(mode="json")}}


def _pin(file: LockedFile) -> dict[str, Any]:
    return {"source": file.resolved, "sha256": file.sha256, "size": file.size}


def _files(blueprint: Blueprint, model: str) -> dict[str, Any]:
    """The files of a folder."""
    files = blueprint.lock.models[model].files
    return {} if files is None else {"files": {name: pin.model_dump() for name, pin in files.items()}}


def _adapters(blueprint: Blueprint) -> dict[str, Any]:
    """What was merged into models, went along with them, or was left out; nothing where the recipe names none."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in blueprint.models.items():
        if model.lora is not None and blueprint.lock.loras:
            alpha = {} if model.lora.alpha is None else {"alpha": model.lora.alpha}
            found.setdefault("loras", {})[name] = {**_pin(blueprint.lock.loras[name]), **alpha}
        if name in (blueprint.lock.lora_inits or {}):
            found.setdefault("lora_inits", {})[name] = _pin((blueprint.lock.lora_inits or {})[name])
        if model.state is not None and blueprint.lock.states:
            found.setdefault("states", {})[name] = _pin(blueprint.lock.states[name])
        if name in (blueprint.lock.texts or {}):
            found.setdefault("texts", {})[name] = _pin((blueprint.lock.texts or {})[name])
        if any(imatrix.wanted(blueprint, which) for which in blueprint.artifacts if which.model == name):
            file = f"{name}/{imatrix.file_name(name)}"
            found.setdefault("imatrices", {})[name] = {"file": file, "text": imatrix.text_name(blueprint, name)}
        if model.ignore_tensors:
            found.setdefault("ignored", {})[name] = list(model.ignore_tensors)
    return found


def _targets(blueprint: Blueprint) -> dict[str, Any]:
    """What is said of engines for other machines; nothing where the recipe wants none."""
    built = engine.cross_builds(blueprint)
    return {"targets": {target: build.request for target, build in built.items()}} if built else {}


def _recipe_text(blueprint: Blueprint) -> str:
    return blueprint.recipe_path.read_bytes().decode()


def _card(blueprint: Blueprint) -> dict[str, Any]:
    card = blueprint.recipe.card
    return {} if card is None else dict(card.model_dump(mode="json", exclude={"template"}, exclude_none=True))


def _template(blueprint: Blueprint) -> LocalInput | None:
    card = blueprint.recipe.card
    if card is None or card.template is None:
        return None
    path = blueprint.folder / card.template
    if not path.is_file():
        raise UsageError(f"card.template: there is no file {card.template} beside the recipe")
    return LocalInput(file_digest(path), path)


def _key(blueprint: Blueprint) -> Path | None:
    sign = blueprint.recipe.sign
    return None if sign is None else blueprint.folder / Path(sign.key).expanduser()


def _key_digest(blueprint: Blueprint) -> str | None:
    """Another key means another signature. A digest that tells nothing of the key, which no package has to read."""
    key = _key(blueprint)
    if key is None:
        return None
    try:
        return text_digest(b"rwkvflow signing key\n" + key.read_bytes())
    except OSError:
        return "absent"  # planning does without; publishing says what is wrong


def _epoch() -> int | None:
    value = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 12 else None
