"""Task `assign`: the best type for each matrix of a model, from what each loses alone, within a target.

Inputs: in/checkpoint with in/lora and in/state (see origin), in/tokenizer where the recipe names one, in/imatrix where
files are made with one, and for each type in/losses/TYPE (see measure). Parameters: see AssignParams. One job with the
output "types".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.worker.conversion.assign import TypeChoice, within_loss, within_size
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.gguf.imatrix import read_imatrix
from rwkvflow.worker.formats.gguf.layout import ALIGNMENT, Gguf
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
    choices = _choices(params)
    plain = _whole(origin, params, dict.fromkeys(choices, PLAIN))
    taken = sum(next(c.size for c in some if c.kind == PLAIN) for some in choices.values())
    if (loss := target.get("kl")) is not None:
        found = within_loss(choices, loss)
    elif (size := target.get("size")) is not None:
        found = within_size(choices, int(size) - (plain.file - taken))
    else:
        found = within_size(choices, int(target["bits_per_weight"] * plain.values / 8) - (plain.weights - taken))
    if found is None:
        least = _whole(origin, params, {name: min(some, key=lambda c: c.size).kind for name, some in choices.items()})
        raise WorkerError(
            f"no choice of {', '.join(params['kinds'])} reaches the target of {json.dumps(target)}: the smallest has "
            f"{least.file} bytes, {least.bits:.3f} bits a weight"
        )
    whole = _whole(origin, params, found.kinds)
    best, bound = (found.size, found.bound) if "kl" in target else (found.loss, found.bound)
    content = {
        "target": target,
        "types": dict(found.kinds),
        "counts": dict(sorted(Counter(found.kinds.values()).items())),
        "file_size": whole.file,
        "bits_per_weight": round(whole.bits, 4),
        "loss": float(f"{found.loss:.6g}"),
        "bound": float(f"{bound:.6g}"),
        "gap": round(best / bound - 1, 6) if bound > 0 else None,
        "tokens": params["tokens"],
    }
    output = Path(job["outputs"]["types"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    emit(note={"job": job["id"], "key": "bits a weight", "value": f"{whole.bits:.3f}"})
    emit(note={"job": job["id"], "key": "loss, and its bound", "value": f"{found.loss:.4g}, {bound:.4g}"})
    finish(job["id"], "types", output)


def _choices(params: AssignParams) -> dict[str, list[TypeChoice]]:
    """By matrix. Those that the recipe gives a type are none; equal types, that rows force, are one choice."""
    given = mix_of(params.get("tensor_types", ()), params.get("output_type"), params.get("embedding_type"))
    found: dict[str, dict[str, TypeChoice]] = {}
    for kind in params["kinds"]:
        if kind == PLAIN:
            continue
        try:
            losses = json.loads((Path("in/losses") / kind).read_text(encoding="utf-8"))["matrices"]
        except (OSError, ValueError, KeyError) as error:
            raise WorkerError(f"the losses of {kind} cannot be read: {error}") from None
        for name, told in losses.items():
            if given is None or given.kind_of(name) is None:
                some = found.setdefault(name, {PLAIN: TypeChoice(PLAIN, _padded(2 * told["values"]), 0.0)})
                some.setdefault(told["type"], TypeChoice(kind, _padded(told["bytes"]), told["loss"]))
    return {name: list(found[name].values()) for name in sorted(found)}


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
