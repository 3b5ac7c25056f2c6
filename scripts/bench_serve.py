"""How fast `rwkvflow serve` is: many clients against one, the state cache, guessing ahead; another server beside it.

    python scripts/bench_serve.py model.bin --library librwkv.so
    python scripts/bench_serve.py model.bin --library librwkv.so --draft small.bin --against http://127.0.0.1:8081

What is printed are ratios of runs that took turns on the same machine, each the median of --rounds. `--against` names
the address of another server with OpenAI's API, such as llama-server, on a file of the same model. That of
llama-cpp-python needs `--interrupt_requests false`, or it ends an answer when another client asks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rwkvflow.engine import Model

ROOT = Path(__file__).resolve().parent.parent
PROSE = (ROOT / "scripts" / "demo_corpus" / "fables.txt").read_text(encoding="utf-8")
CODE = (ROOT / "rwkvflow" / "engine" / "sampling.py").read_text(encoding="utf-8")
TEXTS = {
    "prose": PROSE[:1500],
    "code": CODE[:1500],
    "a summary": PROSE[:1200] + "\n\nIn short: ",
    "text that repeats": "one two three four five six seven. " * 40,
}
PASSES = (1, 2, 4, 5, 8)  # tokens


@contextmanager
def serving(arguments: argparse.Namespace, *options: str, model: Path | None = None) -> Iterator[httpx.Client]:
    """A server on any free port, in a process of its own."""
    argv = [sys.executable, "-m", "rwkvflow", "serve", str(model or arguments.model), "--port", "0", "--slots", "32"]
    argv += ["--library", str(arguments.library), "--threads", str(arguments.threads), *options]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        lines = process.stderr or ()
        address = next((line.split()[0] for line in lines if line.startswith("http")), None)
        if address is None:
            sys.exit("the server did not start")
        with httpx.Client(base_url=address, timeout=600) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def complete(client: httpx.Client, prompt: str, tokens: int, seed: int = 1, **more: Any) -> tuple[float, float, str]:
    """(seconds to the first piece, seconds in all, the text)."""
    # Token 0, which would end the text, never comes: all write the same number of tokens.
    body = {"prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": True, "logit_bias": {"0": -100}, **more}
    begun = time.perf_counter()
    first, text = 0.0, ""
    with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - begun
                text += line
    return first, time.perf_counter() - begun, text


def rate(client: httpx.Client, clients: int, tokens: int) -> float:
    """Tokens a second of so many clients together."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda seed: complete(client, f"{seed} Once there was", tokens, seed), range(clients)))
    return clients * tokens / (time.perf_counter() - begun)


def counter(client: httpx.Client, name: str) -> float:
    """One figure of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"rwkvflow_{name}_total{{"))


def clients_against_one(servers: dict[str, httpx.Client], arguments: argparse.Namespace) -> None:
    """Tokens a second at 1, 8 and 32 clients, of servers that take turns."""
    found: dict[str, dict[int, float]] = {name: {} for name in servers}
    for count in (1, 8, 32):
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(arguments.rounds):
            for name in list(servers) if turn % 2 else reversed(list(servers)):
                rates[name].append(rate(servers[name], count, arguments.tokens))
        for name, each in rates.items():
            found[name][count] = statistics.median(each)
    for name, values in found.items():
        parts = [f"{count} clients {value:.1f} ({value / values[1]:.2f} of one)" for count, value in values.items()]
        print(f"{name}: tokens a second: {', '.join(parts)}", flush=True)


def checking(arguments: argparse.Namespace) -> dict[int, float]:
    """What a pass of so many tokens costs, against one of one: logits after every token."""
    with Model(arguments.model, arguments.library, arguments.threads) as model:
        ids = [token * 977 % model.n_vocab for token in range(1, max(PASSES) + 1)]
        out = [np.empty(model.state_len, np.float32) for _ in ids]
        spent: dict[int, list[float]] = {count: [] for count in PASSES}
        for turn in range(-1, 5 * arguments.rounds):  # the first brings in pages
            for count, seconds in spent.items():
                begun = time.perf_counter()
                model.eval_sequences([ids[:count]], [None], out[:count], range(count))
                if turn >= 0:
                    seconds.append(time.perf_counter() - begun)
        one = statistics.median(spent[1])
        parts = [f"{count} tokens {statistics.median(seconds) / one:.2f}" for count, seconds in spent.items()]
        print(f"a pass of {1e3 * one:.1f} ms for one token, times: {', '.join(parts)}", flush=True)
        return {count: statistics.median(seconds) / one for count, seconds in spent.items()}


def first_token(arguments: argparse.Namespace) -> None:
    """The second turn of a long conversation, with what was read before and without."""
    with serving(arguments) as client:
        words = (PROSE * 10).split()
        length = arguments.conversation
        text = " ".join(words)
        tokens = client.post("/tokenize", json={"content": text}).json()["tokens"][:length]
        text = client.post("/detokenize", json={"tokens": tokens}).json()["content"]
        cold, warm = [], []
        for number in range(arguments.rounds):
            prompt = f"{number} {text}"
            cold.append(complete(client, prompt, 1)[0])
            warm.append(complete(client, prompt + " And then", 1)[0])
        one, two = statistics.median(cold), statistics.median(warm)
        print(
            f"first token after {length} tokens: {one:.3f} s, known before: {two:.4f} s ({one / two:.1f} times less)",
            flush=True,
        )


def guessing(arguments: argparse.Namespace, draft: str, costs: dict[int, float]) -> None:
    """The share of guesses kept, and the speed against none; for --trained also what its guesses bring the model."""
    model = arguments.trained or arguments.model
    options = ("--draft", draft, "--draft-tokens", "4", "--state-cache", "0MiB")
    with (
        serving(arguments, "--state-cache", "0MiB", model=model) as plain,
        serving(arguments, *options, model=model) as ahead,
    ):
        for name, text in TEXTS.items():
            ratios, names = [], ("guessed", "kept", "generated")
            before = [counter(ahead, each) for each in names]
            for seed in range(arguments.rounds):
                first, all_in, one = complete(plain, text, arguments.tokens, seed, temperature=0.5)
                first_ahead, all_ahead, two = complete(ahead, text, arguments.tokens, seed, temperature=0.5)
                ratios.append((all_in - first) / (all_ahead - first_ahead))
                if texts_of(one) != texts_of(two):
                    sys.exit("guessing ahead changed a text")
            now = [counter(ahead, each) for each in names]
            guessed, kept, wrote = (one - other for one, other in zip(now, before, strict=True))
            share = f"{100 * kept / guessed:.0f} % of {guessed:.0f} guesses kept" if guessed else "no guesses"
            told = f"{share}, {statistics.median(ratios):.2f} times the speed"
            if arguments.trained and draft == "lookup":
                passes = wrote - kept  # each brings one token more than guesses that it keeps
                cost = float(np.interp(1 + guessed / passes, list(costs), list(costs.values())))
                told += (
                    f"; {wrote / passes:.2f} tokens a pass, which costs {cost:.2f}: {wrote / passes / cost:.2f} times"
                )
            print(f"--draft {Path(draft).name}, {name}: {told}", flush=True)


def texts_of(lines: str) -> str:
    """The text in a stream's chunks."""
    return "".join(json.loads(part)["choices"][0]["text"] for part in lines.split("data: ") if part)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--draft", type=Path, help="a smaller model with the same vocabulary")
    parser.add_argument("--trained", type=Path, help="a model whose texts make sense, for the share of guesses kept")
    parser.add_argument("--against", help="address of another server")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--conversation", type=int, default=2000, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    costs = checking(arguments)
    with serving(arguments) as client, ExitStack() as stack:
        servers = {"rwkvflow": client}
        if arguments.against:
            other = httpx.Client(base_url=arguments.against, timeout=600)
            servers[arguments.against] = stack.enter_context(other)
        clients_against_one(servers, arguments)
    first_token(arguments)
    for draft in ["lookup", *([str(arguments.draft)] if arguments.draft else [])]:
        guessing(arguments, draft, costs)


if __name__ == "__main__":
    main()
