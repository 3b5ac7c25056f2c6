"""What `rwkvflow engine diff` shows: which rules changed what CMake wrote, and the change itself. Pure text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import StoreError


def read(engine: Path) -> tuple[dict[str, Any], str]:
    """build.json and patch.diff of a built engine's folder. Raises StoreError where it is not one."""
    try:
        facts = json.loads((engine / "build.json").read_text(encoding="utf-8"))
        patch = (engine / "patch.diff").read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{engine}: this is no built engine ({error})", remedy="run `rwkvflow cache verify`, then build it again"
        ) from error
    if not isinstance(facts, dict):
        raise StoreError(f"{engine}: build.json is damaged", remedy="run `rwkvflow cache verify`")
    return facts, patch


def render(facts: dict[str, Any], patch: str) -> str:
    """A summary in comment lines (so that `patch` and editors still read the whole as a diff), then the diff."""
    lines = [
        f"# engine for {facts.get('target')}, toolchain {facts.get('toolchain')}: {facts.get('compiler')}, "
        f"CMake {facts.get('cmake')}"
    ]
    rules = [rule for rule in facts.get("rules", ()) if rule.get("matches")]
    if not rules:
        lines.append("# no rule matched: CMake's files were built as they are")
    width = max((len(rule["name"]) for rule in rules), default=0)
    for rule in rules:
        count = f"{rule['matches']} match" + ("" if rule["matches"] == 1 else "es")
        lines.append(f"# {rule['name']:<{width}}  {count} ({'shipped' if rule.get('shipped') else 'recipe'})")
    return "\n".join(lines) + "\n" + patch
