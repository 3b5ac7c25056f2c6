"""Checkpoints as people find them: what torch's other ways of saving leave, and what trainers put around a model.

Each is read, or refused with a command; the commands are run here as they are printed, and what they write is read.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.inspect import describe
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints

torch: Any = pytest.importorskip("torch")

SIZES: dict[str, Any] = {"layers": 2, "width": 64, "vocab": 40}
State = dict[str, Any]


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A whole model, as torch has it."""
    return dict(torch.load(checkpoints.make(tmp_path / "plain.pth", "7", **SIZES), weights_only=True))


def same(path: Path, state: State) -> None:
    """The file is a model, with these tensors bit for bit, each also row by row."""
    with open_checkpoint(path) as checkpoint:
        architecture_of(checkpoint.tensors)
        assert set(state) <= set(checkpoint.tensors)
        for name, tensor in state.items():
            expected = tensor.detach().float().resolve_neg().numpy()
            assert np.array_equal(checkpoint.float32(name), expected), name
            assert np.array_equal(checkpoint.float32(name, len(expected) - 1, 1), expected[-1:]), name
        checkpoint.verify()


def refusal(path: Path) -> str:
    with pytest.raises(WorkerError) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(f"{path.name}: ")
    return str(error.value)


# ---- torch's ways of saving ------------------------------------------------------------------------------------


def test_tensors_with_attributes(tmp_path: Path, state: State) -> None:
    for number, tensor in enumerate(state.values()):
        tensor.tag = {"lr": 0.5, "number": number, "groups": (1, [2])}
    state["head.weight"] = torch.nn.Parameter(state["head.weight"])
    state["head.weight"].is_expert = False
    torch.save(state, tmp_path / "x.pth")
    same(tmp_path / "x.pth", state)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_negative_bit_views(tmp_path: Path, state: State, dtype: str) -> None:
    state = {name: torch._neg_view(tensor.to(getattr(torch, dtype))) for name, tensor in state.items()}
    assert all(tensor.is_neg() for tensor in state.values())
    torch.save(state, tmp_path / "x.pth")
    same(tmp_path / "x.pth", state)
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, tmp_path / "y.pth")
    same(tmp_path / "y.pth", state)


def test_the_negative_bit_of_a_fused_tensor_of_another_name(tmp_path: Path) -> None:
    mixes = torch.arange(6.0 * 4).reshape(6, 4)
    torch.save({"model.layers.0.attn.x_x": torch._neg_view(mixes)}, tmp_path / "x.pth")
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert np.array_equal(checkpoint.float32("blocks.0.att.x_g").reshape(-1), -mixes[5].numpy())


def test_meta_tensors_are_called_so(tmp_path: Path, state: State) -> None:
    hollow = {name: tensor.to("meta") for name, tensor in state.items()}
    torch.save(state | {"head.weight": torch.nn.Parameter(hollow["head.weight"])}, tmp_path / "one.pth")
    assert f"'head.weight' of its {len(state)} tensors are meta tensors" in refusal(tmp_path / "one.pth")
    torch.save({"model": hollow}, tmp_path / "all.pth")
    assert f"'emb.weight' and {len(state) - 1} more of its {len(state)}" in refusal(tmp_path / "all.pth")


def test_files_without_checksums(tmp_path: Path, state: State) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    same(tmp_path / "x.pth", state)
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.verify() == 0  # no byte has a checksum


def test_one_checksum_that_is_0_is_a_wrong_one(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "x.pth")
    raw = bytearray((tmp_path / "x.pth").read_bytes())
    at = raw.index(b"x/data.pkl", raw.index(b"PK\1\2")) - 46
    raw[at + 16 : at + 20] = bytes(4)
    (tmp_path / "x.pth").write_bytes(raw)
    assert "do not match their checksum" in refusal(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_protocol_0_is_what_torch_itself_cannot_load(tmp_path: Path, state: State, zipped: bool) -> None:
    torch.save(state, tmp_path / "x.pth", pickle_protocol=0, _use_new_zipfile_serialization=zipped)
    with pytest.raises(AssertionError):
        torch.load(tmp_path / "x.pth", weights_only=False)
    assert re.search(r"of protocol 0.*save the model again .*pickle_protocol=2", refusal(tmp_path / "x.pth"))


# ---- trainers --------------------------------------------------------------------------------------------------


def optimizer_of(state: State) -> dict[str, Any]:
    moments = {number: {"step": 3, "exp_avg": torch.zeros(2)} for number in range(len(state))}
    return {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.99), "params": list(moments)}]}


@pytest.mark.parametrize("key", ["model", "state_dict", "module", "net", "my_rwkv"])
def test_a_trainers_dump(tmp_path: Path, state: State, key: str) -> None:
    dump = {"loss": torch.tensor(2.5), "step": 7, key: state, "optimizer": optimizer_of(state), "rng": torch.ones(4)}
    torch.save(dump, tmp_path / "x.pth")
    same(tmp_path / "x.pth", state)
    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert list(checkpoint.tensors) == list(state)
        assert checkpoint.metadata == {"step": 7}
        assert checkpoint.ignored == ("loss", "optimizer", "rng")


def test_a_dump_of_two_models_says_their_keys(tmp_path: Path, state: State) -> None:
    torch.save({"student": state, "teacher": state}, tmp_path / "x.pth")
    assert "several models, under the keys 'student', 'teacher'" in refusal(tmp_path / "x.pth")


# ---- what is refused with a command that works ------------------------------------------------------------------


class Settings:
    """Something of a trainer that is no tensor."""


def legacy(protocol: int) -> Callable[[Path, State], None]:
    def save(path: Path, state: State) -> None:
        torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)

    return save


def numpy_of(state: State) -> dict[str, Any]:
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def script(path: Path, state: State) -> None:
    """TorchScript of a module with modules for the dots in names."""

    def module(items: State) -> Any:
        made = torch.nn.Module()
        for stem in dict.fromkeys(name.partition(".")[0] for name in items):
            if stem in items:
                made.register_buffer(stem, items[stem])
            else:
                rest = {name.removeprefix(f"{stem}."): value for name, value in items.items()}
                made.add_module(stem, module({k: v for k, v in rest.items() if f"{stem}.{k}" in items}))
        return made

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, child in module(state).named_children():
                self.add_module(name, child)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.trace(Whole(), torch.ones(1)), str(path))


def tar(path: Path, state: State) -> None:
    """The layout that torch.load still knows as "legacy_load": storages, tensors and a pickle that refers to them."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> int | None:
            return next((2 * at + 1 for at, item in enumerate(state.values()) if item is value), None)

    storages, tensors, body = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), storages, 2)
    pickle.dump(len(state), tensors, 2)
    for at, tensor in enumerate(state.values()):
        flat = tensor.float().contiguous().numpy()
        pickle.dump((2 * at, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", flat.size) + flat.tobytes())
        pickle.dump((2 * at + 1, 2 * at, torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack("<iI", flat.ndim, 0))
        tensors.write(struct.pack(f"<{2 * flat.ndim + 1}q", *flat.shape, *(s // 4 for s in flat.strides), 0))
    pickle.dump([], storages, 2)
    Pickler(body, 2).dump({"model": state})
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("sys_info", io.BytesIO(b"")),
            ("pickle", body),
            ("tensors", tensors),
            ("storages", storages),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content.getvalue())
            archive.addfile(info, io.BytesIO(content.getvalue()))


#: How each is saved, and what the message calls it. Where it holds more than a dict, dicts are nested.
REFUSED: dict[str, tuple[Callable[[Path, State], object], str]] = {
    **{f"legacy {n}": (legacy(n), f"before torch 1.6.*{n if n != 2 else ''}") for n in (1, 2, 3, 4, 5)},
    "legacy nested": (lambda path, state: legacy(2)(path, {"model": state, "step": 1}), "before torch 1.6"),
    "legacy nested 1": (lambda path, state: legacy(1)(path, {"model": state, "at": Settings()}), "protocol 1"),
    "tar": (tar, "before torch 0.1.10"),
    "settings": (
        lambda path, state: torch.save({"state_dict": {"model": state}, "hparams": argparse.Namespace(lr=1)}, path),
        r"asks for argparse\.Namespace",
    ),
    "arrays": (lambda path, state: torch.save({"model": numpy_of(state)}, path), r"asks for numpy\."),
    "numpy pickle": (lambda path, state: path.write_bytes(pickle.dumps(numpy_of(state))), "bare pickle of numpy"),
    "tensors' pickle": (
        lambda path, state: path.write_bytes(pickle.dumps({"model": state}, 2)),
        "bare pickle of torch tensors",
    ),
    "npz": (lambda path, state: np.savez(path.open("wb"), **numpy_of(state)), "numpy's .npz"),
    "script": (script, "a TorchScript archive"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_the_command_of_a_refusal_makes_a_file_that_is_read(tmp_path: Path, state: State, kind: str) -> None:
    save, called = REFUSED[kind]
    path = tmp_path / "strange"
    save(path, state)
    message = refusal(path)
    assert re.search(called, message), message
    command = re.search(r"python -c '([^']*)'", message)
    assert command is not None, message
    old = re.search(r'"(old\.\w+)"', command[1])
    assert old is not None
    path.rename(tmp_path / old[1])
    # the classes of this module are another program's, as a user has it who trained the model
    result = subprocess.run(
        [sys.executable, "-c", command[1]], cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    same(tmp_path / "new.pth", state)


def test_whole_modules_have_that_command_too(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "old.pth")
    command = re.search(r"python -c '([^']*)'", refusal(tmp_path / "old.pth"))
    assert command is not None
    subprocess.run([sys.executable, "-c", command[1]], cwd=tmp_path, check=True)
    with open_checkpoint(tmp_path / "new.pth") as checkpoint:
        assert list(checkpoint.tensors) == ["weight", "bias"]


def test_what_deepspeed_leaves(tmp_path: Path, state: State) -> None:
    part = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": {name: torch.empty(0) for name in state}, "ds_version": "0.16"}, part)
    assert re.search("DeepSpeed ZeRO-3.*python zero_to_fp32.py", refusal(part))
    optimizer = {"optimizer_state_dict": {"zero_stage": 3, "partition_count": 2}, "ds_version": "0.16"}
    other = part.with_name("zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save(optimizer, other)
    assert re.search("DeepSpeed.*python zero_to_fp32.py", refusal(other))
    folders = {
        "by its script": "zero_to_fp32.py",
        "by a part": "a_model_states.pt",
        "deeper": "step10/a_optim_states.pt",
    }
    for name, inner in folders.items():
        (tmp_path / name / inner).parent.mkdir(parents=True)
        (tmp_path / name / inner).touch()
        for reader in (open_checkpoint, describe):
            with pytest.raises(WorkerError, match=r"the folder of a DeepSpeed checkpoint.*python zero_to_fp32.py"):
                reader(tmp_path / name)
    asks = checkpoints.Pickle().name("deepspeed.runtime.zero.config", "ZeroStageEnum").done()
    checkpoints.write_zip(tmp_path / "x.pth", [("x/data.pkl", len(asks), [asks])])
    assert re.search("asks for deepspeed.*python zero_to_fp32.py", refusal(tmp_path / "x.pth"))
