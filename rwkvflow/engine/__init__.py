"""librwkv, and Python's binding of it."""

from rwkvflow.engine.binding import Library, Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.tokenizer import Tokenizer

__all__ = ["EngineError", "Library", "Model", "Tokenizer"]
