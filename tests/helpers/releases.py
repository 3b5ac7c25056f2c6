"""Makes releases as a run makes them, from files that were never computed: zeros in the right places."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkvflow.base.hashing import file_digest, text_digest, tree_digest
from rwkvflow.documents.lock import Lock
from rwkvflow.documents.lock_text import lock_text
from rwkvflow.publish.folder import publish_folder
from rwkvflow.release.release import Release, assemble
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.read.open import open_checkpoint
from tests.helpers import checkpoints
from tests.helpers.zeros import write_zeros

RECIPE = """\
name: tiny
models:
  - name: tiny7
    source: hf://someone/tiny7/tiny7.safetensors
  - name: tiny4
    source: models/tiny4.safetensors
    tokenizer: bytes
formats: [ggml-q5_1, safetensors]
publish:
  - to: out
"""
COMMIT = "c0ffee" + "0" * 34
WHEEL = "numpy-2.4.1-cp311-cp311-manylinux_2_27_x86_64.whl"
FORMATS_MADE = ("ggml-q5_1", "safetensors")
PERPLEXITY = {"ggml-q5_1": 12.625, "safetensors": 12.5}


def zeros(path: Path, version: str) -> Path:
    """A checkpoint of zeros."""
    shapes = checkpoints.shapes(version, layers=1, width=64, vocab=64)
    entries = [checkpoints.array_entry(name, np.zeros(shape, "<f2")) for name, shape in shapes.items()]
    checkpoints.write_safetensors(path, entries)
    return path


def convert(checkpoint: Path, name: str, path: Path) -> Path:
    """An artifact of zeros: everything but the values is as the format has it."""
    with open_checkpoint(checkpoint) as opened:
        write_zeros(FORMATS[name].open(path, architecture_of(opened.tensors), opened.tensors, Path()))
    return path


def report(name: str) -> dict[str, Any]:
    """What the smoke stage says of an artifact."""
    return {
        "format": name,
        "consumer": FORMATS[name].consumer,
        "passed": True,
        "problems": [],
        "logits": 0.0211 if "q5" in name else 0.0,
        "agreement": 1.0,
        "perplexity": PERPLEXITY.get(name, 12.5),
        "reference_perplexity": 12.5,
        "perplexity_rise": 0.01 if "q5" in name else 0.0,
        "kl_divergence": 0.00416 if "q5" in name else 0.0,
        "kl_divergence_tokens": 512,
        "evaluated": "runtime" if "ggml" in name else "tensors",
        "weights": 100_000,
        "weight_bytes": 118_750 if "q5" in name else 200_000,
        "bits_per_weight": 9.5 if "q5" in name else 16.0,
        "limits": {"logits": 0.5, "perplexity": 0.05},
        "text_tokens": 512,
        "compared_tokens": 64,
        "tokenizer": "bytes",
        "note": None,
        "continuations": [{"prompt": "The ", "text": "cat `sat`\n| on"}],
    }


@dataclass
class Made:
    """What a run left in its store, and what the publish step was told."""

    root: Path
    inputs: dict[str, Path] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    local: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, path: Path) -> None:
        """An input of the publish step."""
        self.inputs[name] = path
        self.digests[name] = tree_digest(path) if path.is_dir() else file_digest(path)

    def assemble(self) -> Release:
        """The release."""
        return assemble(self.params, self.inputs, self.digests, self.local)

    def publish(self, target: Path, key: str = "k") -> Path:
        """The release, in a folder."""
        publish_folder(self.assemble(), target, key=key, on_bytes=lambda done, total: None)
        return target


def lock_of(models: dict[str, tuple[str, Path]]) -> Lock:
    """A lock that pins these checkpoints."""
    return Lock.model_validate(
        {
            "recipe": "0" * 64,
            "models": {
                name: {
                    "source": source,
                    "resolved": source,
                    "sha256": file_digest(path)[7:],
                    "size": path.stat().st_size,
                }
                for name, (source, path) in models.items()
            },
            "images": {
                "py3.11": {
                    "python": "3.11",
                    "platforms": {
                        "linux-x86_64": {
                            "worker": [{"name": "numpy", "version": "2.4.1", "filename": WHEEL, "sha256": "a" * 64}]
                        }
                    },
                }
            },
            "engine": {"kind": "builtin", "resolved": "builtin", "digest": "sha256:" + "e" * 64},
        }
    )


def engine_folder(root: Path, *, patched: bool = True) -> Path:
    """An engine as the engine stage leaves it."""
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "librwkv.so").write_bytes(b"\x7fELF and so on")
    (root / "patch.diff").write_text("--- a/build.ninja\n+++ b/build.ninja\n" if patched else "")
    facts = {"request": "sha256:" + "b" * 64, "compiler": "Clang 20 (zig 0.17.0)", "cmake": "4.4.4", "rules": []}
    (root / "build.json").write_text(json.dumps(facts))
    return root


def made(root: Path, formats: Iterable[str] = FORMATS_MADE) -> Made:
    """A run of RECIPE, finished."""
    root.mkdir(parents=True)
    run = Made(root)
    models = {
        "tiny7": (f"hf://someone/tiny7@{COMMIT}/tiny7.safetensors", zeros(root / "tiny7.safetensors", "7")),
        "tiny4": ("models/tiny4.safetensors", zeros(root / "tiny4.safetensors", "4")),
    }
    lock = lock_of(models)
    entries = []
    for model, (_, checkpoint) in models.items():
        for name in formats:
            which = f"{model}/{name}@py3.11"
            run.add(f"artifact/{which}", convert(checkpoint, name, root / f"{model}-{name}"))
            smoke = root / f"{model}-{name}.json"
            smoke.write_text(json.dumps(report(name)))
            run.add(f"smoke/{which}", smoke)
            file = f"{model}/{model}{FORMATS[name].suffix}"
            entries.append({"id": which, "model": model, "format": name, "image": "py3.11", "file": file, "extra": {}})
    run.add("engine/py3.11", engine_folder(root / "engine"))
    wheels = [[WHEEL, "a" * 64]]
    run.params = {
        "name": "tiny",
        "to": "out",
        "entries": entries,
        "models": {
            name: {"source": file.resolved, "sha256": file.sha256, "size": file.size}
            for name, file in lock.models.items()
        },
        "tokenizers": {},
        "images": {"py3.11": {"sandbox": "docker", "python": "3.11", "base": "sha256:" + "d" * 64, "wheels": wheels}},
        "engine": {
            "source": "builtin",
            "digest": lock.engine.digest,
            "builds": {"librwkv": {"toolchain": "zig", "target": "x86_64-linux-gnu.2.17", "library": None}},
        },
        "worker": "sha256:" + "1" * 64,
        "lock": text_digest(lock_text(lock)),
        "recipe": text_digest(RECIPE),
        "smoke_text": None,
        "card": {},
        "epoch": None,
    }
    run.local = {"lock": lock_text(lock), "recipe": RECIPE, "key": None}
    return run
