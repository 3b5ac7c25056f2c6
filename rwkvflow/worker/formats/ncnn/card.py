"""How an ncnn folder is run."""

from __future__ import annotations

from rwkvflow.worker.formats.base import Format
from rwkvflow.worker.formats.cards import Card, CardFile, python_command
from rwkvflow.worker.formats.ncnn.layout import BIN, PARAM

PROGRAM = """\
import ncnn
net = ncnn.Net()
assert not net.load_param({param!r}) and not net.load_model({weights!r})
print(net.input_names(), net.output_names())"""


def card(item: Format, version: str) -> Card:
    """See rwkvflow.worker.formats.cards."""
    return Card(
        "ncnn (folder)",
        "For [ncnn](https://github.com/Tencent/ncnn) and what is built on it: one token (int32) and the states in, the "
        "logits and the next states out. States begin with zeros, of version 4 those that end in 3 with -1e30.",
        ("pip install ncnn",),
        _commands,
        order=100,
    )


def _commands(file: CardFile) -> tuple[str, ...]:
    return (python_command(PROGRAM.format(param=f"{file.path}/{PARAM}", weights=f"{file.path}/{BIN}")),)
