"""What a job's parameters say of the types of tensors, with what stands in a file beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.mix import Mix, mix_of

if TYPE_CHECKING:
    from rwkvflow.worker.requests import MixParams


def given_mix(name: str, params: MixParams | None) -> Mix | None:
    """Of the format `name`. Raises WorkerError for what is no type."""
    if params is None:
        return None
    exact: dict[str, str] = {}
    if params.get("searched"):
        try:
            exact = json.loads((Path("in/types") / name).read_text(encoding="utf-8"))["types"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkerError(f"the types of {name}'s tensors cannot be read: {error}") from None
    return mix_of(params.get("tensor_types", ()), params.get("output_type"), params.get("embedding_type"), exact)
