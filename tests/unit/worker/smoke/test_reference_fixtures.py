"""The forward pass on rwkv.cpp's own tiny models and the logits it recorded; the converter's changes are undone."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.reference import Reference


class Ggml:
    """An F32 .bin read as if it were the checkpoint that it was made of."""

    def __init__(self, path: Path, version: str) -> None:
        data, at = path.read_bytes(), 24
        assert struct.unpack_from("<6i", data)[0] == 0x67676D66
        self.values: dict[str, np.ndarray] = {}
        while at < len(data):
            dims, length, kind = struct.unpack_from("<3i", data, at)
            assert kind == 0
            shape = struct.unpack_from(f"<{dims}i", data, at + 12)[::-1]
            at += 12 + 4 * dims
            name = data[at : at + length].decode()
            at += length
            self._add(version, name, np.frombuffer(data, "<f4", int(np.prod(shape)), at).reshape(shape))
            at += 4 * int(np.prod(shape))
        self.tensors: Mapping[str, Any] = {n: TensorInfo(n, "f32", v.shape) for n, v in self.values.items()}

    def _add(self, version: str, name: str, value: np.ndarray) -> None:
        if name.endswith("att.x_rwkvag"):
            for letter, part in zip("rwkvag", np.split(value, 6), strict=True):
                self.values[name.replace("x_rwkvag", f"x_{letter}")] = part.reshape(1, 1, -1)
            return
        if version == "7" and name[-2:] in {f"{x}{n}" for x in "wavg" for n in "12"}:
            value = value.T
        if name.endswith("time_decay"):
            value = np.log(-value) if version == "4" else np.log(-np.log(value.astype(np.float64)))[..., 0]
        if name.endswith("time_faaaa"):
            value = value[..., 0]
        self.values[name] = np.ascontiguousarray(value, np.float32)

    def float32(self, name: str, start_row: int = 0, rows: int | None = None) -> np.ndarray:
        return self.values[name][start_row:] if rows is None else self.values[name][start_row : start_row + rows]


@pytest.mark.parametrize(
    ("model", "version", "eps"),
    [("4v0-660K", "4", None), ("5v2-730K", "5.2", 1e-5), ("7v0-834K", "7", None)],
)
def test_logits_after_two_bytes_are_what_rwkv_cpp_recorded(
    model: str, version: str, eps: float | None, fixtures: Path
) -> None:
    checkpoint = Ggml(fixtures / f"tiny-rwkv-{model}-FP32.bin", version)
    expected = np.fromfile(fixtures / f"expected-logits-{model}.bin", "<f4")
    reference = Reference(checkpoint, eps)
    assert reference.architecture.version == version
    ours = reference.logits(reference.hidden([reference.start()], [list(b'"in')])[0])[-1]
    assert abs(float((ours - expected).sum())) < 1e-3
    np.testing.assert_allclose(ours, expected, atol=1e-3)
