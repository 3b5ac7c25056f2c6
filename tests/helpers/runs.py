"""A run as the pipeline would have left it in a store, made without running anything."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvflow.base.events import Notice, RunFinished, RunStarted, StepFinished, StepStarted
from rwkvflow.base.hashing import text_digest
from rwkvflow.store.history import History
from rwkvflow.store.record import Output, Record
from rwkvflow.store.store import Store

FORMATS = {"ggml-f16": 0.0, "ggml-q8_0": 0.0004, "ggml-q5_1": 0.004, "ggml-q4_0": 0.031}


class Past:
    """One run. `text` goes wherever a run can have text of others': names, messages, logs, notes, diffs."""

    def __init__(self, folder: Path, *, text: str = "a plain text", models: tuple[str, ...] = ("one", "two")) -> None:
        self.folder, self.text = folder, text
        self.store = Store(folder / "store")
        self.history = History(self.store, "r")
        self.path = self.history.path
        with self.history:
            self.history(RunStarted(str(folder / "demo.yaml"), "host", f"asked for; {text}", 9))
            self.history(Notice(text, "warning"))
            self._step("fetch/one", "fetch", {}, status="cached")
            engine = self._tree(
                {"patch.diff": f"--- a/build.ninja\n+++ b/build.ninja\n@@ -1 +1 @@\n-{text}\n+{text}2\n"}
            )
            self._step("engine/librwkv@py3.11", "engine", {"engine": engine}, log=f"[1/2] {text}\n" * 40)
            files = {}
            for model in models:
                for number, (name, rise) in enumerate(FORMATS.items()):
                    which = f"{model}/{name}@py3.11"
                    artifact = self._file(f"{which}{'x' * (900 - 200 * number)}".encode())
                    files[f"{model}/{model}-{name}.bin"] = artifact.digest
                    self._step(f"convert/{which}", "convert", {"artifact": artifact})
                    smoke = {
                        "perplexity": 3.0 * (1 + rise),
                        "perplexity_rise": rise,
                        "logits": rise * 9,
                        "kl_divergence": rise / 8,
                        "agreement": 1 - rise,
                        "tokens_per_second": 250 + number,
                        "continuations": [{"prompt": "The ", "text": text}],
                    }
                    bad = name == "ggml-q4_0" and model == "two"
                    self._step(
                        f"smoke/{which}",
                        "smoke",
                        {} if bad else {"smoke": self._file(json.dumps(smoke).encode())},
                        status="failed" if bad else "done",
                        message=f"{name}: {text}" if bad else "",
                        notes={"continuation": text},
                    )
            release = self._file(json.dumps({"name": "demo", "files": files, "left_out": {}}).encode())
            self._step("publish", "publish", {"release": release}, notes={"to": str(folder / "out" / "demo")})
            self.history(RunFinished(9, 1, 1, 0, 12.5, (str(folder / "out" / "demo"),)))

    def _file(self, data: bytes) -> Output:
        path = self.folder / uuid.uuid4().hex
        path.write_bytes(data)
        return self.store.put_file(path)

    def _tree(self, files: Mapping[str, str]) -> Output:
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        return self.store.put_tree(folder)

    def _step(
        self,
        name: str,
        stage: str,
        outputs: Mapping[str, Output],
        *,
        status: Any = "done",
        log: str = "",
        message: str = "",
        notes: Mapping[str, str] | None = None,
    ) -> None:
        key = text_digest(name).removeprefix("sha256:")
        if status != "cached":
            self.history(StepStarted(name, stage, f"changed: {self.text}"))
        if log:
            self.store.log_path(key).write_text(log, encoding="utf-8")
        self.store.record(key, Record(name, dict(outputs), 1.25))
        digests = {label: output.digest for label, output in outputs.items()}
        self.history(StepFinished(name, stage, status, 1.25, message, digests, dict(notes or {}), key))
