"""A recipe, a lock, a remote store and a hub that do their worst, against the command line as a person uses it.

Beside each stand a canary file, a canary token and a canary store: nothing of them is read, written, sent or run.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwkvflow.base.hashing import file_digest, text_digest
from rwkvflow.documents.load import load_recipe
from rwkvflow.documents.lock import recipe_digest
from rwkvflow.sandbox.host import host_platform
from rwkvflow.store.record import Output, Record
from rwkvflow.store.store import Store
from tests.e2e.cli import DEMO
from tests.helpers import checkpoints
from tests.redteam.conftest import CANARY, TOKEN
from tests.redteam.test_files import Runs
from tests.standin import StandIn

ROOT = Path(__file__).resolve().parents[2]
SHA = "ab" * 32
RECIPE: dict[str, Any] = {
    "name": "guest",
    "models": [{"name": "m", "source": "m.pth", "tokenizer": "bytes"}],
    "formats": ["ggml-f16"],
    "publish": [{"to": "out"}],
}


@dataclass
class Guest:
    """A stranger's folder on the machine of somebody who has a secret, a token and a store."""

    root: Path

    def __post_init__(self) -> None:
        self.home, self.folder = self.root / "home", self.root / "guest"
        self.home.mkdir()
        self.folder.mkdir()
        self.secret = self.home / "secret"
        self.secret.write_text(CANARY)
        self.secret.chmod(0o600)
        self.store = Store(self.root / "store")
        precious = self.root / "precious"
        precious.write_text("a checkpoint of another recipe")
        self.precious = self.store.put_file(precious).digest
        shutil.copy(DEMO / "rwkv4-demo.pth", self.folder / "m.pth")
        self.said = ""

    def recipe(self, **changes: Any) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
        return path

    def __call__(self, *words: str | Path, **env: str) -> int:
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
            "RWKVFLOW_STORE": str(self.store.root), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **env,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "rwkvflow", *map(str, words)],
            env=environment, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        self.said += done.stdout + done.stderr
        return done.returncode

    def untouched(self) -> None:
        """Nothing was read, written or told, and no flaw of ours came to light."""
        assert self.secret.read_text() == CANARY
        assert self.secret.stat().st_mode & 0o777 == 0o600
        assert {item.name for item in self.home.iterdir()} <= {"secret", ".cache"}
        for text in (CANARY, TOKEN, "\x1b", "Traceback"):
            assert text not in self.said, self.said
        path = self.store.path(self.precious)
        assert path is not None
        assert path.read_text() == "a checkpoint of another recipe"
        for place in (self.folder, self.store.root):
            for file in place.rglob("*"):
                if file.is_file() and not file.is_symlink() and file.stat().st_size < 1 << 20:
                    data = file.read_bytes()
                    assert CANARY.encode() not in data, file
                    assert TOKEN.encode() not in data, file


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.untouched()


# ---- a recipe ----------------------------------------------------------------------------------------------------

RECIPES: dict[str, Callable[[Guest], dict[str, Any]]] = {
    "a card's template": lambda guest: {"card": {"template": str(guest.secret)}},
    "a template by way of its folder": lambda guest: {"card": {"template": "../home/secret"}},
    "a text": lambda guest: {"smoke": {"text": "../home/secret"}},
    "a key": lambda guest: {"sign": {"key": str(guest.secret)}},
    "an engine's folder": lambda guest: {"engine": {"source": {"path": "../home"}}},
    "a repository of this machine": lambda guest: {"engine": {"source": {"git": f"file://{guest.home}"}}},
    "a wheel by its path": lambda guest: {"image": {"wheels": [f"x @ file://{guest.secret}"]}},
    "control sequences": lambda guest: {"name": "\x1b[2Jx"},
}  # fmt: skip


@pytest.mark.parametrize("way", RECIPES)
@pytest.mark.parametrize(
    "words", [("run", "--sandbox", "host"), ("plan", "--sandbox", "host"), ("lock",)], ids=" ".join
)
def test_a_recipe_reaches_nothing_outside_of_its_folder(guest: Guest, way: str, words: tuple[str, ...]) -> None:
    path = guest.recipe(**RECIPES[way](guest))
    code = guest(words[0], path, *words[1:], PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert code == 2, guest.said


# ---- a lock ------------------------------------------------------------------------------------------------------


def lock_of(guest: Guest) -> dict[str, Any]:
    model = guest.folder / "m.pth"
    wheel = {"name": "numpy", "version": "2.4.6", "filename": "numpy-2.4.6-py3-none-any.whl", "sha256": SHA}
    wheels = {"worker": [wheel], "toolchain": [{**wheel, "name": "ninja"}], "installer": [{**wheel, "name": "pip"}]}
    return {
        "version": 1,
        "recipe": recipe_digest(load_recipe(guest.folder / "recipe.yaml")),
        "models": {
            "m": {
                "source": "m.pth", "resolved": "m.pth", "sha256": file_digest(model)[7:], "size": model.stat().st_size,
            },
        },
        "images": {"py3.11": {"python": "3.11", "platforms": {host_platform(): wheels}}},
        "engine": {"kind": "builtin", "resolved": "builtin"},
    }  # fmt: skip


def _model(lock: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = lock["models"]["m"]
    return found


def _wheels(lock: dict[str, Any]) -> dict[str, Any]:
    (found,) = lock["images"]["py3.11"]["platforms"].values()
    return found  # type: ignore[no-any-return]


LOCKS: dict[str, Callable[[Guest, dict[str, Any]], object]] = {
    "another file": lambda guest, lock: _model(lock).update(
        resolved=str(guest.secret), sha256=text_digest(CANARY)[7:], size=len(CANARY)
    ),
    "another file by way of its folder": lambda guest, lock: _model(lock).update(resolved="../home/secret"),
    "a part that leads out": lambda guest, lock: _model(lock).update(
        files={"../../home/secret": {"sha256": text_digest(CANARY)[7:], "size": len(CANARY)}}
    ),
    "another installer": lambda guest, lock: _wheels(lock)["installer"][0].update(name="evil"),
    "another compiler": lambda guest, lock: _wheels(lock)["toolchain"][0].update(name="evil"),
    "a wheel that leads out": lambda guest, lock: _wheels(lock)["worker"][0].update(filename="../../../home/evil.whl"),
    "a source package": lambda guest, lock: lock.update(
        packages={"llama.cpp": {"name": "x", "version": "1", "filename": "x-1.tar.gz", "sha256": SHA, "backend": "x"}}
    ),
    "a repository of this machine": lambda guest, lock: lock.update(
        engine={"kind": "git", "resolved": f"file://{guest.home}@{'c' * 40}"}
    ),
    "an image that leads out": lambda guest, lock: lock["images"].update({"../../home/evil": lock["images"]["py3.11"]}),
    "control sequences": lambda guest, lock: lock.update({"\x1b[2J": "\x1b]0;owned\x07"}),
}


def test_the_lock_that_others_are_made_of_is_a_good_one(guest: Guest) -> None:
    path = guest.recipe()
    path.with_name("recipe.lock.yaml").write_text(json.dumps(lock_of(guest)), encoding="utf-8")
    assert guest("plan", path, "--locked", "--sandbox", "host") == 0, guest.said


@pytest.mark.parametrize("way", LOCKS)
def test_a_lock_puts_nothing_in_a_recipes_place(guest: Guest, way: str) -> None:
    path = guest.recipe()
    lock = lock_of(guest)
    LOCKS[way](guest, lock)
    path.with_name("recipe.lock.yaml").write_text(json.dumps(lock), encoding="utf-8")
    assert guest("run", path, "--locked", "--sandbox", "host") in (2, 3), guest.said


# ---- a remote store ----------------------------------------------------------------------------------------------


def told(guest: Guest, key: str, step: str) -> dict[str, Any]:
    """A record that gives a step of the recipe another recipe's blob."""
    output = {"digest": guest.precious, "kind": "file", "size": 30}
    return {"key": key, "step": step, "outputs": {"artifact": output, "file": output}, "seconds": 1.0, "notes": {}}


REMOTES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "one output more": lambda record: json.dumps(record).encode(),
    "no outputs": lambda record: json.dumps({**record, "outputs": {}}).encode(),
    "a name that leads out": lambda record: json.dumps(
        {**record, "outputs": {"../../../home/evil": record["outputs"]["file"]}}
    ).encode(),
    "a million brackets": lambda record: b"[" * 1_000_000,
    "control sequences": lambda record: json.dumps({**record, "step": "\x1b[2J"}).encode(),
    "another file than the pinned one": lambda record: json.dumps(
        {**record, "outputs": {"file": record["outputs"]["file"]}}
    ).encode(),
}


@pytest.mark.parametrize("way", REMOTES)
def test_a_remote_store_is_believed_in_nothing_that_can_be_checked(guest: Guest, tmp_path: Path, way: str) -> None:
    """The fetch of the model: its record is a stranger's, and so is what lies under the digests there."""
    path = guest.recipe()
    path.with_name("recipe.lock.yaml").write_text(json.dumps(lock_of(guest)), encoding="utf-8")
    assert guest("plan", path, "--locked", "--sandbox", "host", "--json") == 0, guest.said
    rows = json.loads(guest.said)
    fetch = next(row for row in rows if row["step"] == "fetch/m")
    remote = tmp_path / "remote"
    for digest in (_model(lock_of(guest))["sha256"], guest.precious[7:]):
        blob = remote / "blobs" / digest[:2] / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text("evil")
    for row in rows:
        if row["key"]:
            place = remote / "index" / row["key"][:2] / f"{row['key']}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(REMOTES[way](told(guest, row["key"], row["step"])))
    guest("run", path, "--locked", "--sandbox", "host", "--remote", f"file://{remote}", PIP_NO_INDEX="1")
    record = guest.store.lookup(fetch["key"])
    assert isinstance(record, Record)
    assert {name: output.digest for name, output in record.outputs.items()} == {
        "file": f"sha256:{_model(lock_of(guest))['sha256']}"
    }
    assert all(isinstance(output, Output) for output in record.outputs.values())
    found = guest.store.path(record.outputs["file"].digest)
    assert found is not None
    assert file_digest(found) == record.outputs["file"].digest


# ---- a hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandIn]:
    with StandIn(tmp_path / "hub") as made:
        made.tokens[TOKEN] = "me"
        yield made


@pytest.mark.parametrize("status", [302, 308])
@pytest.mark.parametrize("where", ["a file", "another host"])
def test_a_hub_sends_nobody_to_a_file_and_no_token_anywhere(
    guest: Guest, hub: StandIn, where: str, status: int
) -> None:
    hub.hub.create("me/m").commit({"model.safetensors": checkpoints.make(guest.folder / "x.safetensors").read_bytes()})
    place = f"file://{guest.secret}" if where == "a file" else f"{hub.cdn}/{CANARY}"
    hub.fault("status", "/resolve/", status=status, times=1000, headers={"Location": place})
    code = guest("inspect", "hf://me/m/model.safetensors", HF_ENDPOINT=hub.endpoint)
    assert code not in (0, -11)
    for seen in hub.requests(host="cdn"):
        assert TOKEN not in str(seen.headers)
    guest.said = guest.said.replace(CANARY, "")  # of the address, which is ours


def test_names_of_a_hub_lead_nowhere(guest: Guest, hub: StandIn) -> None:
    hub.hub.create("me/m").commit(
        {"../../home/evil.json": b"{}", "config.json": b"{}", "\x1b[2J.json": b"{}", "../model.safetensors": b"x"}
    )
    assert guest("convert", "hf://me/m", "out.bin", "--to", "ggml-f16", HF_ENDPOINT=hub.endpoint) not in (0, -11)
    assert not list(guest.root.rglob("evil.json"))


def test_a_pickle_of_a_hub_runs_nothing(guest: Guest, hub: StandIn) -> None:
    hub.hub.create("me/m").commit({"model.pth": pickle.dumps({"emb.weight": Runs(guest.home / "evil")})})
    for words in (("inspect",), ("convert", "out.bin", "--to", "ggml-f16")):
        assert guest(words[0], "hf://me/m/model.pth", *words[1:], HF_ENDPOINT=hub.endpoint) not in (0, -11)
