"""The forward pass of versions 4 to 7 and the two hybrids in numpy fp32: what smoke compares every artifact with.

Written from the formulas of the author's own implementation (PyPI's `rwkv` package and github.com/BlinkDL/RWKV-LM);
the tests compare the two. Weights come straight from the checkpoint, by its own names and shapes.
"""

from rwkvflow.worker.reference.model import Reference, Tensors, logits

__all__ = ["Reference", "Tensors", "logits"]
