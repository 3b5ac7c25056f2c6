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
import re
import shutil
import struct
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
# What no test opens, as folders or files of a package; what matches a pattern after "!" stays. Tests, and headers for
# extensions, of PyTorch and others; a library for C beside the same in the module for Python; CMake's other programs
# and its manual; what zig has for systems and processors that librwkv is not built for; clouds other than a bucket;
# what transformers' models are generated from.
UNUSED = {
    "torch": ("test", "include", "bin/test_*", "bin/*Test", "bin/protoc*", "lib/lib*_test.so"),
    "onnx": ("backend/test",),
    "onnxruntime": ("capi/libonnxruntime.so*",),
    "cmake": ("data/bin/ctest", "data/bin/cpack", "data/share/cmake-*/Help"),
    "ziglang": (
        "lib/libc/include/*bsd*",
        "lib/libc/include/*-linux-*",
        *(f"!lib/libc/include/{processor}-linux-*" for processor in ("any", "generic", "x86*", "aarch64")),
        "lib/libc/mingw/lib*32",
        "lib/libtsan",
    ),
    "botocore": ("data/*/", "!data/s3*", "!data/sts", "!data/sso*", "!data/signin"),
    "moto": ("ec2/resources", "ssm/resources"),
    "numpy": ("**/tests",),
    "sympy": ("**/tests",),
    "transformers": ("models/*/modular_*.py",),
}
ICONS = "material/templates/.icons"  # eleven thousand, of which a page shows ten
WINDOWS = "ziglang/lib/libc/include/any-windows-any"  # headers, most of them of what has a screen
# What a program for Windows includes; what zig's own C and C++ libraries and LLVM's headers name comes to it.
WINDOWS_ROOTS = ("windows.h", "winsock2.h", "ws2tcpip.h", "psapi.h", "tlhelp32.h", "dbghelp.h", "bcrypt.h")
STRIPPED = 1 << 18  # bytes of symbols that no loader reads, from which on a library is written without them
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
    """Remove what is not used, from the folder with the packages. What it has removed before does not matter."""
    for package, patterns in UNUSED.items():
        kept = {path for pattern in patterns if pattern[0] == "!" for path in (packages / package).glob(pattern[1:])}
        for pattern in patterns:
            for path in sorted((packages / package).glob(pattern)) if pattern[0] != "!" else ():
                if path in kept or not path.exists():  # what it stood in is gone
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    for path in [*unused_icons(packages), *unused_headers(packages)]:
        path.unlink()
    for path in packages.rglob("*.so*"):
        if path.is_file() and not path.is_symlink():
            strip(path)


def unused_icons(packages: Path) -> list[Path]:
    """Icons that neither the templates of the documentation's theme nor our own pages name."""
    texts = [*(packages / ICONS).parent.rglob("*.html"), *(packages / ICONS).parent.glob("*.yml")]
    texts += [ROOT / "mkdocs.yml", *(ROOT / "docs").rglob("*.md")]
    word = re.compile(r"(?:\.icons/)?(\w+(?:/[\w-]+)+)")
    named = {name for text in texts for name in word.findall(text.read_text(encoding="utf-8"))}
    icons = (packages / ICONS).glob("*/**/*.svg")
    return [path for path in icons if path.relative_to(packages / ICONS).with_suffix("").as_posix() not in named]


def unused_headers(packages: Path) -> list[Path]:
    """Headers of Windows that no C or C++ library, and none of WINDOWS_ROOTS, includes by whatever way."""
    folder, library = packages / WINDOWS, packages / "ziglang" / "lib"
    there = {path.relative_to(folder).as_posix().lower(): path for path in folder.rglob("*") if path.is_file()}
    sources = [
        library / "libc" / "mingw",
        *(library / name for name in ("include", "libcxx", "libcxxabi", "libunwind")),
    ]
    wanted = [*WINDOWS_ROOTS]
    for path in (path for source in sources for path in source.rglob("*") if path.is_file()):
        wanted += included(path)
    reached = set()
    while wanted:
        name = wanted.pop().lower()
        if name in there and name not in reached:
            reached.add(name)
            beside = name.rpartition("/")[0]
            for other in included(there[name]):
                wanted += [other, f"{beside}/{other}"] if beside else [other]
    return [path for name, path in there.items() if name not in reached]


def included(path: Path) -> list[str]:
    """What a source includes, under whatever condition."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.findall(r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*[<"]([^>"]+)[>"]', text, re.MULTILINE)


def strip(path: Path) -> None:
    """Write a shared library without what is for linkers and debuggers alone, where that is much: PyTorch has 98 MB.

    A loader reads segments; what stands behind the last one is the table of sections and sections that are not loaded.
    Any other file, and one in which something that is loaded stands there, is left as it is. The file is a new one, as
    the old one may be in a cache, too, which is not ours.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
            return
        segments_at, sections_at = struct.unpack_from("<QQ", head, 32)
        segments, _, sections = struct.unpack_from("<HHH", head, 56)
        file.seek(segments_at)
        table = file.read(segments * 56)
        ends = [sum(struct.unpack_from("<Q16xQ", table, at + 8)) for at in range(0, len(table), 56)]
        end = max(segments_at + len(table), *ends)
        file.seek(sections_at)
        table = file.read(sections * 64)
        for at in range(0, len(table), 64):
            kind, flags, offset, size = struct.unpack_from("<IQ8xQQ", table, at + 4)
            if flags & 2 and kind != 8 and offset + size > end:  # loaded, and not zeros without a place in the file
                return
        if not sections_at or path.stat().st_size - end < STRIPPED:
            return
        new = path.with_name(path.name + ".new")
        with new.open("wb") as out:
            out.write(head[:40] + bytes(8) + head[48:60] + bytes(4))
            file.seek(64)
            left = end - 64
            while left and (block := file.read(min(left, 1 << 20))):
                left -= out.write(block)
    shutil.copymode(path, new)
    new.replace(path)


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
