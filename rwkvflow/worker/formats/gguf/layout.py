"""`gguf-*`: llama.cpp's files, for versions 6 and 7 and the two hybrids.

    "GGUF", uint32 version 3, uint64 number of tensors, uint64 number of metadata pairs
    pair     name (uint64 length, UTF-8), uint32 type, value; an array is uint32 type, uint64 length, values
    tensor   name, uint32 number of dims, uint64 dims (last of PyTorch's first), uint32 type, uint64 offset
    data     from the next multiple of 32; each tensor padded to one

A model above the size that a recipe names becomes a folder of STEM-00001-of-00003.gguf …, as llama.cpp's gguf-split
cuts it: the metadata stand in the first shard; each says split.no, split.count and split.tensors.count.

Keys, names, shapes and transforms are those of llama.cpp's convert_hf_to_gguf.py (conversion/rwkv.py). Which type a
tensor of a quantized file has, and its bytes, are those of llama.cpp's quantizer (src/llama-quant.cpp), run on an F16
file as users run it, or on an F32 one for names that end in `-from-f32`. What it does for attention and feed-forward
matrices of other models does not reach RWKV's, so that `_s` and `_m` of a type differ in `general.file_type` alone, but
for the hybrids (see types).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats.base import FileFormat, Limits, Split, named_tokenizer
from rwkvflow.worker.formats.gguf.pairs import head, imatrix_pairs, model_pairs, split_pairs, token_pairs
from rwkvflow.worker.formats.gguf.plan import ALIGNMENT, GgufSlot, padded, planned, sources_of, tensor_info
from rwkvflow.worker.formats.gguf.tokens import vocabulary
from rwkvflow.worker.formats.gguf.types import wanted_type
from rwkvflow.worker.formats.safetensors.layout import grouped
from rwkvflow.worker.model.versions import HYBRIDS
from rwkvflow.worker.model.weight_types import (
    BLOCKS,
    BY_NAME,
    BY_NUMBER,
    F16,
    F32,
    NARROWER,
    Q8_0,
    QUANTIZED,
    size_of,
)
from rwkvflow.worker.read.shards import shard_name
from rwkvflow.worker.write.layout import Encoding, Layout, LayoutBuilder

if TYPE_CHECKING:
    from rwkvflow.worker.model.architecture import Architecture
    from rwkvflow.worker.model.tensorinfo import TensorInfo
    from rwkvflow.worker.write.layout import Writer

# By the end of their names; in an F16 or BF16 file, too.
ALWAYS_F32 = ("_norm.weight", *(f"time_mix_{x}.weight" for x in ("first", "w1", "w2", "decay_w1", "decay_w2")))
NEVER_QUANTIZED = tuple(f"time_mix_{x}{n}.weight" for x in "wavg" for n in "012")


@dataclass(frozen=True)
class Gguf(FileFormat):
    """One of llama.cpp's data types. `from_f16`: quantized from what the F16 file holds, else from F32.

    file_type is the llama_ftype that the file says of itself; None for the type's own. `rough`: below four bits, of
    which the log warns.
    """

    kind: int = F32
    from_f16: bool = True
    file_type: int | None = None
    rough: bool = False
    # The file of a tokenizer that the recipe names, and the model's folder; not of the registry's instances.
    named: Path | None = None
    folder: Path | None = None

    def open(self, path: Path, architecture: Architecture, tensors: Mapping[str, TensorInfo], engine: Path) -> Writer:
        """Begin an artifact at `path`, with the tokenizer that the recipe names."""
        return FileFormat.open(replace(self, named=named_tokenizer(engine)), path, architecture, tensors, engine)

    def beside(self, folder: Path) -> Gguf:
        """The same for a model in this folder, whose tokenizer a hybrid's file holds."""
        return replace(self, folder=folder)

    def refuse(self, architecture: Architecture) -> str | None:
        """Why this format cannot hold the model; None if it can."""
        if refused := super().refuse(architecture):
            return refused
        if architecture.n_att != architecture.n_embd:
            return (
                f"{self.name} cannot hold a model whose time mix is {architecture.n_att} wide and its embedding "
                f"{architecture.n_embd}: llama.cpp knows only one size for both"
            )
        return None

    def layout(self, architecture: Architecture, tensors: Mapping[str, TensorInfo]) -> Layout:
        """Where every tensor goes in the file."""
        build = LayoutBuilder()
        listed, pairs = self._content(architecture, tensors, build)
        self._write(build, listed, pairs)
        return build.done()

    def parts(
        self, architecture: Architecture, tensors: Mapping[str, TensorInfo], split: Split
    ) -> Mapping[str, Layout] | None:
        """The files that an artifact above the limit becomes, by name; None if it is not split."""
        build = LayoutBuilder()
        listed, pairs = self._content(architecture, tensors, build)
        whole = LayoutBuilder()
        self._write(whole, listed, pairs)
        if whole.size <= split.size:
            return None
        base = len(head(0, split_pairs(0, 0, 0))) + ALIGNMENT
        sizes = [
            len(tensor_info(tensor, kind, 0)) + padded(size_of(kind, math.prod(tensor.shape)))
            for tensor, kind in listed
        ]
        sizes[0] += sum(map(len, pairs))
        groups = grouped(zip(listed, sizes, strict=True), split.size - base)
        out = {}
        for number, group in enumerate(groups):
            own = split_pairs(number, len(groups), len(listed))
            self._write(build, group, [*pairs, *own] if number == 0 else own)
            if build.size > split.size:
                build.remark(
                    f"{self.name}: shard {number + 1} has {build.size} bytes, more than the {split.size} of `split`: "
                    "a shard holds a tensor or more, and the first also the vocabulary"
                )
            out[shard_name(split.stem, number + 1, len(groups))] = build.done()
            build = LayoutBuilder()
        return out

    def _content(
        self, architecture: Architecture, tensors: Mapping[str, TensorInfo], build: LayoutBuilder
    ) -> tuple[list[tuple[GgufSlot, int]], list[bytes]]:
        """Tensors of the file with their types, and its metadata. Remarks go to `build`."""
        plan = planned(architecture, tensors)
        if self.rough:
            build.remark(
                f"{self.name}: RWKV loses much below four bits a weight; see the file's quality before using it"
            )
        kinds = [self._kind(tensor, architecture.n_layer, build) for tensor in plan]
        words = vocabulary(architecture.n_vocab, self.named, self._folder(architecture))
        if words.remark:
            build.remark(f"{self.name}: {words.remark}")
        if left := [name for name in architecture.extra if name not in sources_of(plan)]:
            build.remark(f"{self.name}: llama.cpp has no place for {', '.join(left[:4])}; left out")
        listed = list(zip(plan, kinds, strict=True))
        file_type = BY_NUMBER[self.kind].file_type if self.file_type is None else self.file_type
        weights = sum(math.prod(tensor.shape) for tensor in plan)
        return listed, [
            *model_pairs(architecture, file_type, self.about, weights),
            *token_pairs(words),
            *self._how(listed, build),
        ]

    def _folder(self, architecture: Architecture) -> Path | None:
        """The folder that the vocabulary is taken from. Raises WorkerError where there has to be one."""
        if architecture.version not in HYBRIDS:
            return None
        if self.folder is None:
            raise WorkerError(f"{self.name}: the folder of the model, with its tokenizer, is not known")
        return self.folder

    def _how(self, listed: Sequence[tuple[GgufSlot, int]], build: LayoutBuilder) -> list[bytes]:
        """Metadata of the importance matrix; remarks on what it lacks go to `build`."""
        if self.imatrix is None or not self.weighs:
            return []
        blocks = [tensor for tensor, kind in listed if kind in QUANTIZED and tensor.name.startswith("blk.")]
        if absent := [tensor.name for tensor in blocks if tensor.name not in self.imatrix.sums]:
            more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
            build.remark(f"{self.name}: {self.imatrix.name} has nothing for {', '.join(absent[:4])}{more}")
        dead = [t.name for t in blocks if self.imatrix.importance(t.name, t.shape[-1])[1]]
        if dead:
            more = f" and {len(dead) - 4} more" if len(dead) > 4 else ""
            build.remark(
                f"{self.name}: columns that were 0 on the whole text count as the mean: {', '.join(dead[:4])}{more}"
            )
        return imatrix_pairs(self.imatrix.name, self.imatrix.datasets, len(self.imatrix.sums), self.imatrix.chunks)

    def _write(self, build: LayoutBuilder, listed: Sequence[tuple[GgufSlot, int]], pairs: Sequence[bytes]) -> None:
        """A file of these tensors and metadata."""
        offset, infos = 0, []
        for tensor, kind in listed:
            infos.append(tensor_info(tensor, kind, offset))
            offset += padded(size_of(kind, math.prod(tensor.shape)))
        start = head(len(listed), pairs) + b"".join(infos)
        build.literal(start + bytes(padded(len(start)) - len(start)))
        for tensor, kind in listed:
            encoding = self._encoding(tensor, kind)
            for source in tensor.sources:
                build.slot(source, math.prod(tensor.shape) // len(tensor.sources), encoding)
            build.literal(bytes(padded(build.size) - build.size))

    def _encoding(self, tensor: GgufSlot, kind: int) -> Encoding:
        if kind not in QUANTIZED:
            return Encoding(kind, False, tensor.transform)
        weighed = None
        if self.imatrix is not None and kind != Q8_0:  # which is rounded and not searched for
            weighed = self.imatrix.importance(tensor.name, tensor.shape[-1])[0]
        return Encoding(kind, self.from_f16, tensor.transform, weighed)

    def _kind(self, tensor: GgufSlot, layers: int, build: LayoutBuilder) -> int:
        """The data type of a tensor in this file."""
        if len(tensor.shape) <= 1 or len(tensor.sources) > 1 or tensor.name.endswith(ALWAYS_F32):
            return F32
        if self.kind == F32 or not tensor.name.endswith(".weight"):
            return F32
        if self.kind not in QUANTIZED:
            return self.kind
        if tensor.name.endswith(NEVER_QUANTIZED):
            return F16 if self.from_f16 else F32
        cols, wanted = tensor.shape[-1], self._wanted(tensor.name, layers)
        if self.mix is not None and (given := self.mix.kind_of(tensor.name)) is not None:
            wanted = given
        for kind in (wanted, NARROWER.get(wanted, wanted)):
            if cols % BLOCKS[kind][0] == 0:
                return kind
        build.remark(f"{self.name}: {tensor.name} stays unquantized: rows of {cols}, not a multiple of 32")
        return F16

    def usual(self, name: str) -> str:
        """The type of a matrix whose rows are long enough, where nothing else is said of it."""
        return BY_NUMBER[self._wanted(name)].name

    def _wanted(self, name: str, layers: int = 0) -> int:
        """The type of a tensor whose rows are long enough."""
        small, weighed = self.file_type is not None, self.imatrix is not None
        return wanted_type(name, self.kind, small=small, layers=layers, weighed=weighed)


# What each type may lose, as in ggml-*: the same arithmetic on the same weights, and the embedding and the output
# quantized as well. llama.cpp quantizes activations to Q8_0 wherever weights are quantized.
LIMITS = {
    "f32": Limits(logits=1e-3, perplexity=1e-3),
    "f16": Limits(logits=0.03, perplexity=0.002),
    "bf16": Limits(logits=0.2, perplexity=0.01),
    "q8_0": Limits(logits=0.3, perplexity=0.02),
    "q6_k": Limits(logits=0.5, perplexity=0.03),
    "q5_1": Limits(logits=1.0, perplexity=0.07),
    "q5_0": Limits(logits=1.0, perplexity=0.07),
    "q5_k_m": Limits(logits=1.0, perplexity=0.07),
    "q5_k_s": Limits(logits=1.0, perplexity=0.07),
    "q4_1": Limits(logits=2.0, perplexity=0.20),
    "q4_0": Limits(logits=2.0, perplexity=0.25),
    "q4_k_m": Limits(logits=2.0, perplexity=0.20),
    "q4_k_s": Limits(logits=2.0, perplexity=0.20),
    "iq4_nl": Limits(logits=2.0, perplexity=0.20),
    "iq4_xs": Limits(logits=2.0, perplexity=0.20),
    "q3_k_m": Limits(logits=5.0, perplexity=0.80),
    "q3_k_s": Limits(logits=5.0, perplexity=0.80),
    "iq3_s": Limits(logits=5.0, perplexity=0.80),
    "iq3_xxs": Limits(logits=6.0, perplexity=1.20),
    "q2_k": Limits(logits=10.0, perplexity=4.0),
}
# llama_ftype of the names that are no type's own; `_m` is.
SMALL = {"q3_k_s": 11, "q4_k_s": 14, "q5_k_s": 16}
#: Names of types in the names of formats.
KINDS = tuple(LIMITS)
ROUGH = frozenset({"q3_k_m", "q3_k_s", "iq3_s", "iq3_xxs", "q2_k"})
FROM_F32, MIXED = "-from-f32", "-mixed"


def _format(short: str, from_f16: bool = True) -> Gguf:
    type_name = short.removesuffix("_s").removesuffix("_m") if "_k_" in short else short
    return Gguf(
        name=f"gguf-{short}" + ("" if from_f16 else FROM_F32),
        suffix=f"-{short.upper()}{'' if from_f16 else '-from-F32'}.gguf",
        versions=frozenset({"6", "7", *HYBRIDS}),
        consumer="llama.cpp",
        family="gguf",
        is_read_here=True,
        runner=f"{__package__}.run",
        quick_runner="rwkvflow.worker.formats.ggml.run",
        card=f"{__package__}.card",
        limits=LIMITS[short],
        requires=("gguf", "pyrwkv-tokenizer"),
        engine="llama.cpp",
        fixed_epsilon=True,
        tokenizer=True,
        splits=True,
        tells=True,
        quantization=short + ("" if from_f16 else FROM_F32) if BY_NAME[type_name].is_quantized else "",
        kind=BY_NAME[type_name].number,
        from_f16=from_f16,
        file_type=SMALL.get(short),
        rough=short in ROUGH,
        weighs=BY_NAME[type_name].is_quantized and short != "q8_0",
        mixes=BY_NAME[type_name].is_quantized,
    )


FORMATS = tuple(_format(short) for short in LIMITS)


def named(name: str) -> Gguf | None:
    """Quantized formats that the list leaves out: made from F32 values, `gguf-q4_k_m-from-f32`, and for a file that
    stands beside the plain one, with types of single tensors that the recipe gives, `gguf-q4_k_m-mixed`.
    """
    plain = name.removesuffix(MIXED)
    short = plain.removeprefix("gguf-").removesuffix(FROM_F32)
    from_f16 = not plain.endswith(FROM_F32)
    usual = plain == f"gguf-{short}" and plain == name  # which stands in the list
    whole = plain == f"gguf-{short}{'' if from_f16 else FROM_F32}"
    if usual or not whole or short not in LIMITS or short in ("f32", "f16", "bf16"):
        return None
    found = _format(short, from_f16)
    if plain == name:
        return found
    suffix = found.suffix.replace(".gguf", f"{MIXED}.gguf")
    return replace(found, name=name, suffix=suffix, weighs=True, mixed=True, quantization=found.quantization + MIXED)
