"""What a GGUF says of its model comes from recipe and lock, and from no place of this machine."""

from __future__ import annotations

import json

import pytest

from rwkvflow.app.convert import told_of
from rwkvflow.documents.recipe import Card
from rwkvflow.stages.about import about
from rwkvflow.worker.model.about import About, about_of

COMMIT = "c0ffee" + "0" * 34


def test_a_checkpoint_of_the_hub_tells_its_repository_and_no_revision() -> None:
    told = about(None, "m", f"hf://BlinkDL/rwkv7-g1@{COMMIT}/x.pth")
    page = "https://huggingface.co/BlinkDL/rwkv7-g1"
    assert told == {
        "name": "m",
        "quantized_by": "rwkvflow",
        "url": page,
        "base_models": [["BlinkDL/rwkv7-g1", page]],
    }


@pytest.mark.parametrize("source", ["/home/me/secret/x.pth", "../x.pth", "file:///home/me/x.pth", "~/x.pth"])
def test_no_path_of_this_machine_is_told(source: str) -> None:
    assert about(None, "m", source) == {"name": "m", "quantized_by": "rwkvflow"}
    assert told_of(source) is None


def test_a_signature_of_an_address_is_not_told() -> None:
    assert about(None, "m", "https://example.org/x.pth?token=s")["url"] == "https://example.org/x.pth"


def test_the_card_says_licence_languages_and_what_it_is_made_from() -> None:
    card = Card(
        license="other", license_name="own", license_link="https://x.org", language=("en", "zh"),
        base_model=("a/b", "c/d"), quantized_by="me",
    )  # fmt: skip
    told = about(card, "m", "x.pth")
    assert told["base_models"] == [["a/b", "https://huggingface.co/a/b"], ["c/d", "https://huggingface.co/c/d"]]
    said = about_of(json.loads(json.dumps(told)))
    assert said == About(
        name="m",
        license="other",
        license_name="own",
        license_link="https://x.org",
        base_models=(("a/b", "https://huggingface.co/a/b"), ("c/d", "https://huggingface.co/c/d")),
        languages=("en", "zh"),
        quantized_by="me",
    )


def test_convert_tells_what_an_address_does() -> None:
    told = told_of("hf://BlinkDL/rwkv7-g1/rwkv7-g1d-0.1b-20260129-ctx8192.pth")
    assert told is not None
    assert (told.name, told.basename) == ("rwkv7-g1d-0.1b", "rwkv7-g1d")
