"""Types of single tensors, where a recipe or a command gives them: as llama-quantize's --tensor-type and its like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.weight_types import BY_NAME, WEIGHT_TYPES

#: Types that a tensor of a GGUF may be given, by their names.
TYPES = tuple(kind.name for kind in WEIGHT_TYPES if kind.file_type is not None)
PLAIN = "f16"  # what a searched file is made from, so that it loses nothing
#: Those that a search may choose from: their values are told in numpy.
SEARCHED = (PLAIN, *(kind.name for kind in WEIGHT_TYPES if kind.is_quantized and not kind.name.startswith("iq3")))
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class Mix:
    """Types by name of the tensor in the file.

    rules      (regular expression, type): the first that is found in a name decides
    output     type of output.weight, embedding of token_embd.weight; before the rules
    exact      types of tensors by their whole names, of which the rules say nothing
    """

    rules: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    embedding: str | None = None
    exact: Mapping[str, str] = field(default_factory=dict, hash=False)

    def kind_of(self, name: str) -> int | None:
        """The number of the type that a tensor is given; None where nothing is said of it."""
        given = {OUTPUT: self.output, EMBEDDING: self.embedding}.get(name)
        if given is None:
            given = next((kind for rule, kind in self._compiled if rule.search(name)), self.exact.get(name))
        return None if given is None else BY_NAME[given].number

    @cached_property
    def _compiled(self) -> list[tuple[re.Pattern[str], str]]:
        return [(re.compile(rule), kind) for rule, kind in self.rules]


def mix_of(
    rules: Sequence[Sequence[str]],
    output: str | None = None,
    embedding: str | None = None,
    exact: Mapping[str, str] | None = None,
) -> Mix | None:
    """The mix; None where nothing is given. Raises WorkerError for what is no expression, and no type."""
    for rule, kind in [*rules, ("", output), ("", embedding), *(("", kind) for kind in (exact or {}).values())]:
        if why := problem(str(rule), kind):
            raise WorkerError(why)
    if not (rules or output or embedding or exact):
        return None
    return Mix(tuple((str(rule), str(kind)) for rule, kind in rules), output, embedding, exact or {})


def problem(rule: str, kind: str | None) -> str | None:
    """What is wrong with a rule, in words; None for nothing."""
    try:
        re.compile(rule)
    except (re.error, OverflowError, RecursionError) as error:
        return f"{rule!a} is no regular expression: {error}"
    if kind is not None and kind not in TYPES:
        return f"{kind!a} is no type of a tensor; there are {', '.join(TYPES)}"
    return None
