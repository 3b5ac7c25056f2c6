"""All readers, by name."""

from __future__ import annotations

from tests.fuzz import answers, documents, models, releases
from tests.fuzz.reader import Reader

READERS: dict[str, Reader] = {**models.READERS, **documents.READERS, **releases.READERS, **answers.READERS}
