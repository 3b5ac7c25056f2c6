"""The kinds of text that files are judged by: one list, for recipes and for tasks."""

from __future__ import annotations

from typing import Literal, get_args

Domain = Literal["prose", "chinese", "code", "arithmetic", "dialogue"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
