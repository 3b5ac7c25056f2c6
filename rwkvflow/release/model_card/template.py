"""A card's template of a stranger's, rendered apart. The shipped one, which is trusted, is rendered in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rwkvflow.base.errors import PublishError
from rwkvflow.base.jinja_apart import Bounds, TemplateError
from rwkvflow.base.jinja_apart import render_apart as _render_apart

SECONDS = 10
REMEDY = "it sees what the shipped template sees: rwkvflow/release/model_card/templates/README.md.j2"


def render_apart(template: str, told: Mapping[str, Any]) -> str:
    """The text. Raises PublishError, with the line, for a mistake in the template, or where it goes beyond bounds."""
    try:
        return _render_apart(template, told, "rwkvflow.release.model_card.card:environment_of", Bounds(SECONDS))
    except TemplateError as error:
        raise PublishError(f"the card's template{error}", remedy=REMEDY) from None
