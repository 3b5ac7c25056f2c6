"""uv as the lock uses it: it resolves requirements for another machine, and installs nothing."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from rwkvflow.base import process
from rwkvflow.base.errors import EnvironmentMissing, FetchError, Interrupted
from rwkvflow.net.http import scrub
from rwkvflow.net.packages.package_index import Distribution
from rwkvflow.net.packages.pip_settings import PipSettings
from rwkvflow.net.packages.target import MACOS, Target

TIMEOUT_S = 3600.0
_NETWORK = re.compile(
    r"Failed to fetch|error sending request|Request failed|timed out|dns error|status code|HTTP status"
)


class Unresolvable(Exception):
    """There is no set of wheels; the text is uv's, without logins."""


def find_uv() -> str:
    """The program. Raises EnvironmentMissing where it was left out of this environment."""
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        import shutil

        found = shutil.which("uv")
        if found is None:
            raise EnvironmentMissing(
                "uv, which resolves the wheels of images, is not in this environment",
                remedy="pip install uv, or install rwkvflow again",
            ) from None
        return found


def resolve(
    target: Target,
    requirements: Sequence[str],
    limits: Sequence[str],
    settings: PipSettings,
    cancel: threading.Event | None,
) -> list[tuple[str, str, list[Distribution]]]:
    """(name, version, its wheels that could be taken) of all that `requirements` need on a target.

    `limits` are constraints besides those of the settings. Raises Unresolvable, FetchError, EnvironmentMissing,
    Interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="rwkvflow-uv-") as name:
        folder = Path(name)
        (folder / "requirements.in").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        (folder / "limits.txt").write_text("".join(f"{line}\n" for line in limits), encoding="utf-8")
        made = folder / "pylock.toml"
        argv = [find_uv(), "pip", "compile", str(folder / "requirements.in"), "--format", "pylock.toml"]
        argv += ["-o", str(made), *_options(target, settings), "--constraint", str(folder / "limits.txt")]
        lines: list[str] = []
        done = process.run(
            argv, env=_variables(settings), timeout=TIMEOUT_S, on_line=lines.append, cancel=cancel, cwd=folder
        )
        if done.cancelled:
            raise Interrupted("uv was stopped")
        text = scrub("\n".join(line for line in lines if line.strip())).replace(f"{folder}{os.sep}", "")
        if done.exit_code != 0:
            if "No solution found" not in text and _NETWORK.search(text):
                raise FetchError(
                    f"the package index cannot be asked: {text}",
                    remedy="check the network and the indexes of pip's configuration (pip.conf, PIP_*)",
                )
            raise Unresolvable(text)
        return [_row(row) for row in tomllib.loads(made.read_text(encoding="utf-8")).get("packages", [])]


def _row(row: dict[str, Any]) -> tuple[str, str, list[Distribution]]:
    wheels = []
    for wheel in row.get("wheels", ()):
        address = str(wheel.get("url") or Path(wheel["path"]).absolute().as_uri())
        filename = wheel.get("name") or address.rsplit("/", 1)[-1].replace("%2B", "+").replace("%2b", "+")
        wheels.append(Distribution(filename, address, (wheel.get("hashes") or {}).get("sha256")))
    return canonicalize_name(row["name"]), str(row["version"]), wheels


def _options(target: Target, settings: PipSettings) -> list[str]:
    options = ["--no-config", "--no-progress", "--quiet", "--color", "never", "--python", sys.executable]
    options += ["--only-binary", ":all:", "--no-python-downloads", "--no-header", "--no-sources"]
    options += ["--python-version", target.python, "--python-platform", target.uv_platform]
    options += ["--index-strategy", "unsafe-best-match"]  # as pip does: the best of all indexes
    if settings.indexes:
        options += ["--default-index", settings.indexes[0]]
        for index in settings.indexes[1:]:
            options += ["--index", index]
    else:
        options.append("--no-index")
    for place in settings.find_links:
        options += ["--find-links", place]
    for place in settings.constraints:
        options += ["--constraint", place]
    for host in settings.trusted:
        options += ["--allow-insecure-host", host]
    if settings.certificates is None:
        options.append("--system-certs")
    if settings.prereleases:
        options += ["--prerelease", "allow"]
    return options


def _variables(settings: PipSettings) -> dict[str, str]:
    """The environment without UV_* that change what is resolved: its settings are passed as options."""
    kept = ("UV_CACHE_DIR", "UV_NO_CACHE", "UV_OFFLINE", "UV_HTTP_TIMEOUT", "UV_CONCURRENT_DOWNLOADS")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("UV_") or name in kept}
    variables["MACOSX_DEPLOYMENT_TARGET"] = ".".join(map(str, MACOS))
    if settings.certificates:
        variables["SSL_CERT_FILE"] = settings.certificates
    if settings.proxy:
        variables.update(ALL_PROXY=settings.proxy, HTTPS_PROXY=settings.proxy, HTTP_PROXY=settings.proxy)
    if variables.get("PIP_NO_CACHE_DIR", "").lower() in ("1", "true", "yes", "on"):
        variables["UV_NO_CACHE"] = "1"
    return variables
