"""Split artifacts in a release: their folders, what the card says of them, and that verify takes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rwkvflow.documents.load import recipe_from_text
from rwkvflow.plan.matrix import expand
from rwkvflow.release.artifacts import gather
from rwkvflow.release.check import check_release
from rwkvflow.release.model_card.runtimes import runtimes
from rwkvflow.stages import convert
from rwkvflow.stages.publish import release_of
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import Split
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import releases
from tests.helpers.zeros import write_zeros
from tests.unit.stages.test_publish_stage import blueprint


def split(checkpoint: Path, name: str, path: Path, stem: str) -> Path:
    """A split artifact of zeros."""
    item = replace(FORMATS[name], split=Split(40_000, stem))
    with open_checkpoint(checkpoint) as opened:
        write_zeros(item.open(path, architecture_of(opened.tensors), opened.tensors, path.with_name("engine")))
    return path


def test_a_release_with_split_artifacts(tmp_path: Path) -> None:
    run = releases.made(tmp_path / "run", ())
    for name, stem, folder in (
        ("gguf-f16", "tiny7-F16", "tiny7-F16-gguf"),
        ("safetensors", "tiny7", "tiny7-safetensors"),
    ):
        which = f"tiny7/{name}@py3.11"
        run.add(f"artifact/{which}", split(tmp_path / "run" / "tiny7.safetensors", name, tmp_path / name, stem))
        (tmp_path / f"{name}.json").write_text(json.dumps(releases.report(name)))
        run.add(f"smoke/{which}", tmp_path / f"{name}.json")
        file = f"tiny7/tiny7{FORMATS[name].suffix}"
        entry = {"id": which, "model": "tiny7", "format": name, "image": "py3.11", "file": file, "extra": {}}
        run.params["entries"].append(entry | {"folder": f"tiny7/{folder}"})
    gathered = gather(run.params, run.inputs, run.digests)
    paths = [row.path for row in gathered.rows]
    assert paths == ["tiny7/tiny7-F16-gguf", "tiny7/tiny7-safetensors"]
    gguf, plain = gathered.rows
    count = len(gguf.files)
    assert count > 2
    assert gguf.files[0] == f"tiny7/tiny7-F16-gguf/tiny7-F16-00001-of-{count:05d}.gguf"
    assert "tiny7/tiny7-safetensors/tiny7.safetensors.index.json" in plain.files
    assert plain.facts["architecture"]["version"] == "7"
    assert gguf.bits is not None
    assert 15 < gguf.bits < 60
    said = {told.title: told.commands for told in runtimes(gathered.rows)}
    ((_, commands),) = said["llama.cpp and librwkv (`.gguf`)"]
    assert f"-m {gguf.files[0]} " in commands[0]
    ((_, commands),) = said["Plain weights (`.safetensors`)"]
    assert "glob" in commands[0]
    assert "tiny7/tiny7.pth" in commands[0]
    release = run.publish(tmp_path / "release")
    assert check_release(release).problems == []
    for path in paths:
        assert describe(release / path)["architecture"]
    assert f"{paths[0]}" in (release / "README.md").read_text()
    for listed in gathered.files:
        assert (release / listed.path).stat().st_size == listed.size


def test_only_formats_that_split_get_a_folder_and_only_a_split_changes_a_step(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    releases.zeros(tmp_path / "models" / "tiny4.safetensors", "4")
    plain, halved = (blueprint(tmp_path, more) for more in ("", "split: 40 kB\n"))
    entries = release_of(halved)[0]["entries"]
    folders = {entry["format"]: entry.get("folder", "").removeprefix(f"{entry['model']}/") for entry in entries}
    assert folders == {"ggml-q5_1": "", "safetensors": f"{entries[-1]['model']}-safetensors"}
    assert all("folder" not in entry for entry in release_of(plain)[0]["entries"])
    jobs = {step.id: step.params["job"] for step in convert.steps(halved)}
    assert jobs["convert/tiny7/safetensors@py3.11"]["split"] == {"size": 40_000, "stem": "tiny7"}
    assert [step.params["job"] for step in convert.steps(plain)] == [
        {"format": which.format} for which in expand(plain.recipe)
    ]
    assert recipe_from_text(releases.RECIPE, "recipe.yaml", tmp_path).split is None
