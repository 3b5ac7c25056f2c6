"""What older versions published that is wrong is found in the files themselves, and what is right is not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.release.known_faults import known_faults
from rwkvflow.worker.read.shards import shard_name
from tests.helpers import checkpoints

Q4_K, Q5_K = 144, 176  # bytes of a block of 256


def tensor(name: str, number: int, data: bytes, *dims: int) -> bytes:
    raw = name.encode()
    return struct.pack(f"<3i{len(dims)}i", len(dims), len(raw), number, *dims) + raw + data


def binary(path: Path, number: int, *tensors: bytes) -> Path:
    path.write_bytes(struct.pack("<6i", 0x67676D66, 101, 4, 256, 1, number) + b"".join(tensors))
    return path


def gguf(path: Path, **pairs: str) -> Path:
    body = b"".join(
        struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", 8, len(value.encode())) + value.encode()
        for key, value in pairs.items()
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body)
    return path


def faults(*paths: Path) -> list[str]:
    return known_faults(paths[0].parent, [path.name for path in paths])


@pytest.mark.parametrize(("old", "new", "size", "name"), [(12, 13, Q4_K, "Q4_K"), (13, 14, Q5_K, "Q5_K")])
def test_k_types_numbered_as_0_1_did(tmp_path: Path, old: int, new: int, size: int, name: str) -> None:
    f32 = tensor("ln_out.weight", 0, bytes(4 * 256), 256)
    (fault,) = faults(binary(tmp_path / "old.bin", old, tensor("x.weight", old, bytes(size), 256, 1), f32))
    assert fault.startswith(f"old.bin: its {name} tensors have the numbers of rwkvflow 0.1")
    assert "Publish the release again" in fault
    assert faults(binary(tmp_path / "new.bin", new, tensor("x.weight", new, bytes(size), 256, 1), f32)) == []


def test_a_chat_template_of_two_words(tmp_path: Path) -> None:
    (fault,) = faults(gguf(tmp_path / "m.gguf", **{"tokenizer.chat_template": "rwkv-world"}))
    assert "m.gguf: its chat template is the text 'rwkv-world'" in fault
    for fine in ({}, {"tokenizer.chat_template": "{{ messages[0].content }}"}, {"general.name": "rwkv-world"}):
        assert faults(gguf(tmp_path / "fine.gguf", **fine)) == []
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "rwkv-world"}))
    assert len(faults(config)) == 1
    other: Any
    for other in ({"chat_template": "{% for m in messages %}{% endfor %}"}, {}, [], {"chat_template": None}):
        config.write_text(json.dumps(other))
        assert faults(config) == []


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("blocks.1.tiny_q.weight", "4a or 4b"),
        ("blocks.0.ffn.s_emb.weight", "7a"),
        ("blocks.0.qkv.qq.weight", "7b"),
        ("blocks.0.ffn.enn.weight", "8 rc00"),
    ],
)
def test_a_variant_that_was_converted_as_plain(tmp_path: Path, name: str, variant: str) -> None:
    made = checkpoints.entries("7", layers=2, width=64, vocab=40)
    more = checkpoints.Entry(name, "f16", (2,), lambda: [bytes(4)])
    writers = {".safetensors": checkpoints.write_safetensors, ".st": checkpoints.write_safetensors}
    for suffix in (".safetensors", ".st", ".pth"):
        write = writers.get(suffix, checkpoints.write_pth)
        write(tmp_path / f"plain{suffix}", made)
        assert faults(tmp_path / f"plain{suffix}") == []
        write(tmp_path / f"odd{suffix}", [*made, more])
        (fault,) = faults(tmp_path / f"odd{suffix}")
        assert f"odd{suffix}: this is RWKV-{variant}," in fault
    (fault,) = faults(binary(tmp_path / "odd.bin", 1, tensor(name, 1, bytes(4), 2)))
    assert f"RWKV-{variant}," in fault


def test_what_makes_rwkv_cpp_abort(tmp_path: Path) -> None:
    f32 = bytes(4)
    (fault,) = faults(binary(tmp_path / "m.bin", 1, tensor("blocks.0.att.v0", 0, f32, 1)))
    assert "holds blocks.0.att.v0" in fault
    assert faults(binary(tmp_path / "n.bin", 1, tensor("blocks.1.att.v0", 0, f32, 1))) == []


def test_files_that_are_none_of_these_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.bin", "b.gguf", shard_name("c", 2, 3), "d.st", "tokenizer_config.json", "e.param"):
        (tmp_path / name).write_bytes(b"{no")
    assert faults(*sorted(tmp_path.iterdir())) == []
