"""Makes seeded random RWKV checkpoints of every version at any size, without torch and in bounded memory.

    python tests/helpers/checkpoints.py --version 7 --layers 2 --width 128 --vocab 320 --seed 0 --out x.pth
    python tests/helpers/checkpoints.py --version 5.1 --width 2048 --layers 24 --vocab 65536 --out big.safetensors

The files are real ones: `torch.load(path, weights_only=True)` reads the .pth. Names and shapes are those of the
author's training code; the values have the scale of a trained model, so that logits neither explode nor vanish.
From a test: `import checkpoints; checkpoints.make(path, version="7")`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rwkvflow.worker.model.versions import VERSIONS, all_specs, split_name

STORAGES = {"f64": "Double", "f32": "Float", "f16": "Half", "bf16": "BFloat16", "i64": "Long", "i32": "Int"}
STORAGES |= {"i16": "Short", "i8": "Char", "u8": "Byte", "bool": "Bool"}
NUMPY = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "i64": "<i8", "i32": "<i4", "i16": "<i2"}
NUMPY |= {"i8": "i1", "u8": "u1", "bool": "u1"}
SAFETENSORS = {"f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32"}
SAFETENSORS |= {"i16": "I16", "i8": "I8", "u8": "U8", "bool": "BOOL"}
CHUNK = 1 << 20  # values made at a time


@dataclass(frozen=True)
class Entry:
    """One tensor to write: `data` yields its bytes (little endian, row-major, of `dtype`) piece by piece."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Iterable[bytes]]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * np.dtype(NUMPY[self.dtype]).itemsize


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 of any shape to the bits of bfloat16 (uint16), rounded to nearest, ties to even; finite input."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def array_entry(name: str, values: np.ndarray, dtype: str | None = None) -> Entry:
    """An entry of a numpy array; dtype "bf16" rounds float32 or takes uint16 bits as they are."""
    values = np.asarray(values)
    kind = dtype or next(k for k, v in NUMPY.items() if np.dtype(v) == values.dtype and k != "bf16")
    raw = bf16(values) if kind == "bf16" and values.dtype != np.uint16 else values.astype(NUMPY[kind])
    return Entry(name, kind, values.shape, lambda: [raw.tobytes()])


# ---- names, shapes and distributions ------------------------------------------------------------------------


def _round32(value: float) -> int:
    return max(32, round(value / 32) * 32)


def lora_ranks(version: str, width: int) -> dict[str, int]:
    """Ranks of the low-rank matrices as the author's training code chooses them from the embedding size."""
    if version == "6":
        return {"maa": 32, "decay": 64} if width < 4096 else {"maa": 64, "decay": 128}
    if version == "7":
        root = 1.8 * width**0.5
        return {
            "w": _round32(root),
            "a": _round32(root),
            "v": _round32(1.3 * width**0.5),
            "g": _round32(0.6 * width**0.8),
        }
    return {}


def ffn_size(version: str, width: int) -> int:
    """The author's default: 3.5 times the embedding in 5.2 and 6, else 4 times."""
    return int(width * 3.5) // 32 * 32 if version in ("5.2", "6") else 4 * width


def shapes(
    version: str,
    layers: int = 2,
    width: int = 128,
    vocab: int = 320,
    head_size: int = 64,
    ffn: int | None = None,
    lora: Mapping[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint and its shape, in the order of the author's state_dict."""
    if version not in VERSIONS:
        raise ValueError(f"version {version!r}: there are {', '.join(VERSIONS)}")
    if version != "4" and width % head_size:
        raise ValueError(f"width {width} is not a multiple of the head size {head_size}")
    ranks = lora_ranks(version, width) | dict(lora or {})
    of = {"V": vocab, "C": width, "A": width, "F": ffn or ffn_size(version, width)}
    of |= {"H": width // head_size, "N": head_size}
    out: dict[str, tuple[int, ...]] = {}
    for name, spec in all_specs(version, layers):
        layer, _ = split_name(name)
        if not spec.optional and (layer is None or layer >= spec.from_layer):
            out[name] = spec.sizes({**of, "R": ranks.get(spec.low_rank or "", 0)})
    return out


def _distribution(version: str, name: str, shape: tuple[int, ...]) -> tuple[str, float, float]:
    """("normal", mean, deviation) or ("uniform", low, high) of a tensor's values."""
    last = name.rsplit(".att.", 1)[-1].rsplit(".ffn.", 1)[-1]
    if name == "emb.weight":
        return ("normal", 0.0, 0.5)
    if ".ln" in name or name.startswith("ln_out"):
        return ("normal", 1.0, 0.1) if name.endswith("weight") else ("normal", 0.0, 0.02)
    if name.endswith(".weight"):
        return ("normal", 0.0, shape[-1] ** -0.5)
    if last == "time_decay":
        return ("uniform", -5.0, 2.0 if version == "4" else 0.0)
    if last in ("time_first", "time_faaaa"):
        return ("normal", 0.0, 0.5)
    if last == "w0":
        return ("uniform", -6.0, -0.5)
    if last in ("a0", "v0"):
        return ("normal", 0.0, 0.5)
    if last in ("k_k", "k_a"):
        return ("uniform", 0.5, 1.1)
    if last == "r_k":
        return ("normal", 0.0, 0.1)
    if last[-1] in "12" and len(shape) > 1:
        return ("normal", 0.0, 0.05)
    return ("uniform", 0.0, 1.0)  # token-shift mixes


def values(version: str, name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """The float32 values of a tensor, at most CHUNK at a time; they depend on seed, name and size alone."""
    digest = hashlib.sha256(f"{seed}\0{version}\0{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    kind, a, b = _distribution(version, name, shape)
    left = math.prod(shape)
    while left:
        count = min(left, CHUNK)
        left -= count
        if kind == "normal":
            yield rng.standard_normal(count, dtype=np.float32) * np.float32(b) + np.float32(a)
        else:
            yield rng.random(count, dtype=np.float32) * np.float32(b - a) + np.float32(a)


def entries(version: str, dtype: str = "bf16", seed: int = 0, **sizes: Any) -> list[Entry]:
    """The entries of a random checkpoint; sizes as for `shapes`."""
    if dtype not in ("f32", "f16", "bf16"):
        raise ValueError(f"dtype {dtype!r}: there are f32, f16, bf16")

    def data(name: str, shape: tuple[int, ...]) -> Iterator[bytes]:
        for chunk in values(version, name, shape, seed):
            yield (bf16(chunk) if dtype == "bf16" else chunk.astype(NUMPY[dtype])).tobytes()

    return [
        Entry(name, dtype, shape, functools.partial(data, name, shape))
        for name, shape in shapes(version, **sizes).items()
    ]


# ---- writers ------------------------------------------------------------------------------------------------


class Pickle:
    """Writes pickle opcodes (protocol 2) by hand, as torch.save lays them out; good for honest and for bad files."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")

    def op(self, code: bytes) -> Pickle:
        """Any bytes."""
        self.out += code
        return self

    def text(self, value: str) -> Pickle:
        """A str."""
        raw = value.encode()
        return self.op(b"X" + struct.pack("<I", len(raw)) + raw)

    def integer(self, value: int) -> Pickle:
        """An int."""
        if 0 <= value < 256:
            return self.op(b"K" + bytes([value]))
        if 0 <= value < 65536:
            return self.op(b"M" + struct.pack("<H", value))
        if -(2**31) <= value < 2**31:
            return self.op(b"J" + struct.pack("<i", value))
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return self.op(b"\x8a" + bytes([len(raw)]) + raw)

    def integers(self, items: Iterable[int]) -> Pickle:
        """A tuple of ints."""
        self.op(b"(")
        for item in items:
            self.integer(item)
        return self.op(b"t")

    def name(self, module: str, name: str) -> Pickle:
        """A global."""
        return self.op(b"c" + f"{module}\n{name}\n".encode())

    def storage(self, kind: str, key: str, numel: int) -> Pickle:
        """A persistent id of a storage, e.g. kind "BFloat16Storage"."""
        self.op(b"(").text("storage").name("torch", kind).text(key).text("cpu").integer(numel)
        return self.op(b"tQ")

    def tensor(
        self,
        kind: str,
        key: str,
        numel: int,
        shape: Iterable[int],
        stride: Iterable[int] | None = None,
        offset: int = 0,
    ) -> Pickle:
        """A tensor that is a view of a storage; the stride is in values and row-major unless given."""
        shape = tuple(shape)
        rows = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        self.name("torch._utils", "_rebuild_tensor_v2").op(b"(").storage(kind, key, numel).integer(offset)
        self.integers(shape).integers(rows if stride is None else stride)
        return self.op(b"\x89").name("collections", "OrderedDict").op(b")R").op(b"tR")

    def done(self) -> bytes:
        """The finished pickle."""
        return bytes(self.out) + b"."


def write_zip(path: Path, records: Iterable[tuple[str, int, Iterable[bytes]]]) -> None:
    """A stored zip of (name, size, pieces of data), data aligned to 64 bytes as torch aligns it; a fixed date."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, size, pieces in records:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            huge = size >= 2**31 - 2**20
            assert archive.fp is not None
            start = archive.fp.tell() + 30 + len(name.encode()) + 4 + (20 if huge else 0)
            pad = -start % 64
            info.extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
            with archive.open(info, "w", force_zip64=huge) as record:
                for piece in pieces:
                    record.write(piece)


def write_pth(path: Path, tensors: Iterable[Entry], wrap: tuple[str, ...] = ()) -> None:
    """A .pth as torch.save writes it; `wrap` nests the tensors in dicts of these keys, outermost first."""
    tensors, folder, pickle = list(tensors), path.stem or "archive", Pickle()
    for key in wrap:
        pickle.op(b"}(").text(key)
    pickle.op(b"}(")
    for index, entry in enumerate(tensors):
        kind = STORAGES[entry.dtype] + "Storage"
        pickle.text(entry.name).tensor(kind, str(index), math.prod(entry.shape), entry.shape)
    body = pickle.op(b"u" * (1 + len(wrap))).done()
    records: list[tuple[str, int, Iterable[bytes]]] = [
        (f"{folder}/data.pkl", len(body), [body]),
        (f"{folder}/byteorder", 6, [b"little"]),
        (f"{folder}/version", 2, [b"3\n"]),
    ]
    rest = ((f"{folder}/data/{i}", entry.nbytes, entry.data()) for i, entry in enumerate(tensors))
    write_zip(path, (record for group in (records, rest) for record in group))


def write_safetensors(path: Path, tensors: Iterable[Entry]) -> None:
    """A .safetensors with the tensors in the order given."""
    tensors, header, offset = list(tensors), {}, 0
    for entry in tensors:
        header[entry.name] = {
            "dtype": SAFETENSORS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for entry in tensors:
            for piece in entry.data():
                out.write(piece)


def make(path: Path | str, version: str = "7", dtype: str = "bf16", seed: int = 0, **sizes: Any) -> Path:
    """Writes a random checkpoint to `path` (.pth or .safetensors, by its suffix); sizes as for `shapes`."""
    path = Path(path)
    writer = write_safetensors if path.suffix == ".safetensors" else write_pth
    writer(path, entries(version, dtype, seed, **sizes))
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a seeded random RWKV checkpoint.")
    parser.add_argument("--version", choices=VERSIONS, default="7")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128, help="embedding size")
    parser.add_argument("--vocab", type=int, default=320)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--ffn", type=int, help="default: what the author's code takes")
    parser.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="name of a .pth or .safetensors file")
    options = vars(parser.parse_args())
    path = make(options.pop("out"), **options)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
