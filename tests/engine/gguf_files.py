"""Looks into GGUF files through librwkv's table of tensors, and takes them apart for tests."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rwkvflow.engine.binding import Library


class _Raw(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("n_dims", ctypes.c_uint32),
        ("dims", ctypes.c_uint64 * 4),
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Held:
    """A tensor as librwkv sees it: the author's name, our type, PyTorch's shape, where its bytes are."""

    name: str
    type: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def table(path: Path, library: Library) -> tuple[tuple[int, ...], list[Held]]:
    """The header's six numbers, and the tensors."""
    raw = ctypes.CDLL(str(library.path))
    raw.rwkvflow_file_open.restype = ctypes.c_void_p
    raw.rwkvflow_file_tensor.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
    raw.rwkvflow_file_tensor.restype = ctypes.c_bool
    handle = raw.rwkvflow_file_open(str(path).encode())
    assert handle, raw.rwkvflow_get_last_message
    header, item = (ctypes.c_int32 * 6)(), _Raw()
    out: list[Held] = []
    raw.rwkvflow_file_header(ctypes.c_void_p(handle), header)
    while raw.rwkvflow_file_tensor(handle, len(out), ctypes.byref(item)):
        shape = tuple(item.dims[: item.n_dims])
        out.append(Held(item.name.decode(), item.type, shape, item.offset, item.bytes))
    raw.rwkvflow_file_close(ctypes.c_void_p(handle))
    return tuple(header), out


def as_bin(path: Path, library: Library, halved_every: int = 0) -> bytes:
    """rwkv.cpp's file of the same blocks.

    `halved_every`: output matrices of layer i are doubled i // halved_every times; F32, F16 and Q8_0 only.
    """
    header, tensors = table(path, library)
    data = path.read_bytes()
    out = [struct.pack("<6i", 0x67676D66, 101, *header[2:5], 0)]
    for tensor in tensors:
        body = data[tensor.offset : tensor.offset + tensor.nbytes]
        if halved_every and tensor.name.endswith(("att.output.weight", "ffn.value.weight")):
            body = _doubled(body, tensor.type, int(tensor.name.split(".")[1]) // halved_every)
        name = tensor.name.encode()
        out.append(struct.pack(f"<{3 + len(tensor.shape)}i", len(tensor.shape), len(name), tensor.type,
                               *reversed(tensor.shape)) + name + body)  # fmt: skip
    return b"".join(out)


def _doubled(body: bytes, kind: int, times: int) -> bytes:
    if kind == 0:
        return (np.frombuffer(body, "<f4") * np.float32(2.0**times)).tobytes()
    if kind == 1:
        return (np.frombuffer(body, "<f2") * np.float16(2.0**times)).tobytes()
    assert kind == 9
    blocks = np.frombuffer(body, np.uint8).reshape(-1, 34).copy()
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2") * np.float16(2.0**times)
    blocks[:, :2] = scale.view(np.uint8)
    return blocks.tobytes()


def text(data: bytes) -> bytes:
    """A text as a GGUF has it."""
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key and its value."""
    return text(key.encode()) + struct.pack("<I", kind) + value


def with_pair(data: bytes, key: str, kind: int, value: bytes) -> bytes:
    """The file with one more pair in front, its tensors' data where they have to be then."""
    index, begin = index_of(data), pair(key, kind, value)
    (count,) = struct.unpack_from("<Q", data, 16)
    head = data[:16] + struct.pack("<Q", count + 1) + begin + data[24:index]
    return head + bytes(-len(head) % 32) + data[index + -index % 32 :]


def index_of(data: bytes) -> int:
    """Where the list of tensors ends."""
    at = 24
    tensors, pairs = struct.unpack_from("<QQ", data, 8)
    for _ in range(pairs):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        (kind,) = struct.unpack_from("<I", data, at)
        at = _behind(data, at + 4, kind)
    for _ in range(tensors):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12
    return at


def _behind(data: bytes, at: int, kind: int) -> int:
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    if kind in sizes:
        return at + sizes[kind]
    if kind == 8:
        return int(at + 8 + struct.unpack_from("<Q", data, at)[0])
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in sizes:
        return int(at + count * sizes[inner])
    for _ in range(count):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
    return at
