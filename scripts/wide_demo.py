"""The demo model of five domains, made as wide and deep as a larger one: the text of the one, at the cost of the other.

    python scripts/wide_demo.py FOLDER --library librwkv.so

A random model of 0.4B says what a pass costs, and nothing about guesses: its text is noise. A trained one of that size
cannot be shipped. So the trained one of 256 columns is written four times beside itself, which changes nothing that it
computes: a layer norm of [x, x, x, x] has the mean and variance of x, matrices become block-diagonal, heads and their
norms are copied, and the head reads the first copy. Layers behind it add nothing, as their last matrices are zero, and
cost what any layer does. The vocabulary is filled up with tokens that no text holds and that are never chosen. Rounding
aside, which sums of other lengths bring, the logits are those of the small model.

FOLDER gets `wide.bin` and `wide.gguf` in Q8_0, `small.bin`, which is the same without the further layers and half as
wide, and their vocabulary, `tokenizer`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.read.checkpoint import Checkpoint

Floats = NDArray[np.float32]
DEMO = Path(__file__).resolve().parent.parent / "recipes" / "demo"
LAYERS, COPIES, INNER, VOCABULARY = 24, 4, 4096, 65536  # those of the author's models of 0.4B
NEVER = -1.0  # what each column that is always 1 adds to the logit of a token that is never chosen
ALONG = ("emb.weight", "att.r_k")  # as wide as the model in the last dimension, or in the first
SQUARE = ("att.receptance.weight", "att.key.weight", "att.value.weight", "att.output.weight")


def widened(
    small: Mapping[str, Floats],
    *,
    copies: int = COPIES,
    layers: int = LAYERS,
    inner: int = INNER,
    tokens: int = VOCABULARY,
) -> dict[str, Floats]:
    """The tensors of such a model, of the tensors of version 7 of a small one. `copies`: 2 or more."""
    depth = 1 + max(int(name.split(".")[1]) for name in small if name.startswith("blocks."))
    width = small["emb.weight"].shape[1]
    out: dict[str, Floats] = {}
    for name, values in small.items():
        if not name.startswith("blocks."):
            out[name] = _copied(name, values, copies, inner)
    for layer in range(layers):
        # Layer 0 has tensors that others lack, and makes the values that they mix in: it is copied nowhere.
        source = layer if layer < depth else 1 + layer % (depth - 1)
        for name, values in small.items():
            if name.startswith(f"blocks.{source}."):
                rest = name.split(".", 2)[2]
                wide = _copied(rest, values, copies, inner)
                adds = rest in ("att.output.weight", "ffn.value.weight")
                out[f"blocks.{layer}.{rest}"] = np.zeros_like(wide) if adds and layer >= depth else wide
    # The last copy's columns become 1 behind the last norm; tokens that are never chosen subtract them.
    known = len(small["emb.weight"])
    last = slice((copies - 1) * width, None)
    out["ln_out.weight"][last], out["ln_out.bias"][last] = 0, 1
    for name in ("emb.weight", "head.weight"):
        out[name] = np.concatenate([out[name], np.zeros((tokens - known, copies * width), np.float32)])
    out["head.weight"][:, width:] = 0
    out["head.weight"][known:, last] = NEVER
    return out


def _copied(name: str, values: Floats, copies: int, inner: int) -> Floats:
    """A tensor for as many copies of the columns; `name` without its layer."""
    if name == "ffn.key.weight":  # what it has more rows than copies make is read by nobody, and not zero
        wide = _blocks(values, copies)
        return np.resize(wide, (max(inner, len(wide)), wide.shape[1]))
    if name == "ffn.value.weight":
        wide = _blocks(values, copies)
        return np.pad(wide, ((0, 0), (0, max(0, inner - wide.shape[1]))))
    if name == "head.weight":
        return np.tile(values, (1, copies))
    if name == "att.r_k":
        return np.tile(values, (copies, 1))
    if name in SQUARE or (name.startswith("att.") and name[-1] in "12"):
        return _blocks(values, copies)
    return np.tile(values, (1,) * (values.ndim - 1) + (copies,))


def _blocks(matrix: Floats, copies: int) -> Floats:
    return np.kron(np.eye(copies, dtype=np.float32), matrix)


def vocabulary() -> str:
    """The demo's, and tokens that stand in no text up to VOCABULARY."""
    text = (DEMO / "rwkv7-domains.vocab.txt").read_text(encoding="utf-8")
    first = 1 + int(text.splitlines()[-1].split()[0])
    lines = [
        f"{number} {never!r} {len(never)}" for number in range(first, VOCABULARY) if (never := f"\x00\x01{number}")
    ]
    return text.rstrip("\n") + "\n" + "\n".join(lines) + "\n"


def make(folder: Path, library: Path) -> None:
    """Writes what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    # A task finds the tokenizer that a GGUF gets beside its engine.
    engine, library = folder / library.name, library.resolve()
    if engine.resolve() != library:
        engine.unlink(missing_ok=True)
        engine.symlink_to(library)
    (folder / "tokenizer").write_text(vocabulary(), encoding="utf-8")
    with Checkpoint(DEMO / "rwkv7-domains.pth") as checkpoint:
        small = {name: checkpoint.float32(name) for name in checkpoint.tensors}
    sizes: dict[str, int] = {}
    for name, sizes in (("wide", {}), ("small", {"copies": 2, "layers": 3, "inner": 0})):
        formats = {f"{name}.bin": "ggml-q8_0", **({f"{name}.gguf": "gguf-q8_0"} if name == "wide" else {})}
        if all((folder / each).is_file() for each in formats):
            continue
        source = folder / f"{name}.safetensors"
        tensors = {each: values.astype(np.float16) for each, values in widened(small, **sizes).items()}
        save_file(tensors, source)
        del tensors
        jobs = [ConversionJob(each, kind, folder / each) for each, kind in formats.items()]
        for outcome in convert(source, engine, jobs):
            if outcome.failure is not None:
                raise SystemExit(f"{outcome.job.path}: {outcome.failure}")
        source.unlink()


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.library)


if __name__ == "__main__":
    main()
