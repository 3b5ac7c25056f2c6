"""The shipped demo models: small, well formed, and trained enough that their text reads like words."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rwkvflow.worker.formats.runner import answer
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tokenizers import World
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference, logits
from rwkvflow.worker.smoke.questions import Questions

ROOT = Path(__file__).resolve().parents[4]
DEMO = ROOT / "recipes" / "demo"
CHECKPOINTS = sorted(DEMO.glob("*-demo.pth"))
EVERY = sorted(DEMO.glob("*.pth"))
SMOKE_TEXT = ROOT / "rwkvflow" / "worker" / "data" / "smoke.txt"


@pytest.fixture(scope="module")
def corpus() -> str:
    spec = importlib.util.spec_from_file_location("demo_stories", ROOT / "scripts" / "demo_stories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.corpus())


def test_versions_4_and_7_are_there() -> None:
    assert {"rwkv4-demo.pth", "rwkv7-demo.pth"} <= {path.name for path in CHECKPOINTS}


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_architecture_and_size(path: Path) -> None:
    assert path.stat().st_size < 2_000_000
    with open_checkpoint(path) as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
        assert {info.dtype for info in checkpoint.tensors.values()} == {"bf16"}
        checkpoint.verify()
    assert f"rwkv{architecture.version}-demo" == path.stem
    assert architecture.n_vocab == 256
    assert architecture.extra == ()
    assert architecture.n_embd % 32 == architecture.n_ffn % 32 == 0  # whole quantized blocks in every row
    assert architecture.head_size in (None, 64)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_the_text_reads_like_words(path: Path, corpus: str) -> None:
    asked = Questions(tuple(SMOKE_TEXT.read_bytes()[:512]), 1, (tuple(b"The "), tuple(b"Once there was ")), 100)
    with open_checkpoint(path) as checkpoint:
        answers = answer(Reference(checkpoint), asked)
    assert answers.perplexity < 1.8  # of a byte; untrained 256, English letters alone about 20
    known = set(re.findall(r"[a-z]+", corpus.lower()))
    for continuation in answers.continuations:
        words = re.findall(r"[a-z]+", bytes(continuation).decode("ascii").lower())[1:-1]  # the ends may be cut
        assert len(words) >= 12
        assert len(set(words)) >= 8  # no loop of a few words
        strange = [word for word in words if word not in known]
        assert len(strange) <= 1, strange


def test_the_model_of_five_domains_is_wide_enough_for_k_types() -> None:
    (path,) = set(EVERY) - set(CHECKPOINTS)
    assert path.stat().st_size < 3_100_000
    with open_checkpoint(path) as checkpoint:
        architecture = architecture_of(checkpoint.tensors)
        checkpoint.verify()
    assert (architecture.n_vocab, architecture.n_embd % 256, architecture.n_ffn % 256) == (512, 0, 0)
    words = World(DEMO / "rwkv7-domains.vocab.txt")
    for name, most in (("prose", 1.5), ("chinese", 1.7), ("code", 2.0), ("arithmetic", 4.0), ("dialogue", 2.0)):
        text = (SMOKE_TEXT.parent / "quality" / f"{name}.txt").read_text(encoding="utf-8")
        asked = Questions(tuple(words.encode(text)[:512]), 1, ((1,),), 1)
        with open_checkpoint(path) as checkpoint:
            assert answer(Reference(checkpoint), asked).perplexity < most, name


def test_the_model_that_is_made_wide_computes_what_it_did(tmp_path: Path) -> None:
    """scripts/wide_demo.py: the text of a small model, at the cost of a larger one."""
    widened = runpy.run_path(str(ROOT / "scripts" / "wide_demo.py"))["widened"]
    with open_checkpoint(DEMO / "rwkv7-domains.pth") as checkpoint:
        small = {name: checkpoint.float32(name) for name in checkpoint.tensors}
        ids = [1 + number * 37 % 500 for number in range(48)]
        wanted = logits(checkpoint, ids)
    save_file(widened(small, copies=2, layers=5, inner=700, tokens=1000), tmp_path / "wide.safetensors")
    with open_checkpoint(tmp_path / "wide.safetensors") as checkpoint:
        found = logits(checkpoint, ids)
        assert architecture_of(checkpoint.tensors).n_layer == 5
    assert np.abs(found[:, :512] - wanted).max() < 1e-3
    assert (found[:, 512:].max(1) < wanted.min(1) - 50).all()  # none of those that no text holds is ever chosen


def test_the_smoke_text_is_not_what_the_models_learned(corpus: str) -> None:
    for paragraph in SMOKE_TEXT.read_text(encoding="ascii").strip().split("\n\n"):
        assert paragraph not in corpus


def test_the_corpus_is_what_the_readme_says(corpus: str) -> None:
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(corpus.encode("ascii")).hexdigest() in readme
    for path in (*EVERY, *DEMO.glob("*.txt")):
        assert f"`{path.name}`" in readme
        assert hashlib.sha256(path.read_bytes()).hexdigest() in readme


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_the_training_script_computes_what_the_reference_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the training script needs torch")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import train_demo

    tokens = list(SMOKE_TEXT.read_bytes()[:64])
    weights = {name: value.float() for name, value in torch.load(path, weights_only=True).items()}
    with open_checkpoint(path) as checkpoint, torch.no_grad():
        reference = Reference(checkpoint)
        ours = reference.logits(reference.hidden([reference.start()], [tokens])[0])
        theirs = train_demo.forward(reference.architecture.version, weights, torch.tensor([tokens]))[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
    sys.modules.pop("train_demo", None)
