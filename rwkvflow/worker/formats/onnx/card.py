"""How an ONNX folder is run."""

from __future__ import annotations

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile, python_command
from rwkvflow.worker.formats.onnx.layout import MODEL

PROGRAM = """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path!r})
token, *states = session.get_inputs()
# Version 4 keeps a largest exponent, which begins very low.
state = [np.full(x.shape, -1e30 if x.name.endswith("_3") else 0, np.float32) for x in states]
for index in (1, 2, 3):
    *state, logits = session.run(None, {{token.name: np.array(index), **{{x.name: y for x, y in zip(states, state)}}}})
print(logits)"""


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "ONNX Runtime (folder)",
        "One token and the states in, the logits and the next states out.",
        ("pip install onnxruntime",),
        _commands,
        order=90,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    return (python_command(PROGRAM.format(path=f"{file.path}/{MODEL}")),)
