"""What a file may say of its model beyond what tensors tell: name, licence, where it comes from.

It is the recipe's word. Nothing of a machine is in it, so that the same recipe and lock give the same bytes anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rwkvflow.worker.requests import AboutParams

_SIZE = re.compile(r"[-_.]([0-9]+(?:[.][0-9]+)?[kmbt])(?=[-_.]|$)", re.IGNORECASE)
_UNITS = ((1e-12, "T"), (1e-9, "B"), (1e-6, "M"), (1e-3, "K"))


@dataclass(frozen=True)
class About:
    """A text is "" where nothing is said. `license` as the hub names it; base models are (name, page)."""

    name: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    url: str = ""  # page of the repository, or address of the file, that the checkpoint comes from
    base_models: tuple[tuple[str, str], ...] = ()
    languages: tuple[str, ...] = ()
    quantized_by: str = ""

    @property
    def basename(self) -> str:
        """The name before its size: rwkv7-g1d of rwkv7-g1d-0.1b-20260129-ctx8192."""
        found = _SIZE.search(self.name)
        return self.name[: found.start()] if found else self.name


def about_of(params: AboutParams | None) -> About | None:
    """What a request says; None where it says nothing."""
    if params is None:
        return None
    return About(
        name=params.get("name", ""),
        license=params.get("license", ""),
        license_name=params.get("license_name", ""),
        license_link=params.get("license_link", ""),
        url=params.get("url", ""),
        base_models=tuple((str(name), str(page)) for name, page in params.get("base_models", ())),
        languages=tuple(params.get("languages", ())),
        quantized_by=params.get("quantized_by", ""),
    )


def size_label(weights: int) -> str:
    """A number of weights as llama.cpp's converter writes it, in two digits or more: 191M, 1.5B."""
    # Times a float that is not quite a thousandth, as there: 3550 is 3.6K, and 3.5K where it is divided.
    part, unit = next(((part, unit) for part, unit in _UNITS if weights > round(1 / part)), _UNITS[-1])
    scaled = weights * part
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{unit}"
