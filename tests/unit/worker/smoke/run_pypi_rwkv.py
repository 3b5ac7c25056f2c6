"""Writes the logits that PyPI's `rwkv` gives after each token. A script: the package reads RWKV_V7_ON when it is
imported, so version 7 needs a process of its own.

    run_pypi_rwkv.py TOKENS_JSON CHECKPOINT.pth...    ->    CHECKPOINT.npy beside each
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from rwkv.model import RWKV

for path in map(Path, sys.argv[2:]):
    model, state, rows = RWKV(str(path.with_suffix("")), strategy="cpu fp32"), None, []
    for token in json.loads(sys.argv[1]):
        logits, state = model.forward([token], state)
        rows.append(logits.float().numpy().copy())
    np.save(path.with_suffix(".npy"), np.stack(rows))
