"""Models in several files, named by the first: all are fetched from a stand-in hub, or the missing one is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.app.models import fetched
from rwkvflow.base.errors import FetchError, RwkvflowError, UsageError
from rwkvflow.base.events import StepProgress
from rwkvflow.cli import cli
from rwkvflow.documents.lock import Lock, pinned_files
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock.header import describe_source, refuse_source
from rwkvflow.lock.resolve import resolve
from rwkvflow.net.download import fetch_file
from rwkvflow.net.http import Policy
from rwkvflow.store.store import Store
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import Split
from rwkvflow.worker.formats.gguf.layout import Gguf
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.write.folder import FolderWriter
from tests.helpers import checkpoints
from tests.helpers.folders import folder_of
from tests.standin import StandIn

FAST = Policy(attempts=3, first_delay_s=0.01, longest_delay_s=0.05, connect_s=5, stall_s=5)
KINDS = ("gguf", "safetensors")
BY_KIND = pytest.mark.parametrize("kind", KINDS)
Sets = dict[str, Path]


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """A folder of each kind of set."""
    place = tmp_path_factory.mktemp("sets")
    source = checkpoints.make(place / "m.pth", "7", layers=2, width=64, vocab=64)
    folder_of(source, place / "safetensors", 60_000)
    item = FORMATS["gguf-f16"]
    assert isinstance(item, Gguf)
    with open_checkpoint(source) as checkpoint:
        architecture, tensors = architecture_of(checkpoint.tensors), checkpoint.tensors
    parts = replace(item, split=Split(60_000, "m")).parts(architecture, tensors, Split(60_000, "m"))
    assert parts is not None
    writer = FolderWriter(place / "gguf", parts)
    for slots in writer.slots.values():
        for slot in slots:  # no value matters here
            writer.write(slot, 0, memoryview(bytes(slot.size)))
            writer.put(slot, 0, memoryview(bytes(slot.size)))
    writer.close()
    return {kind: place / kind for kind in KINDS}


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RWKVFLOW_STORE", str(tmp_path / "store"))
    with StandIn(tmp_path / "standin") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        yield standin


def parts_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "-of-" in path.name)


def published(net: StandIn, folder: Path, *without: str) -> str:
    """The source of the first part, in a repository with the others and what nobody needs."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in without}
    net.hub.create("o/r").commit({**contents, "README.md": b"# A model", "big.bin": bytes(5000)})
    return f"hf://o/r/{parts_of(folder)[0]}"


def locked(source: str, folder: Path) -> Lock:
    recipe = Recipe.model_validate({"name": "t", "models": [{"name": "m", "source": source}], "formats": ["gguf-f16"]})
    return resolve(
        recipe,
        folder / "recipe.yaml",
        platforms=[],
        base_of=lambda reference, python: None,
        store=Store(folder / "store"),
        policy=FAST,
    )


def same(path: Path, folder: Path) -> None:
    with open_checkpoint(path) as got, open_checkpoint(folder) as wanted:
        assert got.tensors == wanted.tensors
        for name in wanted.tensors:
            assert got.read(name).tobytes() == wanted.read(name).tobytes()


@BY_KIND
def test_a_command_fetches_all_parts_and_counts_them_first(kind: str, sets: Sets, net: StandIn, tmp_path: Path) -> None:
    source = published(net, sets[kind])
    told: list[StepProgress] = []
    path = fetched(source, tmp_path / "store", lambda event: told.append(event))  # type: ignore[arg-type]
    assert path.name == parts_of(sets[kind])[0]
    same(path, sets[kind])
    progress = [event for event in told if isinstance(event, StepProgress) and event.step.startswith("fetch/")]
    total = sum(file.stat().st_size for file in path.parent.iterdir() if file.name != "source.json")
    assert {event.total for event in progress} == {total}
    assert max(event.done for event in progress) == total
    assert len({event.step for event in progress}) == 1
    assert not any("README" in seen.path or "big" in seen.path for seen in net.requests("GET"))
    before = len(net.requests("GET"))
    assert fetched(source, tmp_path / "store", lambda event: None) == path
    assert not any("/lfs/" in seen.path for seen in net.requests("GET")[before:]), "nothing is fetched again"


@BY_KIND
def test_a_part_that_is_missing_is_named_by_all(kind: str, sets: Sets, net: StandIn, tmp_path: Path) -> None:
    first, second, *rest = parts_of(sets[kind])
    source = published(net, sets[kind], second)
    said = f"part 2 of {2 + len(rest)}, {second}"
    asks: list[Callable[[], object]] = [
        lambda: fetched(source, tmp_path / "store", lambda event: None),  # convert, chat, generate and the like
        lambda: locked(source, tmp_path),  # recipes
        lambda: refuse_source(source, tmp_path),  # init
        lambda: describe_source(source),
    ]
    for ask in asks:
        with pytest.raises(RwkvflowError) as caught:
            ask()
        assert said in caught.value.message
    result = CliRunner().invoke(cli, ["init", source])
    assert said in str(result.exception)
    here = tmp_path / "here"
    shutil.copytree(sets[kind], here)
    (here / second).unlink()
    for command in (["inspect"], ["convert", "--format", "safetensors"]):
        result = CliRunner().invoke(cli, [*command, str(here / first), *([str(tmp_path / "x")] if command[1:] else [])])
        assert second in str(result.exception)
        assert "is missing" in str(result.exception)
    with pytest.raises(FetchError, match="is missing"):
        locked(f"here/{first}", tmp_path)


@BY_KIND
def test_a_part_that_is_not_the_first_is_refused_with_its_name(
    kind: str, sets: Sets, net: StandIn, tmp_path: Path
) -> None:
    first, second, *_ = parts_of(sets[kind])
    source = published(net, sets[kind]).replace(first, second)
    for ask in (
        lambda: fetched(source, tmp_path / "store", lambda event: None),
        lambda: locked(source, tmp_path),
        lambda: refuse_source(source, tmp_path),
        lambda: describe_source(source),
    ):
        with pytest.raises(UsageError) as caught:
            ask()
        assert "is part 2 of" in caught.value.message
        assert first in (caught.value.remedy or "")
    result = CliRunner().invoke(cli, ["inspect", str(sets[kind] / second)])
    assert f"name the first, {first}" in str(result.exception)


@BY_KIND
def test_a_recipes_source_is_pinned_part_by_part(kind: str, sets: Sets, net: StandIn, tmp_path: Path) -> None:
    source = published(net, sets[kind])
    first = parts_of(sets[kind])[0]
    pin = locked(source, tmp_path).models["m"]
    assert pin.resolved.startswith("hf://o/r@")
    assert pin.resolved.endswith(f"/{first}")
    extra = {"model.safetensors.index.json", "config.json"} if kind == "safetensors" else set()
    assert pin.files is not None
    assert set(pin.files) == {*parts_of(sets[kind]), *extra}
    assert pin.size == sum(part.size for part in pin.files.values())
    target = tmp_path / "in" / "checkpoint"
    for _, resolved, part in pinned_files(locked(source, tmp_path)):
        fetch_file(
            resolved,
            target / resolved.rpartition("/")[2],
            sha256=part.sha256,
            size=part.size,
            recipe_folder=tmp_path,
            policy=FAST,
        )
    same(target, sets[kind])
    shutil.copytree(sets[kind], tmp_path / "here")
    own = locked(f"here/{first}", tmp_path).models["m"]
    assert own.files == pin.files
    assert [resolved for _, resolved, _ in pinned_files(locked(f"here/{first}", tmp_path))] == [
        f"here/{name}" for name in sorted(pin.files)
    ]


@BY_KIND
def test_a_set_elsewhere_is_described_whole(kind: str, sets: Sets, net: StandIn) -> None:
    found = describe_source(published(net, sets[kind]))
    wanted = describe(sets[kind])
    assert found["files"] == parts_of(sets[kind])
    assert found["bytes"] == wanted["bytes"]
    assert len(found["tensors"]) == len(wanted["tensors"])
    if kind == "gguf":  # of transformers' names the config.json says what they are
        assert found["architecture"] == wanted["architecture"]
        assert found["metadata"] == wanted["metadata"]


def test_parts_elsewhere_that_are_of_several_models_or_kinds_are_refused(sets: Sets, net: StandIn) -> None:
    first, second, *rest = parts_of(sets["gguf"])
    contents = {name: (sets["gguf"] / name).read_bytes() for name in (first, second, *rest)}
    for number, (wrong, said) in enumerate(
        (
            (contents[first], "no parts of one model"),
            ((sets["safetensors"] / parts_of(sets["safetensors"])[0]).read_bytes(), "some are not"),
            (contents[second][:100], "broken GGUF file"),
            (b"nothing", "none of .pth"),
        )
    ):
        net.hub.create(f"o/r{number}").commit({**contents, second: wrong})
        with pytest.raises(UsageError) as caught:
            describe_source(f"hf://o/r{number}/{first}")
        assert said in caught.value.message


def test_a_first_shard_here_is_the_model(sets: Sets) -> None:
    first = sets["safetensors"] / parts_of(sets["safetensors"])[0]
    same(first, sets["safetensors"])
    assert describe(first)["architecture"]["n_layer"] == 2


def test_a_set_of_a_web_server_is_fetched_by_its_names(sets: Sets, net: StandIn, tmp_path: Path) -> None:
    published(net, sets["gguf"])
    first, second, *_ = parts_of(sets["gguf"])
    source = f"{net.endpoint}/o/r/resolve/main/{first}"
    same(fetched(source, tmp_path / "store", lambda event: None), sets["gguf"])
    net.hub.create("o/s").commit({first: (sets["gguf"] / first).read_bytes()})
    with pytest.raises(FetchError, match=f"part 2 of .*, {second}"):
        fetched(f"{net.endpoint}/o/s/resolve/main/{first}", tmp_path / "store", lambda event: None)
