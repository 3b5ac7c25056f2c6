"""How the development environment is installed: pip's configuration reaches uv."""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
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


def test_what_nothing_uses_goes_and_the_rest_stays(tmp_path: Path) -> None:
    stays = ["torch/bin/torch_shm_manager", "torch/testing/a.py", "cmake/data/bin/cmake", "numpy/include/a.h"]
    stays += [f"ziglang/lib/libc/include/{name}/a.h" for name in ("any-linux-any", "generic-musl", "any-windows-any")]
    goes = [
        "torch/bin/test_api",
        "torch/bin/FileStoreTest",
        "torch/test/a",
        "torch/include/a/b.h",
        "cmake/data/bin/ctest",
    ]
    goes += [f"ziglang/lib/libc/include/{name}/a.h" for name in ("x86_64-openbsd-none", "generic-netbsd")]
    for name in (*stays, *goes):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):  # whatever is there
        install.trim(tmp_path)
        assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(stays)


def test_only_what_make_has_made_is_trimmed() -> None:
    assert f"touch $(VENV)/{install.OURS}\n" in (install.ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_a_package_takes_counts_once(tmp_path: Path) -> None:
    for name in ("one", "other"):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "RECORD").write_text(f"{name}.bin,,\ngone.bin,,\n")
    (tmp_path / "one.bin").write_bytes(bytes(1 << 20))
    (tmp_path / "other.bin").hardlink_to(tmp_path / "one.bin")
    found = set_up_size.sizes(list(importlib.metadata.distributions(path=[str(tmp_path)])))
    assert list(found) == ["one", "other"]
    assert found["one"] >= 1 << 20
    assert found["other"] == 0
