"""A kind of place is one class and one entry: recipes may name it, a plan has its step, a run publishes there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rwkvflow.base.errors import DocumentError
from rwkvflow.documents.destinations import DESTINATIONS, Destination, parse_destination, tag_name
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.sources import SourceError
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.execute.publishing import look_again, publish_actions, publish_probes
from rwkvflow.net.progress import Told
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import LocalInput, Step
from rwkvflow.publish.base import Changes, Given, Published
from rwkvflow.release.release import Release
from rwkvflow.store.store import Store
from tests.helpers.releases import RECIPE, made

SHELVES: dict[str, dict[str, object]] = {}


@dataclass(frozen=True)
class ShelfDestination(Destination):
    """A shelf of this process."""

    kind = "shelf"
    schemes = ("shelf",)
    example = "shelf://name"
    options = {"tag": tag_name}  # noqa: RUF012
    publisher = f"{__name__}:publisher"

    name: str

    @classmethod
    def parse(cls, text: str) -> ShelfDestination:
        if not (name := text.removeprefix("shelf://")).isalpha():
            raise SourceError(f"{name!r} is no shelf")
        return cls(name)

    def __str__(self) -> str:
        return f"shelf://{self.name}"


class ShelfPublisher:
    def __init__(self, name: str, tag: object) -> None:
        self.name, self.tag = name, tag

    def plan(self, release: Release) -> Changes:
        return Changes(f"shelf://{self.name}", (), 0)

    def apply(self, release: Release, told: Told) -> Published:
        SHELVES.setdefault(self.name, {})[release.name] = self.tag
        return Published(f"shelf://{self.name}/{release.name}")


def publisher(place: ShelfDestination, given: Given) -> ShelfPublisher:
    return ShelfPublisher(place.name, given.options.get("tag"))


@pytest.fixture(autouse=True)
def listed() -> Iterator[None]:
    DESTINATIONS.append(ShelfDestination)
    SHELVES.clear()
    yield
    DESTINATIONS.remove(ShelfDestination)


def test_a_recipe_may_name_it(tmp_path: Path) -> None:
    text = RECIPE.replace("to: out", "to: shelf://mine\n    tag: v1")
    assert "shelf" in text
    (tmp_path / "card.md.j2").write_text("x")
    recipe = recipe_from_text(text, "recipe.yaml", tmp_path)
    assert parse_destination(recipe.publish[0].to) == ShelfDestination("mine")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("to: shelf://1", "'1' is no shelf"),
        ("to: SHELF://a", "the scheme must be lower case: shelf:"),
        ("to: shelf:a", "'shelf:a' lacks the // after the scheme"),
        ("to: shelves://a", "oci://registry/name:tag, s3://… or shelf://name"),
        ("to: shelf://a\n    tag: v 1", "'v 1' cannot be a tag"),
        ("to: shelf://a\n    private: true", "only hf:// knows private"),
        ("to: out\n    tag: v1", "only hf:// and shelf:// knows tag"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "card.md.j2").write_text("x")
    with pytest.raises(DocumentError) as caught:
        recipe_from_text(RECIPE.replace("to: out", entry), "recipe.yaml", tmp_path)
    assert message in str([finding.message for finding in caught.value.findings])


def test_a_run_publishes_there_once(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    step = Step(
        id="publish",
        stage="publish",
        action=f"publish-{ShelfDestination.kind}",
        params={"to": "shelf://mine", "tag": "v1", "release": {**run.params, "to": "shelf://mine"}},
        inputs={name: LocalInput(digest, run.inputs[name]) for name, digest in run.digests.items()},
        outputs=("release",),
        local={"folder": str(run.root), **run.local},
    )
    store = Store(tmp_path / "store")

    def carried_out() -> str:
        executor = LocalExecutor(
            store, publish_actions(store), publish_probes(store), lambda event: None, run="r", cores=1
        )
        return executor.run(Plan([step], [step.id]))["publish"].status

    assert carried_out() == "done"
    assert [*SHELVES["mine"].values()] == ["v1"]
    assert carried_out() == "cached"
    look_again(store, [step])
    assert carried_out() == "done"
