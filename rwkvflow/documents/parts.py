"""What documents are made of: strict models, names, and of a recipe its formats and its smoke test."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from rwkvflow.documents.formats import strategy_format
from rwkvflow.worker.smoke.domain_names import Domain

# Patterns say [0-9], never \d: pydantic's regular expressions take the digits of all scripts for \d.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
SHA256 = r"^[0-9a-f]{64}$"
COMMIT = r"^[0-9a-f]{40}$"
IMAGE_REFERENCE = r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$"
PYTHON = r"^3\.[0-9]{1,2}$"
TORCH = r"^[0-9]+(\.[0-9]+){1,2}(\+[a-z0-9.]+)?$"
EXPECT = r"^(any|[0-9]{1,6}\+?)$"
TARGET = r"^[a-z0-9][a-z0-9_.-]{0,99}$"
LICENSE = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,99}$"
LANGUAGE = r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$"
REPOSITORY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
SPLIT = r"^([0-9]{1,6}(\.[0-9]{1,3})? ?(kB|MB|GB|KiB|MiB|GiB)|none)$"
CMAKE_OPTION = r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}(:[A-Z]+)?$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=SHA256)]
Commit = Annotated[str, StringConstraints(pattern=COMMIT)]

T = TypeVar("T")
# Strict tuples refuse lists, and lists are what YAML and JSON have; the items stay strict.
Many = Annotated[tuple[T, ...], Field(strict=False)]


class Strict(BaseModel):
    """Unknown keys are errors; values are not silently converted; a loaded document does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _format_kind(value: Any) -> str | None:
    return "(name)" if isinstance(value, str) else "(entry)" if isinstance(value, dict | FormatEntry) else None


class DomainLimit(Strict):
    """What a format may lose on the texts of one domain."""

    perplexity: float | None = Field(default=None, gt=0, description="Largest allowed rise, as a ratio")
    kl: float | None = Field(default=None, gt=0, description="Largest allowed mean KL divergence, in nats")
    agreement: float | None = Field(
        default=None, gt=0, le=1, description="Least share of tokens after which both hold the same one the likeliest"
    )


class Limit(Strict):
    """What a format may lose against the fp32 reference."""

    logits: float | None = Field(
        default=None,
        gt=0,
        description="Largest allowed difference of a logit, relative to the "
        "standard deviation of the reference's logits",
    )
    perplexity: float | None = Field(
        default=None, gt=0, description="Largest allowed rise of the perplexity, as a ratio: 0.01 is one percent"
    )
    domains: dict[Domain, DomainLimit] = Field(default_factory=dict, description="By domain, where `quality` is full")


class Smoke(Strict):
    """How each artifact is run and compared with its checkpoint."""

    prompts: Many[str] = Field(default=("The ",), min_length=1, description="Continued greedily and shown")
    tokens: int = Field(default=32, ge=1, le=4096, description="Length of each continuation")
    text: str | None = Field(
        default=None, description="Text file for the perplexity, relative to the recipe; default shipped"
    )
    limits: dict[str, Limit] = Field(default_factory=dict, description="By format; the rest keep their defaults")
    quality: Literal["quick", "full"] = Field(
        default="quick",
        description="full also measures files that librwkv runs over five domains, three tasks and each layer; see the "
        "smoke test's page",
    )
    quality_tokens: int = Field(default=8192, ge=64, le=8192, description="Of each domain, where `quality` is full")
    speed: bool = Field(
        default=False,
        description="Also measure the decode speed; the release then says how fast this one machine was, and another "
        "machine's differs",
    )


class TypesTarget(Strict):
    """What a file should come to: types for its matrices are chosen by what each loses alone. One of the three."""

    bits_per_weight: float | None = Field(default=None, gt=0, le=16, description="At most so many, of all weights")
    size: Annotated[str, StringConstraints(pattern=SPLIT.replace("|none", ""))] | None = Field(
        default=None, description="At most so large a file, e.g. 900MB"
    )
    kl: float | None = Field(
        default=None, gt=0, description="The smallest file that loses at most so many nats a token, as measured"
    )
    types: Many[str] = Field(
        default=("q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0", "f16"),
        min_length=1,
        description="Those to choose from; f16 is always one",
    )
    tokens: int = Field(default=2048, ge=128, le=65_536, description="Of all texts together, to measure losses over")


class FormatEntry(Strict):
    """A format with what is special about it."""

    format: str = Field(min_length=1, description="`rwkvflow formats` lists them; chatrwkv with a strategy")
    split: Annotated[str, StringConstraints(pattern=SPLIT)] | None = Field(
        default=None, description="As the recipe's `split`, for this format; none: never split or refuse it"
    )
    tensor_types: dict[str, str] = Field(
        default_factory=dict,
        description="gguf-* only: regular expression → type of the tensors in whose names it is found; the first that "
        "is decides, as with llama-quantize --tensor-type",
    )
    output_type: str | None = Field(default=None, description="gguf-* only: type of output.weight")
    embedding_type: str | None = Field(default=None, description="gguf-* only: type of token_embd.weight")
    target: TypesTarget | None = Field(
        default=None, description="gguf-*-mixed only: choose the types of matrices by what they lose"
    )
    strategy: str | None = Field(
        default=None,
        description="chatrwkv only: which layers the rwkv package computes where, "
        'e.g. "cuda fp16i8 *10 -> cuda fp16 *0+ -> cpu fp32"',
    )

    @property
    def name(self) -> str:
        """The format's own name. Raises ValueError for what is no strategy."""
        return self.format if self.strategy is None else strategy_format(self.strategy)


FormatItem = Annotated[
    Annotated[str, Tag("(name)")] | Annotated[FormatEntry, Tag("(entry)")],
    Discriminator(
        _format_kind,
        custom_error_type="expected",
        custom_error_message="the name of a format, or a mapping with format:",
    ),
]
