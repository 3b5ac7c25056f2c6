"""The bill of materials: valid by CycloneDX's own schema, complete, and the same on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from rwkvflow.documents.lock import Lock, files_beside
from rwkvflow.release.provenance.materials import Material
from rwkvflow.release.provenance.sbom import NOT_KNOWN, _material
from tests.helpers.releases import COMMIT, WHEEL, Made, made


@pytest.fixture
def run(tmp_path: Path) -> Made:
    return made(tmp_path / "store")


def bill(run: Made) -> dict[str, Any]:
    """The bill of a release, validated."""
    data = next(file.source for file in run.assemble().files if file.path == "sbom.cdx.json")
    assert isinstance(data, bytes)
    problem = JsonStrictValidator(SchemaVersion.V1_7).validate_str(data.decode())
    assert problem is None, problem
    return dict(json.loads(data))


def parts(run: Made) -> dict[str, dict[str, Any]]:
    return {component["bom-ref"]: component for component in bill(run)["components"]}


def test_it_is_valid_and_without_a_time(run: Made) -> None:
    content = bill(run)
    assert content["specVersion"] == "1.7"
    assert "timestamp" not in content["metadata"]
    assert content["metadata"]["component"]["name"] == "tiny"
    assert [tool["name"] for tool in content["metadata"]["tools"]["components"]] == ["rwkvflow"]


def test_artifacts_are_models_with_hash_and_measured_quality(run: Made) -> None:
    artifact = parts(run)["artifact/tiny7/tiny7-Q5_1.bin"]
    assert artifact["type"] == "machine-learning-model"
    digest = run.digests["artifact/tiny7/ggml-q5_1@py3.11"]
    assert artifact["hashes"] == [{"alg": "SHA-256", "content": digest[7:]}]
    card = artifact["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "RWKV-7"
    metrics = {metric["type"]: metric["value"] for metric in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["perplexity"] == "12.625"
    properties = {item["name"]: item["value"] for item in artifact["properties"]}
    assert properties["rwkvflow:format"] == "ggml-q5_1"


def test_everything_that_went_in_is_listed(run: Made) -> None:
    found = parts(run)
    assert found["model/tiny7"]["purl"] == f"pkg:huggingface/someone/tiny7@{COMMIT}#tiny7.safetensors"
    assert found["model/tiny7"]["hashes"][0]["content"] == run.params["models"]["tiny7"]["sha256"]
    assert found["model/tiny7"]["modelCard"]["modelParameters"]["architectureFamily"] == "RWKV"
    assert found[f"wheel/{WHEEL}"]["purl"] == "pkg:pypi/numpy@2.4.1"
    assert found["base/py3.11"]["type"] == "container"
    assert found["engine@py3.11/lib/librwkv.so"]["type"] == "library"
    assert "hashes" not in found["engine"], "a folder has no sha256"


def test_it_says_what_was_made_of_what(run: Made) -> None:
    depends = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in bill(run)["dependencies"]}
    assert len(depends["release"]) == 4
    assert depends["artifact/tiny7/tiny7-Q5_1.bin"] == {
        "model/tiny7", "worker", "base/py3.11", f"wheel/{WHEEL}", "engine@py3.11/lib/librwkv.so",
    }  # fmt: skip
    assert {"engine", "worker"} <= depends["engine@py3.11/lib/librwkv.so"]


def test_the_same_artifacts_have_the_same_serial_number(run: Made, tmp_path: Path) -> None:
    again = made(tmp_path / "again")
    assert bill(run)["serialNumber"] == bill(again)["serialNumber"]
    other = made(tmp_path / "other", formats=["safetensors"])
    assert bill(other)["serialNumber"] != bill(run)["serialNumber"]


@pytest.mark.parametrize("license_id", ["apache-2.0", "Apache-2.0", "other", "MIT OR Apache-2.0", "my own: <see> file"])
def test_any_licence_text_stays_valid(run: Made, license_id: str) -> None:
    run.params["card"] = {"license": license_id}
    content = bill(run)
    assert license_id.lower() in json.dumps(content["metadata"]["component"]["licenses"]).lower()


def test_source_date_epoch_gives_it_a_time(run: Made) -> None:
    run.params["epoch"] = 1704067200
    assert bill(run)["metadata"]["timestamp"].startswith("2024-01-01T00:00:00")


def test_a_hostile_name_stays_text(run: Made) -> None:
    run.params["engine"]["source"] = '"><script>\u202e'
    assert parts(run)["engine"]["name"] == "engine sources"
    bill(run)


@pytest.mark.parametrize("kind", ["model", *files_beside(Lock.model_construct())])
def test_every_kind_of_file_that_a_lock_pins_has_a_type(kind: str) -> None:
    assert _material(Material(f"{kind}/m", kind, {"sha256": "0" * 64}), {}).bom_ref.value == f"{kind}/m"


def test_a_source_package_that_was_built_is_a_part(run: Made) -> None:
    filename = "llama_cpp_python-0.3.36.tar.gz"
    run.params["packages"] = {"llama.cpp": {"filename": filename, "sha256": "ab" * 32}}
    found = parts(run)[f"package/{filename}"]
    assert (found["name"], found["version"]) == ("llama-cpp-python", "0.3.36")
    assert found["purl"] == "pkg:pypi/llama-cpp-python@0.3.36"
    assert found["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]


def test_each_part_of_a_checkpoint_says_what_is_not_known_of_the_model(run: Made) -> None:
    whole = run.params["models"]["tiny7"]
    parts_ = {f"model-{number}.safetensors": {"sha256": f"{number}" * 64, "size": 1} for number in (1, 2)}
    run.params["models"]["tiny7"] = {**whole, "source": f"hf://someone/tiny7@{COMMIT}/", "files": parts_}
    found = parts(run)
    for name in parts_:
        card = found[f"model/tiny7/{name}"]["modelCard"]
        unknown = {item["value"] for item in card["properties"] if item["name"] == "rwkvflow:notKnown"}
        assert unknown == set(NOT_KNOWN)
        assert card["modelParameters"]["modelArchitecture"] == "RWKV-7"
    models = {name for name in found if name.startswith("model/")}
    assert all("modelCard" in found[name] for name in models), "each checkpoint has one"


OWASP = """
Model name, Model version, Model description, Model download location, Source repository, Supplier, License,
Primary purpose, Domain, Type of model, Hyperparameters, Performance metrics, Decision thresholds, Energy consumption,
Training information, Data preprocessing, Sensitive data usage, Explainability information, Known limitations,
Safety risk assessment, Runtime dependencies, Model lineage, Training datasets, Test datasets
"""  # of its mapping of fields to CycloneDX 1.7
PAGE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "releases.md"


def test_owasps_fields_are_there_or_said_to_be_unknown(run: Made) -> None:
    """Each row of the page is one of OWASP's, and those that say "not known" are the ones that the bill names so."""
    run.params["card"] = {"license": "apache-2.0", "about": "Tiny ones."}
    found, whole = parts(run), bill(run)
    model, artifact = found["model/tiny7"], found["artifact/tiny7/tiny7-Q5_1.bin"]
    card = artifact["modelCard"]
    there = {
        "Model name": artifact["name"],
        "Model version": model["purl"].partition("@")[2],
        "Model description": artifact["description"] and whole["metadata"]["component"]["description"],
        "Model download location": [item for item in model["externalReferences"] if item["type"] == "distribution"],
        "Source repository": model["purl"],
        "Supplier": model["supplier"]["name"] == "someone",
        "License": artifact["licenses"],
        "Primary purpose": card["modelParameters"]["task"],
        "Domain": "nlp" in artifact["tags"],
        "Type of model": card["modelParameters"]["architectureFamily"],
        "Hyperparameters": {"name": "rwkvflow:n_layer", "value": "1"} in card["properties"],
        "Performance metrics": card["quantitativeAnalysis"]["performanceMetrics"],
        "Known limitations": card["considerations"]["technicalLimitations"],
        "Runtime dependencies": whole["dependencies"],
        "Model lineage": artifact["pedigree"]["ancestors"][0]["hashes"] == model["hashes"],
        "Test datasets": card["quantitativeAnalysis"]["performanceMetrics"],
    }
    assert all(there.values()), there
    unknown = {item["value"] for item in model["modelCard"]["properties"] if item["name"] == "rwkvflow:notKnown"}
    fields = [field.strip() for field in OWASP.replace("\n", " ").split(",")]
    assert len(fields) == 24
    assert set(fields) - set(there) == {field[0].upper() + field[1:] for field in unknown}
    section = PAGE.read_text(encoding="utf-8").partition("\n## The bill of materials\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    said = dict(rows[2:])
    assert list(said) == fields
    assert {field for field, where in said.items() if where.startswith("not known")} == set(fields) - set(there)
