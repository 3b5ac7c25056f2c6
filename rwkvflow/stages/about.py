"""What a file says of its model: the recipe's name of it, the card's licence, and where its checkpoint is from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkvflow.documents.names import repository_page
from rwkvflow.documents.sources import Source, SourceError, parse_source

if TYPE_CHECKING:
    from rwkvflow.documents.recipe import Card
    from rwkvflow.worker.requests import AboutParams

BY = "rwkvflow"


def about(card: Card | None, model: str, source: str) -> AboutParams:
    """What is known of a model whose checkpoint is from `source`, as in a lock; no place of this machine is told."""
    found: AboutParams = {"name": model, "quantized_by": (card and card.quantized_by) or BY}
    place = _source(source)
    if place is not None and place.page:
        found["url"] = place.page
    own = [place.repository] if place is not None and place.repository else []
    if named := (list(card.base_model) if card else []) or own:
        found["base_models"] = [[name, repository_page(name)] for name in named]
    if card is not None:
        found.update({key: text for key in _OF_CARD if (text := getattr(card, key))})  # type: ignore[typeddict-item]
        if card.language:
            found["languages"] = list(card.language)
    return found


_OF_CARD = ("license", "license_name", "license_link")


def _source(text: str) -> Source | None:
    try:
        return parse_source(text, folder=True)
    except SourceError:
        return None
