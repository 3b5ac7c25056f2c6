"""Python's binding of librwkv, or of any library with the C API of rwkv.cpp's rwkv.h.

    with Model("model.bin", library="lib/librwkv.so", threads=2) as model:
        logits, state = model.eval(token)
        logits, state = model.eval_sequence(tokens, state)

Calls release the GIL. A model is for one thread at a time; clones share the weights and may run side by side.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.engine.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

LIBRARY_VARIABLE = "RWKVFLOW_LIBRARY"  # path of the library to use where none is named
NAMES = {"darwin": "librwkv.dylib", "win32": "librwkv.dll"}
CHUNK = 32  # tokens a library evaluates together; upstream ones cannot take many more

# What of rwkv.h a message can say: the high byte is where, the low byte what.
WHERE = {1: "arguments", 2: "file", 3: "model", 4: "model parameters", 5: "graph", 6: "context"}
WHAT = {
    1: "no memory",
    2: "cannot be opened",
    3: "no information on it",
    4: "cannot be read",
    5: "cannot be written",
    6: "not a model file",
    7: "unknown file version",
    8: "unsupported data type",
    9: "unsupported",
    10: "wrong shape",
    11: "wrong size",
    12: "bad name",
    13: "bad data",
    14: "a tensor is missing",
}


def find_library() -> Path:
    """The library in $RWKVFLOW_LIBRARY, or beside this file. Raises EngineError when there is none."""
    named = os.environ.get(LIBRARY_VARIABLE)
    beside = Path(__file__).resolve().parent / "lib" / NAMES.get(sys.platform, "librwkv.so")
    path = Path(named) if named else beside
    if not path.is_file():
        raise EngineError(f"no engine library at {path}; name one, or set {LIBRARY_VARIABLE}")
    return path


class Library:
    """A loaded library. Loading one twice gives the same."""

    def __init__(self, path: Path | str | None = None) -> None:
        """Raises EngineError when it cannot be loaded or lacks functions of rwkv.h."""
        self.path = Path(path) if path is not None else find_library()
        try:
            # A path without a slash would be looked up in the system's library folders.
            self._lib = ctypes.CDLL(str(self.path.resolve()))
            self._declare()
        except (OSError, AttributeError) as error:
            raise EngineError(f"{self.path.name} cannot be used: {error}") from error
        self.set_print_errors = self._lib.rwkv_set_print_errors

    def _declare(self) -> None:
        pointer, u32, size, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t, ctypes.c_char_p
        functions: dict[str, tuple[Any, list[Any]]] = {
            "rwkv_set_print_errors": (None, [pointer, ctypes.c_bool]),
            "rwkv_get_last_error": (ctypes.c_int, [pointer]),
            "rwkv_init_from_file": (pointer, [text, u32, u32]),
            "rwkv_clone_context": (pointer, [pointer, u32]),
            "rwkv_eval": (ctypes.c_bool, [pointer, u32, pointer, pointer, pointer]),
            "rwkv_eval_sequence_in_chunks": (ctypes.c_bool, [pointer, pointer, size, size, pointer, pointer, pointer]),
            "rwkv_get_n_vocab": (size, [pointer]),
            "rwkv_get_n_embed": (size, [pointer]),
            "rwkv_get_n_layer": (size, [pointer]),
            "rwkv_get_state_len": (size, [pointer]),
            "rwkv_get_logits_len": (size, [pointer]),
            "rwkv_init_state": (None, [pointer, pointer]),
            "rwkv_free": (None, [pointer]),
            "rwkv_quantize_model_file": (ctypes.c_bool, [text, text, text]),
            "rwkv_get_system_info_string": (text, []),
        }
        for name, (result, arguments) in functions.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self.ours = hasattr(self._lib, "rwkvflow_eval_batch")
        self.takes_sequences = hasattr(self._lib, "rwkvflow_eval_sequences")  # librwkv, unless it is an older one
        self.tells_ids = hasattr(self._lib, "rwkvflow_tokenizer_ids")
        self.chooses = hasattr(self._lib, "rwkvflow_choose")  # tokens; see rwkvflow.engine.choosing
        ours: dict[str, tuple[Any, list[Any]]] = {
            "rwkvflow_set_option": (ctypes.c_bool, [pointer, text, ctypes.c_double]),
            "rwkvflow_get_option": (ctypes.c_bool, [pointer, text, pointer]),
            "rwkvflow_get_last_message": (text, [pointer]),
            "rwkvflow_get_version": (text, [pointer]),
            "rwkvflow_eval_batch": (ctypes.c_bool, [pointer, pointer, size, pointer, pointer, pointer]),
            "rwkvflow_tokenizer_bytes": (pointer, []),
            "rwkvflow_tokenizer_open": (pointer, [text]),
            "rwkvflow_tokenizer_free": (None, [pointer]),
            "rwkvflow_tokenizer_kind": (text, [pointer]),
            "rwkvflow_tokenizer_size": (u32, [pointer]),
            "rwkvflow_tokenizer_piece": (ctypes.c_bool, [pointer, u32, pointer, pointer]),
            "rwkvflow_tokenizer_encode": (ctypes.c_bool, [pointer, text, size, pointer, size, pointer]),
            "rwkvflow_tokenizer_decode": (ctypes.c_bool, [pointer, pointer, size, pointer, size, pointer]),
        }
        if self.takes_sequences:
            ours["rwkvflow_eval_sequences"] = (ctypes.c_bool, [pointer, pointer, pointer, size, *(4 * [pointer])])
        ours |= {"rwkvflow_tokenizer_ids": (ctypes.c_bool, [pointer, pointer, size, pointer])} if self.tells_ids else {}
        for name, (result, arguments) in ours.items() if self.ours else ():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """One that only some libraries have. Raises AttributeError."""
        found = getattr(self._lib, name)
        found.restype, found.argtypes = result, list(arguments)
        return found

    def call(self, name: str, *arguments: Any) -> Any:
        """One function of the library, by its C name."""
        return getattr(self._lib, name)(*arguments)

    def error(self, what: str, context: int | None = None) -> EngineError:
        """The library's last error as an exception to raise."""
        flags = int(self.call("rwkv_get_last_error", context))
        message = ""
        if self.ours:
            message = self.call("rwkvflow_get_last_message", context).decode("utf-8", "replace")
        elif flags:
            parts = (WHERE.get(flags >> 8 & 255), WHAT.get(flags & 255))
            message = ": ".join(part for part in parts if part) or f"error {flags:#x}"
        return EngineError(f"{what}: {message}" if message else what, flags)

    def system_info(self) -> str:
        """What the library says that it runs on."""
        return str(self.call("rwkv_get_system_info_string").decode("utf-8", "replace"))

    def quantize(self, source: Path | str, target: Path | str, kind: str) -> None:
        """An F32 or F16 file to Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K or Q5_K. Raises EngineError."""
        self.set_print_errors(None, False)
        paths = (os.fsencode(Path(path)) for path in (source, target))
        if not self.call("rwkv_quantize_model_file", *paths, kind.encode()):
            raise self.error(f"{Path(source).name} cannot be quantized to {kind}")


class Model:
    """A model file opened by a library. Use as a context manager, or call close()."""

    def __init__(
        self,
        path: Path | str,
        library: Library | Path | str | None = None,
        threads: int = 1,
        group_norm_eps: float | None = None,
    ) -> None:
        """`group_norm_eps`: None for the library's own, and libraries that are not ours have only that one.

        Raises EngineError when the library or the file cannot be used.
        """
        self._context: int | None = None
        self.path = Path(path)
        self.library = library if isinstance(library, Library) else Library(library)
        if group_norm_eps is not None and not self.library.ours:
            raise EngineError(f"{self.library.path.name} cannot be given a group norm epsilon")
        self.library.set_print_errors(None, False)
        self._open(
            self.library.call("rwkv_init_from_file", os.fsencode(Path(path)), max(1, threads), 0),
            f"{Path(path).name} cannot be opened",
        )
        if group_norm_eps is not None:
            self.set_option("group_norm_eps", group_norm_eps)

    def _open(self, context: int | None, what: str) -> None:
        if not context:
            raise self.library.error(what)
        self._context = context
        self.library.set_print_errors(context, False)
        get = self.library.call
        self.n_vocab = int(get("rwkv_get_n_vocab", context))
        self.n_embd = int(get("rwkv_get_n_embed", context))
        self.n_layer = int(get("rwkv_get_n_layer", context))
        self.state_len = int(get("rwkv_get_state_len", context))
        self.logits_len = int(get("rwkv_get_logits_len", context))

    def clone(self, threads: int = 1) -> Model:
        """Another model on the same weights, for another thread. Raises EngineError."""
        other = Model.__new__(Model)
        other._context = None
        other.path, other.library = self.path, self.library
        other._open(self.library.call("rwkv_clone_context", self._alive(), max(1, threads)), "no clone")
        return other

    def close(self) -> None:
        """Frees it; a second call does nothing."""
        if self._context is not None:
            self.library.call("rwkv_free", self._context)
            self._context = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            self.close()

    def _alive(self) -> int:
        if self._context is None:
            raise EngineError("the model is closed")
        return self._context

    @property
    def version(self) -> str | None:
        """ "4", "5.0", "5.1", "5.2", "6" or "7"; None where the library cannot say."""
        if not self.library.ours:
            return None
        return str(self.library.call("rwkvflow_get_version", self._alive()).decode())

    def set_option(self, name: str, value: float) -> None:
        """Set an option that rwkvflow.h lists, such as "group_norm_eps". Raises EngineError."""
        if not self.library.ours or not self.library.call(
            "rwkvflow_set_option", self._alive(), name.encode(), float(value)
        ):
            raise self.library.error(f"{name} cannot be set to {value}", self._alive())

    def option(self, name: str) -> float:
        """The value of an option that rwkvflow.h lists. Raises EngineError."""
        value = ctypes.c_double()
        if not self.library.ours or not self.library.call(
            "rwkvflow_get_option", self._alive(), name.encode(), ctypes.addressof(value)
        ):
            raise self.library.error(f"{name} is not known", self._context)
        return value.value

    def init_state(self) -> Floats:
        """A fresh state [state_len], the one that None stands for."""
        import numpy as np

        state = np.zeros(self.state_len, np.float32)
        self.library.call("rwkv_init_state", self._alive(), state.ctypes.data)
        return state

    def eval(self, token: int, state: Floats | None = None, out: Floats | None = None) -> tuple[Floats, Floats]:
        """One token: (logits [logits_len], state [state_len]) after it. `state` is not changed.

        `out`: an array for the new state, which may be `state` itself; nothing is copied then. Raises EngineError.
        """
        import numpy as np

        if not 0 <= int(token) < self.n_vocab:
            raise EngineError(f"token {token}: the vocabulary has {self.n_vocab}")
        given, out = self._states(state, out)
        logits = np.empty(self.logits_len, np.float32)
        self.run("rwkv_eval", int(token), given, out.ctypes.data, logits.ctypes.data)
        return logits, out

    def eval_sequence(
        self, tokens: Sequence[int] | NDArray[Any], state: Floats | None = None, out: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """At least one token: (logits, state) after the last one. Otherwise as `eval`."""
        import numpy as np

        ids = self._ids(tokens)
        given, out = self._states(state, out)
        logits = np.empty(self.logits_len, np.float32)
        call = (ids.ctypes.data, ids.size, CHUNK, given, out.ctypes.data, logits.ctypes.data)
        self.run("rwkv_eval_sequence_in_chunks", *call)
        return logits, out

    def eval_batch(
        self,
        tokens: Sequence[int] | NDArray[Any],
        states: Floats | Sequence[Floats | None] | None = None,
        out: Floats | Sequence[Floats | None] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> tuple[Floats, Floats | Sequence[Floats | None]]:
        """One token each of N sequences, in one pass over the weights: (logits [N, logits_len], states [N, state_len]).

        What a sequence comes to is what `eval` makes of it, bit for bit. `states`: an array [N, state_len], or N states
        of which None is a fresh one; None: all are fresh. They are not changed; one may stand for several sequences.
        `out`: the same for the new states, with None for those that nobody needs, and what is returned then; nothing is
        copied. It may be `states`. `wanted`: the sequences whose logits are asked for, one for each row of logits; None
        for all. Raises EngineError, and where the library is not ours.
        """
        import numpy as np

        if not self.library.ours:
            raise EngineError(f"{self.library.path.name} cannot evaluate batches")
        ids = self._ids(tokens)
        given = self._rows(states, ids.size)
        out = np.empty((ids.size, self.state_len), np.float32) if out is None else out
        kept = self._rows(out, ids.size)
        if not all(array is None or array.flags.writeable for array in out):
            raise EngineError("the array for the new states cannot be written")
        rows = np.arange(ids.size) if wanted is None else np.asarray(wanted, np.int64).reshape(-1)
        if np.unique(rows).size < rows.size or not ((rows >= 0) & (rows < ids.size)).all():
            raise EngineError(f"wanted are different ones of {ids.size} sequences")
        logits = np.empty((rows.size, self.logits_len), np.float32)
        places = np.zeros(ids.size, np.uintp)
        places[rows] = logits.ctypes.data + np.arange(rows.size, dtype=np.uintp) * np.uintp(4 * self.logits_len)
        pointers = [array.ctypes.data for array in (given, kept, places)]
        self.run("rwkvflow_eval_batch", ids.ctypes.data, ids.size, *pointers)
        return logits, out

    def eval_sequences(
        self,
        sequences: Sequence[Sequence[int]],
        states: Sequence[Floats | None],
        out: Sequence[Floats | None],
        wanted: Sequence[int],
        hidden: Sequence[int] = (),
    ) -> tuple[Floats, Floats]:
        """The next tokens of N sequences, at least one of each, in one pass over the weights.

        states[i] is what sequence i goes on from, None for a fresh state. `out` has an array, or None, for the state
        after each token, all sequences' tokens in a row; `wanted` and `hidden` number tokens in the same way. Returns
        the logits after those of `wanted` [len(wanted), logits_len] and the vectors after the last norm of those of
        `hidden` [len(hidden), n_embd]. All is, bit for bit, what `eval` makes of the tokens one by one. Raises
        EngineError, and where the library is not ours, or older than this function.
        """
        import numpy as np

        if not self.library.takes_sequences:
            raise EngineError(f"{self.library.path.name} cannot evaluate several sequences together")
        lengths = np.array([len(tokens) for tokens in sequences], np.uintp)
        ids = self._ids([token for tokens in sequences for token in tokens])
        given, kept = self._rows(states, lengths.size), self._rows(out, ids.size)
        if not all(array is None or array.flags.writeable for array in out):
            raise EngineError("the array for a new state cannot be written")
        found, pointers = [], [given, kept]
        for places, width in ((wanted, self.logits_len), (hidden, self.n_embd)):
            rows = np.asarray(places, np.int64).reshape(-1)
            if np.unique(rows).size < rows.size or not ((rows >= 0) & (rows < ids.size)).all():
                raise EngineError(f"wanted are different ones of {ids.size} tokens")
            to = np.empty((rows.size, width), np.float32)
            table = np.zeros(ids.size, np.uintp)
            table[rows] = to.ctypes.data + np.arange(rows.size, dtype=np.uintp) * np.uintp(4 * width)
            found.append(to)
            pointers.append(table)
        call = (ids.ctypes.data, lengths.ctypes.data, lengths.size, *(table.ctypes.data for table in pointers))
        self.run("rwkvflow_eval_sequences", *call)
        return found[0], found[1]

    def _states(self, state: Floats | None, out: Floats | None) -> tuple[int | None, Floats]:
        import numpy as np

        given = self._state(state)
        if out is None:
            out = np.empty(self.state_len, np.float32)
        elif not out.flags.writeable:
            raise EngineError("the array for the new state cannot be written")
        self._state(out)
        return given, out

    def _ids(self, tokens: Sequence[int] | NDArray[Any]) -> NDArray[np.uint32]:
        import numpy as np

        wide = np.asarray(tokens, np.int64).reshape(-1)
        if not wide.size:
            raise EngineError("a sequence of no tokens")
        if wide.min() < 0 or wide.max() >= self.n_vocab:
            raise EngineError(f"a token is outside of the vocabulary of {self.n_vocab}")
        return np.ascontiguousarray(wide, np.uint32)

    def _rows(self, states: Floats | Sequence[Floats | None] | None, count: int) -> NDArray[np.uintp]:
        """Addresses of so many states."""
        import numpy as np

        if states is None:
            return np.zeros(count, np.uintp)
        if len(states) != count:
            raise EngineError(f"{len(states)} states for {count} of them")
        return np.array([self._state(state) or 0 for state in states], np.uintp)

    def _state(self, state: Floats | None) -> int | None:
        """Its address, checked; None where there is none."""
        import numpy as np

        if state is None:
            return None
        if state.dtype != np.float32 or state.size != self.state_len or not state.flags.c_contiguous:
            raise EngineError(f"a state of this model is {self.state_len} contiguous float32")
        return int(state.ctypes.data)

    def run(self, name: str, *arguments: Any) -> None:
        """A function of the library that takes a context first, with this one. Raises EngineError where it fails."""
        if not self.library.call(name, self._alive(), *arguments):
            raise self.library.error("evaluation failed", self._alive())
