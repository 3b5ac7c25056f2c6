"""librwkv for other machines: built by zig here; aarch64 is run under qemu, Windows under wine, macOS is looked at."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.build.toolchain import CACHE_VARIABLE
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.protocol import parse
from scripts import build_wheels
from tests.engine import emulators, librwkv
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
SYSROOT = Path("/usr/aarch64-linux-gnu")  # Debian's libc6-arm64-cross
TOKENS = [int(t) for t in np.random.default_rng(8).integers(0, 101, 40)]
SIZE: dict[str, Any] = {"layers": 2, "width": 128, "vocab": 101, "head_size": 32}
KINDS = {
    "4": ("f32", "q4_0", "q4_k"),
    "5.2": ("f16", "q5_0"),
    "6": ("f32", "q8_0"),
    "7": ("f16", "q4_1", "q5_1", "q5_k"),
}

Cross = Callable[[str], Path]


@pytest.fixture(scope="session")
def cross(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cross:
    """cross(target) -> what the build-engine task makes for it; built once."""
    librwkv.with_zig(request.config)  # skips where there is no zig
    assert request.config.cache is not None
    cache = os.environ.get(CACHE_VARIABLE) or str(request.config.cache.mkdir("zig"))

    @functools.cache
    def build(target: str) -> Path:
        work = tmp_path_factory.mktemp("cross")
        (work / "in").mkdir()
        (work / "in" / "source").symlink_to(ROOT / "rwkvflow" / "engine")
        params: dict[str, Any] = {
            "toolchain": "zig", "target": target, "cmake": {}, "patches": [], "library": None, "folder": ".",
        }  # fmt: skip
        job = {"id": "engine", "params": {}, "outputs": {"engine": "out/engine"}}
        (work / "in" / "request.json").write_text(
            json.dumps({"task": "build-engine", "params": params, "jobs": [job]}), encoding="utf-8"
        )
        done = subprocess.run(
            [sys.executable, "-m", "rwkvflow.worker", "in/request.json"],
            cwd=work,
            env={**os.environ, "PYTHONPATH": str(ROOT), CACHE_VARIABLE: cache},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = [message for line in done.stdout.splitlines() if (message := parse(line)) and "failed" in message]
        assert (done.returncode, failed) == (0, []), done.stdout[-3000:] + done.stderr[-3000:]
        return work / "out" / "engine"

    return build


Models = dict[tuple[str, str], Path]


@pytest.fixture(scope="session")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    library = librwkv.with_zig(request.config) / "librwkv.so"
    made = {}
    for version, kinds in KINDS.items():
        source = checkpoints.make(root / f"{version}.pth", version, **SIZE)
        for kind in kinds:
            made[version, kind] = root / f"{version}-{kind}.bin"
            (outcome,) = convert(source, library, [ConversionJob("x", f"ggml-{kind}", made[version, kind])])
            assert outcome.failure is None
    return made


def logits(command: Sequence[str | Path], model: Path, out: Path, kernels: str = "") -> np.ndarray:
    subprocess.run(
        [*command, "eval", model, *map(str, TOKENS), "--logits", out, "--threads", "2"],
        check=True,
        env={**os.environ, "RWKV_KERNELS": kernels},
    )
    return np.fromfile(out, "<f4")


def qemu() -> str:
    return emulators.find("qemu-user-static", "qemu-aarch64-static", "qemu-aarch64")


def same_logits(emulated: list[str | Path], models: Models, native: Path, scratch: Path, *sets: str) -> None:
    """Bit for bit, with each of these sets of kernels; and the generic ones with the generic ones.

    This machine has a set that fuses products, as all x86-64 and aarch64 processors of the last decade do.
    """
    for kernels in sets:
        assert librwkv.kernels_used(kernels, *emulated) == kernels
    for (version, kind), model in models.items():
        here = logits([native / "rwkv"], model, scratch / "here")
        assert here.std() > 0.5, "logits that say something"
        for kernels in sets:
            there = logits(emulated, model, scratch / "there", kernels)
            assert here.tobytes() == there.tobytes(), (version, kind, kernels, float(np.abs(here - there).max()))
        plain = [logits(tool, model, scratch / "plain", "generic") for tool in ([native / "rwkv"], emulated)]
        assert plain[0].tobytes() == plain[1].tobytes(), (version, kind)


def test_aarch64_gives_the_same_logits(
    cross: Cross, models: Models, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The tool that Linux distributions run, with glibc."""
    emulator = qemu()
    if not SYSROOT.is_dir():
        emulators.missing("aarch64 libc", "libc6-arm64-cross")
    tool = cross("aarch64-linux-gnu.2.17") / "bin" / "rwkv"
    emulated: list[str | Path] = [emulator, "-L", SYSROOT, tool]
    sets = librwkv.kernel_sets(*emulated)[1:]
    same_logits(emulated, models, librwkv.with_zig(request.config), tmp_path, *sets)


@pytest.mark.soak
def test_the_static_tool_of_a_phone_gives_the_same_logits(
    cross: Cross, models: Models, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tool = cross("aarch64-linux-musl") / "bin" / "rwkv"
    assert b"/lib/ld-" not in tool.read_bytes(), "a static program"
    emulated: list[str | Path] = [qemu(), tool]
    best = librwkv.kernel_sets(*emulated)[-1]
    same_logits(emulated, models, librwkv.with_zig(request.config), tmp_path, best)


@pytest.fixture
def wine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Wine, whose server stays while the test runs: else each program would start Windows' services anew."""
    if platform.machine() != "x86_64":
        pytest.skip("wine runs programs for the machine's own processor")
    program, server = emulators.find("wine wine64", "wine"), emulators.find("wine wine64", "wineserver")
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "prefix"))
    monkeypatch.setenv("WINEDEBUG", "-all")
    (tmp_path / "prefix").mkdir()
    subprocess.run([server, "--persistent=60"], check=True)  # seconds after the last program
    yield program
    subprocess.run([server, "--kill"], check=False)


def test_windows_gives_the_same_logits(
    wine: str, cross: Cross, models: Models, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tool = cross("x86_64-windows-gnu") / "bin" / "rwkv.exe"
    same_logits([wine, tool], models, librwkv.with_zig(request.config), tmp_path, "avx2")


#: What a code page of Windows has no place for, and what a pipe in text mode changes.
STRANGE = "你好é\r\nΩ\x1a end\n"


def test_windows_takes_names_prompts_and_pipes_as_utf_8_and_bytes(
    cross: Cross, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers as here, byte for byte, by files whose names are not of a code page."""
    if platform.machine() != "x86_64":
        pytest.skip("wine runs programs for the machine's own processor")
    wine = emulators.find("wine wine64", "wine")
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "prefix"))
    monkeypatch.setenv("WINEDEBUG", "-all")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # of the arguments that wine is given
    here = librwkv.with_zig(request.config)
    tools: list[list[str | Path]] = [[here / "rwkv"], [wine, cross("x86_64-windows-gnu") / "bin" / "rwkv.exe"]]
    folder = tmp_path / "模型é"
    folder.mkdir()
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=2, width=64, vocab=256)
    (outcome,) = convert(source, here / "librwkv.so", [ConversionJob("x", "ggml-f16", folder / "Ω.bin")])
    assert outcome.failure is None

    def said(tool: list[str | Path], *arguments: str | Path, pipe: str | None = None) -> bytes:
        given = None if pipe is None else pipe.encode()
        run = subprocess.run([*tool, *arguments], input=given, capture_output=True, cwd=folder, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def goes_on(tool: list[str | Path], prompt: str, *more: str | Path, pipe: str | None = None) -> bytes:
        return said(tool, "generate", "Ω.bin", prompt, "-n", "24", "--seed", "7", *more, pipe=pipe)

    by_pipe = [goes_on(tool, "-", pipe=STRANGE) for tool in tools]
    by_argument = [goes_on(tool, STRANGE) for tool in tools]
    assert by_pipe[0] == by_pipe[1] == by_argument[0] == by_argument[1]
    assert by_pipe[0] != goes_on(tools[0], "-", pipe=STRANGE.replace("\r", "")), "the model tells these apart"
    for number, tool in enumerate(tools):
        goes_on(tool, "é", "--save-state", f"状态{number}")
        said(tool, "quantize", "Ω.bin", f"新{number}.bin", "Q8_0")
        said(tool, "quantize", "Ω.bin", f"新{number}.bin", "Q8_0")  # and over what is there
        said(tool, "eval", "Ω.bin", "1", "2", "--state-out", f"ß{number}", "--logits", f"ł{number}")
        said(tool, "eval", "Ω.bin", "3", "--state-in", f"ß{number}", "--logits", f"ø{number}")
    for name in ("状态", "新", "ß", "ł", "ø"):
        made = [next(folder.glob(f"{name}{number}*")).read_bytes() for number in (0, 1)]
        assert made[0] == made[1], name


def kind(path: Path) -> tuple[str, int]:
    """("ELF", machine), ("PE", machine) or ("Mach-O", processor) of a binary."""
    data = path.read_bytes()
    if data[:4] == b"\x7fELF":
        return "ELF", struct.unpack_from("<H", data, 18)[0]
    if data[:2] == b"MZ":
        (at,) = struct.unpack_from("<I", data, 60)
        assert data[at : at + 4] == b"PE\0\0"
        return "PE", struct.unpack_from("<H", data, at + 4)[0]
    assert struct.unpack_from("<I", data)[0] == 0xFEEDFACF
    return "Mach-O", struct.unpack_from("<I", data, 4)[0]


X86, ARM = 62, 183
TARGETS = {
    "aarch64-linux-gnu.2.17": (".so", "", "ELF", ARM),
    "aarch64-linux-musl": (".so", "", "ELF", ARM),
    "x86_64-linux-musl": (".so", "", "ELF", X86),
    "x86_64-windows-gnu": (".dll", ".exe", "PE", 0x8664),
    "aarch64-windows-gnu": (".dll", ".exe", "PE", 0xAA64),
    "x86_64-macos": (".dylib", "", "Mach-O", 0x01000007),
    "aarch64-macos": (".dylib", "", "Mach-O", 0x0100000C),
}
QUICK = ("aarch64-linux-gnu.2.17", "aarch64-macos", "x86_64-windows-gnu")  # the last is built for wine anyway


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=() if target in QUICK else pytest.mark.soak) for target in TARGETS]
)
def test_each_target_gives_its_library_and_tool(target: str, cross: Cross) -> None:
    suffix, program, *wanted = TARGETS[target]
    made = cross(target)
    assert list(kind(made / "lib" / f"librwkv{suffix}")) == wanted
    assert list(kind(made / "bin" / f"rwkv{program}")) == wanted
    facts = json.loads((made / "build.json").read_text())
    assert facts["target"] == target
    library = made / "lib" / f"librwkv{suffix}"
    assert b"rwkvflow_set_option" in library.read_bytes()
    (tag,) = [tag for tag, zig in build_wheels.TARGETS.items() if zig == target]
    # What it needs of the system is what the tag promises; on macOS the tag says which one at least.
    assert re.fullmatch(re.escape(tag).replace("macosx_", r"macosx_\d+_\d+_"), build_wheels.fitting_tag(tag, library))
    other = next(each for each in build_wheels.TARGETS if each != tag and each[:4] == tag[:4])
    with pytest.raises(ValueError, match="another machine"):
        build_wheels.fitting_tag(other, library)
