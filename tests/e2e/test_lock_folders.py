"""Hugging Face models, LoRA and initial states in the lock: from the stand-in hub and from this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import FetchError
from rwkvflow.documents.load import load_workflow, lock_from_text
from rwkvflow.documents.lock import Lock, LockedWheels, disagreements, pinned_files, recipe_digest
from rwkvflow.documents.lock_text import lock_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock import fit
from rwkvflow.lock.local_files import changed_files
from rwkvflow.lock.resolve import resolve
from rwkvflow.net.download import fetch_file
from rwkvflow.net.http import Policy
from rwkvflow.plan.matrix import expand
from rwkvflow.stages import convert, fetch, smoke
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.store.store import Store
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints
from tests.helpers.folders import folder_of
from tests.standin import StandIn

FAST = Policy(attempts=3, first_delay_s=0.01, longest_delay_s=0.05, connect_s=5, stall_s=5)
Locking = Callable[..., Lock]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of version 7 in shards, and files that nobody needs."""
    place = tmp_path_factory.mktemp("model")
    source = checkpoints.make(place / "m.pth", "7", layers=2, width=64, vocab=40)
    folder = folder_of(source, place / "hf", 60_000)
    (folder / "README.md").write_text("# A model")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "optimizer.bin").write_bytes(bytes(5000))
    return folder


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    with StandIn(tmp_path / "standin") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        yield standin


def recipe_of(**model_keys: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "test", "models": [{"name": "m", **model_keys}], "formats": ["ggml-f16", "safetensors"]}
    )


@pytest.fixture
def lock(tmp_path: Path) -> Locking:
    """Lock a recipe of one model, wheels aside."""

    def make(previous: Lock | None = None, **model_keys: Any) -> Lock:
        recipe = recipe_of(**model_keys)
        made = resolve(
            recipe,
            tmp_path / "recipe.yaml",
            platforms=[],
            base_of=lambda reference, python: None,
            previous=previous,
            store=Store(tmp_path / "store"),
            policy=FAST,
        )
        assert disagreements(recipe, made) == []
        assert lock_from_text(lock_text(made), "lock") == made
        assert made.recipe == recipe_digest(recipe)
        return made

    return make


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def needed(folder: Path) -> set[str]:
    shards = {path.name for path in folder.glob("model-*.safetensors")}
    return {"config.json", "model.safetensors.index.json", "tokenizer.json", *shards}


def blueprint(recipe: Recipe, locked: Lock, folder: Path) -> Blueprint:
    wheels = {"linux-x86_64": LockedWheels(worker=())}  # the plan asks which there are
    images = {name: image.model_copy(update={"platforms": wheels}) for name, image in locked.images.items()}
    locked = locked.model_copy(update={"images": images})
    return Blueprint(
        recipe=recipe,
        recipe_path=folder / "recipe.yaml",
        workflow=load_workflow(),
        workflow_path=folder / "recipe.yaml",
        lock=locked,
        sandbox="host",
        platform="linux-x86_64",
        artifacts=tuple(expand(recipe)),
    )


@pytest.mark.parametrize("below", ["", "exports/fp32"])
@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_hub_repository_is_pinned_file_by_file_and_fetched(
    model: Path, net: StandIn, lock: Locking, tmp_path: Path, below: str, revision: str
) -> None:
    start = f"{below}/" if below else ""
    contents = {f"{start}{name}": data for name, data in files_of(model).items()}
    repository = net.hub.create("owner/model")
    commit = repository.commit({**contents, "other/model.safetensors": bytes(2000)})
    source = f"hf://owner/model{revision}" + (f"/{below}" if below else "")
    made = lock(source=source)
    pin = made.models["m"]
    assert pin.resolved == f"hf://owner/model@{commit}" + (f"/{below}" if below else "")
    assert pin.files is not None
    assert set(pin.files) == needed(model)
    lines = "".join(f"{sha((model / name).read_bytes())}  {name}\n" for name in sorted(pin.files))
    assert pin.sha256 == sha(lines.encode())
    assert pin.size == sum(part.size for part in pin.files.values())
    asked = [seen.path for seen in net.requests("GET")]
    assert not any("README" in path or "modeling" in path or "optimizer" in path for path in asked)
    repository.commit(dict.fromkeys(contents, b"changed"))  # the commit is pinned: nothing of it reaches us
    target = tmp_path / "fetched"
    for _, resolved, part in pinned_files(made):
        name = resolved.rpartition("/")[2]
        if name.startswith("model-00001"):
            net.fault("cut", f"/lfs/{part.sha256}", after=20_000)
        got = fetch_file(
            resolved, target / name, sha256=part.sha256, size=part.size, recipe_folder=tmp_path, policy=FAST
        )
        assert got == (part.sha256, part.size)
    with open_checkpoint(target) as fetched, open_checkpoint(model) as wanted:
        assert fetched.tensors == wanted.tensors
        assert all(fetched.read(name).tobytes() == wanted.read(name).tobytes() for name in wanted.tensors)


def test_a_shard_that_is_missing_is_told_when_it_is_locked(model: Path, net: StandIn, lock: Locking) -> None:
    contents = files_of(model)
    del contents[
        "model-00002-of-00004.safetensors"
        if "model-00002-of-00004.safetensors" in contents
        else sorted(name for name in contents if name.startswith("model-0"))[1]
    ]
    net.hub.create("owner/model").commit(contents)
    with pytest.raises(
        FetchError, match=r"model-00002-of-\d+\.safetensors, which model\.safetensors\.index\.json names, is missing"
    ):
        lock(source="hf://owner/model")


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_names_a_file_outside(
    model: Path, net: StandIn, lock: Locking, tmp_path: Path, outside: str
) -> None:
    contents = files_of(model)
    contents["model.safetensors.index.json"] = json.dumps({"weight_map": {"emb.weight": outside}}).encode()
    net.hub.create("owner/model").commit(contents)
    shutil.copytree(model, tmp_path / "local")
    (tmp_path / "local" / "model.safetensors.index.json").write_bytes(contents["model.safetensors.index.json"])
    for source in ("hf://owner/model", "local"):
        with pytest.raises(FetchError, match="no file beside it"):
            lock(source=source)


def test_a_folder_here_and_what_changes_in_it(model: Path, lock: Locking, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "models" / "hf")
    made = lock(source="models/hf/")
    pin = made.models["m"]
    assert pin.files is not None
    assert set(pin.files) == needed(model)
    assert str(tmp_path) not in lock_text(made)
    store = Store(tmp_path / "store")
    assert changed_files(made, tmp_path, store, lambda event: None) == []
    assert lock(made, source="models/hf/") == made
    (tmp_path / "models" / "hf" / "README.md").write_text("# Another text")
    assert changed_files(made, tmp_path, store, lambda event: None) == []
    (tmp_path / "models" / "hf" / "config.json").write_text("{}")
    (problem,) = changed_files(made, tmp_path, store, lambda event: None)
    assert problem.startswith("models.m: models/hf/config.json has 2 bytes, the lock says")
    assert lock(made, source="models/hf/").models["m"].sha256 != pin.sha256
    with pytest.raises(FetchError, match="expected sha256 000"):
        lock(source="models/hf", sha256="0" * 64)


def test_links_may_stay_in_their_folder_or_in_the_hubs_cache(model: Path, lock: Locking, tmp_path: Path) -> None:
    cache = tmp_path / "models--owner--model"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in needed(model):
        shutil.copy(model / name, cache / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert lock(source=str(snapshot)).models["m"].files
    shutil.copytree(model, tmp_path / "hf")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "hf" / "config.json").unlink()
    (tmp_path / "hf" / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(FetchError, match=r"hf/config\.json is a link that leads out of its folder"):
        lock(source="hf")


def adapters(folder: Path) -> Mapping[str, Any]:
    checkpoints.write_pth(folder / "lora.pth", checkpoints.entries("4", layers=1, width=32, vocab=8))
    checkpoints.write_pth(folder / "state.pth", checkpoints.entries("4", layers=1, width=32, vocab=9))
    return {"lora": {"source": "lora.pth", "alpha": 16.0}, "state": {"source": "state.pth"}}


def test_adapters_are_pinned_and_part_of_the_keys(model: Path, lock: Locking, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "hf")
    keys = {"source": "hf", **adapters(tmp_path)}
    made = lock(**keys)
    assert made.loras is not None
    assert made.states is not None
    assert made.loras["m"].sha256 == sha((tmp_path / "lora.pth").read_bytes())
    assert made.states["m"].resolved == "state.pth"
    recipe = recipe_of(**keys)
    plain = recipe_of(source="hf")
    assert disagreements(plain, made) == [
        "loras.m: is in the lock, no longer in the recipe",
        "states.m: is in the lock, no longer in the recipe",
    ]
    assert recipe_digest(recipe_of(**{**keys, "lora": {"source": "lora.pth", "alpha": 8.0}})) == recipe_digest(recipe)
    steps = {step.id: step for step in fetch.steps(blueprint(recipe, made, tmp_path))}
    assert {"fetch/m/config.json", "fetch/m/lora", "fetch/m/state"} <= set(steps)
    assert "fetch/m" not in steps
    for step in (*convert.steps(blueprint(recipe, made, tmp_path)), *smoke.steps(blueprint(recipe, made, tmp_path))):
        assert step.params["params"]["lora_alpha"] == 16.0
        assert {"lora", "state", "checkpoint/config.json", "checkpoint/model.safetensors.index.json"} <= set(
            step.inputs
        )
    (tmp_path / "lora.pth").write_bytes(b"PK other")
    (problem,) = changed_files(made, tmp_path, Store(tmp_path / "store"), lambda event: None)
    assert problem.startswith("loras.m: lora.pth has 8 bytes")


def test_formats_that_cannot_hold_a_folders_version_are_told_early(model: Path, lock: Locking, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "hf")
    recipe = Recipe.model_validate(
        {"name": "test", "models": [{"name": "m", "source": "hf"}], "formats": ["faster-rwkv-f16"]}
    )
    made = lock(source="hf")
    store = Store(tmp_path / "store")
    checks: tuple[Callable[[], None], ...] = (
        lambda: fit.check_recipe_versions(recipe, tmp_path),
        lambda: fit.check_versions(expand(recipe), made, tmp_path, store),
    )
    for check in checks:
        with pytest.raises(Exception, match="m is version 7, which faster-rwkv-f16 cannot hold"):
            check()
