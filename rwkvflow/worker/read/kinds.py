"""What kind of file a model is, by its first bytes; what is none that is read is named, with what to do about it."""

from __future__ import annotations

import re
from typing import Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read import safetensors_file
from rwkvflow.worker.read.rawfile import RawFile
from rwkvflow.worker.read.torch_file import remedies

HEAD: Final = 1 << 16  # bytes that are looked at
_MAGIC: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first before torch 1.6
_MAGIC_AS_TEXT: Final = b"L119547037146038801333356L\n."  # the same in pickles of protocol 0 and 1
_PICKLE: Final = re.compile(rb"\x80[\2-\5]|\(dp0\n|\(lp0\n|\}q\0|\]q\0|c[\w.]+\n[\w.]+\n", re.ASCII)
_TAR_MEMBERS: Final = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")


def kind_of(file: RawFile) -> str:
    """The kind: "pth", "safetensors", "ggml" or "gguf". Raises WorkerError that names what else it is."""
    head = file.bytes_at(0, min(file.size, 64))
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return "pth"
    if head[4:8] == bytes(4) and safetensors_file.looks_like(file):  # first: a length may look like anything
        return "safetensors"
    if head[:4] in (b"fmgg", b"GGUF"):
        return "ggml" if head[:4] == b"fmgg" else "gguf"
    if problem := _problem(file.bytes_at(0, min(file.size, HEAD))):
        raise WorkerError(f"{file.name}: {problem}")
    if safetensors_file.looks_like(file):
        return "safetensors"
    raise WorkerError(f"{file.name}: neither a torch file nor a safetensors file; it starts with {head[:8]!r}")


def _problem(head: bytes) -> str | None:
    """What a file with this beginning is, and what to do about it; None for what is not known."""
    if not head:
        return "the file is empty. Download or copy it again."
    if head[:128].lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page, not a checkpoint. Check the address that it came from."
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the checkpoint itself. Run: git lfs pull"
    if head.startswith(b"\x93NUMPY"):
        return "a single array of numpy, not a checkpoint"
    return _torch_of_old(head) or _bare_pickle(head)


def _torch_of_old(head: bytes) -> str | None:
    """Of what torch.save wrote before torch 1.6."""
    if head[257:262] == b"ustar" or head.startswith(_TAR_MEMBERS):
        member = head[:100].removeprefix(b"./").partition(b"\0")[0] + b"\0"
        if member not in _TAR_MEMBERS:
            return "a tar archive, not a checkpoint. Unpack it and name a file of it."
        return (
            "a torch file of the oldest kind (before torch 0.1.10), a tar archive, which is not read here; "
            f"{remedies.NOT_RUN}. {remedies.IF_TRUSTED}{remedies.RUN_AND_SAVE}"
        )
    old = "a torch file of the old kind (before torch 1.6), a bare pickle"
    if head.startswith(_MAGIC_AS_TEXT):
        if head[len(_MAGIC_AS_TEXT) :].startswith(b"I"):
            return f"{old} of protocol 0. {remedies.PROTOCOL_0}"
        return (
            f"{old} of protocol 1, which is not read here; {remedies.NOT_RUN}. "
            f"{remedies.IF_TRUSTED}{remedies.RUN_AND_SAVE}"
        )
    if head[:1] == b"\x80" and _MAGIC in head[:32]:
        if head[1] == 2:
            return f"{old}, which is not read here. Save it again with a recent torch: {remedies.SAVE_AGAIN}"
        return (
            f"{old} of protocol {head[1]}, which is not read here; {remedies.NOT_RUN}. "
            f"{remedies.IF_TRUSTED}{remedies.RUN_AND_SAVE}"
        )
    return None


def _bare_pickle(head: bytes) -> str | None:
    if _PICKLE.match(head) is None:
        return None
    of = " of numpy arrays" if b"numpy" in head else " of torch tensors" if b"torch" in head else ""
    return (
        f"a bare pickle{of}, which is no file of torch.save; {remedies.NOT_RUN}. "
        f"{remedies.IF_TRUSTED}{remedies.UNPICKLE_AND_SAVE}"
    )
