"""What the environment that runs this takes on the disk, by package: the figures of README.md.

    .venv/bin/python scripts/set_up_size.py [--first 25]

Hard links count once, in the package that comes first. What Python has compiled since counts, though no installer has
listed it: the figures grow while tests run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from importlib.util import cache_from_source
from pathlib import Path


def sizes(distributions: list[importlib.metadata.Distribution]) -> dict[str, int]:
    """Bytes on the disk by package, the largest first."""
    seen: set[tuple[int, int]] = set()
    found: dict[str, int] = {}
    for distribution in sorted(distributions, key=lambda each: each.metadata["Name"].lower()):
        size = 0
        listed = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
        compiled = [Path(cache_from_source(path)) for path in listed if path.suffix == ".py"]
        for path in (*listed, *compiled):
            try:
                status = path.lstat()
            except OSError:
                continue  # listed, and not there: what was removed, or compiled for another Python
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += status.st_blocks * 512
        found[distribution.metadata["Name"]] = size
    return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What each package of this environment takes on the disk.")
    parser.add_argument("--first", type=int, default=25, metavar="N", help="show the N largest")
    first = parser.parse_args().first
    found = sizes(list(importlib.metadata.distributions()))
    for name, size in list(found.items())[:first]:
        print(f"{size / 1e6:9.1f} MB  {name}")
    rest = list(found.values())[first:]
    print(f"{sum(rest) / 1e6:9.1f} MB  {len(rest)} more")
    print(f"{sum(found.values()) / 1e6:9.1f} MB  in {os.path.relpath(sys.prefix)}")


if __name__ == "__main__":
    main()
