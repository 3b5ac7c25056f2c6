"""Importance matrices: what is written is read back, llama.cpp's too, and what makes no sense is refused by name."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf.imatrix import UNIT, Imatrix, imatrix_bytes, of_sums, read_imatrix
from rwkvflow.worker.write.layout import Encoding

ROOT = Path(__file__).resolve().parents[4]


def matrix(**changes: Any) -> Imatrix:
    sums = {"blk.0.time_mix_key.weight": np.arange(64, dtype=np.float32), "blk.1.a": np.ones(32, np.float32)}
    facts: dict[str, Any] = {"name": "m.gguf", "sums": sums, "counts": dict.fromkeys(sums, 8.0), "chunks": 2}
    return Imatrix(**{**facts, "datasets": ("a.txt", "文.txt"), "chunk_size": 4, **changes})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(imatrix_bytes(matrix()))
    found = read_imatrix(path)
    assert (found.datasets, found.chunks, found.chunk_size) == (("a.txt", "文.txt"), 2, 4)
    assert found.digest == matrix().digest
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == [
        f"{name}.{part}" for name in sorted(matrix().sums) for part in ("in_sum2", "counts")
    ]
    assert reader.get_field("general.type").contents() == "imatrix"  # type: ignore[union-attr]


def test_llama_cpps_own_is_read_and_written_alike(fixtures: Path, tmp_path: Path) -> None:
    found = read_imatrix(fixtures / "imatrix-v7-256.gguf")
    assert len(found.sums) == 12
    assert set(found.counts.values()) == {7.0}
    (tmp_path / "m.gguf").write_bytes(imatrix_bytes(found))
    ours, theirs = gguf.GGUFReader(tmp_path / "m.gguf"), gguf.GGUFReader(fixtures / "imatrix-v7-256.gguf")
    assert [(t.name, t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in ours.tensors] == [
        (t.name, t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in theirs.tensors
    ]


def dat(entries: dict[str, tuple[int, list[float]]], end: bytes = b"") -> bytes:
    out = io.BytesIO()
    out.write(struct.pack("<i", len(entries)))
    for name, (calls, values) in entries.items():
        out.write(struct.pack("<i", len(name)) + name.encode())
        out.write(struct.pack(f"<ii{len(values)}f", calls, len(values), *values))
    return out.getvalue() + end


def test_the_older_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    values = {"blk.0.time_mix_key.weight": (4, [2.0] * 32)}
    for end, chunks, names in ((b"", 0, ()), (struct.pack("<ii", 9, 5) + b"a.txt", 9, ("a.txt",))):
        path.write_bytes(dat(values, end))
        found = read_imatrix(path)
        assert (found.chunks, found.datasets) == (chunks, names)
        importance, made_up = found.importance("blk.0.time_mix_key.weight", 32)
        assert importance is not None
        assert (importance.weights == 0.5).all()
        assert not made_up


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a GGUF"),
        (dat({}), "of nothing"),
        (struct.pack("<i", -1), "neither a GGUF"),
        (struct.pack("<ii", 1, 2**31 - 1), "neither a GGUF"),
        (dat({"a": (1, [1.0])})[:-1], "neither a GGUF"),
        (dat({"a": (0, [1.0])}), "'a' makes no sense"),
        (dat({"a": (1, [])}), "'a' makes no sense"),
        (dat({"a": (1, [-1.0])}), "'a' makes no sense"),
        (dat({"a": (1, [float("nan")])}), "'a' makes no sense"),
        (b"PK\x03\x04" + bytes(100), "neither a GGUF"),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(data)
    with pytest.raises(WorkerError, match=message):
        read_imatrix(path)


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(imatrix_bytes(matrix()).replace(b"\x07\0\0\0\0\0\0\0imatrix", b"\x07\0\0\0\0\0\0\0model!!", 1))
    with pytest.raises(WorkerError, match="'model!!', and no importance matrix"):
        read_imatrix(path)
    path.write_bytes(imatrix_bytes(matrix()).replace(b".counts", b".county"))
    with pytest.raises(WorkerError, match="is missing, or not F32"):
        read_imatrix(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    damaged = bytearray(data.draw(st.sampled_from([imatrix_bytes(matrix()), dat({"a": (1, [1.0, 2.0])}, b"\1\0\0\0")])))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(damaged) - 4))
        damaged[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 32, 2**31 - 1, 2**32 - 1])))
    path = tmp_path_factory.mktemp("damaged") / "m"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with contextlib.suppress(WorkerError):
        assert read_imatrix(path).sums


def test_columns_that_were_never_used_count_as_the_mean() -> None:
    values = np.ones(96, np.float32)
    values[32:64] = 0
    one, made_up = matrix(sums={"a": values}, counts={"a": 2.0}).importance("a", 96)
    assert made_up
    assert one is not None
    assert (one.weights[:32] == 0.5).all()
    assert np.allclose(one.weights[32:64], 1 / 3)
    values[:] = 0
    one, _ = matrix(sums={"a": values}, counts={"a": 2.0}).importance("a", 96)
    assert one is not None
    assert (one.weights == 1).all()
    assert UNIT == 32


def test_another_models_is_refused_and_what_is_missing_is_none() -> None:
    with pytest.raises(WorkerError, match=r"m\.gguf: blk\.1\.a has 32 columns, the model 64"):
        matrix().importance("blk.1.a", 64)
    assert matrix().importance("blk.7.a", 64) == (None, False)


def test_encodings_are_equal_where_the_weights_are() -> None:
    """So several formats share the work, and another matrix is another encoding."""
    one = Encoding(2, True, None, matrix().importance("blk.1.a", 32)[0])
    same = Encoding(2, True, None, matrix().importance("blk.1.a", 32)[0])
    other = Encoding(2, True, None, matrix(counts=dict.fromkeys(matrix().sums, 9.0)).importance("blk.1.a", 32)[0])
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


def test_sums_get_llama_cpps_names() -> None:
    sums = {f"blocks.1.{part}": np.full(32, 2.0) for part in ("att.key.weight", "ffn.value.weight", "att.gate.weight")}
    seven, six = of_sums("7", sums, 40, ["t"], 20), of_sums("6", sums, 40, ["t"], 20)
    assert set(seven.sums) == {"blk.1.time_mix_key.weight", "blk.1.channel_mix_value.weight"}
    assert set(six.sums) == {*seven.sums, "blk.1.time_mix_gate.weight"}
    assert (seven.chunks, set(seven.counts.values())) == (2, {40.0})
    assert not of_sums("5.2", sums, 40, ["t"], 20).sums


def test_the_text_that_ships_is_what_its_script_writes() -> None:
    import runpy

    made = runpy.run_path(str(ROOT / "scripts" / "calibration_text.py"))["text"]()
    shipped = (ROOT / "rwkvflow" / "worker" / "data" / "calibration.txt").read_text(encoding="utf-8")
    assert made == shipped
    assert 50_000 < len(shipped.encode()) < 100_000
