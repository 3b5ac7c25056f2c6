"""The bill of materials of a release: CycloneDX 1.7, a machine-learning model each for checkpoints and artifacts.

The package writes everything but `modelCard`, which it does not know and which is added to its JSON. The fields are
held against OWASP's list of what a bill of an AI model should have, in docs/guides/releases.md; what neither a
checkpoint nor a recipe says is named as not known, and nothing is made up for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from rwkvflow import __version__
from rwkvflow.documents.sources import SourceError, parse_source
from rwkvflow.release.artifacts import Row
from rwkvflow.release.provenance.materials import Material, UsedEngine, materials, package_version, wheel_version
from rwkvflow.release.provenance.statement import HOME

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL


TAGS = ("nlp", "rwkv", "text-generation")
# Of OWASP's fields those that only whoever trained a model can fill; no file that rwkvflow reads has them.
NOT_KNOWN = (
    "decision thresholds",
    "energy consumption",
    "training information",
    "data preprocessing",
    "sensitive data usage",
    "explainability information",
    "safety risk assessment",
    "training datasets",
)
SIZES = ("n_layer", "n_embd", "n_vocab", "n_ffn", "n_att", "n_head", "head_size")
UNTESTED = "what the checkpoint itself gets wrong was not looked at"
ORIGINS = ("model", "lora", "lora_init", "state")  # kinds of what an artifact's values come from


def sbom_bytes(
    params: Mapping[str, Any], rows: Sequence[Row], engines: Sequence[UsedEngine], license_id: str | None
) -> bytes:
    """The bill as JSON, sorted and indented. Its serial number follows from the artifacts; no time unless `epoch`."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot7

    digests = "".join(f"{row.path} {row.digest}\n" for row in rows)
    epoch = params.get("epoch")
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"{HOME}\n{params['name']}\n{params['lock']}\n{digests}"))
    bom.metadata.timestamp = None if epoch is None else datetime.fromtimestamp(epoch, UTC)  # type: ignore[assignment]
    bom.metadata.tools.components.add(
        Component(type=ComponentType.APPLICATION, name="rwkvflow", version=__version__, bom_ref="tool/rwkvflow")
    )
    about = str((params.get("card") or {}).get("about") or f"RWKV models in {len(rows)} files and folders")
    root = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=params["name"], description=about, tags=TAGS, bom_ref="release"
    )
    _licensed(root, license_id)
    bom.metadata.component = root
    inputs = {material.name: _material(material, params) for material in materials(params)}
    added = [component for name, component in inputs.items() if name.startswith("formats/")]
    built = {engine.image: [_engine_file(engine, path, sha) for path, sha in _libraries(engine)] for engine in engines}
    for component in (*inputs.values(), *(component for parts in built.values() for component in parts)):
        bom.components.add(component)
    for image, parts in built.items():
        used = [inputs["engine"], inputs["worker"], *_of_image(inputs, params, image)]
        for component in parts:
            bom.register_dependency(component, used)
    artifacts = []
    for row in rows:
        used = [inputs[name] for kind in ORIGINS for name in inputs if f"{name}/".startswith(f"{kind}/{row.model}/")]
        component = _artifact(row, license_id, used)
        bom.components.add(component)
        artifacts.append(component)
        for image in row.images:
            used += [*built.get(image, []), *_of_image(inputs, params, image)]
        bom.register_dependency(component, [*used, inputs["worker"], *added])
    bom.register_dependency(root, artifacts)
    content = json.loads(JsonV1Dot7(bom).output_as_string())
    _add_cards(content, rows, params)
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _material(material: Material, params: Mapping[str, Any]) -> Component:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.contact import OrganizationalEntity

    kinds = {
        "model": ComponentType.MACHINE_LEARNING_MODEL,
        "lora": ComponentType.MACHINE_LEARNING_MODEL,
        "lora_init": ComponentType.MACHINE_LEARNING_MODEL,
        "state": ComponentType.DATA,
        "tokenizer": ComponentType.DATA,
        "text": ComponentType.DATA,
        "engine": ComponentType.LIBRARY,
        "package": ComponentType.LIBRARY,
        "worker": ComponentType.APPLICATION,
        "formats": ComponentType.LIBRARY,
        "base": ComponentType.CONTAINER,
        "wheel": ComponentType.LIBRARY,
    }
    name, version = material.name.partition("/")[2] or material.name, None
    purl = _purl(material)
    if known := _index_name(material):
        name, version = known
    elif material.kind == "engine":
        name, version = "engine sources", material.digest.get("gitCommit")
    elif material.kind == "worker":
        name = "rwkvflow.worker"
    elif material.kind == "formats":
        name, _, version = name.rpartition("@")
    component = Component(type=kinds[material.kind], name=name, version=version, bom_ref=material.name, purl=purl)
    if component.type is ComponentType.MACHINE_LEARNING_MODEL:
        component.description, component.tags = f"{material.kind} of {name}, as it was published", TAGS
    if purl is not None and purl.type == "huggingface" and purl.namespace:
        component.supplier = OrganizationalEntity(name=purl.namespace)  # the account that the repository is of
    _hashed(component, material.digest)
    if material.uri is not None:
        kind = ExternalReferenceType.VCS if material.kind == "engine" else ExternalReferenceType.DISTRIBUTION
        component.external_references.add(ExternalReference(type=kind, url=XsUri(material.uri)))
    return component


def _index_name(material: Material) -> tuple[str, str] | None:
    """Name and version in the package index of what comes from there."""
    read = {"wheel": wheel_version, "package": package_version}.get(material.kind)
    return read(material.name.partition("/")[2]) if read else None


def _purl(material: Material) -> PackageURL | None:
    from packageurl import PackageURL

    if known := _index_name(material):
        return PackageURL(type="pypi", name=known[0], version=known[1])
    if material.uri is None:
        return None
    try:
        parts = parse_source(material.uri, folder=True).package_url()
    except SourceError:
        return None
    if parts is None:
        return None
    namespace, name, version = parts["namespace"], parts["name"], parts["version"]
    return PackageURL(parts["type"], namespace, name, version, subpath=parts["subpath"])


def _libraries(engine: UsedEngine) -> Iterable[tuple[str, str]]:
    return sorted((path, sha) for path, sha in engine.files.items() if path.startswith(("lib/", "bin/")))


def _engine_file(engine: UsedEngine, path: str, sha256: str) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    component = Component(
        type=ComponentType.LIBRARY if path.startswith("lib/") else ComponentType.APPLICATION,
        name=path.rpartition("/")[2],
        bom_ref=f"engine@{engine.image}/{path}",
    )
    _hashed(component, {"sha256": sha256})
    for key in ("compiler", "cmake", "target"):
        if value := engine.facts.get(key):
            component.properties.add(Property(name=f"rwkvflow:{key}", value=str(value)))
    return component


def _of_image(inputs: Mapping[str, Component], params: Mapping[str, Any], image: str) -> list[Component]:
    wheels = [f"wheel/{filename}" for filename, _ in params["images"][image].get("wheels", ())]
    return [inputs[name] for name in (f"base/{image}", *wheels) if name in inputs]


def _artifact(row: Row, license_id: str | None, origins: Sequence[Component]) -> Component:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    component = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=row.path,
        description=f"{row.model} as {row.format}",
        tags=TAGS,
        bom_ref=f"artifact/{row.path}",
        pedigree=Pedigree(
            ancestors=[
                Component(type=part.type, name=part.name, version=part.version, purl=part.purl, hashes=part.hashes)
                for part in origins
            ]
        ),
    )
    if row.files == (row.path,):
        _hashed(component, {"sha256": row.sha256})
    _licensed(component, license_id)
    component.properties.add(Property(name="rwkvflow:format", value=row.format))
    component.properties.add(Property(name="rwkvflow:size", value=str(row.size)))
    if row.bits is not None:
        component.properties.add(Property(name="rwkvflow:bitsPerWeight", value=f"{row.bits:.3f}"))
    return component


def _hashed(component: Component, digest: Mapping[str, str]) -> None:
    from cyclonedx.model import HashAlgorithm, HashType, Property

    for algorithm, value in digest.items():
        if algorithm == "sha256":
            component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=value))
        else:
            component.properties.add(Property(name=f"rwkvflow:{algorithm}", value=value))


def _licensed(component: Component, license_id: str | None) -> None:
    from cyclonedx.contrib.license.factories import LicenseFactory

    if license_id:
        component.licenses.add(LicenseFactory().make_from_string(license_id))


def _add_cards(content: dict[str, Any], rows: Sequence[Row], params: Mapping[str, Any]) -> None:
    cards = {f"artifact/{row.path}": _card(row) for row in rows}
    for name, pin in params["models"].items():
        facts = next((row.facts for row in rows if row.model == name and row.facts), {})
        unknown = [{"name": "rwkvflow:notKnown", "value": field} for field in NOT_KNOWN]
        known: dict[str, Any] = {
            "modelParameters": _parameters(facts),
            "considerations": {"technicalLimitations": [UNTESTED]},
            "properties": [*_sizes(facts), *unknown],
        }
        cards |= {f"model/{name}" + (f"/{part}" if part else ""): known for part in pin.get("files", {"": pin})}
    for component in content["components"]:
        if card := cards.get(component["bom-ref"]):
            component["modelCard"] = card


def _card(row: Row) -> dict[str, Any]:
    card: dict[str, Any] = {
        "modelParameters": _parameters(row.facts),
        "considerations": {"technicalLimitations": [*_limitations(row), UNTESTED]},
    }
    if sizes := _sizes(row.facts):
        card["properties"] = sizes
    measured = [
        {"type": kind, "value": str(row.smoke[key])}
        for kind, key in (
            ("perplexity", "perplexity"),
            ("perplexity rise against the fp32 reference", "perplexity_rise"),
            ("largest logit error in standard deviations", "logits"),
            ("KL divergence from the fp32 reference in nats a token", "kl_divergence"),
            ("share of positions with the same likeliest token", "agreement"),
        )
        if row.smoke.get(key) is not None
    ]
    if measured:
        card["quantitativeAnalysis"] = {"performanceMetrics": measured}
    return card


def _limitations(row: Row) -> list[str]:
    """What the tests found that an artifact loses, and for what it is no good."""
    found = [f"not for {name}" for name in sorted(row.smoke.get("not_for") or ())]
    if loss := row.smoke.get("kl_divergence"):
        found.append(f"its answers differ from the checkpoint's in F32 by {loss} nats a token")
    return found


def _sizes(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Dimensions, as properties of a model card."""
    architecture = facts.get("architecture") or {}
    return [
        {"name": f"rwkvflow:{key}", "value": str(architecture[key])}
        for key in SIZES
        if isinstance(architecture.get(key), int)
    ]


def _parameters(facts: Mapping[str, Any]) -> dict[str, Any]:
    version = (facts.get("architecture") or {}).get("version")
    return {
        "task": "text-generation",
        "architectureFamily": "RWKV",
        **({"modelArchitecture": f"RWKV-{version}"} if version else {}),
        "inputs": [{"format": "token"}],
        "outputs": [{"format": "token"}],
    }
