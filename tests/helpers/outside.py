"""A format that lives outside of the package: an installed distribution with an entry point, made in a folder."""

from __future__ import annotations

from pathlib import Path

LAYOUT = '''\
"""`blob`: every tensor as F16, one after another."""

from dataclasses import dataclass

from rwkvflow.worker.formats.base import FileFormat, Limits
from rwkvflow.worker.model.versions import ALL_VERSIONS
from rwkvflow.worker.model.weight_types import F16
from rwkvflow.worker.write.layout import Encoding, LayoutBuilder


@dataclass(frozen=True)
class Blob(FileFormat):
    def layout(self, architecture, tensors):
        build = LayoutBuilder()
        for info in tensors.values():
            build.slot(info.name, info.numel, Encoding(F16))
        return build.done()


FORMATS = (
    Blob(
        name="blob",
        suffix="-F16.blob",
        versions=ALL_VERSIONS,
        consumer="numpy",
        family="blob",
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        limits=Limits(logits=0.02, perplexity=0.002),
    ),
)
'''

RUN = '''\
"""The file is compared with the checkpoint, and its values are run by the forward pass."""

import numpy as np

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.runner import answer
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.reference import Reference
from rwkvflow.worker.smoke.held import AsCheckpoint, Held, compare_held


class Values:
    def __init__(self, path, infos):
        self.values = np.fromfile(path, "<f2")
        self.tensors, self.starts, at = {}, {}, 0
        for info in infos:
            self.tensors[info.name] = TensorInfo(info.name, "f16", info.shape)
            self.starts[info.name] = at
            at += info.numel
        if at != len(self.values):
            raise WorkerError(f"the file has {len(self.values)} values, and the checkpoint {at}")

    def float32(self, name, start_row=0, rows=None):
        info, at = self.tensors[name], self.starts[name]
        whole = self.values[at : at + info.numel].reshape(info.shape).astype(np.float32)
        return whole[start_row : None if rows is None else start_row + rows]


def run(task, questions):
    with task.open_source() as checkpoint:
        artifact = Values(task.artifact, checkpoint.tensors.values())
        wanted = {name: Held(name, "f16", tuple(info.shape)) for name, info in checkpoint.tensors.items()}
        compare_held(checkpoint, artifact, wanted)
        view = AsCheckpoint(artifact, wanted, checkpoint.tensors)
        architecture = architecture_of(checkpoint.tensors)
        return answer(Reference(view, task.group_norm_eps, architecture=architecture), questions)
'''

CARD = """\
from rwkvflow.worker.formats.cards import Card


def card(item, version):
    return Card(
        "Blobs (`.blob`)",
        "Values of half precision and nothing else.",
        ("pip install numpy",),
        lambda file: (f"python -c \\"import numpy; print(numpy.fromfile('{file.path}', '<f2').size)\\"",),
    )
"""


def install(site: Path, *, version: str = "1.2", name: str = "rwkvflow_blob", layout: str = LAYOUT) -> Path:
    """As pip would leave it in `site`, which is given back for PYTHONPATH."""
    package = site / name
    package.mkdir(parents=True, exist_ok=True)
    for file, text in (("__init__.py", ""), ("layout.py", layout), ("run.py", RUN), ("card.py", CARD)):
        (package / file).write_text(text, encoding="utf-8")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    shown = name.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {shown}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[rwkvflow.formats]\nblob = {name}\n", encoding="utf-8")
    return site
