"""Measurements of one library and one model, in a process of their own: `python -m rwkvflow.engine.measure REQUEST`.

REQUEST and the answer are JSON objects on one line. Times are seconds, sizes bytes.

    {"task": "model", "library", "model", "threads", "eps", "tokens", "prompt"}
        -> {"load", "decode": [...], "prefill", "peak", "logits", "system"}
    {"task": "bandwidth", "threads"}
        -> {"bytes_per_second"}
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.engine.binding import CHUNK, Model
from rwkvflow.engine.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WARM_UP = 8  # tokens: pages come in, threads start, clocks rise
BUFFER = 512 << 20  # at least so much is read, more than any cache holds
PASSES = 6


def main(argv: Sequence[str]) -> int:
    """Carry out one request."""
    request = json.loads(argv[0])
    try:
        task = request.pop("task")
        answer = measure_bandwidth(**request) if task == "bandwidth" else measure_model(**request)
    except EngineError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 0


def measure_model(
    library: str, model: str, threads: int, eps: float | None, tokens: int, prompt: int
) -> dict[str, Any]:
    """Open, evaluate tokens one by one, then a sequence of `prompt` tokens from a fresh state."""
    import numpy as np

    before = memory("VmRSS")
    start = time.perf_counter()
    with Model(model, library, threads, eps) as opened:
        load = time.perf_counter() - start
        # Any ids will do, as long as they are not always the same rows of the embedding.
        ids = (np.arange(WARM_UP + tokens + prompt, dtype=np.uint64) * 2654435761 % opened.n_vocab).tolist()
        state, decode = opened.init_state(), []
        logits = np.zeros(1, np.float32)
        for count, token in enumerate(ids[: WARM_UP + tokens]):
            start = time.perf_counter()
            logits, state = opened.eval(token, state, state)
            if count >= WARM_UP:
                decode.append(time.perf_counter() - start)
        answer = {"load": load, "decode": decode, "logits": _digest(logits), "system": opened.library.system_info()}
        if prompt:
            sequence = np.asarray(ids[-prompt:], np.uint32)
            _read(opened, sequence)
            start = time.perf_counter()
            _read(opened, sequence)
            answer["prefill"] = time.perf_counter() - start
        peak = memory("VmHWM")
    answer["peak"] = None if peak is None or before is None else peak - before
    return answer


def _read(model: Model, tokens: NDArray[np.uint32]) -> None:
    """Read the tokens in as large parts as the library takes: librwkv takes all, others plan anew for each length."""
    import numpy as np

    state, logits = np.empty(model.state_len, np.float32), np.empty(model.logits_len, np.float32)
    chunk = tokens.size if model.library.ours else CHUNK
    call = (tokens.ctypes.data, tokens.size, chunk, None, state.ctypes.data, logits.ctypes.data)
    model.run("rwkv_eval_sequence_in_chunks", *call)


def _digest(logits: NDArray[np.float32]) -> str:
    import hashlib

    return hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()[:16]


def measure_bandwidth(threads: int) -> dict[str, Any]:
    """How fast this machine reads memory with so many threads: libc's memchr over a buffer that no cache holds."""
    import numpy as np

    size = max(64 << 20, BUFFER // threads)
    find = (ctypes.CDLL("msvcrt") if sys.platform == "win32" else ctypes.CDLL(None)).memchr
    find.argtypes, find.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    gate = threading.Barrier(threads + 1)

    def work() -> None:
        buffer = np.full(size, 1, np.uint8)  # its pages belong to the thread that writes them first
        for _ in range(PASSES):
            gate.wait()
            find(buffer.ctypes.data, 0, size)
            gate.wait()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    best = math.inf
    for _ in range(PASSES):
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        best = min(best, time.perf_counter() - start)
    for worker in workers:
        worker.join()
    return {"bytes_per_second": size * threads / best}


def memory(name: str) -> int | None:
    """VmRSS (now) or VmHWM (the most so far) of this process in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)


def losses(model: Model, tokens: Sequence[int]) -> Iterator[float]:
    """The loss of each token but the first, in nats, given those before it."""
    import numpy as np

    state = None
    for before, token in itertools.pairwise(tokens):
        logits, state = model.eval(before, state, state)
        values = logits.astype(np.float64)
        highest = values.max()
        yield float(highest + np.log(np.exp(values - highest).sum()) - values[token])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
