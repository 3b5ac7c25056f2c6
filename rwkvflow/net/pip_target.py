"""Runs pip for another machine: `python pip_target.py MARKERS-AS-JSON PIP-ARGUMENTS…`, in a process of its own.

pip's --platform and --python-version choose wheels by their tags, but pip goes on to read environment markers such
as `platform_machine == "x86_64"` as this interpreter would. Here they read as the target would.
"""

from __future__ import annotations

import json
import runpy
import sys


def main() -> None:
    """Replace the one function that pip's markers ask, then run pip as `python -m pip` does."""
    from pip._vendor.packaging import markers

    target = json.loads(sys.argv[1])
    original = markers.default_environment

    def environment() -> object:
        return {**original(), **target}

    markers.default_environment = environment  # type: ignore[assignment]
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
