"""Files that version 0.1 made, through the engine of today: the same bits of logits, as its engine gave them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.engine import librwkv

MADE = Path(__file__).resolve().parents[1] / "fixtures" / "v0.1"
TOKENS = ("84", "104", "101", "32", "113", "117", "105", "101", "116", "10")
LOGITS = dict(line.split("\t") for line in (MADE / "logits.tsv").read_text().splitlines())


@pytest.mark.parametrize("name", LOGITS)
def test_old_files_give_the_bits_that_they_gave(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tool = librwkv.with_zig(request.config) / "rwkv"
    if "KERNELS=generic" in subprocess.run([tool, "info"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this processor fuses no products")
    out = tmp_path / "logits"
    done = subprocess.run(
        [tool, "eval", MADE / "release" / "tiny7" / name, *TOKENS, "--logits", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(out.read_bytes()).hexdigest() == LOGITS[name]
