"""What a format is: its name, what it can hold, and how it lays out the files of an artifact.

A format of one file is a FileFormat, one of a folder a FolderFormat; each gives Layouts (rwkvflow.worker.write.layout).
Nothing here imports numpy: the command line loads all formats to check a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.model.architecture import is_state
from rwkvflow.worker.model.strangers import leftovers
from rwkvflow.worker.model.variants import version_named
from rwkvflow.worker.model.versions import HEAD_NORM_EPS
from rwkvflow.worker.write.file import FileWriter
from rwkvflow.worker.write.folder import FolderWriter

if TYPE_CHECKING:
    from rwkvflow.worker.formats.gguf.imatrix import Imatrix
    from rwkvflow.worker.formats.mix import Mix
    from rwkvflow.worker.model.about import About
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo
    from rwkvflow.worker.write.layout import Layout, Writer


RUN, EMULATED, BOUNDED = "run", "emulated", "bounded"  # see Format.half


@dataclass(frozen=True)
class Limits:
    """What smoke lets a format lose against the fp32 reference, where the recipe does not say.

    logits: largest difference of a logit, relative to the standard deviation of the reference's logits.
    perplexity: largest rise of the perplexity as a ratio; 0.01 is one percent.
    """

    logits: float
    perplexity: float


@dataclass(frozen=True)
class Split:
    """How an artifact is split: `size` bytes that no file of it should have more of; `stem`, how its files begin."""

    size: int
    stem: str = "model"


@dataclass(frozen=True)
class Format(ABC):
    """One kind of artifact. Adding a format is adding a module here whose FORMATS holds its instances."""

    name: str
    suffix: str  # follows the model's name in the artifact's file name
    versions: frozenset[str]
    consumer: str  # what proves the artifact in the smoke stage
    limits: Limits
    runner: str = field(default="", kw_only=True)  # module that runs an artifact, see rwkvflow.worker.formats.runner
    # Module that runs an artifact with librwkv alone, where the consumer is another: for a proof within seconds.
    quick_runner: str = field(default="", kw_only=True)
    is_read_here: bool = field(default=False, kw_only=True)  # whether `read` opens such a file
    # Whether `read` gives the checkpoint's tensors back, and nothing but our forward pass in fp32 runs the file: where
    # they are equal, what it comes to is known; see worker/formats/equal.
    may_be_equal: bool = field(default=False, kw_only=True)
    card: str = field(default="", kw_only=True)  # module that says how its files are run, see formats/cards.py
    family: str = field(default="", kw_only=True)  # what formats of a kind have in common, a tag of a release
    quantization: str = field(default="", kw_only=True)  # how its weights are quantized, "" where they are not
    # What the consumer needs in the image besides the worker: names of packages, whose versions images/pins.yaml gives
    # (role `consumers`), or requirements with a version of their own. Of PyTorch the recipe names the version.
    requires: tuple[str, ...] = field(default=(), kw_only=True)
    needs_torch: bool = field(default=False, kw_only=True)
    engine: str | None = field(default=None, kw_only=True)  # what else has to be built for the consumer: "llama.cpp"
    # Where a runtime that the card names computes in fp16, how the smoke stage shows that this holds: RUN by it in fp16
    # (what it cannot run here is BOUNDED), EMULATED operation by operation, or BOUNDED: run in fp32, and nothing that
    # the reference came to passes what fp16 holds. "" where none computes so.
    half: str = field(default="", kw_only=True)
    # Versions that a runtime runs in the smoke stage, None for all; of the others the tensors are compared.
    runs_here: frozenset[str] | None = field(default=None, kw_only=True)
    # By version, who runs it where that is not the consumer.
    computed_by: Mapping[str, str] = field(default_factory=dict, kw_only=True, hash=False)
    fixed_epsilon: bool = field(default=False, kw_only=True)  # whether what runs it knows one head_norm_eps only
    tokenizer: bool = field(default=False, kw_only=True)  # whether a tokenizer that the recipe names goes into it
    # Versions of which it has a place for initial states (blocks.N.att.time_state); of others they are left out.
    states: frozenset[str] = field(default=frozenset(), kw_only=True)
    splits: bool = field(default=False, kw_only=True)  # whether its runtime reads a model that is split over files
    weighs: bool = field(default=False, kw_only=True)  # whether its quantizer takes an importance matrix
    imatrix: Imatrix | None = field(default=None, kw_only=True, compare=False)  # what was asked for, as `split`
    tells: bool = field(default=False, kw_only=True)  # whether a file says of its model what the recipe says
    about: About | None = field(default=None, kw_only=True)  # which is this; not of the registry's instances
    mixes: bool = field(default=False, kw_only=True)  # whether single tensors may be given types of their own
    mixed: bool = field(default=False, kw_only=True)  # whether it is the plain format but for such types
    mix: Mix | None = field(default=None, kw_only=True, compare=False)  # these, as `split`
    split: Split | None = field(default=None, kw_only=True)  # what the recipe asks for; not of the registry's instances

    @property
    def label(self) -> str:
        """A short name, for where there is little room."""
        return self.name

    def beside(self, folder: Path) -> Format:
        """The same for a model in this folder, where something that stands beside it goes into an artifact."""
        return self

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold such a model; None when it can."""
        if architecture.version in self.versions:
            return self._refuse_epsilon(architecture)
        held = ", ".join(sorted(self.versions))
        return f"{self.name} cannot hold {version_named(architecture.version)}; it holds {held}"

    def _refuse_epsilon(self, architecture: Architecture) -> str | None:
        eps = architecture.head_norm_eps
        if not self.fixed_epsilon or architecture.version == "4" or eps == HEAD_NORM_EPS:
            return None
        return (
            f"{self.name} cannot hold a model whose head group norm has an epsilon of {eps:g}: "
            f"what runs it has {HEAD_NORM_EPS:g}"
        )

    def held(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, TensorInfo]:
        """The tensors that an artifact is made of.

        Without what trainers left behind, and without initial states where it has no place for them.
        """
        left = set(leftovers(architecture, tensors))
        if architecture.version not in self.states:
            left |= {name for name in tensors if is_state(name)}
        return {name: info for name, info in tensors.items() if name not in left}

    def computes_in_half(self, architecture: Architecture) -> bool:
        """Whether what runs it computes such a model in fp16, where `half` does not say so of all."""
        return False

    def left_out(self, held: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo]) -> list[str]:
        """What to say of tensors that are not `held`."""
        left = [name for name in tensors if name not in held]
        states = [name for name in left if is_state(name)]
        others = [name for name in left if not is_state(name)]
        said = [f"{self.name} has no place for initial states: those of {len(states)} layers are left out"]
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        return [
            *(said if states else []),
            *([f"{self.name}: left out, as no runtime looks at it: {', '.join(others[:4])}{more}"] if others else []),
        ]

    @abstractmethod
    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """Bytes of the artifact, known before anything is read. Raises WorkerError where `open` would."""

    @abstractmethod
    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`. Raises WorkerError when these tensors cannot be written so, and OSError."""


def named_tokenizer(engine: Path) -> Path | None:
    """The tokenizer that the recipe names, which stands beside the engine of a task; None where it names none."""
    named = engine.with_name("tokenizer")
    return named if named.is_file() else None


@dataclass(frozen=True)
class FileFormat(Format):
    """A format of a single file, described by a Layout."""

    @abstractmethod
    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where everything goes; `tensors` in the checkpoint's order. Raises WorkerError."""

    def parts(
        self, architecture: Architecture, tensors: Mapping[str, TensorInfo], split: Split
    ) -> Mapping[str, Layout] | None:
        """The files of the folder that this becomes where one file would be too large, by name; else None.

        Raises WorkerError. Only of formats with `splits`.
        """
        return None

    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """The size of the artifact in bytes."""
        parts = self.parts(architecture, tensors, self.split) if self.split and self.splits else None
        if parts is not None:
            return sum(layout.size for layout in parts.values())
        return self.layout(architecture, tensors).size

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`. The engine is not needed: layouts come from names and shapes."""
        if self.split and self.splits and (parts := self.parts(architecture, tensors, self.split)) is not None:
            return FolderWriter(path, parts)
        return FileWriter(path, self.layout(architecture, tensors))


@dataclass(frozen=True)
class FolderFormat(Format):
    """A format of a folder, each of its files described by a Layout."""

    @abstractmethod
    def layouts(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Mapping[str, Layout]:
        """Each file, as FileFormat's layout. Raises WorkerError."""

    def expected_size(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> int:
        """The size of the artifact in bytes."""
        return sum(layout.size for layout in self.layouts(architecture, tensors).values())

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`. The engine is not needed: layouts come from names and shapes."""
        return FolderWriter(path, self.layouts(architecture, tensors))
