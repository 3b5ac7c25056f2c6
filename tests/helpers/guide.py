"""What a page of docs/ tells its readers to type and to save, as a test does it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def told(page: str, heading: str) -> list[str]:
    """The fenced blocks below a heading of a page, in their order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (section,) = re.findall(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text)
    return re.findall(r"(?ms)^```\w+\n(.*?)^```$", section)


def changed(text: str, **what: str) -> str:
    """Text with words of the page's replaced by a test's own, each of which must be there."""
    for word, new in what.items():
        assert word in text, f"the page does not say {word} any more"
        text = text.replace(word, new)
    return text
