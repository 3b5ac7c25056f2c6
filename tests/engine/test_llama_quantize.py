"""llama.cpp's own quantizer, with importance matrices of ours and with types of single tensors: its tensors are ours.

It is called as tools/quantize calls it; that tool is no part of the sources that are fetched. What it reads of a matrix
is in_sum2 / counts of each entry, which is read here with gguf-py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from rwkvflow.engine.binding import Model
from rwkvflow.engine.importance import Gatherer
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.gguf.imatrix import imatrix_bytes, of_sums, read_imatrix
from rwkvflow.worker.formats.mix import mix_of
from rwkvflow.worker.model.weight_types import BY_NAME
from tests.engine import encoder, librwkv, llama_cpp
from tests.engine.test_gguf_golden import tensors_of
from tests.helpers import checkpoints

RULES = (("time_mix_(key|value)", "q6_k"), ("blk.1.", "q5_k"), ("key", "q3_k"))


class _Weights(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class _Rule(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]


class _Params(ctypes.Structure):
    _fields_ = [
        ("nthread", ctypes.c_int32),
        *((name, ctypes.c_int) for name in ("ftype", "output_tensor_type", "token_embedding_type")),
        *((f"flag{index}", ctypes.c_bool) for index in range(6)),
        ("imatrix", ctypes.POINTER(_Weights)),
        ("kv_overrides", ctypes.c_void_p),
        ("tt_overrides", ctypes.POINTER(_Rule)),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    ]


def quantize(
    source: Path,
    target: Path,
    kind: str,
    weights: Mapping[str, np.ndarray] | None = None,
    rules: tuple[tuple[str, str], ...] = (),
    output: str | None = None,
    embedding: str | None = None,
    file_type: int | None = None,
) -> dict[str, tuple[str, bytes]]:
    """The tensors of what llama_model_quantize makes; file_type is a llama_ftype that is no type's own."""
    library = ctypes.CDLL(str(llama_cpp.prepared() / "llama" / "lib" / "libllama.so"))
    library.llama_model_quantize_default_params.restype = _Params
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Params)]
    params = library.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, file_type or BY_NAME[kind].file_type
    if output:
        params.output_tensor_type = BY_NAME[output].gguf
    if embedding:
        params.token_embedding_type = BY_NAME[embedding].gguf
    if weights:
        listed = [
            _Weights(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
            for name, values in weights.items()
        ]
        params.imatrix = (_Weights * (len(listed) + 1))(*listed)
    if rules:
        entries = [_Rule(rule.encode(), BY_NAME[name].gguf) for rule, name in rules]
        params.tt_overrides = (_Rule * (len(entries) + 1))(*entries)
    assert library.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) == 0
    return tensors_of(target)


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """As llama-quantize reads a file of importance."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {
        name: np.ascontiguousarray(tensors[f"{name}.in_sum2"].reshape(-1) / tensors[f"{name}.counts"].item(), "f4")
        for name in names
    }


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "m.pth"
    return checkpoints.make(path, "7", layers=2, width=256, vocab=128, ffn=256)


@pytest.fixture(scope="module")
def f16(source: Path, engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("f16") / "f16.gguf"
    (outcome,) = convert(source, engine, [ConversionJob("f16", "gguf-f16", path)])
    assert outcome.failure is None
    return path


def test_our_importance_matrix_leads_it_to_our_bytes(
    request: pytest.FixtureRequest, source: Path, f16: Path, engine: Path, tmp_path: Path
) -> None:
    with Model(f16, librwkv.with_zig(request.config) / "librwkv.so") as model:
        found = Gatherer(model)
        found.add([(7 * k * k + k) % 128 for k in range(64)])
        matrix = tmp_path / "m.gguf"
        matrix.write_bytes(imatrix_bytes(of_sums("7", found.sums(), 64, ["text"], 64)))
    theirs = quantize(f16, tmp_path / "theirs.gguf", "q4_k", weights_of(matrix))
    plain = quantize(f16, tmp_path / "plain.gguf", "q4_k")
    (outcome,) = convert(
        source, engine, [ConversionJob("x", "gguf-q4_k_m", tmp_path / "x.gguf", None, read_imatrix(matrix))]
    )
    assert outcome.failure is None
    assert tensors_of(outcome.job.path) == theirs
    assert {name for name in theirs if theirs[name] != plain[name]} == set(read_imatrix(matrix).sums)


def test_types_of_single_tensors_are_those_that_it_gives(source: Path, f16: Path, engine: Path, tmp_path: Path) -> None:
    theirs = quantize(f16, tmp_path / "theirs.gguf", "q4_k", rules=RULES, output="q8_0", embedding="q5_k")
    mix = mix_of(RULES, "q8_0", "q5_k")
    (outcome,) = convert(source, engine, [ConversionJob("x", "gguf-q4_k_m", tmp_path / "x.gguf", mix=mix)])
    assert outcome.failure is None
    ours = tensors_of(outcome.job.path)
    assert ours == theirs
    kinds = {name: kind for name, (kind, _) in ours.items()}
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q8_0", "Q5_K")
    assert kinds["blk.1.time_mix_key.weight"] == "Q6_K", "the first rule that is found decides"
    assert kinds["blk.1.channel_mix_key.weight"] == "Q5_K"
    assert kinds["blk.0.channel_mix_key.weight"] == "Q3_K"
    assert kinds["blk.0.time_mix_output.weight"] == "Q4_K"
    other = quantize(f16, tmp_path / "other.gguf", "q4_k", rules=(("output.weight|token_embd", "q5_k"),))
    (outcome,) = convert(
        source,
        engine,
        [ConversionJob("y", "gguf-q4_k_m", tmp_path / "y.gguf", mix=mix_of([("output.weight|token_embd", "q5_k")]))],
    )
    assert tensors_of(outcome.job.path) == other
