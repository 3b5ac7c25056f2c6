"""Measures librwkv on random models of real sizes: ms a token, prefill, load time, memory, share of the read bandwidth.

    python scripts/bench_engine.py --engine BUILD_FOLDER --folder SCRATCH [--models 7-0.4B,4-0.4B] [--formats f16,q8_0]
                                   [--threads 2] [--json FILE]

Models are made below --folder when they are not there yet (0.1B, 0.4B and 1.5B of version 7, 0.4B of 4, 5.2 and 6; a
0.4B one with all formats takes 3 GB) and kept. The measuring is the `rwkv bench` of the build, one process a model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS: dict[str, dict[str, Any]] = {
    "7-0.1B": {"version": "7", "layers": 12, "width": 768, "vocab": 65536},
    "7-0.4B": {"version": "7", "layers": 24, "width": 1024, "vocab": 65536},
    "7-1.5B": {"version": "7", "layers": 24, "width": 2048, "vocab": 65536},
    "4-0.4B": {"version": "4", "layers": 24, "width": 1024, "vocab": 50277},
    "5.2-0.4B": {"version": "5.2", "layers": 24, "width": 1024, "vocab": 65536},
    "6-0.4B": {"version": "6", "layers": 24, "width": 1024, "vocab": 65536},
}
FORMATS = ("f16", "q8_0", "q5_1", "q5_k", "q5_0", "q4_1", "q4_k", "q4_0")


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
    """Files of a random model in these formats; what is there already stays."""
    import checkpoints

    from rwkvflow.worker.convert import Job, convert

    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{name}-{kind}.bin" for kind in formats}
    missing = {kind: path for kind, path in paths.items() if not path.exists()}
    if missing:
        print(f"making {name}: {', '.join(missing)}", file=sys.stderr)
        source = checkpoints.make(folder / f"{name}.pth", **MODELS[name])
        jobs = [Job(kind, f"ggml-{kind}", path.with_suffix(".part")) for kind, path in missing.items()]
        for outcome in convert(source, engine, jobs):
            if outcome.failure:
                raise SystemExit(f"{name} {outcome.job.format}: {outcome.failure}")
            outcome.job.path.rename(outcome.job.path.with_suffix(".bin"))
        source.unlink()
    return list(paths.values())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure librwkv on random models of real sizes.")
    parser.add_argument("--engine", type=Path, required=True, help="folder of a build: librwkv.so and rwkv")
    parser.add_argument("--folder", type=Path, required=True, help="where models are made and kept")
    parser.add_argument("--models", default="7-0.4B", help=f"of {', '.join(MODELS)}; or all")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--threads", default="2")
    parser.add_argument("--prefill", default="256", help="tokens")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--make-only", action="store_true")
    parser.add_argument("--measure-with", default="", help="a command to put in front, to wait for quiet")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    names = list(MODELS) if options.models == "all" else options.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        raise SystemExit(f"no model {unknown[0]}; there are {', '.join(MODELS)}")
    figures: list[Any] = []
    for name in names:
        paths = make(options.folder, name, options.formats.split(","), library(options.engine))
        if options.make_only:
            continue
        for path in paths:
            command = [*options.measure_with.split(), str(tool(options.engine)), "bench", str(path), "--json"]
            command += ["--threads", options.threads, "--prefill", options.prefill]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{path.name}: {done.stderr}")
            (model,) = json.loads(done.stdout)["models"]
            figures.append({"name": path.stem, **model})
            if len(figures) == 1:
                print(f"{'model':16}  ms/token  tokens/s  share  prefill/s  open ms      MB")
            print(
                f"{path.stem:16} {model['ms_per_token']:9.2f} {model['tokens_per_second']:9.1f}"
                f" {model['bandwidth_share']:6.1%} {model['prefill_tokens_per_second']:10.1f}"
                f" {model['open_ms']:8.1f} {model['peak_rss_bytes'] / 1e6:7.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
