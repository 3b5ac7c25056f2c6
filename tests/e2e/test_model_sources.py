"""Hugging Face folders, a LoRA and initial states through a whole recipe, on the host and in containers."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.model.origin import Origin
from rwkvflow.worker.read.open import open_checkpoint
from tests.e2e.cli import Project, project
from tests.e2e.conftest import CACHE
from tests.helpers import checkpoints
from tests.helpers.folders import folder_of

HOST, DOCKER = ("--sandbox", "host"), ("--sandbox", "docker")
SIZES: dict[str, Any] = {"layers": 2, "width": 128, "vocab": 256}
SNAPSHOT = "models--me--four/snapshots/0123456789abcdef0123456789abcdef01234567"
MODELS = ("four", "seven", "six")
RECIPE = f"""\
name: sources
models:
  - {{name: four, source: models/{SNAPSHOT}, tokenizer: bytes}}
  - {{name: seven, source: models/fla, tokenizer: bytes, lora: {{source: models/lora.pth, alpha: 8}}}}
  - {{name: six, source: models/six.pth, tokenizer: bytes, state: {{source: models/state.pth}}}}
formats: [ggml-f16, ggml-q5_1, safetensors]
smoke: {{prompts: ["The "], tokens: 8}}
publish:
  - to: out
"""


def models(folder: Path) -> dict[str, Origin]:
    """Makes what the recipe names below a folder; what each model is, from the checkpoints that they were made from."""
    plain = {name: folder / "plain" / f"{name}.pth" for name in ("four", "seven")}
    (folder / "plain").mkdir(parents=True)
    for name, version in (("four", "4"), ("seven", "7")):
        checkpoints.make(plain[name], version, **SIZES)
    snapshot = folder_of(plain["four"], folder / SNAPSHOT, 100_000)
    blobs = snapshot.parents[1] / "blobs"  # as huggingface_hub keeps what it downloads
    blobs.mkdir()
    for path in sorted(snapshot.iterdir()):
        name = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blobs / name)
        path.symlink_to(f"../../blobs/{name}")
    folder_of(plain["seven"], folder / "fla")
    checkpoints.make(folder / "six.pth", "6", **SIZES)
    rng = np.random.default_rng(0)
    key = "blocks.1.att.key"
    adapter = {f"{key}.lora_A": (4, 128), f"{key}.lora_B": (128, 4)}
    state = {f"blocks.{layer}.att.time_state": (2, 64, 64) for layer in range(2)}
    for name, shapes in (("lora", adapter), ("state", state)):
        values = {tensor: rng.standard_normal(shape, np.float32) for tensor, shape in shapes.items()}
        entries = [checkpoints.array_entry(tensor, array * np.float32(0.1)) for tensor, array in values.items()]
        checkpoints.write_pth(folder / f"{name}.pth", entries)
    return {
        "four": Origin(plain["four"]),
        "seven": Origin(plain["seven"], folder / "lora.pth", 8),
        "six": Origin(folder / "six.pth", state=folder / "state.pth"),
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run, on a store that began with an environment and an engine."""
    place = tmp_path_factory.mktemp("sources")
    warm = project(place / "warm", CACHE / "store")
    assert warm("engine", "build", "recipe.yaml", *HOST).code == 0
    made = project(place / "p", place / "store", seed=warm.store)
    for path in (made.store / "index").glob("*/*.json"):
        if json.loads(path.read_text())["step"].split("/")[0] not in ("wheels", "image", "engine"):
            path.unlink()
    (made.store / "environments").symlink_to(warm.store / "environments")  # a virtual environment cannot be moved
    models(made.folder / "models")
    made.write("recipe.yaml", RECIPE)
    done = made("run", "recipe.yaml", *HOST, "--json")
    assert done.code == 0, done.err
    assert {f"convert/{name}/ggml-f16@py3.11" for name in MODELS} <= set(done.steps("done"))
    assert "ggml-f16 has no place for initial states" in done.out
    return made


def artifacts(one: Project) -> dict[str, str]:
    return {path: digest for path, digest in one.files().items() if path.endswith((".bin", ".safetensors"))}


def test_the_release_holds_what_the_sources_are_and_names_each_file(here: Project, tmp_path: Path) -> None:
    for name, origin in models(tmp_path).items():
        with open_checkpoint(origin) as wanted, open_checkpoint(here.folder / f"out/{name}/{name}.safetensors") as got:
            assert got.tensors == wanted.tensors
            for tensor in wanted.tensors:
                assert got.read(tensor).tobytes() == wanted.read(tensor).tobytes(), (name, tensor)
    assert len(artifacts(here)) == 9
    verified = here("verify", "out")
    assert verified.code == 0, verified.out
    statement = json.loads((here.folder / "out" / "provenance.json").read_text())
    went_in = {item["name"] for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    used = {path.name for path in (here.folder / "models" / SNAPSHOT).glob("model*")} | {"config.json"}
    assert len(used) > 4, "several shards and their index"
    assert {f"model/four/{name}" for name in used} <= went_in
    assert {"model/seven/model.safetensors", "lora/seven", "model/six", "state/six"} <= went_in
    again = here("run", "recipe.yaml", *HOST, "--json", "--locked")
    assert again.code == 0, again.err
    assert again.steps("done") == []


def test_another_alpha_makes_only_that_model_again(here: Project) -> None:
    before = artifacts(here)
    here.write("recipe.yaml", RECIPE.replace("alpha: 8", "alpha: 16"))
    explained = here("explain", "convert/seven/ggml-f16@py3.11", "recipe.yaml", *HOST)
    assert "params.params.lora_alpha: 8.0 → 16.0" in explained.out
    done = here("run", "recipe.yaml", *HOST, "--json")
    assert done.code == 0, done.err
    steps = {
        f"{stage}/seven/{kind}@py3.11"
        for stage in ("convert", "smoke")
        for kind in ("ggml-f16", "ggml-q5_1", "safetensors")
    }
    assert set(done.steps("done")) == {*steps, "reference/seven@py3.11", "publish"}
    after = artifacts(here)
    assert {path for path in before if before[path] != after[path]} == {p for p in before if p.startswith("seven/")}
    here.write("recipe.yaml", RECIPE)
    assert here("run", "recipe.yaml", *HOST, "--json").steps("done") == ["publish"]
    assert artifacts(here) == before


def test_a_shard_that_is_gone_or_changed_is_named(here: Project, tmp_path: Path) -> None:
    shutil.copytree(here.folder, tmp_path / "p", symlinks=True)
    other = Project(tmp_path / "p", here.store)
    shard = next((other.folder / "models" / SNAPSHOT).glob("model-00002-of-*"))
    content = shard.read_bytes()
    shard.unlink()
    gone = other("run", "recipe.yaml", *HOST)
    assert gone.code == 7, gone.err
    assert f"{shard.name}, which model.safetensors.index.json names, is missing. Download or copy" in gone.err
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = other("run", "recipe.yaml", *HOST, "--locked")
    assert changed.code == 3
    assert f"models.four: models/{SNAPSHOT}/{shard.name} has sha256" in changed.err


@pytest.mark.docker
def test_containers_make_the_same_bytes(base: Any, here: Project, tmp_path: Path) -> None:
    shutil.copytree(here.folder / "models", tmp_path / "p" / "models", symlinks=True)
    made = Project(tmp_path / "p", CACHE / "docker-store")
    made.write("recipe.yaml", RECIPE)
    done = made("run", "recipe.yaml", *DOCKER)
    assert done.code == 0, done.err
    assert artifacts(made) == artifacts(here)
