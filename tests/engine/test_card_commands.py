"""Every command on a card is run as it is printed, in the folder of a release; what cannot run here is listed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.release.artifacts import Row
from rwkvflow.release.model_card.runtimes import RuntimeSection, runtimes
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.base import Split
from tests.engine import librwkv, llama_cpp, llama_tools
from tests.helpers import checkpoints

#: How commands begin that nothing here can run: programs of others that no package index has, or that want a GPU.
NOT_RUN = {
    "faster-rwkv/build/chat ": "wants CUDA",
    "faster-rwkv/build/export_ncnn ": "faster-rwkv is in no package index",
    "python rwkv.cpp/python/": "rwkv.cpp is in no package index; test_rwkv_cpp runs it where there is a clone",
    "(cd ai00_server ": "Ai00 wants Rust and its crates",
    "(cd web-rwkv ": "web-rwkv wants Rust and its crates",
    'python -c "import fla; ': "wants a GPU; test_fla runs the model without one",
}
#: What test_the_programs_of_others_run_as_printed runs.
OTHERS = ("llama-completion ", 'python -c "from web_rwkv_py ', "python llama.cpp/convert_hf_to_gguf.py ")
RUN = [
    ("chatrwkv-cpu-fp32", "4"),
    ("chatrwkv-cpu-fp32", "7"),
    ("chatrwkv-cpu-bf16", "6"),
    ("safetensors", "7"),
    ("ggml-q5_1", "5.1"),
    ("ggml-q5_1", "7"),
    ("ggml-q4_k", "7"),
    ("gguf-f16", "7"),
    ("transformers", "4"),
    ("mlx-6bit", "7"),
    ("onnx-f32", "7"),
    ("ncnn-f32", "7"),
]
NEEDED = {
    "chatrwkv": "rwkv",
    "safetensors": "rwkv",
    "transformers": "transformers",
    "mlx": "mlx_lm",
    "onnx": "onnxruntime",
    "ncnn": "ncnn",
}


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config)


def told(name: str, version: str, path: str, files: tuple[str, ...]) -> RuntimeSection:
    facts = {"architecture": {"version": version}}
    (found,) = runtimes([Row("m", name, path, "", 1, (), {"consumer": FORMATS[name].consumer}, facts, files)])
    return found


def is_run_here(command: str) -> bool:
    return not command.startswith((*NOT_RUN, *OTHERS))


@pytest.fixture
def release(tmp_path: Path, built: Path) -> Path:
    """A folder with what a user has on the PATH, and in ENGINE after the card's first line."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "engine" / "bin").mkdir(parents=True)
    (tmp_path / "engine" / "bin" / "rwkv").symlink_to(built / "rwkv")
    (tmp_path / "release" / "m").mkdir(parents=True)
    return tmp_path / "release"


def run(command: str, release: Path) -> str:
    place = release.parent
    env = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "ENGINE": str(place / "engine")}
    env["HF_HUB_OFFLINE"] = "1"
    env["MLX_DISABLE_COMPILE"] = "1"  # on a CPU it would have a C++ compiler join operations
    done = subprocess.run(["bash", "-c", command], cwd=release, env=env, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:].decode(errors='replace')}"
    return done.stdout.decode(errors="replace")  # a random model's bytes


@pytest.mark.parametrize(("name", "version"), RUN)
def test_the_commands_of_a_card_run(name: str, version: str, release: Path, built: Path) -> None:
    item = FORMATS[name]
    if package := NEEDED.get(item.family):
        pytest.importorskip(package)
    source = checkpoints.make(release.parent / "m.pth", version, layers=2, width=64, vocab=256)
    path = f"m/m{item.suffix}"
    (outcome,) = convert(source, built / "librwkv.so", [ConversionJob("x", name, release / path)])
    assert outcome.failure is None
    inside = [file.relative_to(release).as_posix() for file in (release / path).rglob("*") if file.is_file()]
    card = told(name, version, path, tuple(inside) or (path,))
    ((_, commands),) = card.commands
    ran = [run(command, release) for command in commands if is_run_here(command)]
    assert ran
    assert any(text.strip() for text in ran)


def test_a_split_model_runs_by_its_command(release: Path, built: Path) -> None:
    pytest.importorskip("rwkv")
    source = checkpoints.make(release.parent / "m.pth", "4", layers=2, width=64, vocab=256)
    (outcome,) = convert(
        source, built / "librwkv.so", [ConversionJob("x", "safetensors", release / "m/m-safetensors", Split(60_000))]
    )
    assert outcome.failure is None
    files = tuple(file.relative_to(release).as_posix() for file in (release / "m/m-safetensors").iterdir())
    assert len(files) > 2
    ((_, commands),) = told("safetensors", "4", "m/m-safetensors", files).commands
    assert [bool(run(command, release).strip()) for command in commands] == [False, True]


def made(name: str, version: str, release: Path, built: Path, **sizes: int) -> tuple[str, ...]:
    """The commands of a card for a file that stands where it says."""
    asked: dict[str, Any] = {"layers": 2, "width": 64, "vocab": 65536} | sizes
    source = checkpoints.make(release.parent / "m.pth", version, **asked)
    path = f"m/m{FORMATS[name].suffix}"
    (outcome,) = convert(source, built / "librwkv.so", [ConversionJob("x", name, release / path)])
    assert outcome.failure is None
    ((_, commands),) = told(name, version, path, (path,)).commands
    return commands


def test_llama_cpps_converter_runs_as_printed(release: Path, built: Path) -> None:
    pytest.importorskip("transformers")
    (release / "llama.cpp").symlink_to(llama_cpp.prepared() / "llama-source" / "llama.cpp")
    (command,) = made("transformers", "6", release, built)
    assert command.startswith(OTHERS[2])
    run(command, release)
    assert any(path.read_bytes()[:4] == b"GGUF" for path in release.rglob("*.gguf"))


@pytest.mark.soak
def test_llama_completion_runs_as_printed(release: Path, built: Path) -> None:
    (release.parent / "bin" / "llama-completion").symlink_to(llama_tools.completion() / "llama-completion")
    command, own = made("gguf-f16", "7", release, built)
    assert command.startswith(OTHERS[0])
    assert run(command, release).strip()
    assert own.startswith('"$ENGINE/bin/rwkv" generate ')


def test_llama_completion_has_the_options_of_the_card() -> None:
    """By its source, where it is not built."""
    source = llama_tools.sources()
    ((_, (command, _)),) = told("gguf-f16", "7", "m/m.gguf", ("m/m.gguf",)).commands
    program, *options = shlex.split(command)
    assert f"set(TARGET {program})" in (source / "tools/completion/CMakeLists.txt").read_text()
    known = (source / "common/arg.cpp").read_text()
    for option in (option for option in options if option.startswith("-")):
        assert f'{{"{option}", ' in known, option


def test_web_rwkv_py_runs_as_printed(release: Path, built: Path) -> None:
    pytest.importorskip("web_rwkv_py")
    (command,) = made("web-rwkv", "6", release, built, layers=6)
    assert command.startswith(OTHERS[1])
    try:
        assert run(command, release).startswith("[")
    except AssertionError as error:
        if re.search(r"failed to request (device|adapter)|no (suitable )?(graphics )?adapter", str(error), re.I):
            pytest.skip("no Vulkan driver here")
        raise


@pytest.mark.parametrize(
    ("variable", "name", "version", "files", "texts"),
    [
        (
            "RWKVFLOW_FASTER_RWKV",
            "faster-rwkv-f16",
            "4",
            ("tokenizer_model", "chat.cpp", "export_ncnn.cpp"),
            {"CMakeLists.txt": ("add_executable(chat ", "add_executable(export_ncnn "), "model.cpp": ('"fp16"',)},
        ),
        (
            "RWKVFLOW_WEB_RWKV",
            "web-rwkv",
            "7",
            ("Cargo.toml", "assets/vocab/rwkv_vocab_v20230424.json"),
            {"examples/chat.rs": ("model: PathBuf", "v7::Bundle::<f16>", '"assets/vocab/')},
        ),
        (
            "RWKVFLOW_AI00",
            "prefab-nf4",
            "7",
            ("assets/tokenizer/rwkv_vocab_v20230424.json",),
            {
                "Cargo.toml": ('default-members = ["crates/ai00-server"]',),
                "crates/ai00-server/src/main.rs": ("config: Option<PathBuf>",),
                "crates/ai00-server/src/config.rs": (
                    "build_path(&path, name)?",
                    "#[serde(default)]\npub struct Config",
                ),
                "crates/ai00-core/src/reload.rs": ("pub name: PathBuf", '"assets/tokenizer/rwkv_vocab_v20230424.json'),
                "crates/ai00-core/src/lib.rs": ("LoadType::Prefab => {", "cbor4ii::serde::from_slice::<Prefab>"),
            },
        ),
    ],
)
def test_what_a_command_names_is_in_a_clone(
    variable: str, name: str, version: str, files: tuple[str, ...], texts: dict[str, tuple[str, ...]]
) -> None:
    """Of programs that nothing here can run."""
    if (clone := os.environ.get(variable)) is None:
        pytest.skip(f"{variable} names no clone")
    (command,) = _commands(name, version)
    assert command.startswith(tuple(NOT_RUN))
    for file in files:
        assert (Path(clone) / file).is_file(), file
    for file, wanted in texts.items():
        text = (Path(clone) / file).read_text()
        assert all(part in text for part in wanted), file


def test_every_command_of_every_card_is_run_here_or_listed() -> None:
    """By what it begins with: a new command is added to one or the other. (A strategy for CUDA is one word of it.)"""
    begun: set[str] = set()
    ran = {command.split("m/m")[0] for name, version in RUN for command in _commands(name, version)}
    for name, item in FORMATS.items():
        for version in item.versions:
            for command in _commands(name, version):
                if is_run_here(command):
                    assert command.split("m/m")[0] in ran, (name, version, command)
                else:
                    begun.add(next(start for start in (*NOT_RUN, *OTHERS) if command.startswith(start)))
    assert begun == {*NOT_RUN, *OTHERS}, "what is listed is on a card"


def _commands(name: str, version: str) -> tuple[str, ...]:
    path = f"m/m{FORMATS[name].suffix}"
    ((_, commands),) = told(name, version, path, (path,)).commands
    return commands
