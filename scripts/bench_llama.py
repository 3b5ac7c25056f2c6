"""llama.cpp beside librwkv in one run, taking turns: for bench_engine.py --llama, and its server for bench_serve.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parent / "llama_bench"
DECODE = 16  # tokens of one turn
TURNS = 8
SERVER = ("common", "tools", "scripts")  # of its sources, what its server takes besides
PAUSE = 0.05  # seconds after which the other one's threads sleep


def build(folder: Path, target: str = "llama-turns") -> Path:
    """The program of llama_bench/, or `llama-server`, built below `folder` for this very processor by its compilers.

    llama.cpp's sources are those that rwkvflow pins: the source package of llama-cpp-python.
    """
    if (program := _built(folder, target)) is not None:
        return program
    from rwkvflow.lock.pins import package
    from rwkvflow.net.packages.source_package import fetch_package
    from rwkvflow.stages.llama import KEPT, ROOT

    source, scratch = folder / "llama.cpp", folder / "scratch"
    if not (source / "tools").is_dir():
        shutil.rmtree(source, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        print("fetching llama.cpp", file=sys.stderr)
        fetch_package(
            package("llama.cpp"),
            source,
            root=ROOT,
            kept=(*KEPT, *SERVER),
            scratch=scratch,
            cancel=threading.Event(),
        )
    print("building llama.cpp for this processor (minutes)", file=sys.stderr)
    tools = [str(Path(sys.executable).with_name("cmake")), "cmake"]
    cmake = next((tool for tool in tools if Path(tool).is_file()), "cmake")
    subprocess.run([cmake, "-S", PROJECT, "-B", folder / "build", f"-DLLAMA_SOURCE={source}"], check=True, stdout=2)
    command = [cmake, "--build", str(folder / "build"), "--target", target, "--parallel", str(os.cpu_count() or 1)]
    subprocess.run(command, check=True, stdout=2)
    if (program := _built(folder, target)) is None:
        raise SystemExit(f"{target} was not built")
    return program


def _built(folder: Path, target: str) -> Path | None:
    return next((path for path in sorted((folder / "build").rglob(target)) if path.is_file()), None)


class Theirs:
    """llama.cpp with a GGUF, in a process that waits to be told what to do."""

    def __init__(self, program: Path, model: Path, threads: int) -> None:
        command = [str(program), str(model), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load = self._answer()

    def _answer(self) -> float:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"llama.cpp ended with exit code {self._process.wait()}")
        return float(line)

    def run(self, kind: str, count: int) -> float:
        """Seconds of "decode" or "prefill" of so many tokens."""
        pipe = _pipe(self._process.stdin)
        pipe.write(f"{kind} {count}\n")
        pipe.flush()
        return self._answer()

    def close(self) -> None:
        """The end of the process."""
        _pipe(self._process.stdin).close()
        self._process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise SystemExit("no pipe to llama.cpp")
    return pipe


class Ours:
    """librwkv in this process, with the same tokens."""

    def __init__(self, library: Path, model: Path, threads: int) -> None:
        import numpy as np

        from rwkvflow.engine import Model

        self._model = Model(model, library, threads)
        self._state = np.empty(self._model.state_len, np.float32)
        self._logits = np.empty(self._model.logits_len, np.float32)
        self._at = 0

    def run(self, kind: str, count: int) -> float:
        """Seconds of "decode" or "prefill" of so many tokens."""
        import numpy as np

        model, many = self._model, kind == "prefill"
        if many or not self._at:
            self._at = 0
        ids = ((np.arange(self._at, self._at + count, dtype=np.uint64) * 2654435761 + 17) % model.n_vocab).astype("u4")
        state, logits = self._state.ctypes.data, self._logits.ctypes.data
        before = None if many or not self._at else state
        self._at += count
        start = time.perf_counter()
        if many:
            arguments = (ids.ctypes.data, count, count, before, state, logits)
            model.run("rwkv_eval_sequence_in_chunks", *arguments)
        else:
            for token in ids.tolist():
                model.run("rwkv_eval", token, before, state, logits)
                before = state
        return time.perf_counter() - start

    def close(self) -> None:
        """Closes the model."""
        self._model.close()


def compare(library: Path, ggml: Path, program: Path, gguf: Path, threads: int, prompt: int) -> dict[str, Any]:
    """Best and median ms per token and tokens per second of both, and ratios of the best (above 1: librwkv leads)."""
    sides: dict[str, Ours | Theirs] = {"ours": Ours(library, ggml, threads), "theirs": Theirs(program, gguf, threads)}
    seconds: dict[str, dict[str, list[float]]] = {side: {"decode": [], "prefill": []} for side in sides}
    for turn in range(-1, TURNS):  # the first brings in pages and starts threads
        for kind, count in (("decode", DECODE), ("prefill", prompt)):
            if kind == "prefill" and turn % 2:
                continue
            for side in sides if turn % 2 else reversed(sides):
                time.sleep(PAUSE)
                spent = sides[side].run(kind, count) / count
                if turn >= 0:
                    seconds[side][kind].append(spent)
    for opened in sides.values():
        opened.close()
    out: dict[str, Any] = {
        "prefill_tokens": prompt,
        "bytes": {"ours": ggml.stat().st_size, "theirs": gguf.stat().st_size},
    }
    for side, kinds in seconds.items():
        decode, prefill = sorted(kinds["decode"]), sorted(kinds["prefill"])
        out[side] = {
            "ms_per_token": decode[0] * 1e3,
            "ms_per_token_median": decode[len(decode) // 2] * 1e3,
            "prefill_tokens_per_second": 1 / prefill[0],
            "prefill_tokens_per_second_median": 1 / prefill[len(prefill) // 2],
        }
    out["decode_ratio"] = out["theirs"]["ms_per_token"] / out["ours"]["ms_per_token"]
    out["prefill_ratio"] = out["ours"]["prefill_tokens_per_second"] / out["theirs"]["prefill_tokens_per_second"]
    return out
