"""A release: the files that are published together, and what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvflow.release.artifacts import ReleaseFile, Row, from_bytes, from_file, gather
from rwkvflow.release.catalogue import catalogue_bytes, catalogue_of
from rwkvflow.release.domain_plot import domain_plot_svg
from rwkvflow.release.model_card.card import render_card
from rwkvflow.release.names import (
    CARD,
    CATALOGUE,
    DOMAIN_PLOT,
    ENGINE,
    LOCK,
    PLOT,
    PROVENANCE,
    QUALITY,
    RECIPE,
    SBOM,
    SIGNATURE,
    SUMS,
)
from rwkvflow.release.ollama import ollama_files
from rwkvflow.release.plot import plot_svg
from rwkvflow.release.provenance.materials import engines
from rwkvflow.release.quality import quality_bytes, quality_of
from rwkvflow.release.sums import sums_text

__all__ = ["CARD", "LOCK", "PROVENANCE", "SUMS", "Release", "ReleaseFile", "Row", "assemble"]


@dataclass(frozen=True)
class Release:
    """What is published. `left_out` maps artifact ids to the reason why they are not in it."""

    name: str
    files: tuple[ReleaseFile, ...]
    rows: tuple[Row, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What the store keeps of a published release."""
        return {
            "name": self.name,
            "files": {file.path: file.digest for file in self.files},
            "left_out": dict(self.left_out),
        }


def assemble(
    params: Mapping[str, Any], inputs: Mapping[str, Path], digests: Mapping[str, str], local: Mapping[str, Any]
) -> Release:
    """Gather a release from what the run made. All that can change a byte of it is in params and digests.

    local: "lock" and "recipe", their texts; "key", the path of the private key where the recipe names one.
    Raises PublishError when nothing at all may be published, or where the card's template or the key is no good.
    """
    from rwkvflow.release.provenance.sbom import sbom_bytes
    from rwkvflow.release.provenance.statement import statement_bytes

    key = Path(local["key"]) if local.get("key") else None
    signed_by = _signed_by(key)
    found = gather(params, inputs, digests)
    files = list(found.files)
    patches = _patches(params, inputs, files)
    built = engines(params, inputs, patches)
    files.append(from_bytes(LOCK, str(local["lock"]).encode()))
    if local.get("recipe"):
        files.append(from_bytes(RECIPE, str(local["recipe"]).encode()))
    quality = quality_of(str(params["name"]), found.rows, params.get("smoke_text"))
    files.append(from_bytes(QUALITY, quality_bytes(quality)))
    plots = {PLOT: plot_svg(quality), DOMAIN_PLOT: domain_plot_svg(quality)}
    files += [from_bytes(path, plot.encode()) for path, plot in plots.items() if plot is not None]
    license_id = (params.get("card") or {}).get("license")
    files.append(from_bytes(CATALOGUE, catalogue_bytes(catalogue_of(params, found.rows, files))))
    files += ollama_files(found.rows, license_id)
    card = render_card(
        str(params["name"]),
        found.rows,
        found.left_out,
        params,
        template=_template(inputs),
        signed_by=signed_by,
        plots=frozenset(path for path, plot in plots.items() if plot is not None),
    )
    files.append(from_bytes(CARD, card.encode()))
    files.append(from_bytes(SBOM, sbom_bytes(params, found.rows, built, license_id)))
    statement = statement_bytes(params, files, found.rows, built, found.left_out, signed_by)
    files.append(from_bytes(PROVENANCE, statement))
    files.sort(key=lambda file: file.path)
    files.append(from_bytes(SUMS, sums_text({file.path: _hex(file) for file in files}).encode()))
    if key is not None:
        from rwkvflow.release.provenance.signature import sign

        signature = sign(str(params["name"]), {file.path: _hex(file) for file in files}, key)
        files.append(from_bytes(SIGNATURE, signature))
    return Release(str(params["name"]), tuple(files), found.rows, found.left_out)


def _signed_by(key: Path | None) -> str | None:
    if key is None:
        return None
    from rwkvflow.release.provenance.signature import fingerprint

    return fingerprint(key)


def _patches(params: Mapping[str, Any], inputs: Mapping[str, Path], files: list[ReleaseFile]) -> dict[str, str]:
    """Add what was patched of what CMake wrote, where anything was; image → path in the release."""
    patches = {}
    for image in params["images"]:
        folder = inputs.get(f"engine/{image}")
        patch = folder / "patch.diff" if folder else None
        if patch is not None and patch.is_file() and patch.stat().st_size:
            patches[image] = f"{ENGINE}/cmake-patch@{image}.diff"
            files.append(from_file(patches[image], patch))
    return patches


def _template(inputs: Mapping[str, Path]) -> str | None:
    from rwkvflow.base.errors import PublishError

    path = inputs.get("card-template")
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PublishError(f"the card's template cannot be read: {error}") from error


def _hex(file: ReleaseFile) -> str:
    return file.digest.removeprefix("sha256:")
