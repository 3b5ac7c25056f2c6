"""`transformers`: version 4 run by transformers; 6 and 7 converted by llama.cpp's own script, then run by it.

Where the folder brings the World tokenizer, transformers loads it and must read and write what the vocabulary says.
fla, whose names version 7 has, cannot be imported without a GPU, and version 6 is code in models' own repositories;
llama.cpp's converter reads the same folders.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.gguf import llama
from rwkvflow.worker.formats.runner import Task, one_by_one
from rwkvflow.worker.model.tokenizers import WORLD_FILE, World
from rwkvflow.worker.smoke.questions import Answers, Questions

SHOWN = 3  # lines of the converter's output
TEXT = "The owl: «Ünder 1 roof»\n\n猫头鹰 🦉\tend"


def run(task: Task, questions: Questions) -> Answers:
    """The answers of what the folder's config.json names. Raises WorkerError."""
    try:
        config = json.loads((task.artifact / "config.json").read_text(encoding="utf-8"))
        (model,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkerError(f"config.json cannot be used: {error}") from None
    if (task.artifact / WORLD_FILE).is_file():
        check_tokenizer(task.artifact.resolve())
    return _transformers(task.artifact, questions) if model == "RwkvForCausalLM" else _llama(task, questions)


def check_tokenizer(folder: Path) -> None:
    """Raises WorkerError unless transformers' AutoTokenizer agrees with the folder's vocabulary."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("HF_MODULES_CACHE", cache)  # it copies the folder's code there, and imports that
        package: Any = importlib.import_module("transformers")
        try:
            tokenizer = package.AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        except (OSError, ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise WorkerError(f"transformers cannot load its tokenizer: {error}") from None
    tokens = World(folder / WORLD_FILE).encode(TEXT)
    if tokenizer.encode(TEXT) != tokens or tokenizer.decode(tokens) != TEXT:
        raise WorkerError("transformers' tokenizer of the folder reads or writes other tokens than its vocabulary")


def _transformers(folder: Path, questions: Questions) -> Answers:
    torch: Any = importlib.import_module("torch")
    package: Any = importlib.import_module("transformers")
    try:
        # An argument, for the environment would reach whatever else this process does.
        loaded = package.RwkvForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise WorkerError(f"transformers cannot load it: {error}") from None
    model, info = loaded
    wrong = [f"{what.replace('_', ' ')}: {sorted(map(str, names))[0]}" for what, names in info.items() if names]
    if wrong:
        raise WorkerError(f"transformers finds {'; '.join(wrong)}")
    model.eval()

    def step(token: int, state: Any) -> tuple[Any, Any]:
        copied = None if state is None else [part.clone() for part in state]  # it is changed in place
        with torch.no_grad():
            out = model(input_ids=torch.tensor([[token]]), state=copied, use_cache=True)
        return np.asarray(out.logits[0, -1].numpy(), np.float32), out.state

    return one_by_one(step, questions, int(torch.get_num_threads()))


def _llama(task: Task, questions: Questions) -> Answers:
    script = task.engine.with_name("llama-source") / "llama.cpp" / "convert_hf_to_gguf.py"
    place = "out" if Path("out").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix=".gguf-") as folder:
        made = Path(folder) / "model.gguf"
        command = [sys.executable, str(script), str(task.artifact.resolve()), "--outfile", str(made)]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "--outtype", "f32"],
            env=offline,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or not made.is_file():
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            raise WorkerError(f"llama.cpp's convert_hf_to_gguf.py refuses it: {'; '.join(lines[-SHOWN:])}")
        return llama.answers(task.engine.with_name("llama"), made, questions)
