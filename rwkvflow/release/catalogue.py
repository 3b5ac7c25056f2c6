"""catalogue.json: a release for programs that download models: what each file is, needs and loses, and its sha256.

`rwkvflow schema catalogue` prints its JSON Schema. A new fact is a new key; what a key means changes with `version`
alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rwkvflow.documents.formats import family_of, quantization_of
from rwkvflow.release.artifacts import ReleaseFile, Row
from rwkvflow.release.choose import Runnable, memory_of, readers_of, speed_class
from rwkvflow.release.names import CATALOGUE, LOCK, RECIPE, is_plain
from rwkvflow.release.provenance.materials import public_uri

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ListedFile(_Entry):
    """One file to download."""

    path: Text = Field(description="Relative to the release, with /")
    size: int = Field(ge=0, description="Bytes")
    sha256: Digest


class ListedModel(_Entry):
    """What artifacts are made of."""

    version: str | None = Field(description="Of RWKV, such as 7")
    weights: int | None = Field(description="How many it has")
    source: str | None = Field(description="Where its checkpoint is from; null for a file of nobody else's")
    sha256: Digest = Field(description="Of the checkpoint, or over the files of a folder")


class ListedArtifact(_Entry):
    """One artifact: a file, or the files of a folder. A figure is null where it was not measured."""

    path: Text = Field(description="Of the file or folder")
    model: Text
    format: Text = Field(description="As `rwkvflow formats` lists it")
    family: Text = Field(description="What formats of a kind have in common: gguf, ggml, …")
    type: str | None = Field(description="How its weights are quantized, such as q4_k_m; null where they are not")
    runtimes: tuple[Text, ...] = Field(description="Programs that read it")
    size: int = Field(ge=0, description="Bytes of all its files")
    memory: int = Field(ge=0, description="Bytes that running it takes, about")
    bits_per_weight: float | None
    speed_class: float | None = Field(
        description="How many times less memory a token reads than with 16 bits a weight: what bounds decoding"
    )
    kl_divergence: float | None = Field(description="From the checkpoint in fp32, in nats a token")
    perplexity_rise: float | None = Field(description="Against the checkpoint in fp32: 0.01 is one percent more")
    files: tuple[ListedFile, ...]


class Catalogue(_Entry):
    """The file. Artifacts stand in the order of the recipe."""

    version: Literal[1] = 1
    release: Text
    license: str | None = Field(description="As the Hugging Face Hub names it")
    recipe: Digest | None = Field(description="sha256 of recipe.yaml")
    lock: Digest = Field(description="sha256 of recipe.lock.yaml, which pins every input")
    models: dict[str, ListedModel]
    artifacts: tuple[ListedArtifact, ...]


def catalogue_of(params: Mapping[str, Any], rows: Sequence[Row], files: Sequence[ReleaseFile]) -> Catalogue:
    """What there is to say of a release with these files."""
    by_path = {file.path: file for file in files}
    return Catalogue(
        release=str(params["name"]),
        license=(params.get("card") or {}).get("license"),
        recipe=_sha256(by_path[RECIPE]) if RECIPE in by_path else None,
        lock=_sha256(by_path[LOCK]),
        models={
            row.model: _model(row, params["models"][row.model])
            for row in reversed(rows)
            if row.model in params["models"]
        },
        artifacts=tuple(_artifact(row, by_path) for row in rows),
    )


def catalogue_bytes(catalogue: Catalogue) -> bytes:
    """Canonical JSON."""
    content = catalogue.model_dump(mode="json")
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_catalogue(data: bytes) -> Catalogue:
    """Reverse of catalogue_bytes. Raises ValueError with what is wrong, on one line."""
    try:
        return Catalogue.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from None


def of_catalogue(catalogue: Catalogue) -> list[Runnable]:
    """Its artifacts, to choose from."""
    return [
        Runnable(item.path, item.model, item.format, item.size, item.runtimes, item.kl_divergence, item.speed_class)
        for item in catalogue.artifacts
    ]


def catalogue_problems(folder: Path, digests: Mapping[str, str], reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a release's catalogue says that its files do not; nothing where it has none.

    `digests` are those of the files that are as they were listed, `reports` the smoke reports by artifact.
    """
    path = folder / CATALOGUE
    if not path.is_file():
        return []
    try:
        found = read_catalogue(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return [f"{CATALOGUE} cannot be read: {error}"]
    problems = [
        f"{CATALOGUE}: another {name} than the release's"
        for name, file, said in (("lock", LOCK, found.lock), ("recipe", RECIPE, found.recipe))
        if digests.get(file, said) != said
    ]
    for artifact in found.artifacts:
        for file in artifact.files:
            if not is_plain(file.path) or not (folder / file.path).is_file():
                problems.append(f"{CATALOGUE}: the release has no {file.path}")
            elif digests.get(file.path, file.sha256) != file.sha256:
                problems.append(f"{CATALOGUE}: {file.path} has another sha256")
            elif (folder / file.path).stat().st_size != file.size:
                problems.append(f"{CATALOGUE}: {file.path} has another size")
        if artifact.size != sum(file.size for file in artifact.files):
            problems.append(f"{CATALOGUE}: {artifact.path} has another size than its files")
        report = reports.get(artifact.path, {})
        for key, value in _figures(report).items() if report else ():
            if getattr(artifact, key) != value:
                problems.append(f"{CATALOGUE}: {artifact.path} has another {key} than its smoke report")
    listed = {artifact.path for artifact in found.artifacts}
    problems += [f"{CATALOGUE}: {path} is not in it" for path in sorted(reports) if path not in listed]
    return problems


def _model(row: Row, locked: Mapping[str, Any]) -> ListedModel:
    version = (row.facts.get("architecture") or {}).get("version")
    return ListedModel(
        version=str(version) if version else None,
        weights=row.smoke.get("weights"),
        source=public_uri(str(locked["source"])),
        sha256=locked["sha256"],
    )


def _artifact(row: Row, files: Mapping[str, ReleaseFile]) -> ListedArtifact:
    version = str((row.facts.get("architecture") or {}).get("version") or "")
    return ListedArtifact(
        path=row.path,
        model=row.model,
        format=row.format,
        family=family_of(row.format),
        type=quantization_of(row.format) or None,
        runtimes=readers_of(row.format, version),
        size=row.size,
        memory=memory_of(row.size),
        files=tuple(
            ListedFile(path=path, size=files[path].size, sha256=_sha256(files[path])) for path in sorted(row.files)
        ),
        **_figures(row.smoke),
    )


def _figures(smoke: Mapping[str, Any]) -> dict[str, float | None]:
    found = {key: _float(smoke.get(key)) for key in ("bits_per_weight", "kl_divergence", "perplexity_rise")}
    return {**found, "speed_class": speed_class(found["bits_per_weight"])}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _sha256(file: ReleaseFile) -> str:
    return file.digest.removeprefix("sha256:")
