"""What an answer may be: JSON schemas and grammars, as masks of tokens. llguidance knows which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from rwkvflow.engine.choosing import Bits
from rwkvflow.engine.session import END
from rwkvflow.engine.tokenizer import Tokenizer
from rwkvflow.serve.errors import ApiError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# What may stand in a schema: assertions, of which llguidance itself names those that it cannot hold, and remarks.
_WORDS = """
type enum const properties required additionalProperties patternProperties unevaluatedProperties propertyNames
minProperties maxProperties dependentRequired dependentSchemas items prefixItems additionalItems contains minContains
maxContains unevaluatedItems minItems maxItems uniqueItems minLength maxLength pattern format minimum maximum
exclusiveMinimum exclusiveMaximum multipleOf anyOf oneOf allOf not if then else $ref $anchor $dynamicRef $defs
definitions
"""
ASSERTIONS = frozenset(_WORDS.split())
REMARKS = {"title", "description", "default", "examples", "$schema", "$id", "$comment"}
REMARKS |= {"deprecated", "readOnly", "writeOnly"}
ONE = ("additionalProperties", "unevaluatedProperties", "propertyNames", "items", "additionalItems", "contains")
ONE_MORE = ("unevaluatedItems", "not", "if", "then", "else")
MANY = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
LISTS = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
DEEPEST = 64
# A model that may write white space wherever JSON has it may never come to an end of it.
_FORM: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Makes grammars for one model's vocabulary. For any thread."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, n_vocab)))

    def of_schema(self, schema: Any, param: str) -> Masked:
        """JSON that fits the schema. Raises ApiError (400) that names what cannot be held to."""
        for path, name in unknown_keywords(schema):
            raise ApiError(400, f"{param}: {path}{name} is no keyword of JSON Schema that is known here", param=param)
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), None, _FORM)
        except ValueError as error:  # a number such as 1e999 is JSON and read as infinite, which is none
            raise ApiError(400, f"{param}: {error}", param=param) from None
        return self._made(grammar, param)

    def of_text(self, text: str) -> Masked:
        """What a grammar describes, in GBNF or in llguidance's form of Lark. Raises ApiError (400)."""
        try:
            lark = any_to_lark(text)
        except Exception as error:  # the converter raises several kinds
            raise ApiError(400, f"grammar: {error}", param="grammar") from None
        return self._made(LLMatcher.grammar_from_lark(lark), "grammar")

    def _made(self, grammar: str, param: str) -> Masked:
        if problem := LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise ApiError(400, f"{param}: {problem.splitlines()[0]}", param=param)
        return Masked(LLMatcher(self._tokenizer, grammar), self.n_vocab)


class Masked:
    """See rwkvflow.serve.batching.job.Grammar. For one thread at a time."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher, self._n_vocab = matcher, n_vocab

    def copy(self) -> Masked:
        """One that stands where this one does. Takes far less than to make it."""
        return Masked(self._matcher.deep_copy(), self._n_vocab)

    def allowed(self) -> Bits:
        """[ceil(n_vocab / 32)]. Raises ValueError where the grammar has come to an end that it knows no way out of."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), "<u4")[: (self._n_vocab + 31) // 32]
        if self._matcher.is_error() or not bits.any():
            raise ValueError(f"the grammar allows nothing more: {self._matcher.get_error()}")
        return bits

    def take(self, token: int) -> bool:
        """True: where nothing more may come, the only token that is allowed next is the end."""
        self._matcher.consume_token(token)
        return True


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    bos_token_id = None
    eos_token_id = END

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        pieces = [tokenizer.piece(i) if i < tokenizer.size else b"" for i in range(n_vocab)]
        # An id without a token is a byte that no text holds.
        missing = [i for i, piece in enumerate(pieces) if piece in (b"", b"\xff") or i == END]
        if tokenizer.name == "bytes":
            missing = [END]
        self.tokens = [f"<|{i}|>".encode() if i in set(missing) else piece for i, piece in enumerate(pieces)]
        self.special_token_ids = missing
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text)


def unknown_keywords(schema: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(where, keyword) of what no validator would look at: to pass over it is to promise what is not kept."""
    if depth > DEEPEST:
        yield path, "…, which is nested too deep,"
        return
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name not in ASSERTIONS and name not in REMARKS:
            yield path, name
        elif name in LISTS and isinstance(value, list):
            for index, each in enumerate(value):
                yield from unknown_keywords(each, f"{path}{name}.{index}.", depth + 1)
        elif name in MANY and isinstance(value, dict):
            for key, each in value.items():
                yield from unknown_keywords(each, f"{path}{name}.{key}.", depth + 1)
        elif name in ONE or name in ONE_MORE:
            yield from unknown_keywords(value, f"{path}{name}.", depth + 1)
