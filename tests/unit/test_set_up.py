"""How the development environment is installed: pip's configuration reaches uv."""

from __future__ import annotations

import importlib.metadata
import itertools
import struct
import sys
from importlib.util import cache_from_source
from pathlib import Path

from scripts import install, set_up_size

LISTED = """\
global.cert='/etc/company.crt'
global.index-url='https://user:secret@index.example/simple'
install.index-url='https://other.example/simple'
global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'
:env:.find-links='/opt/wheels /srv/wheels'
:env:.disable-pip-version-check='1'
freeze.timeout='10'
"""


def test_what_pip_is_told_is_told_to_uv() -> None:
    settings = install.pip_settings(LISTED)
    assert settings["index-url"] == "https://other.example/simple", "what is for install counts before the rest"
    assert "timeout" not in settings, "of another command"
    argv, environment = install.uv_command(settings, ".[dev]")
    assert argv[-2:] == ["--editable", ".[dev]"]
    assert argv[argv.index("--python") + 1] == sys.executable
    options = list(itertools.pairwise(argv))
    for option in (
        ("--default-index", "https://other.example/simple"),
        ("--index", "https://one.example/simple"),
        ("--index", "https://two.example/simple"),
        ("--find-links", "/opt/wheels"),
        ("--find-links", "/srv/wheels"),
    ):
        assert option in options
    assert environment["SSL_CERT_FILE"] == "/etc/company.crt"
    assert "--torch-backend" not in argv, "PyTorch comes from the places that are named"


def test_without_places_of_its_own_pytorch_is_its_cpu_build() -> None:
    argv, _ = install.uv_command(install.pip_settings("global.cert='/etc/company.crt'\n"), ".")
    assert argv[argv.index("--torch-backend") + 1] == "cpu"
    assert "--no-index" not in argv
    argv, _ = install.uv_command(install.pip_settings(":env:.no-index='1'\n:env:.find-links='/w'\n"), ".")
    assert "--no-index" in argv


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def there(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_what_nothing_uses_goes_and_the_rest_stays(tmp_path: Path) -> None:
    stays = ["torch/bin/torch_shm_manager", "torch/testing/a.py", "cmake/data/bin/cmake", "numpy/include/a.h"]
    stays += [f"ziglang/lib/libc/include/{name}/a.h" for name in ("any-linux-any", "generic-musl", "any-darwin-any")]
    stays += [
        f"ziglang/lib/libc/include/{name}/a.h" for name in ("x86-linux-gnu", "aarch64-linux-any", "wasm-wasi-musl")
    ]
    stays += ["ziglang/lib/libc/mingw/lib64/a.def", "torch/lib/libtorch_cpu.so", "numpy/testing/a.py"]
    stays += [f"botocore/data/{name}" for name in ("endpoints.json", "s3/a.json", "sts/a.json", "sso-oidc/a.json")]
    goes = [
        "torch/bin/test_api",
        "torch/bin/FileStoreTest",
        "torch/test/a",
        "torch/include/a/b.h",
        "cmake/data/bin/ctest",
    ]
    goes += [f"ziglang/lib/libc/include/{name}/a.h" for name in ("x86_64-openbsd-none", "generic-netbsd")]
    goes += [f"ziglang/lib/libc/include/{name}/a.h" for name in ("arm-linux-gnu", "s390x-linux-any")]
    goes += ["ziglang/lib/libc/mingw/lib32/a.def", "ziglang/lib/libc/mingw/libarm32/a.def", "botocore/data/ec2/a.json"]
    goes += ["numpy/lib/tests/a.py", "numpy/tests/tests/a.py", "onnxruntime/capi/libonnxruntime.so.1.2"]
    write(tmp_path, dict.fromkeys([*stays, *goes], ""))
    for _ in range(2):  # whatever is there
        install.trim(tmp_path)
        assert there(tmp_path) == sorted(stays)


def test_of_icons_those_stay_that_a_page_shows(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "material/templates/base.html": '{% set icon = config.theme.icon.menu or "material/menu" %}',
            "material/templates/blog.html": '{% import ".icons/material/chevron-left.svg" as left %}',
            "material/templates/mkdocs_theme.yml": "icon:\n  repo: fontawesome/brands/git-alt\n",
            **{
                f"{install.ICONS}/{name}.svg": "<svg/>"
                for name in (
                    *("logo", "material/menu", "material/chevron-left", "fontawesome/brands/git-alt"),
                    "material/weather-night",  # mkdocs.yml
                    *("material/abacus", "fontawesome/brands/git", "simple/elsewhere/a"),
                )
            },
        },
    )
    install.trim(tmp_path)
    icons = {path.stem for path in tmp_path.rglob("*.svg")}
    assert icons == {"logo", "menu", "chevron-left", "git-alt", "weather-night"}


def test_of_windows_headers_those_stay_that_something_includes(tmp_path: Path) -> None:
    headers = {
        "windows.h": "#include <WinBase.h>\n",
        "winbase.h": '  #  include "sub/inner.h"\n',
        "sub/inner.h": '#include "beside.h"\n',
        "sub/beside.h": "",
        "vararg.h": "",  # of zig's own library of C
        "mshtml.h": "#include <windows.h>\n",
        "GL/gl.h": "",
    }
    write(tmp_path / install.WINDOWS, headers)
    write(tmp_path / "ziglang/lib/libc", {"mingw/crt/crt.c": "#if 0\n#include <vararg.h>\n#endif\n"})
    install.trim(tmp_path)
    assert there(tmp_path / install.WINDOWS) == ["sub/beside.h", "sub/inner.h", "vararg.h", "winbase.h", "windows.h"]


def library(segment: bytes, behind: bytes, flags: int = 0) -> bytes:
    """A file of ELF: a segment, a section behind it, and the table of sections."""
    at = 64 + 56 + len(segment)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQQ", 3, 62, 1, 0, 64, at + len(behind))
    head += struct.pack("<IHHHHHH", 0, 64, 56, 1, 64, 1, 0)
    loaded = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, at, at, 4096)
    return head + loaded + segment + behind + struct.pack("<IIQQQQIIQQ", 0, 2, flags, 0, at, len(behind), 0, 0, 8, 24)


def test_a_library_is_written_without_what_no_loader_reads_and_a_cache_keeps_it(tmp_path: Path) -> None:
    symbols = bytes(install.STRIPPED)
    whole = library(b"code", symbols)
    same = {
        "few.so": library(b"code", symbols[: 1 << 10]),
        "loaded.so": library(b"code", symbols, flags=2),
        "other.so": b"INPUT(libc.so.6)",
        "short.so": b"\x7fELF",
    }
    for name, data in {"cached.so": whole, **same}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "cached.so").chmod(0o755)
    (tmp_path / "torch.so.1").hardlink_to(tmp_path / "cached.so")
    (tmp_path / "torch.so").symlink_to("torch.so.1")
    for _ in range(2):
        install.strip(tmp_path / "torch.so.1")
        for name in same:
            install.strip(tmp_path / name)
    assert {name: (tmp_path / name).read_bytes() for name in same} == same
    assert (tmp_path / "cached.so").read_bytes() == whole
    made = (tmp_path / "torch.so.1").read_bytes()
    assert made[64:] == whole[64 : 64 + 56 + 4]
    assert (made[:40], made[48:60]) == (whole[:40], whole[48:60])
    assert made[40:48] + made[60:64] == bytes(12), "no table of sections"
    assert (tmp_path / "torch.so.1").stat().st_mode == (tmp_path / "cached.so").stat().st_mode
    assert not list(tmp_path.glob("*.new"))


def test_only_what_make_has_made_is_trimmed() -> None:
    assert f"touch $(VENV)/{install.OURS}\n" in (install.ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_a_package_takes_counts_once(tmp_path: Path) -> None:
    for name in ("one", "other"):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "RECORD").write_text(f"{name}.bin,,\n{name}.py,,\ngone.bin,,\n")
    (tmp_path / "one.bin").write_bytes(bytes(1 << 20))
    (tmp_path / "other.bin").hardlink_to(tmp_path / "one.bin")
    (tmp_path / "other.py").touch()
    compiled = Path(cache_from_source(tmp_path / "other.py"))
    compiled.parent.mkdir()
    compiled.write_bytes(bytes(1 << 19))
    found = set_up_size.sizes(list(importlib.metadata.distributions(path=[str(tmp_path)])))
    assert list(found) == ["one", "other"]
    assert found["one"] >= 1 << 20
    assert 1 << 19 <= found["other"] < 1 << 20, "only what Python has compiled"
