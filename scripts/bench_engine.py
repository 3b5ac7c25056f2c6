"""Measures librwkv on random models of real sizes against its targets, and prints a table of target, figure and met.

    python scripts/bench_engine.py --engine BUILD_FOLDER --folder SCRATCH [--only 0.4B-v7,0.4B-v4] [--types f16,q8_0]
                                   [--llama FOLDER] [--threads 2] [--prefill 256] [--json FILE]
    python scripts/bench_engine.py --engine BUILD_FOLDER --folder SCRATCH --only all --types f16,q8_0 --no-batches
                                   --threads 1,2 --prefill 32,256,1024,4096 --markdown FILE

A model is made below --folder in one type, measured and removed, then in the next type: at most 6.2 GB are there at a
time (of 1.5B: the checkpoint and its F16; twice that of 3B). --keep leaves the files for the next run, and --make-only
makes them. With --json, figures of earlier runs in that file stay, so the table can be measured in parts.

Decoding is measured by the `rwkv bench` of the build, one process a model: passes of plain reading over a large buffer
and tokens alternate, and the share of the bandwidth is that of the fastest token to the fastest pass, which is what the
machine does undisturbed; the share of the medians stands beside it. Prefill is a share of what the processor multiplies
at most, in a loop of nothing but multiply-adds, in the same process.

One token each of 8 and of 32 sequences takes turns with single tokens, in this process: `batch` is how many times as
fast a token is then.

--llama measures llama.cpp beside it, in turns, on a GGUF of the same checkpoint; it is built below that folder when it
is not there yet, with its own defaults for the very processor that builds it. --llama-json writes librwkv's figures in
the form of llama.cpp's own llama-bench.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_llama

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"0.1B": (12, 768), "0.4B": (24, 1024), "1.5B": (24, 2048), "3B": (32, 2560)}  # layers and width
MODELS: dict[str, dict[str, Any]] = {
    f"{size}-v{version}": {"version": version, "layers": layers, "width": width, "vocab": vocab}
    for version, vocab in (("7", 65536), ("4", 50277), ("5.2", 65536), ("6", 65536))
    for size, (layers, width) in SIZES.items()
}
HELD = ("0.1B-v7", "0.4B-v7", "1.5B-v7", "0.4B-v4", "0.4B-v5.2", "0.4B-v6")  # measured unless others are named
TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
SUPER = ("q6_k", "q5_k", "q4_k")  # where the build has them

SHARES = {"f16": 0.9, "q8_0": 0.9, "q5_1": 0.75, "q5_0": 0.75, "q4_1": 0.75, "q4_0": 0.75}
SMALL = tuple(name for name in MODELS if name.startswith("0.1B"))  # fit the caches in part: no share is asked for
HELD_PROMPT = 256  # tokens: no share is asked of other prompts
PREFILL_SHARES = {"f16": 0.8}  # of what multipliers can do; the others:
PREFILL_SHARE = 0.6
OPEN_MS = 50
BATCHES = (8, 32)
BATCH_ROUNDS = 7
LLAMA_PREFILL = 2.5
RWKV_CPP_PREFILL = 6

# rwkv.cpp cannot be had from a package registry, so it cannot take turns here. Both it and llama.cpp were measured once
# on two cores of a Zen 4 server, on the same 0.45B version 7 model: how long rwkv.cpp takes where llama.cpp takes 1.
RWKV_CPP = {"f16": 27.5 / 23.4, "q8_0": 24.0 / 19.9, "q5_1": 29.0 / 22.9, "q4_0": 25.0 / 15.0}
RWKV_CPP_READING = 217.0 / 83.0  # of a prompt, Q8_0
CAVEAT = "estimated: llama.cpp's time in this run, times the ratio of both on another machine"


@dataclass(frozen=True)
class Target:
    """What was wanted and what it came to."""

    name: str
    wanted: str
    figure: str
    met: bool
    note: str = ""


def library(build: Path) -> Path:
    """The library in a folder of a build or of an engine step."""
    for path in (build / "librwkv.so", build / "lib" / "librwkv.so", build / "librwkv.dylib"):
        if path.is_file():
            return path
    raise SystemExit(f"no librwkv in {build}")


def tool(build: Path) -> Path:
    """The rwkv tool in such a folder."""
    for path in (build / "rwkv", build / "bin" / "rwkv"):
        if path.is_file():
            return path
    raise SystemExit(f"no rwkv tool in {build}")


def make(folder: Path, name: str, formats: list[str], engine: Path) -> list[Path]:
    """A random model in these formats; what is there already stays, and so does the checkpoint they come from."""
    from rwkvflow.worker.conversion.convert import ConversionJob, convert
    from tests.helpers import checkpoints

    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{name}-{kind}{'.gguf' if kind.startswith('gguf') else '.bin'}" for kind in formats}
    missing = {kind: path for kind, path in paths.items() if not path.exists()}
    if missing:
        print(f"making {name}: {', '.join(missing)}", file=sys.stderr)
        source = folder / f"{name}.pth"
        if not source.exists():
            checkpoints.make(source.with_suffix(".part.pth"), **MODELS[name]).rename(source)
        jobs = [ConversionJob(kind, kind, path.with_suffix(".part")) for kind, path in missing.items()]
        for outcome in convert(source, engine, jobs):
            if outcome.failure:
                raise SystemExit(f"{name} {outcome.job.format}: {outcome.failure}")
            outcome.job.path.rename(missing[outcome.job.format])
    return list(paths.values())


def measure(options: argparse.Namespace, path: Path, threads: int, prefill: int) -> dict[str, Any]:
    """What `rwkv bench` says of a file."""
    command = [*options.measure_with.split(), str(tool(options.engine)), "bench", str(path), "--json"]
    command += ["--threads", str(threads), "--prefill", str(prefill)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{path.name}: {done.stderr}")
    answer = json.loads(done.stdout)
    (figures,) = answer["models"]
    del figures["path"]
    return {**figures, "kernels": answer["kernels"], "threads": answer["threads"]}


def batches(options: argparse.Namespace, path: Path) -> dict[str, float]:
    """How many times as fast a token is in a batch of so many as alone."""
    import numpy as np

    from rwkvflow.engine import Model

    seconds: dict[int, list[float]] = {1: [], **{count: [] for count in BATCHES}}
    with Model(path, library(options.engine), options.threads) as model:
        ids = np.arange(max(BATCHES), dtype=np.uint32) * 977 % model.n_vocab
        states = np.tile(model.init_state(), (ids.size, 1))
        for turn in range(-1, BATCH_ROUNDS):  # the first brings in pages
            for count, spent in seconds.items():
                start = time.perf_counter()
                model.eval_batch(ids[:count], states[:count], out=states[:count])
                if turn >= 0:
                    spent.append((time.perf_counter() - start) / count)
    alone = statistics.median(seconds[1])
    return {str(count): alone / statistics.median(seconds[count]) for count in BATCHES}


def several(options: argparse.Namespace, name: str, kind: str, path: Path) -> list[dict[str, Any]]:
    """A file with each number of threads and each length of a prompt."""
    rows = []
    for threads, prefill in itertools.product(options.threads, options.prefill):
        found = {"model": name, "type": kind, **measure(options, path, threads, prefill)}
        rows.append(found)
        print(row(found), flush=True)
    return rows


def work(options: argparse.Namespace, name: str, kind: str) -> list[dict[str, Any]]:
    """One model in one type: made, measured, removed."""
    engine = library(options.engine)
    beside = options.llama is not None and MODELS[name]["version"] in ("6", "7") and f"gguf-{kind}" in known()
    (path,) = make(options.folder, name, [f"ggml-{kind}"], engine)
    rows: list[dict[str, Any]] = []
    if not options.make_only and not options.only_llama:
        rows = several(options, name, kind, path)
        if options.batches:
            rows[0]["batch"] = batches(options, path)
            print(f"    batches of {batch_row(rows[0]['batch'])}", flush=True)
    if beside:
        (gguf,) = make(options.folder, name, [f"gguf-{kind}"], engine)
        if not options.make_only:
            program = bench_llama.build(options.llama)
            threads, prefill = options.threads[0], options.prefill[0]
            against = bench_llama.compare(engine, path, program, gguf, threads, prefill)
            rows = rows or [{"model": name, "type": kind, "threads": threads, "prefill_tokens": prefill}]
            rows[0]["llama.cpp"] = against
            print(f"    llama.cpp: {beside_row(against)}", flush=True)
        if not options.keep:
            gguf.unlink()
    if not options.keep:
        path.unlink()
    return rows


def known() -> set[str]:
    """The formats there are."""
    from rwkvflow.worker.formats import FORMATS

    return set(FORMATS)


HEADER = "model      type  threads ms/token (median)  share (median)  prompt tokens/s (median)  share  open ms     MB"


def row(found: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{found['model']:10} {found['type']:5} {found['threads']:7}"
        f" {found['ms_per_token']:8.2f} {found['ms_per_token_median']:8.2f}"
        f" {found['bandwidth_share']:6.1%} {found['bandwidth_share_median']:8.1%} {found['prefill_tokens']:7}"
        f" {found['prefill_tokens_per_second']:8.1f} {found['prefill_tokens_per_second_median']:8.1f}"
        f" {found['prefill_share']:6.1%} {found['open_ms']:8.1f} {found['peak_rss_bytes'] / 1e6:6.0f}"
    )


def batch_row(batch: dict[str, float]) -> str:
    """How many times as fast a token is in batches."""
    return ", ".join(f"{count}: {times:.1f} times" for count, times in batch.items())


def markdown(rows: list[dict[str, Any]]) -> str:
    """The shares of what multipliers can do, and tokens a second: a line a model and type, a column a prompt."""
    lengths = sorted({found["prefill_tokens"] for found in rows if "prefill_share" in found})
    lines = ["| | threads | " + " | ".join(f"{length:,} tokens" for length in lengths) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(lengths))
    table: dict[tuple[str, str, int], dict[int, str]] = {}
    for found in (found for found in rows if "prefill_share" in found):
        cells = table.setdefault((found["model"], found["type"], found["threads"]), {})
        speed = found["prefill_tokens_per_second"]
        cells[found["prefill_tokens"]] = f"{found['prefill_share']:.0%}, {speed:.0f}/s"
    for (name, kind, threads), cells in table.items():
        figures = " | ".join(cells.get(length, "") for length in lengths)
        lines.append(f"| {name} {kind.upper()} | {threads} | {figures} |")
    return "\n".join(lines) + "\n"


def beside_row(against: dict[str, Any]) -> str:
    """What both took in turns."""
    ours, theirs = against["ours"], against["theirs"]
    speeds = [f"{side['prefill_tokens_per_second']:.0f}" for side in (theirs, ours)]
    return (
        f"{theirs['ms_per_token']:.2f} ms a token to {ours['ms_per_token']:.2f} ({against['decode_ratio']:.2f} times),"
        f" prefill {speeds[0]} tokens/s to {speeds[1]} ({against['prefill_ratio']:.2f} times)"
    )


def targets(found: dict[str, Any]) -> Iterator[Target]:
    """Each target that this model and type are held against."""
    kind, name = found["type"], f"{found['model']} {found['type']}"
    if "bandwidth_share" in found:
        share = found["bandwidth_share"]
        if kind in SHARES and found["model"] not in SMALL:
            note = f"{found['bandwidth_share_median']:.0%} of medians; kernels: {found['kernels']}"
            yield Target(
                f"{name}: decode", f">= {SHARES[kind]:.0%} of bandwidth", f"{share:.1%}", share >= SHARES[kind], note
            )
        if found["model"] not in SMALL and found["prefill_tokens"] == HELD_PROMPT:
            least, reading = PREFILL_SHARES.get(kind, PREFILL_SHARE), found["prefill_share"]
            yield Target(f"{name}: prefill", f">= {least:.0%} of multipliers", f"{reading:.1%}", reading >= least)
        opened = found["open_ms"]
        yield Target(f"{name}: opening", f"< {OPEN_MS} ms", f"{opened:.1f} ms", opened < OPEN_MS)
    against = found.get("llama.cpp")
    if against is None or found["model"] in SMALL:
        return
    decode, prefill = against["decode_ratio"], against["prefill_ratio"]
    yield Target(f"{name}: decode, llama.cpp", "> 1", f"{decode:.2f}", decode > 1)
    yield Target(f"{name}: prefill, llama.cpp", f">= {LLAMA_PREFILL}", f"{prefill:.2f}", prefill >= LLAMA_PREFILL)
    if found["model"] != "0.4B-v7" or kind not in RWKV_CPP:
        return
    ratio = decode * RWKV_CPP[kind]
    yield Target(f"{name}: decode, rwkv.cpp", "> 1", f"{ratio:.2f}", ratio > 1, CAVEAT)
    if kind == "q8_0":
        ratio = prefill * RWKV_CPP_READING
        wanted = f">= {RWKV_CPP_PREFILL}"
        yield Target(f"{name}: prefill, rwkv.cpp", wanted, f"{ratio:.2f}", ratio >= RWKV_CPP_PREFILL, CAVEAT)


def report(rows: list[dict[str, Any]]) -> list[Target]:
    """Prints target, figure and met of all rows."""
    out = [target for found in rows for target in targets(found)]
    if out:
        widths = [max(len(getattr(t, key)) for t in out) for key in ("name", "wanted", "figure")]
        print(f"\n{'target':{widths[0]}}  {'wanted':{widths[1]}}  {'figure':>{widths[2]}}  met")
        for t in out:
            line = f"{t.name:{widths[0]}}  {t.wanted:{widths[1]}}  {t.figure:>{widths[2]}}  {'yes' if t.met else 'NO '}"
            print(f"{line}  {t.note}".rstrip())
        print(f"{sum(t.met for t in out)} of {len(out)} targets are met")
    return out


def llama_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What llama-bench's own JSON would say of the same: of each model a row for a prompt and one for a token."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    out = []
    for found in (found for found in rows if "prefill_ms" in found):
        about = {
            "cpu_info": names[0] if names else "",
            "backends": f"librwkv {found['kernels']}",
            "model_type": f"RWKV {found['version']} {found['model']} {found['type'].upper()}",
            "model_size": int(found["file_bytes"]),
            "n_threads": found["threads"],
        }
        prompt, single = found["prefill_tokens"], [found["ms_per_token"] * 1e6]
        for tokens, generated, samples in ((prompt, 0, [ms * 1e6 for ms in found["prefill_ms"]]), (0, 1, single)):
            speeds = [(tokens or generated) * 1e9 / each for each in samples]
            out.append(
                {
                    **about,
                    "n_prompt": tokens,
                    "n_gen": generated,
                    "avg_ns": round(statistics.mean(samples)),
                    "stddev_ns": round(statistics.pstdev(samples)),
                    "avg_ts": statistics.mean(speeds),
                    "stddev_ts": statistics.pstdev(speeds),
                    "samples_ns": [round(each) for each in samples],
                    "samples_ts": speeds,
                }
            )
    return out


def merged(path: Path | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the file, with those of this run in their place or behind them."""
    old = json.loads(path.read_text())["figures"] if path is not None and path.exists() else []

    def key_of(found: dict[str, Any]) -> tuple[str, str, int, int]:
        return found["model"], found["type"], found["threads"], found["prefill_tokens"]

    table = {key_of(each): each for each in old}
    for found in rows:
        key = key_of(found)
        table[key] = {**table.get(key, {}), **found}
    order = {name: number for number, name in enumerate(MODELS)}
    return sorted(table.values(), key=lambda each: order[each["model"]])


def chosen(text: str, among: tuple[str, ...], what: str) -> list[str]:
    """The names of a list with commas. Exits where there is no such."""
    names = text.split(",")
    if unknown := [name for name in names if name not in among]:
        raise SystemExit(f"no {what} {unknown[0]}; there are {', '.join(among)}")
    return names


def counts(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """The command line."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    parser = argparse.ArgumentParser(description="Measure librwkv on random models of real sizes against its targets.")
    parser.add_argument("--engine", type=Path, required=True, help="folder of a build: librwkv.so and rwkv")
    parser.add_argument("--folder", type=Path, required=True, help="where models are made")
    parser.add_argument(
        "--only", default=",".join(HELD), help=f"models, with commas, of {', '.join(MODELS)}, or all; else %(default)s"
    )
    parser.add_argument("--types", default=",".join((*TYPES, *(k for k in SUPER if f"ggml-{k}" in known()))))
    parser.add_argument("--threads", type=counts, default=[2], help="one number, or some with commas")
    parser.add_argument("--prefill", type=counts, default=[256], help="tokens of a prompt; the same")
    parser.add_argument(
        "--llama", type=Path, metavar="FOLDER", help="measure llama.cpp too; built below FOLDER on demand"
    )
    parser.add_argument("--only-llama", action="store_true", help="nothing but the turns with llama.cpp")
    parser.add_argument("--no-batches", dest="batches", action="store_false", help="leave batches out")
    parser.add_argument("--markdown", type=Path, help="where to write a table of prompts")
    parser.add_argument("--json", type=Path, help="where to write the figures, and to find those of earlier parts")
    parser.add_argument("--llama-json", type=Path, help="where to write librwkv's figures as llama-bench would")
    parser.add_argument("--keep", action="store_true", help="leave the models for the next run")
    parser.add_argument("--make-only", action="store_true", help="measure nothing (and keep the models)")
    parser.add_argument("--measure-with", default="", help="a command to put before `rwkv bench`, to wait for quiet")
    options = parser.parse_args()
    options.keep |= options.make_only
    only = ",".join(MODELS) if options.only == "all" else options.only
    names, kinds = chosen(only, tuple(MODELS), "model"), chosen(options.types, (*TYPES, *SUPER), "type")
    rows: list[dict[str, Any]] = []
    print(HEADER)
    for name in names:
        for kind in kinds:
            rows += work(options, name, kind)
        if not options.keep:
            (options.folder / f"{name}.pth").unlink(missing_ok=True)
    if options.llama_json:
        options.llama_json.write_text(json.dumps(llama_rows(rows), indent=2) + "\n")
    rows = merged(options.json, rows)
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    results = report(rows)
    if options.json:
        content = {"figures": rows, "targets": [vars(target) for target in results]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
