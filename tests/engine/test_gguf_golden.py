"""Tensors of `gguf-*` files against what llama.cpp's own quantizer makes, with and without an importance matrix."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.gguf.imatrix import read_imatrix
from tests.engine import encoder

CHECKPOINTS = ("random-v7-256", "random-v6-256", "random-v7-192")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.build(tmp_path_factory.mktemp("encoder") / "engine", encoder.any_compiler())


def rows(fixtures: Path) -> list[dict[str, str]]:
    with (fixtures / "gguf-golden.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def digest(tensors: Mapping[str, tuple[str, bytes]]) -> str:
    """Over name, type and bytes of every tensor, in llama.cpp's order: those of no layer, then by layer and name."""

    def place(name: str) -> tuple[int, str]:
        return (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)

    found = hashlib.sha256()
    for name in sorted(tensors, key=place):
        kind, data = tensors[name]
        found.update(name.encode() + b"\0" + kind.upper().encode() + b"\0" + data)
    return found.hexdigest()


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {
        tensor.name: (tensor.tensor_type.name, np.ascontiguousarray(tensor.data).tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_files_hold_what_llama_cpp_writes(checkpoint: str, fixtures: Path, engine: Path, tmp_path: Path) -> None:
    wanted: dict[str, str] = {}
    for row in rows(fixtures):
        if row["checkpoint"] == checkpoint and row["imatrix"] == "-":
            name = f"gguf-{row['type'].lower()}" + ("-from-f32" if row["made_from"] == "f32" else "")
            wanted[name] = row["data_sha256"]
    assert len(wanted) > 20
    jobs = [ConversionJob(name, name, tmp_path / f"{name}.gguf") for name in wanted]
    for outcome in convert(fixtures / f"{checkpoint}.pth", engine, jobs):
        assert outcome.failure is None, outcome
        assert digest(tensors_of(outcome.job.path)) == wanted[outcome.job.format], outcome.job.format


def test_an_importance_matrix_leads_to_llama_cpps_bytes(fixtures: Path, engine: Path, tmp_path: Path) -> None:
    some = [row for row in rows(fixtures) if row["imatrix"] != "-"]
    assert len(some) > 10
    weights = read_imatrix(fixtures / f"{some[0]['imatrix']}.gguf")
    names = {f"gguf-{row['type'].lower()}": row["data_sha256"] for row in some}
    jobs = [ConversionJob(name, name, tmp_path / name, None, weights) for name in names]
    for outcome in convert(fixtures / f"{some[0]['checkpoint']}.pth", engine, jobs):
        assert outcome.failure is None
        assert digest(tensors_of(outcome.job.path)) == names[outcome.job.format], outcome.job.format
