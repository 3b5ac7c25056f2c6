"""Files that torch itself wrote, against what torch itself reads; skipped where torch is not installed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.versions import VERSIONS
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints

torch: Any = pytest.importorskip("torch")

DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "bool": "bool",
    "f8_e4m3": "float8_e4m3fn",
    "f8_e5m2": "float8_e5m2",
}


def data_of(tensor: Any) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.detach().reshape(-1))
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def same(path: Path, expected: dict[str, Any]) -> None:
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == list(expected)
        for name, tensor in expected.items():
            info = checkpoint.tensors[name]
            assert info.shape == tuple(tensor.shape)
            assert f"torch.{DTYPES[info.dtype]}" == str(tensor.dtype)
            assert checkpoint.read(name).tobytes() == data_of(tensor)
            if tensor.ndim and tensor.shape[0] > 1:
                assert checkpoint.read(name, 1, 1).tobytes() == data_of(tensor[1:2])
        checkpoint.verify()


@pytest.mark.parametrize("name", DTYPES.values())
def test_every_dtype(tmp_path: Path, name: str) -> None:
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 96, np.uint8))
    tensor = bits.view(getattr(torch, name)).reshape(2, 3, -1)
    torch.save({"a": tensor}, tmp_path / "x.pth")
    same(tmp_path / "x.pth", {"a": tensor})


def test_views_parameters_and_shared_storages(tmp_path: Path) -> None:
    base = torch.arange(240, dtype=torch.float32).reshape(8, 30)
    tensors = OrderedDict(
        whole=base,
        transposed=base.t(),
        part=base[2:5, 3::4],
        column=base[:, 7],
        reshaped=base.view(2, 4, 5, 6).permute(3, 0, 2, 1),
        scalar=base[3, 4],
        empty=base[:0],
        parameter=torch.nn.Parameter(base[1:3].bfloat16()),
        no_grad=torch.nn.Parameter(base.half(), requires_grad=False),
    )
    tensors["tied"] = tensors["parameter"]
    torch.save(tensors, tmp_path / "x.pth")
    same(tmp_path / "x.pth", tensors)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    tensors = {f"t{i}": torch.full((i + 1, 2), float(i), dtype=torch.bfloat16) for i in range(300)}
    beside = {"step": 70_000, "seed": 2**40, "done": True, "loss": 0.5}
    torch.save({**beside, **tensors}, tmp_path / "x.pth", pickle_protocol=protocol)
    same(tmp_path / "x.pth", tensors)
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.metadata == beside


def test_state_dicts_of_modules_and_training_checkpoints(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4))
    state = module.state_dict()  # an OrderedDict with _metadata
    torch.save(state, tmp_path / "x.pth")
    same(tmp_path / "x.pth", dict(state))
    torch.save({"epoch": 3, "loss": 0.5, "state_dict": state, "betas": (0.9, 0.99)}, tmp_path / "x.pth")
    same(tmp_path / "x.pth", dict(state))


def test_expanded_views_say_how_to_save_them(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1, 4).expand(9, 4)}, tmp_path / "x.pth")
    with pytest.raises(WorkerError, match=r"contiguous\(\)"):
        open_checkpoint(tmp_path / "x.pth")


def test_whole_modules_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(WorkerError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("tensor", ["torch.ones(2, dtype=torch.complex64)", "torch.ones(2, 2).to_sparse()"])
def test_tensors_that_no_checkpoint_has(tmp_path: Path, tensor: str) -> None:
    torch.save({"a": eval(tensor)}, tmp_path / "x.pth")  # noqa: S307
    with pytest.raises(WorkerError, match=r"refused: its pickle asks for torch\."):
        open_checkpoint(tmp_path / "x.pth")


def test_the_old_format_says_how_to_save_again(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WorkerError, match=r"before torch 1\.6.*torch\.save\("):
        open_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("version", VERSIONS)
def test_torch_reads_what_the_maker_writes(tmp_path: Path, version: str) -> None:
    path = checkpoints.make(tmp_path / "x.pth", version=version, width=64, vocab=50)
    loaded = torch.load(path, weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == checkpoints.shapes(
        version, width=64, vocab=50
    )
    same(path, loaded)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_torch_and_safetensors_agree(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file, save_file

    loaded = load_file(checkpoints.make(tmp_path / "x.safetensors", dtype=dtype, width=64, vocab=50))
    save_file(loaded, tmp_path / "y.safetensors", {"format": "pt"})
    for name in ("x", "y"):
        with open_checkpoint(tmp_path / f"{name}.safetensors") as checkpoint:
            assert set(checkpoint.tensors) == set(loaded)
            for key, tensor in loaded.items():
                assert checkpoint.read(key).tobytes() == data_of(tensor)
                assert np.array_equal(checkpoint.float32(key), tensor.float().numpy())


def test_float32_of_every_bfloat16(tmp_path: Path) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    torch.save({"a": every}, tmp_path / "x.pth")
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert np.array_equal(checkpoint.float32("a").view("<u4"), every.float().numpy().view("<u4"))
