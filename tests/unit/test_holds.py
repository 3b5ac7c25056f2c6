"""Formats that cannot hold a model's version are refused before anything runs, where the model is at hand."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest

from rwkvflow.documents.lock import Lock, LockedEngine, LockedFile
from rwkvflow.errors import UsageError
from rwkvflow.hashing import file_digest
from rwkvflow.plan.matrix import Artifact
from rwkvflow.stages.holds import check_versions
from rwkvflow.store import Store


def lock(path: Path, **resolved: str) -> Lock:
    sha256 = file_digest(path).removeprefix("sha256:")
    size = path.stat().st_size
    files = {name: LockedFile(source=text, resolved=text, sha256=sha256, size=size) for name, text in resolved.items()}
    return Lock(recipe="r", models=files, images={}, engine=LockedEngine(kind="builtin", resolved="builtin"))


def test_a_local_checkpoint_and_one_in_the_store_are_looked_at(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "seven.pth", "7", layers=1, width=64, vocab=64)
    store = Store(tmp_path / "store")
    known = lock(path, here="seven.pth", there="https://example.org/seven.pth")
    both = [Artifact(model, name, "i") for model in known.models for name in ("ggml-f16", "faster-rwkv-f16")]
    with pytest.raises(UsageError) as caught:
        check_versions(both, known, tmp_path, store)
    first, *rest = caught.value.message.splitlines()
    assert first.startswith("here is version 7, which faster-rwkv-f16 cannot hold; these can: ")
    assert "ggml-q5_1" in first
    assert ", faster-rwkv" not in first
    assert rest == []  # nobody has downloaded the other one
    store.adopt(path, file_digest(path))
    with pytest.raises(UsageError, match="there is version 7"):
        check_versions(both, known, tmp_path, store)


def test_what_goes_together_or_cannot_be_known_passes(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "four.safetensors", "4", layers=1, width=64, vocab=64)
    (tmp_path / "damaged.pth").write_bytes(b"PK nonsense")
    known = lock(path, four="four.safetensors", damaged="damaged.pth", absent="absent.pth")
    artifacts = [Artifact(model, "faster-rwkv-f32", "i") for model in known.models]
    check_versions(artifacts, known, tmp_path, Store(tmp_path / "store"))
