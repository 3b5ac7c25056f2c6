"""flash-linear-attention itself runs a `transformers` folder of version 7, by Triton's interpreter where no GPU is.

It is not among what `make test` installs (Triton alone is 200 MB): `pip install --no-deps flash-linear-attention
fla-core triton einops`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.runner import answer
from rwkvflow.worker.formats.runtimes import BY_NAME, MEASURED
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.questions import Questions
from tests.engine import librwkv
from tests.helpers import checkpoints

TOKENS = (1, 2, 3, 4, 5, 6)
#: The interpreter has no clock to choose between settings of a kernel.
PROGRAM = """
import sys
import numpy, torch, triton.runtime.autotuner
triton.runtime.autotuner.Autotuner._bench = lambda self, *args, **options: [1.0, 1.0, 1.0]
import fla
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[int(token) for token in sys.argv[3:]]])).logits[0]
numpy.save(sys.argv[2], logits.float().numpy())
"""


@pytest.mark.soak
def test_fla_comes_to_the_references_logits(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("einops")
    library = librwkv.with_zig(request.config) / "librwkv.so"
    source = checkpoints.make(tmp_path / "m.pth", "7", "f32", layers=2, width=64, vocab=256)
    (outcome,) = convert(source, library, [ConversionJob("x", "transformers", tmp_path / "m")])
    assert outcome.failure is None
    env = {**os.environ, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [str(tmp_path / "m"), str(tmp_path / "logits.npy"), *map(str, TOKENS)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with open_checkpoint(source) as checkpoint:
        truth = answer(Reference(checkpoint), Questions(TOKENS, len(TOKENS), (), 0)).logits
    assert np.abs(np.load(tmp_path / "logits.npy") - truth).max() < 1e-4 * truth.std()
    assert BY_NAME["flash-linear-attention"].runs["7"] == MEASURED
