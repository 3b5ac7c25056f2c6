"""rwkvflow turns published RWKV checkpoints into verified, runnable artifacts, reproducibly."""

__version__ = "0.1.0"
