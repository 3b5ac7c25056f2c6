"""librwkv and Python's door to it."""

from rwkvflow.engine.binding import EngineError, Library, Model
from rwkvflow.engine.tokenizer import Tokenizer

__all__ = ["EngineError", "Library", "Model", "Tokenizer"]
