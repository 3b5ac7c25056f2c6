"""Installs this project into the environment that runs this: by uv, which takes a fraction of pip's time and disk.

    python scripts/install.py '.[dev]'

uv reads none of pip's configuration, so its indexes, links, certificates and proxy are handed over. Of PyTorch the CPU
build is taken: PyPI's for Linux brings gigabytes of CUDA. Where uv cannot do it, pip does.

What nothing here uses is left out (EXCLUDED), or removed from an environment that the Makefile has made (UNUSED); any
other is left as it is. uv's cache would keep it, so it has none afterwards, unless UV_CACHE_DIR names one.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# pip's name of a setting -> uv's option; several values are separated by spaces or lines
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
}
# What a dependency asks for, and uses in ways that are none of ours: a blog's dates, a graph's partition.
EXCLUDED = ("babel", "networkx")  # of mkdocs-material, of torch
# What no test opens, as folders or files of a package: tests of PyTorch and ONNX, headers for PyTorch's extensions,
# CMake's other programs, headers of systems that librwkv is not built for.
UNUSED = {
    "torch": ("test", "include", "bin/test_*", "bin/*Test"),
    "onnx": ("backend/test",),
    "cmake": ("data/bin/ctest", "data/bin/cpack"),
    "ziglang": ("lib/libc/include/*bsd*",),
}
OURS = ".made-by-make"  # a file in the environment; see Makefile


def pip_settings(text: str) -> dict[str, str]:
    """What `pip config list` prints, by name; a variable counts before a file, [install] before [global]."""
    found: dict[tuple[int, str], str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if equals and section in ("global", "install", ":env:"):
            found[("global", "install", ":env:").index(section), name] = str(ast.literal_eval(value))
    return {name: value for (_, name), value in sorted(found.items())}


def trim(packages: Path) -> None:
    """Remove what is not used, from the folder with the packages."""
    for package, patterns in UNUSED.items():
        for path in [path for pattern in patterns for path in (packages / package).glob(pattern)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def uv_command(settings: dict[str, str], what: str) -> tuple[list[str], dict[str, str]]:
    """The arguments of uv and its environment."""
    argv = ["uv", "pip", "install", "--no-config", "--quiet", "--python", sys.executable]
    argv += ["--index-strategy", "unsafe-best-match"]  # as pip does: the best of all
    for name, option in OPTIONS.items():
        for value in settings.get(name, "").split():
            argv += [option, value]
    if settings.get("no-index") in ("true", "1", "yes", "on"):
        argv.append("--no-index")
    elif not {"find-links", "extra-index-url"} & set(settings):  # who names places of their own has a PyTorch there
        argv += ["--torch-backend", "cpu"]
    environment = dict(os.environ)
    if cert := settings.get("cert"):
        environment["SSL_CERT_FILE"] = cert
    if proxy := settings.get("proxy"):
        environment.update(ALL_PROXY=proxy, HTTPS_PROXY=proxy, HTTP_PROXY=proxy)
    return [*argv, "--editable", what], environment


def main() -> None:
    """See the module."""
    what, prefix = sys.argv[1], Path(sys.prefix)
    install(what, prefix)
    if (prefix / OURS).is_file():
        trim(Path(sysconfig.get_path("platlib")))


def install(what: str, prefix: Path) -> None:
    """By uv, or else by pip. Raises SystemExit where neither can."""
    if subprocess.run([*PIP, "install", "--quiet", "uv>=0.9.8"], cwd=ROOT, check=False).returncode == 0:
        said = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False).stdout
        argv, environment = uv_command(pip_settings(said), what)
        argv[:1] = [sys.executable, "-m", "uv"]
        cache, excluded = prefix / ".cache", prefix / ".excluded"
        environment.setdefault("UV_CACHE_DIR", str(cache))
        excluded.write_text("\n".join(EXCLUDED), encoding="utf-8")
        done = subprocess.run([*argv, "--excludes", str(excluded)], cwd=ROOT, env=environment, check=False)
        shutil.rmtree(cache, ignore_errors=True)
        excluded.unlink()
        if done.returncode == 0:
            return
        print("uv cannot install it here: pip does", file=sys.stderr)
    code = subprocess.run([*PIP, "install", "--quiet", "-e", what], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
