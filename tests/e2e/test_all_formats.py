"""Every row of the formats table in one recipe: six random checkpoints, one of each version, in Docker, each artifact
loaded by what its users run it with.

The recipe is the shipped recipes/all-formats.yaml with other models. Each format is made of one version in turn, and
each family of formats (those of one runner) of every version that it can hold; with RWKVFLOW_SOAK=1 each format is made
of each version. Nothing is known to have failed in soak alone. llama.cpp is built once for this and for tests/engine;
with RWKVFLOW_SOAK=1 it is built in the image, as a user's run does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import BOUNDED
from rwkvflow.worker.formats.runtimes import TENSORS, proof_of
from rwkvflow.worker.formats.web_rwkv.run import RUNS
from rwkvflow.worker.model.versions import VERSIONS
from tests.e2e.cli import ROOT, Project
from tests.e2e.conftest import CACHE
from tests.engine import llama_cpp
from tests.helpers import checkpoints

pytestmark = pytest.mark.docker

# Seven layers: versions 4 to 6 halve values after six in some runtimes, and web-rwkv-py wants as many. It wants the
# World vocabulary as well.
SIZES = {"layers": 7, "width": 128, "vocab": 65536, "head_size": 64, "ffn": 256}
TEXT = "The quiet owl lived at the edge of the forest. 猫头鹰 Ünder the roof, it counted 1234 stars; then it slept.\n"
# Of what each layer adds to the residual stream. Without it errors grow from layer to layer, as in no trained model,
# and those of four bits are as large as the logits.
GENTLE = 0.25
CALIBRATION = {"text": "text.txt", "chunks": 2, "chunk_size": 16}
BASE = "rwkvflow-base:bookworm_mesa-vulkan-drivers"


def combinations() -> frozenset[tuple[str, str]]:
    """(version, format): what is made."""
    # Hybrids come as folders: tests/engine/test_hybrids.py.
    able = {name: sorted(item.versions & set(VERSIONS)) for name, item in FORMATS.items()}
    if os.environ.get("RWKVFLOW_SOAK"):
        return frozenset((version, name) for name, versions in able.items() for version in versions)
    families: dict[str, list[str]] = {}
    for name in able:
        families.setdefault(FORMATS[name].runner, []).append(name)
    found = set()
    for names in families.values():
        for index, name in enumerate(names):
            found.add((able[name][-1 - index % len(able[name])], name))
        for index, version in enumerate(sorted({version for name in names for version in able[name]})):
            holding = [name for name in names if version in able[name]]
            if not any((version, name) in found for name in holding):
                found.add((version, holding[index % len(holding)]))
    return frozenset(found)


MADE = combinations()


@dataclass(frozen=True)
class Ran:
    """The one run."""

    project: Project
    reports: dict[str, dict[str, Any]]  # by artifact, model/format
    imatrix: str  # sha256


def make(path: Path, version: str) -> None:
    """A random checkpoint."""

    def gentle(entry: checkpoints.Entry) -> checkpoints.Entry:
        if not entry.name.endswith(("att.output.weight", "ffn.value.weight")):
            return entry
        (values,) = checkpoints.values(version, entry.name, entry.shape, 0)
        return checkpoints.array_entry(entry.name, values.reshape(entry.shape) * np.float32(GENTLE), "bf16")

    checkpoints.write_pth(path, map(gentle, checkpoints.entries(version, "bf16", 0, **SIZES)))


def with_llama(client: Any, tag: str) -> None:
    """An image on top of BASE that holds llama.cpp where the worker looks for it; the build compares what it was made
    from."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        text = f"FROM {BASE}\nCOPY llama /opt/rwkvflow/engine/llama.cpp\n".encode()
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
        archive.add(llama_cpp.prepared() / "llama", "llama")
    packed.seek(0)
    client.images.build(fileobj=packed, custom_context=True, tag=tag, rm=True)


@pytest.fixture(scope="module")
def base_tag(client: Any) -> str:
    from rwkvflow.sandbox.image.bootstrap import bootstrap_image, tools

    if not tools():
        pytest.skip("neither mmdebstrap nor debootstrap is installed; no base image can be made")
    made = bootstrap_image("bookworm", packages=["mesa-vulkan-drivers"], root=CACHE, client=client)
    assert made.reference == BASE
    if os.environ.get("RWKVFLOW_SOAK"):
        return BASE
    with_llama(client, "rwkvflow-base:test-all-formats")
    return "rwkvflow-base:test-all-formats"


def recipe(base: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "all-formats.yaml").read_text())
    document["models"] = [
        {"name": f"rwkv{version}-random", "source": f"models/{version}.pth", "tokenizer": "world"}
        for version in VERSIONS
    ]
    document["models"][-1]["imatrix"] = CALIBRATION
    document["matrix"]["exclude"] = [
        {"model": f"rwkv{version}-random", "format": name}
        for name in FORMATS
        for version in VERSIONS
        if (version, name) not in MADE
    ]
    document["image"]["base"] = base
    document["smoke"] = {"prompts": ["The "], "tokens": 4, "text": "text.txt"}
    del document["publish"]  # of three gigabytes, by what other tests are about
    return document


@pytest.fixture(scope="module")
def ran(base_tag: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    made = Project(tmp_path_factory.mktemp("formats"), CACHE / "docker-store")
    (made.folder / "models").mkdir()
    for version in VERSIONS:
        make(made.folder / "models" / f"{version}.pth", version)
    made.write("text.txt", TEXT)
    made.write("recipe.yaml", yaml.safe_dump(recipe(base_tag), sort_keys=False))
    done = made("run", "recipe.yaml", "--sandbox", "docker", "--json", timeout=2700)  # nine minutes, on an idle machine
    failed = [event.get("message") for event in done.events if event.get("status") == "failed"]
    assert done.code == 0, done.err + "\n".join(map(str, failed))
    reports, imatrix = {}, ""
    for event in done.events:
        if event["event"] == "StepFinished" and event["step"].startswith("smoke/"):
            digest = event["outputs"]["smoke"].removeprefix("sha256:")
            path = made.store / "blobs" / digest[:2] / digest
            reports[event["step"].removeprefix("smoke/").partition("@")[0]] = json.loads(path.read_text())
        elif event["event"] == "StepFinished" and event["step"].startswith("imatrix/"):
            imatrix = event["outputs"]["imatrix"].removeprefix("sha256:")
    return Ran(made, reports, imatrix)


def test_every_row_of_the_table_is_there(ran: Ran) -> None:
    wanted = {f"rwkv{version}-random/{name}" for version, name in MADE}
    assert set(ran.reports) == wanted


@pytest.mark.parametrize("name", FORMATS)
def test_its_consumer_gives_the_references_logits(name: str, ran: Ran) -> None:
    limits = FORMATS[name].limits
    for version in sorted(version for version, made in MADE if made == name):
        report = ran.reports[f"rwkv{version}-random/{name}"]
        assert report["consumer"] == FORMATS[name].consumer
        assert report["passed"]
        assert report["limits"] == {"logits": limits.logits, "perplexity": limits.perplexity}
        assert report["logits"] <= limits.logits
        proof = report.get("proof", "")
        equal = proof.startswith("the judge compared all tensors with the checkpoint's, and they are equal")
        assert equal == (name in ("mlx", "safetensors", "safetensors-f32")), proof  # which hold BF16 as it is
        assert report["compared_tokens"] >= (16 if equal else 24)
        assert report["tokenizer"] == "world"
        assert (report["evaluated"] == "tensors") == (proof_of(FORMATS[name], version) == TENSORS)
        if name == "web-rwkv":
            assert ("web-rwkv-py ran it after" in proof) == (version in RUNS), proof
        elif name in ("chatrwkv-cuda-fp16", "chatrwkv-cuda-fp16i8"):
            assert "rwkv" in proof
        elif name.startswith("mlx") and not equal:
            assert proof.startswith("its tensors were compared")
        elif not equal and not name.startswith("faster-rwkv"):
            assert bool(proof) == bool(FORMATS[name].half)
        assert ("its arithmetic in fp16 was not run" in proof) == (FORMATS[name].half == BOUNDED)


def test_an_importance_matrix_has_one_sha256_in_docker_and_on_the_host(ran: Ran) -> None:
    """Of the recipe's step in a container, and of the command here, with other threads and kernels.

    A processor without the kernels takes the next ones that it has.
    """
    size, chunks = str(CALIBRATION["chunk_size"]), str(CALIBRATION["chunks"])
    words = ("imatrix", "models/7.pth", "text.txt", "-o", "m.gguf", "--chunk-size", size, "--chunks", chunks)
    for threads in ("1", "3"):
        for kernels in ("avx2", "avx512"):
            done = ran.project(
                *(*words, "--force", "--store", str(CACHE / "store"), "--threads", threads, "--tokenizer", "world"),
                env={"RWKV_KERNELS": kernels},
            )
            assert done.code == 0, done.err
            found = hashlib.sha256((ran.project.folder / "m.gguf").read_bytes()).hexdigest()
            assert found == ran.imatrix, (threads, kernels)


def test_a_format_that_cannot_hold_a_version_is_refused(ran: Ran) -> None:
    document = recipe(BASE)
    document["matrix"] = {"exclude": [{"model": "rwkv[67]*", "format": "faster-rwkv-*"}]}
    ran.project.write("all.yaml", yaml.safe_dump(document, sort_keys=False))
    done = ran.project("validate", "all.yaml")
    assert done.code == 2
    assert "rwkv5.1-random is version 5.1, which gguf-f32" in done.err
    assert "rwkv7-random is version 7, which chatrwkv-cuda-fp16i8 cannot hold; these can: " in done.err
    shutil.rmtree(ran.project.folder / "models")
