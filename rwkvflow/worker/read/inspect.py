"""Describes any model file: format, architecture, tensors, types. Reads indexes only, never tensor data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.maps import web_rwkv
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.strangers import refuse_unknown
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import HYBRIDS
from rwkvflow.worker.read import ggml_file, ggml_source, gguf_file
from rwkvflow.worker.read.graph import ncnn_file, onnx_file
from rwkvflow.worker.read.packed.packed_file import HEAD, PackedIndex, kind_of, read_packed_open
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.shards import Joined, open_model

MOST_CONFIG = 1 << 16  # bytes of a .config
GGML, GGUF = b"fmgg", b"GGUF"  # what these files begin with
_VERSION = re.compile(r"rwkv([0-9])")  # general.architecture of a GGUF; of a hybrid it is another


class _ListedTensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


def describe(path: Path | str) -> dict[str, Any]:
    """What a file holds, as JSON takes it.

    Keys: file (its name), files (names of its parts, only where it is split), bytes (of all of them), format ("pth",
    "safetensors", "ggml", "gguf", "onnx", "ncnn", "prefab", "faster-rwkv"), architecture (Architecture.to_dict(), or
    None; of ONNX and ncnn what the .config beside them says, of the last two what the file does), problem (why there is
    no architecture, or None), parameters (how many values), types ({dtype: {"tensors", "parameters", "bytes"}}),
    metadata (what else the file says), tensors ([{"name", "dtype", "shape", "bytes"}]).
    Raises WorkerError for a file of no known format, or a broken one.
    """
    if (graph := _graph(Path(path))) is not None:
        return graph
    with open_model(path) as file:
        size, name = file.size, file.name
        parts = [part.name for part in file.parts] if isinstance(file, Joined) else []
        body = described_open(file) if is_for_a_runtime(file.bytes_at(0, min(size, HEAD))) else None
    return {"file": name, **({"files": parts} if parts else {}), "bytes": size, **(body or _checkpoint(path))}


def is_for_a_runtime(head: bytes) -> bool:
    """Whether a file that begins so is one that `described_open` knows."""
    return head[:4] in (GGML, GGUF) or kind_of(head) is not None


def described_open(file: RawFile) -> dict[str, Any]:
    """The keys of `describe` but file, files and bytes, for a `.bin`, GGUF, `.prefab` or `.fr`. Raises WorkerError."""
    head = file.bytes_at(0, min(file.size, HEAD))
    if head[:4] == GGML:
        return _ggml(ggml_file.read_open(file))
    if head[:4] == GGUF:
        return _gguf(gguf_file.read_open(file))
    return _packed(read_packed_open(file))


def _graph(path: Path) -> dict[str, Any] | None:
    """Of a model that is a graph with its weights beside it, or a folder with one; None for everything else."""
    if path.is_dir():
        found = sorted(one for end in (onnx_file.SUFFIX, ncnn_file.SUFFIX) for one in path.glob("*" + end))
        if len(found) != 1:
            return None
        path = found[0]
    with RawFile(path) as file:
        if file.bytes_at(0, min(file.size, len(ncnn_file.MAGIC))) == ncnn_file.MAGIC:
            kind = "ncnn"
        elif onnx_file.looks_like(file):
            kind = "onnx"
        else:
            return None
    index = ncnn_file.read_ncnn_index(path) if kind == "ncnn" else onnx_file.read_onnx_index(path)
    files = [path, *index.files]
    architecture = _config(path.with_suffix(".config") if kind == "ncnn" else path.with_name(path.name + ".config"))
    problem = index.problem or (
        None if architecture else "a graph does not say what it computes, and there is no .config beside it"
    )
    return {
        "file": path.name,
        **({"files": [one.name for one in files]} if len(files) > 1 else {}),
        "bytes": sum(one.stat().st_size for one in files),
        "format": kind,
        "architecture": architecture,
        "problem": problem,
        "metadata": index.metadata,
        **_tensors((tensor, tensor.type) for tensor in index.tensors),
    }


def _config(path: Path) -> dict[str, Any] | None:
    """Lines `key: value`, as rwkvflow and faster-rwkv's converter write them; None where there is no such file."""
    if not path.is_file():
        return None
    with RawFile(path) as file:
        lines = file.bytes_at(0, min(file.size, MOST_CONFIG)).decode("utf-8", "replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon} or None


def _checkpoint(path: Path | str) -> dict[str, Any]:
    from rwkvflow.worker.read.open import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        metadata = dict(checkpoint.metadata)
        if checkpoint.ignored:
            metadata["(ignored)"] = ", ".join(checkpoint.ignored[:20])
        return described(checkpoint.kind, checkpoint.tensors, metadata)


def described(kind: str, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `describe` but file, files and bytes, for a checkpoint with these tensors."""
    architecture: dict[str, Any] | None = None
    problem: str | None = None
    remark: dict[str, Any] = {}
    try:
        found = architecture_of(tensors)
        architecture = found.to_dict()
        refuse_unknown(tensors, found)
    except WorkerError as error:
        problem = str(error)
        if architecture is None and (straight := web_rwkv.author_names(tensors)):
            found = architecture_of({info.name: info for info in straight.values()})
            architecture, problem = found.to_dict(), None
            remark = {"names": "as web-rwkv has them, with its low-rank matrices transposed"}
    return {
        "format": kind,
        "architecture": architecture,
        "problem": problem,
        "metadata": remark | dict(metadata),
        **_tensors((info, info.dtype) for info in tensors.values()),
    }


def _ggml(index: ggml_file.GgmlIndex) -> dict[str, Any]:
    architecture = {
        "version": ggml_source.version_of({name: tensor.shape for name, tensor in index.tensors.items()}),
        "n_vocab": index.n_vocab,
        "n_embd": index.n_embd,
        "n_layer": index.n_layer,
        "dtype": index.type,
    }
    return {
        "format": "ggml",
        "architecture": architecture,
        "problem": None,
        "metadata": {"version": index.version, "data type": index.type},
        **_tensors((tensor, tensor.type) for tensor in index.tensors.values()),
    }


def _gguf(index: gguf_file.GgufIndex) -> dict[str, Any]:
    kind = index.metadata.get("general.architecture")
    prefix = f"{kind}."
    version = _VERSION.fullmatch(str(kind))
    architecture = (
        ({"version": version[1]} if version else {"version": kind} if kind in HYBRIDS else {})
        | {"name": kind}
        | {key.removeprefix(prefix): value for key, value in index.metadata.items() if key.startswith(prefix)}
    )
    return {
        "format": "gguf",
        "architecture": architecture if kind else None,
        "problem": None if kind else "it does not say its general.architecture",
        "metadata": {"version": index.version, **index.metadata},
        **_tensors((tensor, tensor.type) for tensor in index.tensors.values()),
    }


def _packed(index: PackedIndex) -> dict[str, Any]:
    return {
        "format": index.kind,
        "architecture": index.architecture,
        "problem": None,
        "metadata": {},
        **_tensors((tensor, tensor.type) for tensor in index.tensors),
    }


def _tensors(found: Iterable[tuple[_ListedTensor, str]]) -> dict[str, Any]:
    listed, count, held, values = [], Counter[str](), Counter[str](), Counter[str]()
    for tensor, dtype in found:
        numel = 1
        for size in tensor.shape:
            numel *= size
        count[dtype] += 1
        held[dtype] += tensor.nbytes
        values[dtype] += numel
        listed.append({"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes})
    return {
        "parameters": values.total(),
        "types": {
            dtype: {"tensors": count[dtype], "parameters": values[dtype], "bytes": held[dtype]}
            for dtype in sorted(held, key=lambda dtype: (-held[dtype], dtype))
        },
        "tensors": listed,
    }
