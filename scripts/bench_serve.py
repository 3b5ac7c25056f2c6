"""How fast `rwkvflow serve` is: many clients against one, the state cache, guessing ahead; another server beside it.

    python scripts/bench_serve.py --made FOLDER --library librwkv.so --against llama-server
    python scripts/bench_serve.py model.bin --library librwkv.so --draft small.bin --against http://127.0.0.1:8081

`--made` makes the models of scripts/wide_demo.py in a folder, where they are not yet, and measures on those: the text
of a trained model, at the cost of one of 0.4B. `--against llama-server` builds llama.cpp's own for this processor in
that folder, from the sources that rwkvflow pins. It may also be the address of any server with OpenAI's API on the same
model; that of llama-cpp-python needs `--interrupt_requests false`, or it ends an answer when another client asks.

Servers take turns on the same machine; a figure is the median of --rounds, with the least and the most in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_llama
import httpx
import numpy as np
import wide_demo

from rwkvflow.engine import Model

ROOT = Path(__file__).resolve().parent.parent
QUALITY = ROOT / "rwkvflow" / "worker" / "data" / "quality"
PARTS = ("clients", "first", "passes", "guesses")
PASSES = (1, 2, 4, 5, 8)  # tokens
OTHERS = {"ignore_eos": True}  # what llama-server takes besides, so that every answer has its full length


def texts() -> dict[str, str]:
    """What guesses are measured on: prompts by kind, none of which was trained on."""
    prose, code, talk = (
        (QUALITY / f"{name}.txt").read_text(encoding="utf-8") for name in ("prose", "code", "dialogue")
    )
    story = talk[:600].rpartition("\n")[0]
    return {"prose": prose[:600], "code": code[:600], "a summary": f"{story}\n\nIn short: {story[:120]}"}


@dataclass(frozen=True)
class Server:
    """A server that runs, and the process that it is, where it is ours to look at."""

    client: httpx.Client
    process: int | None = None

    def spent(self) -> float:
        """Seconds of processor time so far, of all threads."""
        if self.process is None:
            return 0.0
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(arguments: argparse.Namespace, *options: str) -> Iterator[Server]:
    """Ours, on any free port, in a process of its own."""
    argv = [sys.executable, "-m", "rwkvflow", "serve", str(arguments.model), "--port", "0", "--slots", "32"]
    argv += ["--library", str(arguments.library), "--threads", str(arguments.threads), *options]
    argv += ["--tokenizer", str(arguments.tokenizer)] if arguments.tokenizer else []
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        lines = process.stderr or ()
        address = next((line.split()[0] for line in lines if line.startswith("http")), None)
        if address is None:
            sys.exit("the server did not start")
        with _client(address) as client:
            yield Server(client, process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def other_server(arguments: argparse.Namespace) -> Iterator[Server]:
    """llama.cpp's server on the GGUF of the same model, or whatever listens at an address."""
    if arguments.against != "llama-server":
        with _client(arguments.against) as client:
            yield Server(client)
        return
    program = bench_llama.build(arguments.made or arguments.gguf.parent, "llama-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [str(program), "-m", str(arguments.gguf), "--port", str(port), "--threads", str(arguments.threads)]
    argv += ["--parallel", "32", "--ctx-size", str(32 * 2048)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with _client(f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 120
            while not _healthy(client):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit("llama-server did not start")
                time.sleep(0.2)
            yield Server(client, process.pid)
    finally:
        process.terminate()
        process.wait()


def _client(address: str) -> httpx.Client:
    """A connection that was idle for a second is not used again: llama-server closes it after five."""
    return httpx.Client(base_url=address, timeout=600, limits=httpx.Limits(keepalive_expiry=1))


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def complete(client: httpx.Client, prompt: str, tokens: int, seed: int = 1, **more: Any) -> tuple[float, str, int]:
    """(seconds to the first piece, the text, how many tokens it has)."""
    # Token 0, which would end the text, never comes: all write the same number of tokens.
    body = {"prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": True, "logit_bias": {"0": -100}, **more}
    body["stream_options"] = {"include_usage": True}
    begun = time.perf_counter()
    first, text, count = 0.0, "", 0
    with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - begun
                found = json.loads(line[6:])
                text += "".join(choice["text"] for choice in found["choices"])
                count = (found.get("usage") or {}).get("completion_tokens", count)
    return first, text, count


def rate(server: Server, clients: int, tokens: int, more: dict[str, Any]) -> float:
    """Tokens a second of so many clients together."""
    begun = time.perf_counter()

    def one(seed: int) -> int:
        return complete(server.client, f"{seed} Once there was", tokens, seed, **more)[2]

    with ThreadPoolExecutor(clients) as pool:
        written = sum(pool.map(one, range(clients)))
    return written / (time.perf_counter() - begun)


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """The median, the least and the most."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}-{max(values):{form}}]"


def clients_against_one(arguments: argparse.Namespace) -> None:
    """Tokens a second at 1, 8 and 32 clients, of servers that take turns."""
    with ExitStack() as stack:
        servers = {"rwkvflow": stack.enter_context(serving(arguments))}
        if arguments.against:
            servers[arguments.against] = stack.enter_context(other_server(arguments))
        more = {name: {} if name == "rwkvflow" else OTHERS for name in servers}
        for name, server in servers.items():
            rate(server, 1, 4, more[name])  # brings in pages
        found: dict[str, dict[int, list[float]]] = {name: {1: [], 8: [], 32: []} for name in servers}
        for count in (1, 8, 32):
            for turn in range(arguments.rounds):
                for name in list(servers) if turn % 2 else reversed(list(servers)):
                    found[name][count].append(rate(servers[name], count, arguments.tokens, more[name]))
    for name, values in found.items():
        one = statistics.median(values[1])
        parts = [
            f"{count}: {spread(each)} ({statistics.median(each) / one:.2f} of one)" for count, each in values.items()
        ]
        print(f"{name}: tokens a second by clients: {'; '.join(parts)}", flush=True)


def checking(arguments: argparse.Namespace) -> None:
    """What a pass of so many tokens costs, against one of one: logits after every token."""
    with Model(arguments.model, arguments.library, arguments.threads) as model:
        ids = [1 + token * 37 % 200 for token in range(1, max(PASSES) + 1)]
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


def first_token(arguments: argparse.Namespace) -> None:
    """The second turn of a long conversation, with what was read before and without."""
    with serving(arguments) as server:
        client = server.client
        text = (QUALITY / "dialogue.txt").read_text(encoding="utf-8")
        length = arguments.conversation
        tokens = client.post("/tokenize", json={"content": text}).json()["tokens"][:length]
        text = client.post("/detokenize", json={"tokens": tokens}).json()["content"]
        cold, warm = [], []
        for number in range(arguments.rounds):
            prompt = f"{number} {text}"
            cold.append(complete(client, prompt, 1)[0])
            warm.append(complete(client, prompt + " And then", 1)[0])
        times = statistics.median(cold) / statistics.median(warm)
        told = f"{spread(cold, '.3f')} s, known before: {spread(warm, '.4f')} s ({times:.1f} times less)"
        print(f"first token after {length} tokens: {told}", flush=True)


def counter(client: httpx.Client, name: str) -> float:
    """One figure of /metrics."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"rwkvflow_{name}_total{{"))


def guessing(arguments: argparse.Namespace, drafts: Sequence[str]) -> None:
    """The share of guesses kept, and the speed against none: by the clock, and in processor time.

    A text that repeats is one that the model repeats: what it writes at temperature 0 behind a few words, and goes on
    with at that. A small model tells the same stories again and again.
    """
    with serving(arguments) as plain:
        prompts = {name: (text, arguments.temperature) for name, text in texts().items()}
        _, told, _ = complete(plain.client, "Once there was", 400, temperature=0)
        prompts["text that repeats"] = (told, 0.0)
        for draft in drafts:
            _guessing(arguments, draft, plain, prompts)


def _guessing(arguments: argparse.Namespace, draft: str, plain: Server, prompts: dict[str, tuple[str, float]]) -> None:
    options = ("--draft", draft, "--draft-tokens", str(arguments.draft_tokens))
    names = ("guessed", "kept", "generated")
    with serving(arguments, *options) as ahead:
        for name, (text, temperature) in prompts.items():
            before = [counter(ahead.client, each) for each in names]
            clock, processor = [], []
            for seed in range(arguments.rounds):
                found: list[tuple[float, float, str]] = []
                for server in (plain, ahead) if seed % 2 else (ahead, plain):
                    found.append(_after_prompt(server, text, arguments.guessed_tokens, seed, temperature))
                (clock_ahead, spent_ahead, one), (clock_plain, spent_plain, two) = found[:: -1 if seed % 2 else 1]
                if one != two:
                    sys.exit(f"guessing ahead changed a text: {name}, seed {seed}")
                clock.append(clock_plain / clock_ahead)
                processor.append(spent_plain / spent_ahead)
            now = [counter(ahead.client, each) for each in names]
            guessed, kept, wrote = (one - other for one, other in zip(now, before, strict=True))
            share = f"{100 * kept / guessed:.0f} % of {guessed:.0f} guesses kept" if guessed else "no guesses"
            passes = f"{wrote / max(1, wrote - kept):.2f} tokens a pass"
            speed = f"{spread(clock, '.2f')} times the speed, {spread(processor, '.2f')} in processor time"
            print(f"--draft {Path(draft).name}, {name}: {share}, {passes}, {speed}", flush=True)


def _after_prompt(server: Server, prompt: str, tokens: int, seed: int, temperature: float) -> tuple[float, float, str]:
    """(seconds, of processor time, the text) of an answer to a prompt that the server has read before."""
    complete(server.client, prompt, 1, seed, temperature=temperature)
    begun, spent = time.perf_counter(), server.spent()
    _, text, _ = complete(server.client, prompt, tokens, seed, temperature=temperature)
    return time.perf_counter() - begun, server.spent() - spent, text


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--made", type=Path, metavar="FOLDER", help="make the models of scripts/wide_demo.py there")
    parser.add_argument("--tokenizer", type=Path, help="the vocabulary, where the model's size does not tell it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--draft", type=Path, help="a smaller model with the same vocabulary")
    parser.add_argument("--draft-tokens", type=int, default=3)
    parser.add_argument("--against", help="llama-server, or the address of another server")
    parser.add_argument("--gguf", type=Path, help="the same model, for llama-server")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer of many clients")
    parser.add_argument("--guessed-tokens", type=int, default=200, help="of each answer that is guessed ahead")
    parser.add_argument("--temperature", type=float, default=0.5, help="of those")
    parser.add_argument("--conversation", type=int, default=2000, help="tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, action="append", help="of what is measured; all by default")
    arguments = parser.parse_args()
    if arguments.made:
        wide_demo.make(arguments.made, arguments.library)
        arguments.model, arguments.gguf = arguments.made / "wide.bin", arguments.made / "wide.gguf"
        arguments.draft, arguments.tokenizer = arguments.made / "small.bin", arguments.made / "tokenizer"
    if arguments.model is None or (arguments.against == "llama-server" and arguments.gguf is None):
        parser.error("a model is needed, and for llama-server a GGUF of it; or --made")
    drafts = ["lookup", *([str(arguments.draft)] if arguments.draft else [])]
    parts: dict[str, Callable[[], object]] = {
        "clients": lambda: clients_against_one(arguments),
        "first": lambda: first_token(arguments),
        "passes": lambda: checking(arguments),
        "guesses": lambda: guessing(arguments, drafts),
    }
    for name in arguments.only or PARTS:
        parts[name]()


if __name__ == "__main__":
    main()
