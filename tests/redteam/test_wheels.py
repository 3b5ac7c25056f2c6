"""A recipe's own package that runs in every Python of its environment, and forges what it can reach of a verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvflow.base.hashing import file_digest
from rwkvflow.documents.load import load_lock, load_recipe
from rwkvflow.documents.lock import Lock, LockedWheel, recipe_digest
from rwkvflow.documents.lock_text import dump_lock
from rwkvflow.sandbox.pythons import find_python
from tests.e2e.cli import Project, project
from tests.e2e.conftest import CACHE
from tests.wheels import make_wheel

# Runs at the start of every Python of an environment that has it, before any code of rwkvflow's.
EVIL = """
import importlib.abc, importlib.machinery, json, sys

try:
    with open("in/request.json") as file:
        print("EVIL is in", json.load(file)["task"], flush=True)
except (OSError, ValueError, KeyError):
    pass

class Forge(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "rwkvflow.worker.smoke.judge":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        plain = spec.loader.exec_module
        def forged(module):
            plain(module)
            module.problems = lambda *told: []
            print("EVIL has forged the verdict", flush=True)
        spec.loader.exec_module = forged
        return spec

sys.meta_path.insert(0, Forge())
"""
WAYS = {
    "a .pth file": {"evil.py": EVIL, "evil.pth": "import evil\n"},
    "sitecustomize": {"sitecustomize.py": EVIL},
}
# No artifact is that close to its reference: an honest verdict is "no".
IMPOSSIBLE = 'smoke: {prompts: ["The "], tokens: 4, limits: {ggml-q5_1: {logits: 1.0e-9, perplexity: 1.0e-9}}}'


@pytest.fixture(scope="module", params=["host", pytest.param("docker", marks=pytest.mark.docker)])
def warm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A recipe that was run once, honestly."""
    store = "store" if request.param == "host" else "docker-store"
    if request.param == "docker":
        request.getfixturevalue("base")
    made = project(tmp_path_factory.mktemp("honest") / "p", CACHE / store)
    recipe = (
        (made.folder / "recipe.yaml").read_text(encoding="utf-8").replace(", ggml-q5_1, safetensors", ", ggml-q5_1")
    )
    made.write("recipe.yaml", recipe)
    done = made("run", "recipe.yaml", "--sandbox", request.param)
    assert done.code == 0, done.err
    return made, request.param


def poison(made: Project, folder: Path, files: dict[str, str], *, named: bool) -> None:
    """The package in lock and wheelhouse, and in the recipe where it is `named` there."""
    wheel = make_wheel(folder, "evil", "1.0", files)
    (made.store / "downloads" / "wheels" / wheel.name).unlink(missing_ok=True)
    (made.store / "downloads" / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    lock = load_lock(made.folder / "recipe.lock.yaml")
    sha256 = file_digest(wheel).removeprefix("sha256:")
    entry = LockedWheel(name="evil", version="1.0", filename=wheel.name, sha256=sha256)
    data = lock.model_dump(mode="json", exclude_none=True)
    for image in data["images"].values():
        for wheels in image["platforms"].values():
            wheels["worker"].append(entry.model_dump(mode="json", exclude_none=True))
    if named:
        text = (made.folder / "recipe.yaml").read_text(encoding="utf-8")
        made.write("recipe.yaml", f"{text}image: {{wheels: [evil==1.0]}}\n")
    data["recipe"] = recipe_digest(load_recipe(made.folder / "recipe.yaml"))
    dump_lock(Lock.model_validate(data), made.folder / "recipe.lock.yaml")


def has_its_own_sitecustomize() -> bool:
    """Debian's Python has one in its standard library, which comes before those of packages."""
    argv = [str(find_python("3.11")), "-I", "-S", "-c", "import sitecustomize"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")
@pytest.mark.parametrize(
    ("way", "named"), [("sitecustomize", True), ("a .pth file", False)], ids=["the recipe's", "the lock's alone"]
)
def test_a_package_cannot_forge_a_verdict(warm: tuple[Project, str], tmp_path: Path, way: str, named: bool) -> None:
    honest, sandbox = warm
    if sandbox == "docker" and not named:
        pytest.skip("an image has packages on PYTHONPATH, where Python reads no .pth file")
    made = project(tmp_path / "p", honest.store)
    text = (honest.folder / "recipe.yaml").read_text(encoding="utf-8")
    lines = [IMPOSSIBLE if line.startswith("smoke:") else line for line in text.splitlines()]
    made.write("recipe.yaml", "\n".join([*lines, ""]))
    made.write("recipe.lock.yaml", (honest.folder / "recipe.lock.yaml").read_text(encoding="utf-8"))
    if sandbox == "host" and has_its_own_sitecustomize():
        way = "a .pth file"
    poison(made, tmp_path, WAYS[way], named=named)
    done = made("run", "recipe.yaml", "--locked", "--sandbox", sandbox, "--json")
    ended = {e["step"]: e for e in done.events if e["event"] == "StepFinished"}
    verdict = ended["smoke/tiny4/ggml-q5_1@py3.11"]
    assert verdict["status"] == "failed", "the judge is not forged"
    assert "logit" in verdict["message"] or "perplexity" in verdict["message"], verdict["message"]
    logs = [e["line"] for e in done.events if e["event"] == "StepLog"]
    seen = {line for line in logs if "EVIL" in line}
    assert "EVIL is in ask" in seen, "the package is where artifacts are run, or this test shows nothing"
    assert seen == {"EVIL is in ask"}
    assert done.code == 6, json.dumps(verdict)
    assert ended["convert/tiny4/ggml-q5_1@py3.11"]["status"] == "cached", "nothing else is made again for its sake"
    assert ended["reference/tiny4@py3.11"]["status"] in ("cached", "done")
