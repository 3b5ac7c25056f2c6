"""Task `assign`: the best type for each matrix of a model, from what each loses alone, within a target.

Within a size, the text that loses most against what the plain file loses in it shall lose the least (see
conversion/balance); within a loss, which is the mean of the texts', the file shall be the smallest.

Inputs: in/checkpoint with in/lora and in/state (see origin), in/tokenizer where the recipe names one, in/imatrix where
files are made with one, and for each type in/losses/TYPE (see measure). Parameters: see AssignParams. One job with the
output "types".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.conversion.assign import Assignment, within_loss
from rwkvflow.worker.conversion.balance import Balanced, MeasuredType, balanced, losses_of, weighed
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.imatrix import read_imatrix
from rwkvflow.worker.formats.gguf.layout import Gguf
from rwkvflow.worker.formats.gguf.plan import ALIGNMENT
from rwkvflow.worker.formats.mix import PLAIN, mix_of
from rwkvflow.worker.model.about import about_of
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.origin import Origin, origin_of
from rwkvflow.worker.protocol import emit
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.tasks.convert import IMATRIX
from rwkvflow.worker.tasks.outputs import finish

if TYPE_CHECKING:
    from rwkvflow.worker.requests import AssignParams, AssignRequest


@dataclass(frozen=True)
class ArtifactSize:
    """What an artifact with certain types takes: bytes of its file, bytes of its weights, and how many these are."""

    file: int
    weights: int
    values: int

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.weights / self.values


def run(request: AssignRequest) -> None:
    """Write the types. Raises WorkerError for a target that nothing reaches."""
    params, job = request["params"], request["jobs"][0]
    origin, target = origin_of(Path("in"), params), params["target"]
    told = _losses(params)
    choices = told.choices
    plain = _whole(origin, params, dict.fromkeys(choices, PLAIN))
    taken = sum(next(c.size for c in some if c.kind == PLAIN) for some in choices.values())
    found: Assignment | Balanced | None
    if (loss := target.get("kl")) is not None:
        found = within_loss(weighed(choices, [1 / len(told.texts)] * len(told.texts)), loss)
    elif (size := target.get("size")) is not None:
        found = balanced(choices, int(size) - (plain.file - taken), told.usual)
    else:
        found = balanced(
            choices, int(target["bits_per_weight"] * plain.values / 8) - (plain.weights - taken), told.usual
        )
    if found is None:
        least = _whole(origin, params, {name: min(some, key=lambda c: c.size).kind for name, some in choices.items()})
        raise WorkerError(
            f"no choice of {', '.join(params['kinds'])} reaches the target of {json.dumps(target)}: the smallest has "
            f"{least.file} bytes, {least.bits:.3f} bits a weight"
        )
    whole = _whole(origin, params, found.kinds)
    best, bound = (found.worst if isinstance(found, Balanced) else found.size), found.bound
    losses = losses_of(choices, found.kinds)
    texts = {
        name: {"loss": _digits(loss), "usual": _digits(usual)}
        for name, loss, usual in zip(told.texts, losses, told.usual, strict=True)
    }
    content = {
        "target": target,
        "types": dict(found.kinds),
        "counts": dict(sorted(Counter(found.kinds.values()).items())),
        "file_size": whole.file,
        "bits_per_weight": round(whole.bits, 4),
        "loss": _digits(math.fsum(losses) / len(losses)),
        "texts": texts,
        "gap": round(best / bound - 1, 6) if bound > 0 else None,
        "tokens": params["tokens"],
    }
    output = Path(job["outputs"]["types"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    emit(note={"job": job["id"], "key": "bits a weight", "value": f"{whole.bits:.3f}"})
    ratios = ", ".join(f"{name} {one['loss'] / one['usual']:.3f}" for name, one in texts.items() if one["usual"])
    emit(note={"job": job["id"], "key": "losses, as shares of the plain file's", "value": ratios})
    finish(job["id"], "types", output)


@dataclass(frozen=True)
class Losses:
    """What was measured. `usual`: of each text, what the plain file's types lose together."""

    texts: tuple[str, ...]
    choices: Mapping[str, Sequence[MeasuredType]]
    usual: tuple[float, ...]


def _losses(params: AssignParams) -> Losses:
    """By matrix. Those that the recipe gives a type are none; equal types, that rows force, are one choice.

    Where the plain file's type of a matrix is not among those that were measured, their mean stands for it.
    """
    given = mix_of(params.get("tensor_types", ()), params.get("output_type"), params.get("embedding_type"))
    plain = FORMATS[params["format"]]
    texts: tuple[str, ...] = ()
    found: dict[str, dict[str, MeasuredType]] = {}
    usual: dict[str, tuple[float, ...]] = {}
    for kind in params["kinds"]:
        if kind == PLAIN:
            continue
        try:
            told = json.loads((Path("in/losses") / kind).read_text(encoding="utf-8"))["matrices"]
            for name, one in told.items():
                texts = texts or tuple(one["losses"])
                losses = tuple(float(one["losses"][text]) for text in texts)
                if given is not None and given.kind_of(name) is not None:
                    continue
                nothing = MeasuredType(PLAIN, _padded(2 * one["values"]), (0.0,) * len(texts))
                found.setdefault(name, {PLAIN: nothing}).setdefault(
                    one["type"], MeasuredType(kind, _padded(one["bytes"]), losses)
                )
                if isinstance(plain, Gguf) and plain.usual(name) == kind:
                    usual[name] = losses
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkerError(f"the losses of {kind} cannot be read: {error}") from None
    if not found:
        raise WorkerError("every matrix has a type that the recipe gives it: there is nothing to choose")
    for name, some in found.items():
        columns = zip(*(item.losses for item in some.values() if item.kind != PLAIN), strict=True)
        usual.setdefault(name, tuple(math.fsum(column) / (len(some) - 1) for column in columns))
    sums = zip(*(usual[name] for name in sorted(usual)), strict=True)
    return Losses(texts, {name: list(found[name].values()) for name in sorted(found)}, tuple(map(math.fsum, sums)))


def _digits(loss: float) -> float:
    return float(f"{loss:.6g}")


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _whole(origin: Origin, params: AssignParams, kinds: Mapping[str, str]) -> ArtifactSize:
    """From the layout; nothing is written."""
    mix = mix_of(params.get("tensor_types", ()), params.get("output_type"), params.get("embedding_type"), kinds)
    with open_checkpoint(origin) as checkpoint:
        architecture = architecture_of(checkpoint.tensors, params["group_norm_eps"])
        found = FORMATS[params["format"]]
        if not isinstance(found, Gguf):
            raise WorkerError(f"{found.name} has no types to choose")
        called = params.get("imatrix")
        matrix = replace(read_imatrix(IMATRIX), name=called) if called else None
        item = replace(found, mix=mix, named=_tokenizer(), about=about_of(params.get("about")), imatrix=matrix)
        held = item.held(architecture, checkpoint.tensors)
        layout = item.layout(architecture, held)
    weights = sum(slot.size for slots in layout.slots.values() for slot in slots)
    return ArtifactSize(layout.size, weights, sum(info.numel for info in held.values()))


def _tokenizer() -> Path | None:
    path = Path("in/tokenizer")
    return path if path.is_file() else None
