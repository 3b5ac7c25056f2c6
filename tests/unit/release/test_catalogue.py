"""catalogue.json: what programs download by, held against the files by verify, and read from the hub by choose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from rwkvflow.app import models as app_models
from rwkvflow.base.hashing import file_digest
from rwkvflow.cli import cli
from rwkvflow.release.catalogue import catalogue_problems, read_catalogue
from rwkvflow.release.names import CATALOGUE
from rwkvflow.release.sums import parse_sums
from tests.helpers.releases import made


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    return made(root / "run").publish(root / "out")


def content(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / CATALOGUE).read_bytes())
    return found


def test_it_says_of_every_file_what_is_there(release: Path) -> None:
    told = content(release)
    assert told["lock"] == file_digest(release / "recipe.lock.yaml").removeprefix("sha256:")
    assert told["recipe"] == file_digest(release / "recipe.yaml").removeprefix("sha256:")
    assert [item["path"] for item in told["artifacts"]] == [
        "tiny7/tiny7-Q5_1.bin", "tiny7/tiny7.safetensors", "tiny4/tiny4-Q5_1.bin", "tiny4/tiny4.safetensors",
    ]  # fmt: skip
    sums, _ = parse_sums((release / "SHA256SUMS").read_text())
    for item in told["artifacts"]:
        for file in item["files"]:
            assert (sums[file["path"]], (release / file["path"]).stat().st_size) == (file["sha256"], file["size"])
    first = told["artifacts"][0]
    assert (first["type"], first["family"], first["speed_class"]) == ("q5_1", "ggml", 1.5)
    assert "librwkv" in first["runtimes"]
    assert told["models"]["tiny7"]["source"].startswith("hf://someone/tiny7@")
    assert told["models"]["tiny4"]["source"] is None, "a path of this machine"


def test_it_fits_its_schema_which_refuses_what_it_does_not_know(release: Path) -> None:
    schema = json.loads(CliRunner().invoke(cli, ["schema", "catalogue"]).output)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert not list(validator.iter_errors(content(release)))
    assert list(validator.iter_errors(content(release) | {"more": 1}))
    broken = content(release)
    broken["artifacts"][0]["files"][0]["sha256"] = "0"
    assert list(validator.iter_errors(broken))


def first_file(told: dict[str, Any], **changes: Any) -> None:
    told["artifacts"][0]["files"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(lock="0" * 64), "another lock than the release's"),
        (lambda t: t.update(recipe="0" * 64), "another recipe than the release's"),
        (lambda t: first_file(t, sha256="0" * 64), "tiny7/tiny7-Q5_1.bin has another sha256"),
        (lambda t: first_file(t, size=1), "tiny7/tiny7-Q5_1.bin has another size"),
        (lambda t: first_file(t, path="gone.bin"), "the release has no gone.bin"),
        (lambda t: first_file(t, path="../recipe.yaml"), "the release has no ../recipe.yaml"),
        (lambda t: t["artifacts"].pop(1), "tiny7/tiny7.safetensors is not in it"),
        (lambda t: t["artifacts"][0].update(kl_divergence=0.0), "has another kl_divergence than its smoke report"),
        (lambda t: t["artifacts"][0].update(speed_class=4.0), "has another speed_class than its smoke report"),
        (lambda t: t.update(version=2), "cannot be read"),
    ],
)
def test_what_is_not_so_is_found(
    change: Callable[[dict[str, Any]], object], said: str, release: Path, tmp_path: Path
) -> None:
    sums, _ = parse_sums((release / "SHA256SUMS").read_text())
    reports = {item["path"]: report_of(release, item["path"]) for item in content(release)["artifacts"]}
    assert catalogue_problems(release, sums, reports) == []
    told = content(release)
    change(told)
    for path in sums:
        if path != CATALOGUE:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).symlink_to(release / path)
    (tmp_path / CATALOGUE).write_text(json.dumps(told))
    assert any(said in problem for problem in catalogue_problems(tmp_path, sums, reports))


def report_of(release: Path, path: str) -> dict[str, Any]:
    model, _, name = path.partition("/")
    found: dict[str, Any] = json.loads((release / model / "smoke" / f"{name}.json").read_bytes())
    return found


def test_choose_takes_a_folder_and_a_repository(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = CliRunner().invoke(cli, ["choose", str(release), "--memory", "1GB", "--model", "tiny7", "--json"])
    assert [item["path"] for item in json.loads(here.output) if item["best"]] == ["tiny7/tiny7.safetensors"]
    asked = []

    def fetched(place: str, root: Path, emit: object, endings: tuple[str, ...]) -> Path:
        asked.append(place)
        return release / CATALOGUE

    monkeypatch.setattr(app_models, "fetched", fetched)
    monkeypatch.chdir(tmp_path)
    for name in ("someone/tiny", "hf://someone/tiny", "hf://someone/tiny@v1"):
        there = CliRunner().invoke(cli, ["choose", name, "--memory", "1GB", "--model", "tiny7", "--json"])
        assert there.output == here.output
    assert asked == [f"hf://someone/tiny{at}/{CATALOGUE}" for at in ("", "", "@v1")]


def test_a_reader_is_told_what_is_wrong_on_one_line() -> None:
    with pytest.raises(ValueError, match=r"^lock: .*") as caught:
        read_catalogue(
            b'{"version": 1, "release": "x", "license": null, "recipe": null, "models": {}, "artifacts": []}'
        )
    assert "\n" not in str(caught.value)
