"""Readers of model files, of what lies beside them, and of what comes out of sandboxes."""

from __future__ import annotations

import io
import json
import math
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from rwkvflow.engine.errors import EngineError
from rwkvflow.store.tree_archive import ArchiveError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.imatrix import Imatrix, imatrix_bytes
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.read.open import open_checkpoint
from tests.fuzz.reader import Reader, at, either
from tests.helpers import checkpoints, hybrid_folders
from tests.helpers.zeros import write_zeros

SIZES: dict[str, Any] = {"layers": 1, "width": 32, "vocab": 16, "head_size": 16, "ffn": 32}
SIZES["lora"] = {"maa": 8, "decay": 8, "w": 8, "a": 8, "v": 8, "g": 8}
SAMPLE = 4096  # values of a tensor that are read


def _made(folder: Path, suffix: str, versions: Sequence[str] = ("4", "7")) -> list[bytes]:
    return [checkpoints.make(folder / f"{v}{suffix}", v, **SIZES).read_bytes() for v in versions]


def convert(checkpoint: Path, name: str, path: Path) -> Path:
    """An artifact of zeros: all but the values is as the format has it, and no engine is needed."""
    with open_checkpoint(checkpoint) as opened:
        held = FORMATS[name].held(architecture_of(opened.tensors), opened.tensors)
        write_zeros(FORMATS[name].open(path, architecture_of(opened.tensors), held, path.with_name("engine")))
    return path


def _converted(folder: Path, versions: Sequence[str], *formats: str) -> list[bytes]:
    found = []
    for version in versions:
        source = checkpoints.make(folder / f"{version}.pth", version, **SIZES)
        for name in formats:
            path = convert(source, name, folder / f"{version}-{name}")
            found.append((next(iter(sorted(path.iterdir()))) if path.is_dir() else path).read_bytes())
    return found


def read_model(path: Path) -> None:
    """All that is done with a model of somebody's: described, opened, each tensor read, checksums checked."""
    from rwkvflow.worker.read.inspect import describe

    json.dumps(describe(path))
    with open_checkpoint(path) as checkpoint:
        for name, info in checkpoint.tensors.items():
            if info.numel <= SAMPLE and not info.dtype.startswith("f8"):
                checkpoint.float32(name)
        checkpoint.verify()


def _pickles(folder: Path) -> list[bytes]:
    found = []
    for data in _made(folder, ".pth"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
    return found


def _pickle(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.read.torch_file.pth import named_tensors

    named_tensors(data, "x.pth")


def _directory(path: Path) -> None:
    from rwkvflow.worker.read.rawfile import RawFile
    from rwkvflow.worker.read.torch_file.zip_directory import check, read_directory

    with RawFile(path) as file:
        for record in read_directory(file).values():
            if record.size <= 1 << 16:
                check(file, record)


def _compared(data: bytes, folder: Path) -> None:
    """Two files in one: the first half says how they differ from the second."""
    from rwkvflow.worker.read.compare import compare

    (folder / "a").write_bytes(data)
    (folder / "b.safetensors").write_bytes(_BESIDE["x"])
    list(compare(folder / "a", folder / "b.safetensors"))


_BESIDE: dict[str, bytes] = {}


def _compared_seeds(folder: Path) -> list[bytes]:
    _BESIDE["x"] = _made(folder, ".safetensors", ("7",))[0]
    return [*_converted(folder, ("7",), "ggml-q5_1", "gguf-q8_0", "ggml-q4_k"), *_made(folder, ".pth", ("7",))]


def _lora_seeds(folder: Path) -> list[bytes]:
    _BESIDE["base"] = _made(folder, ".safetensors", ("7",))[0]
    rng = np.random.default_rng(1)
    stem = "blocks.0.att.key"

    def file(suffix: str, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
        entries = [checkpoints.array_entry(n, rng.standard_normal(s).astype("<f4"), "f32") for n, s in shapes.items()]
        writer = checkpoints.write_pth if suffix == ".pth" else checkpoints.write_safetensors
        writer(folder / f"lora{suffix}", entries)
        return (folder / f"lora{suffix}").read_bytes()

    plain = {f"{stem}.lora_A": (4, 32), f"{stem}.lora_B": (32, 4)}
    return [
        file(".safetensors", plain),
        file(".pth", {**plain, "blocks.0.att.time_state": (2, 16, 16)}),
        file(".safetensors", {**plain, f"{stem}.init_lora_A": (4, 32), f"{stem}.init_lora_B": (32, 4)}),
        file(".safetensors", {f"{stem}.bone": (8, 4, 4)}),
        file(".safetensors", {f"{stem}.disha": (8, 32)}),
        file(".safetensors", {"blocks.0.att.time_state": (2, 16, 16)}),
    ]


def _adapter(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.model.origin import Origin

    (folder / "base.safetensors").write_bytes(_BESIDE["base"])
    path = folder / "adapter"
    path.write_bytes(data)

    def opened(**given: Any) -> None:
        with open_checkpoint(Origin(folder / "base.safetensors", **given)) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.float32(name)

    given = ({"lora": path, "alpha": 8.0}, {"lora": path}, {"state": path})
    either(WorkerError, [partial(opened, **each) for each in given])


def _shard_seeds(folder: Path) -> list[bytes]:
    _BESIDE["shard"] = _made(folder, ".safetensors", ("7",))[0]
    names = list(checkpoints.shapes("7", **SIZES))
    return [
        json.dumps({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "a.safetensors")}).encode(),
        json.dumps(
            {"weight_map": {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}}
        ).encode(),
    ]


def _shard_index(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read import hf_source

    path = folder / "model.safetensors.index.json"
    path.write_bytes(data)
    (folder / "a.safetensors").write_bytes(_BESIDE["shard"])
    either(WorkerError, [partial(hf_source.parts, path.name, data, ["a.safetensors"]), partial(read_model, path)])


def _config_seeds(folder: Path) -> list[bytes]:
    found = []
    for version in ("4", "6", "7"):
        source = checkpoints.make(folder / f"{version}.pth", version, **SIZES)
        made = convert(source, "transformers", folder / f"{version}-hf")
        found.append((made / "config.json").read_bytes())
        _BESIDE[f"hf{version}"] = next(made.glob("*.safetensors")).read_bytes()
    for model in hybrid_folders.MODELS:
        made = hybrid_folders.make(folder / model, model, layers=1, width=32)
        found.append((made / "config.json").read_bytes())
        _BESIDE[f"hf{model}"] = (made / "model.safetensors").read_bytes()
    return found


def _config(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.errors import WorkerError

    (folder / "config.json").write_bytes(data)

    def beside(version: str) -> None:
        (folder / "model.safetensors").write_bytes(_BESIDE[f"hf{version}"])
        read_model(folder / "model.safetensors")

    either(WorkerError, [partial(beside, version) for version in ("4", "6", "7", *hybrid_folders.MODELS)])


def _words_seeds(folder: Path) -> list[bytes]:
    made = hybrid_folders.make(folder / "m", layers=1, width=32)
    return [(made / name).read_bytes() for name in ("tokenizer_config.json", "config.json")]


def _words(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.formats.gguf.beside import read_beside

    def beside(name: str) -> None:
        for path in folder.glob("*.json*"):
            path.unlink()
        (folder / name).write_bytes(data)
        read_beside(folder, {"<|im_end|>": 3}, 288)

    names = ("tokenizer_config.json", "config.json", "chat_template.jinja")
    either(WorkerError, [partial(beside, name) for name in names])


def _imatrix_seeds(folder: Path) -> list[bytes]:
    sums = {f"blk.0.{name}.weight": np.arange(1, 33, dtype=np.float32) for name in ("time_mix_key", "channel_mix_key")}
    matrix = Imatrix("x", sums, dict.fromkeys(sums, 4.0), ("a.txt",), 4, 512)
    dat = struct.pack("<i", len(sums))
    for name, values in sums.items():
        dat += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 4, values.size) + values.tobytes()
    return [imatrix_bytes(matrix), dat, dat + struct.pack("<ii", 4, 5) + b"a.txt"]


def _imatrix(path: Path) -> None:
    from rwkvflow.worker.formats.gguf.imatrix import read_imatrix

    matrix = read_imatrix(path)
    _ = matrix.digest
    for name in matrix.sums:
        matrix.importance(name, 32)


def _json_tokenizers(folder: Path) -> list[bytes]:
    from tests.engine import tokenizer_files

    return [tokenizer_files.bpe(8).encode(), tokenizer_files.bpe(8, normalizer=None, add_prefix_space=True).encode()]


def _world_tokenizers(folder: Path) -> list[bytes]:
    from tests.engine import tokenizer_files

    return [tokenizer_files.world().encode()]


def _tokenizer(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.formats.gguf.bpe import read_bpe
    from rwkvflow.worker.formats.gguf.tokens import vocabulary
    from rwkvflow.worker.model.tokenizers import World, open_tokenizer, refuse_misfit

    path = folder / "tokenizer.json"
    path.write_bytes(data)

    def spoken() -> None:
        words = open_tokenizer("tokenizer.json", 320, path)
        words.decode(words.encode("The quiet owl é\n\n12\0"))

    calls: list[Callable[[], object]] = [
        partial(refuse_misfit, path, 320),
        partial(vocabulary, 320, path),
        partial(read_bpe, path),
        spoken,
    ]
    either(WorkerError, [*calls, partial(World, path)])


def _told_seeds(folder: Path) -> list[bytes]:
    from rwkvflow.worker.smoke.questions import write_answers, write_questions, write_reference
    from tests.unit.worker.smoke import test_told

    reference = test_told.reference_of(6)
    _KEPT["reference"] = reference
    write_questions(folder / "q", reference)
    write_answers(folder / "a", test_told.answers_of(replace(reference.questions, logits=6), 2))
    write_reference(folder / "r", reference)
    return [(folder / name).read_bytes() for name in ("a", "r", "q")]


_KEPT: dict[str, Any] = {}


def _told(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.smoke.questions import read_answers, read_questions, read_reference
    from rwkvflow.worker.smoke.told import read_told

    path = folder / "x.npz"
    path.write_bytes(data)
    reads = (partial(read_told, path, _KEPT["reference"]), partial(read_answers, path), partial(read_reference, path))
    either(WorkerError, [*reads, partial(read_questions, path, speed=False)])


def _fr_seeds(folder: Path) -> list[bytes]:
    import msgpack  # type: ignore[import-not-found, import-untyped, unused-ignore]

    def tensor(shape: tuple[int, ...], kind: str = "16") -> dict[str, Any]:
        data = bytes(np.prod(shape) * int(kind) // 8)
        return {"dtype": f"torch.float{kind}", "shape": list(shape), "data": data}

    weights = {"blocks.0.ln1.weight": tensor((4,)), "head.weight": tensor((3, 4), "32")}
    content = {"version": "4", "n_layer": 1, "n_embd": 4, "embd_weights": [tensor((4,))] * 3, "weights": weights}
    return [msgpack.packb(content)]


def _faster_rwkv(path: Path) -> None:
    from rwkvflow.worker.formats.faster_rwkv.run import FrFile

    artifact = FrFile(path)
    for name in artifact.tensors:
        artifact.float32(name)


def _packed(path: Path) -> None:
    from rwkvflow.worker.read.packed.packed_file import read_packed_open
    from rwkvflow.worker.read.packed.packed_source import author_tensors
    from rwkvflow.worker.read.rawfile import RawFile

    with RawFile(path) as file:
        for tensor in author_tensors(file, read_packed_open(file)).values():
            if math.prod(tensor.shape) <= 1 << 16:
                tensor.rows(0, None)


def _prefab_seeds(folder: Path) -> list[bytes]:
    return [convert(checkpoints.make(folder / "7.pth", "7", **SIZES), "prefab-f16", folder / "7.prefab").read_bytes()]


@cache
def _checkpoint_of_7() -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        return open_checkpoint(checkpoints.make(Path(folder) / "7.pth", "7", **SIZES))  # a mapping outlives its file


def _prefab(path: Path) -> None:
    from rwkvflow.worker.formats.prefab.run import PrefabTensors, _compare_numbers, _read, fields

    checkpoint = _checkpoint_of_7()
    architecture = architecture_of(checkpoint.tensors)
    content = _read(path)
    _compare_numbers(content, architecture)
    artifact = PrefabTensors(content.get("tensor"), fields(checkpoint, architecture, ""))
    for name in artifact.tensors:
        artifact.float32(name)


def _safetensors_package(path: Path) -> None:
    from rwkvflow.worker.smoke.safetensors_reader import SafetensorsFile

    with SafetensorsFile(path) as file:
        for name, info in file.tensors.items():
            if info.numel <= SAMPLE:
                file.float32(name)


def _elf_seeds(folder: Path) -> list[bytes]:
    """A library of this machine's, cut to its headers; one of 32 bits with two sections, made by hand."""
    names = b"\0.dynstr\0.dynamic\0libc.so.6\0"
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, 3, 1)
    body = 64 + 3 * 64
    section = struct.Struct("<IIQQQQIIQQ")
    dynamic = struct.pack("<qQqQ", 1, 18, 0, 0)
    table = section.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    table += section.pack(1, 3, 0, 0, body, len(names), 0, 0, 1, 0)
    table += section.pack(9, 6, 0, 0, body + len(names), len(dynamic), 1, 0, 8, 16)
    return [head + table + names + dynamic]


def _elf(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.build import elf

    elf.strings_with(data, ["lib", "/job"])
    elf.section_names(data)
    elf.is_stripped(data)
    elf.needed(data)


def _cmake(data: bytes, folder: Path) -> None:
    """What a stranger's CMake wrote, patched by the rules that ship, and shown as a diff."""
    from rwkvflow.worker.build import cmake_patch
    from rwkvflow.worker.build.patch_rules import shipped_rules

    text = data.decode("utf-8", "surrogateescape")
    files = {"build.ninja": text, "CMakeCache.txt": text}
    rules = shipped_rules("linux-x86_64", "zig")
    situation = cmake_patch.Situation("linux-x86_64", "linux-x86_64", "4.4.4", {"build": ["/job/out/.build"]})
    after, reports = cmake_patch.apply(rules, files, situation)
    cmake_patch.unified_diff(files, after, {"/job/out/.build": "BUILD"})
    cmake_patch.check(reports, files, list(files))


def _messages(data: bytes, folder: Path) -> None:
    """Lines of a command, whatever its bytes: signed messages, unsigned ones, log."""
    from rwkvflow.base.lines import LineSplitter, Tail
    from rwkvflow.base.text import json_shown, shown, shown_line, yaml_shown
    from rwkvflow.worker.build.messages import cmake_errors, failure
    from rwkvflow.worker.protocol import Signer, parse

    lines: list[str] = []
    splitter = LineSplitter(Tail(lines.append))
    splitter.feed(data[: len(data) // 2])
    splitter.feed(data[len(data) // 2 :])
    splitter.close()
    signer = Signer(b"k" * 32)
    for line in lines:
        assert signer.verify(line) is None, "nobody has signed it"
        parse(line)
        shown(line), shown_line(line), json_shown(line), yaml_shown(line)
    cmake_errors(lines)
    failure("configure", lines, 1, "zig")


def _message_seeds(folder: Path) -> list[bytes]:
    from rwkvflow.worker.protocol import MARK, Signer

    good = Signer(b"j" * 32).sign({"output": {"job": "a", "name": "artifact", "sha256": "0" * 64, "size": 3}})
    plain = MARK + json.dumps({"progress": {"done": 1, "total": 2, "unit": "B", "label": "x"}})
    cmake = "CMake Error at CMakeLists.txt:3 (find_package):\n  Could not find X\n\n-- Configuring incomplete\n"
    return ["\n".join((good, plain, cmake)).encode(), b"10%\r20%\r\n\x1b[31mred\x1b[0m\n"]


def _strategy(data: bytes, folder: Path) -> None:
    from rwkvflow.worker.formats.chatrwkv import strategy

    text = data.decode("utf-8", "replace")
    for stage in strategy.parse(text):
        _ = stage
    strategy.normal(text)
    strategy.on_processor(text)
    strategy.from_slug(text)


def _state_seeds(folder: Path) -> list[bytes]:
    from rwkvflow.engine.states import SavedState, write_state

    floats = np.arange(96, dtype=np.float32)
    whole = SavedState(floats[:64], floats[64:], 9, "7", "librwkv", b"m" * 32)
    write_state(folder / "a", whole)
    write_state(folder / "b", replace(whole, logits=None))
    return [(folder / "a").read_bytes(), (folder / "b").read_bytes()]


def _state(path: Path) -> None:
    from rwkvflow.engine.states import read_state

    read_state(path, 64, 32)


def _header(data: bytes, folder: Path) -> None:
    """The header of a checkpoint elsewhere, through ranges of it."""
    from rwkvflow.base.errors import UsageError
    from rwkvflow.lock import header
    from rwkvflow.worker.read.inspect import described

    class Held(io.BytesIO):
        size = len(data)

    try:
        kind, shapes = header._shapes(Held(data))  # type: ignore[arg-type]
    except header._UNREADABLE as error:
        raise UsageError("no header") from error
    header.refuse_shapes(dict(shapes))
    json.dumps(described(kind, header._tensors(shapes), {}))


def _target_seeds(folder: Path) -> list[bytes]:
    """Trees as the remote store packs them, and a source package as an index has it."""
    from rwkvflow.store.tree_archive import pack

    (folder / "tree/a").mkdir(parents=True)
    (folder / "tree/a/b.txt").write_text("b")
    (folder / "tree/c").symlink_to("a/b.txt")
    pack(folder / "tree", folder / "x.tar")
    return [(folder / "x.tar").read_bytes()]


def _unpack_tree(path: Path) -> None:
    from rwkvflow.store.tree_archive import unpack

    unpack(path, path.parent / "out", 1 << 20)
    for found in (path.parent / "out").rglob("*"):
        assert found.resolve().is_relative_to(path.parent / "out"), found


def _sdist_seeds(folder: Path) -> list[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name in ("pkg-1/vendor/llama.cpp/CMakeLists.txt", "pkg-1/vendor/llama.cpp/src/a.c", "pkg-1/README"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return [out.getvalue()]


def _unpack_sdist(path: Path) -> None:
    from rwkvflow.net.packages.source_package import unpack

    unpack(path, path.parent / "out", root="vendor/llama.cpp", kept=["CMakeLists.txt", "src"])
    for found in (path.parent / "out").rglob("*"):
        assert found.resolve().is_relative_to(path.parent / "out"), found


def _wheel_seeds(folder: Path) -> list[bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/__init__.py", "x = 1\n" * 20)
        archive.writestr("a-1.0.data/scripts/a", "#!python\nprint(1)\n")
        archive.writestr("a-1.0.dist-info/METADATA", "Name: a\n")
    return [out.getvalue()]


def _unpack_wheel(data: bytes, folder: Path) -> None:
    import hashlib

    from rwkvflow.sandbox.image.archive import ArchiveEntry, stream
    from rwkvflow.sandbox.image.unpack import unpacked

    path = folder / "a-1.0-py3-none-any.whl"
    path.write_bytes(data)
    members = unpacked({path: frozenset([hashlib.sha256(data).hexdigest()])})
    entries = [ArchiveEntry(f"worker/{place}", member, member.executable) for place, member in members.items()]
    for piece in stream(entries):
        assert len(piece) <= 1 << 20


def _graph_seeds(name: str, file: str, weights: str) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        found = []
        for version in ("4", "7"):
            source = checkpoints.make(folder / f"{version}.pth", version, **SIZES)
            made = convert(source, name, folder / f"{version}-{name}")
            found.append((made / file).read_bytes())
            _BESIDE[weights] = (made / weights).read_bytes()
            _BESIDE[f"{file}.config"] = next(made.glob("*.config")).read_bytes()
        return found

    return seeds


def _described(data: bytes, folder: Path, *, file: str, weights: str) -> None:
    """A graph beside its weights: which of them it means, and how large they are, the graph says."""
    from rwkvflow.worker.read.inspect import describe

    (folder / file).write_bytes(data)
    (folder / weights).write_bytes(_BESIDE[weights])
    (folder / f"{file}.config").write_bytes(_BESIDE[f"{file}.config"])
    json.dumps(describe(folder / file))


READ = "worker/read/"
READERS = {
    "pth": Reader(
        "checkpoints of torch",
        (
            f"{READ}open",
            f"{READ}checkpoint",
            f"{READ}inspect",
            f"{READ}kinds",
            f"{READ}rawfile",
            f"{READ}torch_file/pth",
            f"{READ}torch_file/remedies",
            "worker/model/architecture",
            "worker/maps/prefixes",
        ),
        lambda folder: _made(folder, ".pth", ("4", "5.2", "7")),
        at("x.pth", read_model),
    ),
    "pickle": Reader(
        "pickles in them", (f"{READ}torch_file/pickle_reader", f"{READ}torch_file/torch_names"), _pickles, _pickle
    ),
    "zip": Reader(
        "directories of zips",
        (f"{READ}torch_file/zip_directory",),
        lambda folder: _made(folder, ".pth", ("7",)),
        at("x.pth", _directory),
    ),
    "safetensors": Reader(
        ".safetensors and .st",
        (f"{READ}safetensors_file", "worker/maps/huggingface"),
        lambda folder: [*_made(folder, ".safetensors"), *_converted(folder, ("7",), "web-rwkv", "transformers")],
        at("x.safetensors", read_model),
    ),
    "ggml": Reader(
        "rwkv.cpp's .bin",
        (f"{READ}ggml_file", f"{READ}ggml_source", "worker/maps/ggml"),
        lambda folder: _converted(folder, ("4", "6", "7"), "ggml-f16", "ggml-f32", "ggml-q5_1"),
        at("x.bin", read_model),
    ),
    "gguf": Reader(
        "llama.cpp's .gguf",
        (f"{READ}gguf_file", f"{READ}gguf_source", "worker/maps/gguf"),
        lambda folder: _converted(folder, ("6", "7"), "gguf-f16", "gguf-q8_0"),
        at("x.gguf", read_model),
    ),
    "onnx": Reader(
        "graphs of ONNX",
        (f"{READ}graph/onnx_file",),
        _graph_seeds("onnx-f32", "model.onnx", "model.onnx.data"),
        partial(_described, file="model.onnx", weights="model.onnx.data"),
    ),
    "ncnn": Reader(
        "graphs of ncnn",
        (f"{READ}graph/ncnn_file",),
        _graph_seeds("ncnn-f32", "model.param", "model.bin"),
        partial(_described, file="model.param", weights="model.bin"),
        text=True,
    ),
    "compare": Reader("files that are compared", (f"{READ}compare", f"{READ}dequantize"), _compared_seeds, _compared),
    "adapters": Reader("LoRA, PiSSA, Bone, DiSHA, initial states", (f"{READ}adapters",), _lora_seeds, _adapter),
    "shards": Reader("indexes of shards", (f"{READ}shards",), _shard_seeds, _shard_index, text=True),
    "hf-config": Reader(
        "config.json",
        (f"{READ}hf_source", "worker/maps/hf_config", "worker/maps/hybrids"),
        _config_seeds,
        _config,
        text=True,
    ),
    "hf-words": Reader(
        "tokenizer_config.json, chat_template.jinja", ("worker/formats/gguf/beside",), _words_seeds, _words, text=True
    ),
    "imatrix": Reader(
        "importance matrices, .gguf and .dat", ("worker/formats/gguf/imatrix",), _imatrix_seeds, at("x.dat", _imatrix)
    ),
    "tokenizer-json": Reader(
        "tokenizer.json",
        ("worker/model/tokenizers", "worker/formats/gguf/bpe", "worker/formats/gguf/tokens"),
        _json_tokenizers,
        _tokenizer,
        text=True,
    ),
    "tokenizer-world": Reader(
        "World vocabularies", ("worker/model/tokenizers",), _world_tokenizers, _tokenizer, text=True
    ),
    "answers": Reader("answers out of sandboxes", ("worker/smoke/told", "worker/smoke/questions"), _told_seeds, _told),
    "faster-rwkv": Reader(
        "faster-rwkv's .fr",
        ("worker/formats/faster_rwkv/run",),
        _fr_seeds,
        at("x.fr", _faster_rwkv),
    ),
    "prefab": Reader(
        "web-rwkv's .prefab",
        ("worker/formats/prefab/run",),
        _prefab_seeds,
        at("x.prefab", _prefab),
    ),
    "packed": Reader(
        "what a .prefab and a .fr hold, described, and by the author's names",
        ("worker/read/packed/packed_file", "worker/read/packed/packed_source", "worker/read/packed/values"),
        lambda folder: [*_prefab_seeds(folder), *_fr_seeds(folder)],
        at("x", _packed),
    ),
    "safetensors-package": Reader(
        "artifacts, through safetensors itself",
        ("worker/smoke/safetensors_reader",),
        lambda folder: _made(folder, ".safetensors"),
        at("x.safetensors", _safetensors_package),
    ),
    "elf": Reader("libraries that were built", ("worker/build/elf",), _elf_seeds, _elf),
    "cmake": Reader(
        "what CMake wrote",
        ("worker/build/cmake_patch",),
        lambda folder: [
            b"build a.o: CXX a.cc\n  FLAGS = -O3 -march=native -flto -I/usr/include\n  ARGS = -mtune=native\n"
        ],
        _cmake,
        text=True,
    ),
    "messages": Reader(
        "what commands print",
        ("worker/protocol", "base/lines", "base/text", "worker/build/messages"),
        _message_seeds,
        _messages,
        text=True,
    ),
    "strategy": Reader(
        "strategies",
        ("worker/formats/chatrwkv/strategy",),
        lambda folder: [b"cpu fp32", b"cuda fp16i8 *10 -> cuda fp16 *4+ -> cpu fp32", b"cpu bf16 -> cpu fp32 *1"],
        _strategy,
        errors=(ValueError,),
        text=True,
    ),
    "state": Reader("saved states", ("engine/states",), _state_seeds, at("x.state", _state), errors=(EngineError,)),
    "header": Reader(
        "headers of checkpoints elsewhere",
        ("lock/header",),
        lambda folder: [*_made(folder, ".pth", ("7",)), *_made(folder, ".safetensors", ("7",))],
        _header,
    ),
    "tree": Reader(
        "folders of a remote store",
        ("store/tree_archive",),
        _target_seeds,
        at("x.tar", _unpack_tree),
        errors=(ArchiveError,),
    ),
    "sdist": Reader("source packages", ("net/packages/source_package",), _sdist_seeds, at("x.tar.gz", _unpack_sdist)),
    "wheel": Reader("wheels", ("sandbox/image/unpack", "sandbox/image/archive"), _wheel_seeds, _unpack_wheel),
}
