"""Saved states: a file that says what it belongs to, and is refused by everything else.

The layout is that of `rwkvflow_state_save` in include/rwkvflow.h, byte for byte, so files go from Python to C and the
`rwkv` tool and back. It is read and written here as well because states of libraries that are not ours are saved too:
those have another name in place of "librwkv", and librwkv refuses them.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.parts import parts_of

if TYPE_CHECKING:
    from rwkvflow.engine.binding import Model

MAGIC = b"RWKVSTAT"
LAYOUT = 1
HEADER = struct.Struct("<8sIIQQQ16s16s32s")
SAMPLES, SAMPLE = 1024, 4096  # of a model file that its fingerprint is made from


@dataclass(frozen=True)
class SavedState:
    """A state, the logits after it where they are kept, and whose they are."""

    state: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    tokens: int
    version: str
    layout: str
    model: bytes


def fingerprint(path: Path) -> bytes:
    """32 bytes that tell model files apart in a moment, however large they are; no proof against forgery.

    sha256 of the size (uint64) and of 1024 pieces of 4096 bytes, spread evenly; of all of a file of up to 4 MiB. Of a
    model in several files: sha256 of theirs.
    """
    files = [part for part in parts_of(path) if part == path or part.is_file()]
    return _fingerprint(path) if len(files) == 1 else hashlib.sha256(b"".join(map(_fingerprint, files))).digest()


def _fingerprint(path: Path) -> bytes:
    size = path.stat().st_size
    state = hashlib.sha256(struct.pack("<Q", size))
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE:
            state.update(file.read())
        else:
            for index in range(SAMPLES):
                file.seek(index * (size - SAMPLE) // (SAMPLES - 1))
                state.update(file.read(SAMPLE))
    return state.digest()


def heads_of(model: Model) -> tuple[int, int]:
    """(layers, numbers that the heads of one hold). Raises EngineError where a state has no heads: in version 4."""
    if not model.library.ours or model.version == "4":
        raise EngineError(f"{model.path.name} has no state whose heads could be set")
    return model.n_layer, model.state_len // model.n_layer - 2 * model.n_embd


def from_heads(heads: NDArray[np.float32], model: Model) -> NDArray[np.float32]:
    """A fresh state of librwkv, but for what its heads hold: [layers, heads, size, size], values by keys.

    librwkv's own have a layer after the other: its two shifts [n_embd] each, then heads, keys by values. Raises
    EngineError for what is of another size, or a model of version 4, which has no heads.
    """
    layers, numbers = heads_of(model)
    if heads.ndim != 4 or len(heads) != layers or heads[0].size != numbers:
        shape = " x ".join(map(str, heads.shape))
        raise EngineError(f"states of {shape}; {model.path.name} has {layers} layers with {numbers} numbers each")
    state = model.init_state()
    state.reshape(model.n_layer, -1)[:, 2 * model.n_embd :] = heads.swapaxes(2, 3).reshape(model.n_layer, -1)
    return state


def is_saved(data: bytes) -> bool:
    """Whether a file that begins like this is a saved state."""
    return data.startswith(MAGIC)


def write_state(path: Path, saved: SavedState) -> None:
    """Written beside and renamed: whole or absent. Raises OSError."""
    logits = np.empty(0, np.float32) if saved.logits is None else saved.logits
    header = HEADER.pack(
        MAGIC,
        LAYOUT,
        0,
        saved.state.size,
        logits.size,
        saved.tokens,
        saved.layout.encode("ascii"),
        saved.version.encode("ascii"),
        saved.model,
    )
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    state = hashlib.sha256()
    try:
        with part.open("xb") as file:
            for piece in (header, saved.state.astype("<f4").tobytes(), logits.astype("<f4").tobytes()):
                state.update(piece)
                file.write(piece)
            file.write(state.digest())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_state(path: Path, state_len: int, logits_len: int) -> SavedState:
    """Raises EngineError for what is no whole state of these sizes, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            if len(head) < HEADER.size or not head.startswith(MAGIC):
                raise EngineError(f"{path.name} is no saved state")
            _, layout, _, n_state, n_logits, tokens, name, version, model = HEADER.unpack(head)
            if layout != LAYOUT:
                raise EngineError(f"{path.name}: layout {layout} of saved states; known is {LAYOUT}")
            if n_state != state_len or n_logits not in (0, logits_len):
                raise EngineError(
                    f"{path.name}: a state of {n_state} floats and {n_logits} tokens; "
                    f"this model has {state_len} and {logits_len}"
                )
            size = 4 * (n_state + n_logits)
            rest = file.read(size + 33)
    except OSError as error:
        raise EngineError(f"{path.name}: {error.strerror}") from error
    if len(rest) != size + 32 or hashlib.sha256(head + rest[:size]).digest() != rest[size:]:
        raise EngineError(f"{path.name} is damaged")
    floats = np.frombuffer(rest[:size], "<f4").astype(np.float32)
    names = [text.rstrip(b"\0").decode("ascii", "replace") for text in (name, version)]
    logits = floats[state_len:].copy() if n_logits else None
    return SavedState(floats[:state_len].copy(), logits, tokens, names[1], names[0], model)
