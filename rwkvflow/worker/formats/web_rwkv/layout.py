"""`web-rwkv`: what web-rwkv and Ai00 read, a safetensors file of the author's tensors in F16 under other names, which
rwkvflow.worker.maps.web_rwkv tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import EMULATED, FileFormat, Limits
from rwkvflow.worker.formats.safetensors.layout import TensorEntry, safetensors_layout
from rwkvflow.worker.maps.web_rwkv import is_swapped, name_in_file, repeated
from rwkvflow.worker.model.versions import STATEFUL
from rwkvflow.worker.model.weight_types import F16
from rwkvflow.worker.write.layout import Encoding, Layout, Transform
from rwkvflow.worker.write.transforms import TRANSPOSE

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo


@dataclass(frozen=True)
class WebRwkv(FileFormat):
    """A single file."""

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where every tensor goes in the file."""
        entries = (self._entry(architecture, info) for info in tensors.values())
        return safetensors_layout(entries, {"format": "pt"})

    def _entry(self, architecture: Architecture, info: TensorInfo) -> TensorEntry:
        name, shape = name_in_file(info.name), tuple(info.shape)
        if times := repeated(name, architecture) - 1:
            return TensorEntry(
                name, "f16", (info.numel, times + 1), info.name, Encoding(F16, transform=_repeat(times + 1))
            )
        if not is_swapped(name):
            return TensorEntry(name, "f16", shape, info.name, Encoding(F16))
        if len(shape) < 2:
            raise WorkerError(f"{info.name} should be a matrix, and is of shape {list(shape)}")
        swapped = (*shape[:-2], shape[-1], shape[-2])
        return TensorEntry(name, "f16", swapped, info.name, Encoding(F16, transform=TRANSPOSE))


def _repeat(times: int) -> Transform:
    def function(values: Any) -> Any:
        return values.reshape(-1, 1).repeat(times, axis=1)

    return Transform(f"each value {times} times", function)


FORMATS = (
    WebRwkv(
        name="web-rwkv",
        suffix=".st",
        versions=frozenset({"4", "5.1", "5.2", "6", "7"}),  # it takes a file without a gate for version 4
        consumer="web-rwkv-py",
        family="web",
        is_read_here=True,
        runner=f"{__package__}.run",
        card=f"{__package__}.card",
        limits=Limits(logits=0.15, perplexity=0.01),
        requires=("web-rwkv-py",),
        states=STATEFUL,
        runs_here=frozenset(),  # its logits are looked at where it runs; the figures are of the tensors
        half=EMULATED,
    ),
)
