"""The guide's DaskCluster: what Dask's operator takes, and what Kubernetes takes of what the operator makes of it."""

from __future__ import annotations

import copy
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.helpers.guide import told

VERSIONS = ["1.31", "1.33", "1.36"]


@pytest.fixture
def cluster() -> Any:
    """As the page says it."""
    (found,) = [text for text in told("guides/clusters.md", "Kubernetes") if text.startswith("apiVersion:")]
    return yaml.safe_load(found)


def places(document: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(document, dict):
        yield document
    for value in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from places(value)


def test_what_the_file_says_agrees_with_itself(cluster: Any) -> None:
    """Names of volumes, secrets and the service; and TLS for both."""
    name = cluster["metadata"]["name"]
    for part in ("worker", "scheduler"):
        spec = cluster["spec"][part]["spec"]
        [container] = spec["containers"]
        assert "args" not in container, "an image's entry point would come before them"
        command = container["command"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
        for option in ("--tls-ca-file", "--tls-cert", "--tls-key"):
            assert Path(command[command.index(option) + 1]).parent == Path(mounts["tls"])
        env = {item["name"]: item["value"] for item in container["env"]}
        assert env[f"DASK_DISTRIBUTED__{part.upper()}__HTTP__ROUTES"] == "[]", "the pages have no TLS"
    worker = cluster["spec"]["worker"]["spec"]["containers"][0]
    assert f"tls://{name}-scheduler:8786" in worker["command"], "the service has the name that the operator gives it"
    assert cluster["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name


# ---- the schemas that are published ----------------------------------------------------------------------------------


def crd() -> dict[str, Any]:
    """The schema that the operator's own chart gives to Kubernetes."""
    files = importlib.metadata.files("dask-kubernetes") or []
    [path] = [file for file in files if file.as_posix().endswith("dask-kubernetes-operator/crds/daskcluster.yaml")]
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    [version] = document["spec"]["versions"]
    assert (document["spec"]["group"], version["name"]) == ("kubernetes.dask.org", "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    top = {"apiVersion": {"const": "kubernetes.dask.org/v1"}, "kind": {"const": "DaskCluster"}, "metadata": {}}
    return {**strict(schema), "properties": {**strict(schema)["properties"], **top}, "required": ["spec", *top]}


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as one of JSON Schema, in which a key that is not named is an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.soak
def test_the_file_is_what_the_operator_publishes_a_schema_for(cluster: Any) -> None:
    pytest.importorskip("dask_kubernetes")
    check = jsonschema.Draft202012Validator(crd())
    check.validate(cluster)
    count = sum(1 for _ in places(cluster["spec"]))
    assert count > 20
    for number in range(count):
        wrong = copy.deepcopy(cluster)
        place = list(places(wrong["spec"]))[number]
        if any(re.match(r"dask\.org/", key) for key in place):
            continue  # labels
        place["unknown"] = 1
        assert not check.is_valid(wrong), place
    cluster["spec"]["worker"]["replicas"] = "many"
    assert not check.is_valid(cluster)


@pytest.mark.soak
@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_operator_makes_of_it_is_what_kubernetes_takes(cluster: Any, version: str) -> None:
    """Its own code makes deployments and a service; a key that the schema does not know is an error."""
    validate: Any = pytest.importorskip("kubernetes_validate")
    operator: Any = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    name, spec = cluster["metadata"]["name"], cluster["spec"]
    made = [
        operator.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], {}, {}),
        operator.build_scheduler_service_spec(name, spec["scheduler"]["service"], {}, {}),
        operator.build_worker_deployment_spec(f"{name}-default", "space", name, "0", spec["worker"]["spec"], {}, {}),
    ]
    for document in made:
        assert validate.validate(document, version, strict=True) == version
    scheduler, service, worker = made
    assert service["metadata"]["name"] == f"{name}-scheduler"
    assert service["spec"]["selector"].items() <= scheduler["spec"]["template"]["metadata"]["labels"].items()
    [container] = worker["spec"]["template"]["spec"]["containers"]
    assert {"DASK_WORKER_NAME", "RWKVFLOW_STORE"} <= {item["name"] for item in container["env"]}
    container["unknown"] = 1
    with pytest.raises(validate.ValidationError, match="unknown"):
        validate.validate(worker, version, strict=True)
