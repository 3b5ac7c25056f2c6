"""rwkvflow turns published RWKV checkpoints into verified, runnable artifacts, reproducibly."""

try:
    from rwkvflow._version import __version__ as __version__  # stands in each wheel; see hatch_build.py
except ModuleNotFoundError:
    __version__ = "0+checkout"  # no release, and so nothing that an index could have
