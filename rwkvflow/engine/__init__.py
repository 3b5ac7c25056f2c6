"""librwkv and Python's door to it."""

from rwkvflow.engine.binding import EngineError, Library, Model

__all__ = ["EngineError", "Library", "Model"]
