"""Emulators are found or asked for here: tests that need one skip without it, and fail where all are required (CI)."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

REQUIRED = "RWKVFLOW_REQUIRE_EMULATORS"


def missing(what: str, packages: str) -> NoReturn:
    """Ends the test; `packages` are Debian's."""
    message = f"no {what} on this machine (Debian: apt-get install {packages})"
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, and there is {message}")
    pytest.skip(message)


def find(packages: str, *programs: str) -> str:
    """The first of these programs that is here; they are the same one."""
    for program in programs:
        if (found := shutil.which(program)) is not None:
            return found
    missing(programs[0], packages)
