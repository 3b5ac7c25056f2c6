"""Where the files stand that ship beside the code: Dockerfile templates, recipes, the default workflow."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(relative: str) -> Path:
    """Path of a shipped file such as "images/Dockerfile.j2": in an installed wheel, else in the source tree."""
    installed = PACKAGE / "_shipped" / relative
    return installed if installed.exists() else PACKAGE.parent / relative
