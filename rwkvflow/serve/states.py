"""States that somebody asked to keep: by name, in a limited number of bytes, and as files of rwkvflow.h."""

from __future__ import annotations

import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.engine.binding import Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.states import SavedState, fingerprint, from_heads, heads_of, is_saved, read_state, write_state
from rwkvflow.serve.batching.job import First, Floats
from rwkvflow.serve.errors import ApiError
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.adapters import initial_states


@dataclass(frozen=True)
class KeptState:
    """One of them. `tokens`: how many were read to reach it."""

    name: str
    tokens: int
    state: Floats
    logits: Floats | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.state.nbytes + (0 if self.logits is None else self.logits.nbytes)

    @property
    def first(self) -> First:
        """As a job begins from it."""
        return First(self.name, self.state, self.logits)

    def about(self) -> dict[str, Any]:
        """What is told of it."""
        return {"id": self.name, "object": "state", "tokens": self.tokens, "bytes": self.size}


class KeptStates:
    """Of one model. For any thread. Nothing goes by itself: who keeps one deletes it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[str, KeptState] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes."""
        with self._lock:
            return sum(kept.size for kept in self._kept.values())

    def all(self) -> list[KeptState]:
        """The oldest first."""
        with self._lock:
            return list(self._kept.values())

    def get(self, name: str) -> KeptState:
        """Raises ApiError (404)."""
        with self._lock:
            if name not in self._kept:
                raise ApiError(404, f"there is no state {name!r} of this model", param="state", code="state_not_found")
            return self._kept[name]

    def put(self, tokens: int, state: Floats, logits: Floats | None) -> KeptState:
        """Under a new name. Raises ApiError (507) where it does not fit."""
        kept = KeptState(f"state-{uuid.uuid4().hex}", tokens, state, logits)
        with self._lock:
            if sum(other.size for other in self._kept.values()) + kept.size > self.limit:
                raise ApiError(507, f"kept states may take {self.limit} bytes; delete one", code="states_full")
            self._kept[kept.name] = kept
        return kept

    def delete(self, name: str) -> None:
        """Raises ApiError (404)."""
        self.get(name)
        with self._lock:
            self._kept.pop(name, None)

    @staticmethod
    def to_file(kept: KeptState, model: Model) -> bytes:
        """The file that `rwkvflow generate --state` reads."""
        saved = SavedState(
            kept.state, kept.logits, kept.tokens, model.version or "?", "librwkv", fingerprint(model.path)
        )
        with tempfile.TemporaryDirectory(prefix="rwkvflow-") as folder:
            path = Path(folder) / "state"
            write_state(path, saved)
            return path.read_bytes()

    def from_file(self, data: bytes, model: Model) -> KeptState:
        """A saved state, or trained initial ones (`blocks.N.att.time_state` of a .pth or .safetensors file).

        Raises ApiError (400) for what is no state of this model file, (507) where it does not fit.
        """
        with tempfile.TemporaryDirectory(prefix="rwkvflow-") as folder:
            path = Path(folder) / "state"
            path.write_bytes(data)
            try:
                if not is_saved(data):
                    return self.put(0, from_heads(initial_states(path, *heads_of(model)), model), None)
                saved = read_state(path, model.state_len, model.logits_len)
            except (EngineError, WorkerError) as error:
                raise ApiError(400, str(error), code="bad_state") from None
        if (saved.layout, saved.version) != ("librwkv", model.version) or saved.model != fingerprint(model.path):
            raise ApiError(400, "a state of another model file", code="bad_state")
        return self.put(saved.tokens, saved.state, saved.logits)
