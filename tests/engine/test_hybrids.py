"""ARWKV-7 and QRWKV-6: their Hugging Face folders as GGUF, run by llama.cpp itself, and quantized by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.imatrix import Imatrix
from rwkvflow.worker.formats.gguf.layout import KINDS
from rwkvflow.worker.formats.gguf.llama import Llama
from rwkvflow.worker.formats.runner import Task, answer, run_artifact
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tokenizers import Json
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke import judge
from rwkvflow.worker.smoke.questions import Questions
from tests.engine import encoder, librwkv, llama_cpp
from tests.engine.test_gguf_golden import tensors_of
from tests.engine.test_llama_quantize import quantize
from tests.helpers import hybrid_folders

NAMES = [f"gguf-{kind}" for kind in KINDS]
#: Rows of 256 are whole blocks of the K types, those of 128 and 192 are not.
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("arwkv7", {"layers": 2, "width": 256, "ffn": 512, "head_size": 64}),
    ("arwkv7", {"layers": 2, "gate": False, "head_norm": True, "dtype": "f16"}),
    ("rwkv6qwen2", {"layers": 3, "width": 256, "ffn": 512, "head_size": 64, "shared": 2, "shard": 400_000}),
    ("rwkv6qwen2", {"layers": 2, "shared": 4, "dtype": "f32"}),
]
#: Of names of formats: the type, and llama_ftype where the type is not mostly of it.
MIXED = {"q2_k": ("q2_k", 10), "q3_k_m": ("q3_k", 12), "q4_k_s": ("q4_k", 14), "q4_k_m": ("q4_k", 15),
         "q5_k_s": ("q5_k", 16), "q5_k_m": ("q5_k", 17), "q4_0": ("q4_0", 2), "iq4_nl": ("iq4_nl", 25),
         "iq3_xxs": ("iq3_xxs", 23), "q5_0": ("q5_0", 8)}  # fmt: skip


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with engine/ (the quantizers) and llama/, as in a sandbox's in/."""
    built = llama_cpp.prepared()
    folder = tmp_path_factory.mktemp("in")
    encoder.build(folder / "engine", encoder.any_compiler())
    (folder / "llama").symlink_to(built / "llama")
    return folder


def made(source: Path, engines: Path, names: list[str]) -> dict[str, Path]:
    jobs = [ConversionJob(name, name, source.with_name(f"{source.name}-{name}.gguf")) for name in names]
    outcomes = convert(source, engines / "engine", jobs)
    assert [outcome.failure for outcome in outcomes] == [None] * len(names)
    return {outcome.job.format: outcome.job.path for outcome in outcomes}


@pytest.mark.parametrize(("model", "sizes"), MODELS)
def test_llama_cpp_gives_the_references_logits(
    model: str, sizes: dict[str, Any], engines: Path, tmp_path: Path
) -> None:
    source = hybrid_folders.make(tmp_path / "m", model, **sizes)
    tokens = np.random.default_rng(1).integers(0, 288, 100)
    asked = Questions(tuple(int(token) for token in tokens), 64, ((1, 2, 3), (5,)), 8)
    with open_checkpoint(source) as checkpoint:
        reference = answer(Reference(checkpoint), asked)
    asked = replace(asked, truth=reference.logits)
    worst = {}
    for name, path in made(source, engines, NAMES).items():
        answers = run_artifact(Task(path, source, engines / "engine", None, FORMATS[name]), asked)
        figures = judge.compare(reference, answers)
        worst[name] = figures.logits
        assert judge.problems(name, figures, vars(FORMATS[name].limits)) == []
        if name == "gguf-f32":
            assert answers.continuations == reference.continuations
    assert worst["gguf-f32"] < 1e-4
    assert worst["gguf-f32"] < worst["gguf-f16"] < worst["gguf-bf16"] < worst["gguf-q4_0"]


@pytest.mark.parametrize(
    ("model", "weighed", "kinds"),
    [
        ("arwkv7", False, ("q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q4_0")),
        ("rwkv6qwen2", True, ("iq3_xxs", "iq4_nl", "q4_0", "q5_0", "q4_k_m")),
        ("rwkv6qwen2", False, ("iq4_nl",)),
    ],
)
def test_tensors_are_those_of_llama_cpps_quantizer(
    model: str, weighed: bool, kinds: tuple[str, ...], engines: Path, tmp_path: Path
) -> None:
    """Of as many layers that ffn_down has other types in the first sixteenth, the first eighth, and others.

    `weighed`: with an importance matrix, without which llama.cpp makes no iq3_xxs of a hybrid.
    """
    sizes: dict[str, Any] = {"layers": 8 if weighed else 16, "width": 256, "ffn": 256, "head_size": 128, "vocab": 272}
    source = hybrid_folders.make(tmp_path / "m", model, **sizes)
    f16 = made(source, engines, ["gguf-f16"])["gguf-f16"]
    weights, matrix = {}, None
    if weighed:
        kept = [tensor for tensor in gguf.GGUFReader(f16).tensors if tensor.name.startswith("blk.")]
        wide = {tensor.name: int(tensor.shape[0]) for tensor in kept if len(tensor.shape) > 1 and tensor.shape[1] > 1}
        weights = {name: np.linspace(0.5, 2, size, dtype=np.float32) for name, size in wide.items()}
        matrix = Imatrix("m", weights, dict.fromkeys(weights, 1.0), ("text",), 1, 1)
    for kind in kinds:
        job = ConversionJob(kind, f"gguf-{kind}", tmp_path / f"{kind}.gguf", imatrix=matrix)
        (outcome,) = convert(source, engines / "engine", [job])
        assert outcome.failure is None
        name, number = MIXED[kind]
        theirs = quantize(f16, tmp_path / "theirs.gguf", name, weights, file_type=number)
        ours = tensors_of(job.path)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if ours[key] != theirs[key]] == []
        others = {ours[key][0] for key in ours if "ffn_down" in key} - {name.upper()}
        assert weighed or bool(others) == (kind not in ("q4_0", "q5_k_s"))


@pytest.mark.parametrize("model", hybrid_folders.MODELS)
def test_the_file_is_what_llama_cpps_converter_would_write(model: str, engines: Path, tmp_path: Path) -> None:
    """Metadata and values against conversion/rwkv.py, written out with numpy."""
    source = hybrid_folders.make(tmp_path / "m", model, "f32", layers=2)
    file = made(source, engines, ["gguf-f32"])["gguf-f32"]
    said = read_gguf_index(file).metadata
    eos = 256 + len(hybrid_folders.MERGES) + 2
    assert (said["general.architecture"], said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == (
        model,
        "gpt2",
        "qwen2",
    )
    assert said["tokenizer.ggml.eos_token_id"] == eos
    assert said["tokenizer.ggml.padding_token_id"] == eos - 2
    assert said["tokenizer.ggml.bos_token_id"] == 256  # of config.json: tokenizer_config.json has none
    assert said["tokenizer.chat_template"] == hybrid_folders.TEMPLATE
    keys = {key.removeprefix(f"{model}."): value for key, value in said.items() if key.startswith(f"{model}.")}
    assert keys.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    common = {"context_length": 1048576, "embedding_length": 128, "block_count": 2, "feed_forward_length": 192}
    common |= {"attention.head_count": 0, "wkv.head_size": 32, "token_shift_count": 1}
    ranks = {"decay": 64, "iclr": 64, "value_residual_mix": 32, "gate": 128}
    own: dict[str, int] = {f"attention.{key}_lora_rank": rank for key, rank in ranks.items()}
    if model == "rwkv6qwen2":
        own = {"time_mix_extra_dim": 32, "time_decay_extra_dim": 64, "attention.head_count_kv": 2}
    assert keys == common | own
    found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    theirs = {name: hybrid_folders._values(name, shape, 0) for name, shape in hybrid_folders.shapes(model).items()}
    for layer in range(2):
        a, t = f"model.layers.{layer}.self_attn.", f"blk.{layer}.time_mix_"
        assert (
            found[f"blk.{layer}.ffn_norm.weight"] == theirs[f"model.layers.{layer}.post_attention_layernorm.weight"]
        ).all()
        assert (found[f"blk.{layer}.ffn_down.weight"] == theirs[f"model.layers.{layer}.mlp.down_proj.weight"]).all()
        if model == "arwkv7":
            a += "time_mixer."
            fused = np.concatenate([theirs[f"{a}x_{x}"].reshape(-1) for x in "rwkvag"])
            assert (found[f"{t}r_k.weight"] == theirs[f"{a}r_k"].reshape(-1)).all()
            of = "a" if layer == 0 else "v"  # llama.cpp wants some in layer 0, and looks at none
            assert (found[f"{t}v2.weight"] == theirs[f"{a}{of}2"].T).all()
        else:
            fused = np.concatenate([theirs[f"{a}time_maa_{x}"].reshape(-1) for x in "wkvrg"])
            order = ["rkvwg".index(x) for x in "wkvrg"]
            first = theirs[f"{a}time_maa_w1"].T.reshape(5, 32, 128)[order].reshape(160, 128)
            assert (found[f"{t}w1.weight"] == first).all()
            assert (found[f"{t}w2.weight"] == theirs[f"{a}time_maa_w2"].transpose(0, 2, 1)[order]).all()
            assert (found[f"{t}decay.weight"] == theirs[f"{a}time_decay"].reshape(-1)).all()
            assert (found[f"{t}key.bias"] == theirs[f"{a}k_proj.bias"]).all()
        assert (found[f"{t}lerp_fused.weight"].reshape(-1) == fused).all()


def test_llama_cpp_reads_the_folders_tokenizer(engines: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    source = hybrid_folders.make(tmp_path / "m", "arwkv7", layers=1)
    file = made(source, engines, ["gguf-q8_0"])["gguf-q8_0"]
    own = Json(source / "tokenizer.json")
    with Llama(engines / "llama", file, 1) as model:
        for text in ("Hello, the thin man's 123 ANDs — 你好\n\n\t x  y\r\n", "I'LL go", " and the in", ""):
            assert model.tokenize(text) == own.encode(text)


def test_the_same_files_every_time_in_any_pieces(engines: Path, tmp_path: Path) -> None:
    for model in hybrid_folders.MODELS:
        source = hybrid_folders.make(tmp_path / model, model, shard=100_000)
        for name, path in made(source, engines, ["gguf-f16", "gguf-q4_k_m"]).items():
            job = ConversionJob("x", name, tmp_path / "x")
            (outcome,) = convert(source, engines / "engine", [job], piece=32, threads=1)
            assert outcome.failure is None
            assert (tmp_path / "x").read_bytes() == path.read_bytes()
            item = FORMATS[name].beside(source)
            with open_checkpoint(source) as checkpoint:
                size = item.expected_size(architecture_of(checkpoint.tensors), checkpoint.tensors)
            assert size == path.stat().st_size


@pytest.mark.parametrize("model", hybrid_folders.MODELS)
def test_librwkv_refuses_the_file_by_name(
    model: str, engines: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = hybrid_folders.make(tmp_path / "m", model, layers=1)
    file = made(source, engines, ["gguf-f16"])["gguf-f16"]
    with pytest.raises(EngineError, match=model):
        Model(file, librwkv.with_zig(request.config) / "librwkv.so")
