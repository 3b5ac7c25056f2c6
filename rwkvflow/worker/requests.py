"""What stages ask of tasks, typed on both sides: the parameters of a request, and those of each of its jobs.

A request is {"task": name, "params": ..., "jobs": [{"id": ..., "params": ..., "outputs": {name: path}}]}; see protocol.
Stages build these, tasks read them, and mypy holds the two together. They are imported for that alone: at run time they
are plain dicts, as they come out of JSON.

| task | params | params of a job |
| --- | --- | --- |
| assign | AssignParams | none |
| convert | ConvertParams | ConvertJob |
| imatrix | ImatrixParams | none |
| measure | MeasureParams | none |
| quality | QualityParams | QualityJob |
| reference | AskParams | none |
| ask, smoke | AskParams | SmokeJob |
| build-engine | see tasks/build_engine.Params, which checks them | none |
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class OriginParams(TypedDict, total=False):
    """What the recipe says of a model that its files do not; see model/origin."""

    lora_alpha: float  # that the LoRA was trained with
    ignore_tensors: list[str]  # globs of names


class ConvertParams(OriginParams, total=False):
    """Of the task `convert`."""

    group_norm_eps: float  # of the head group norm, where the recipe names one


class SplitParams(TypedDict):
    """How a large artifact is split."""

    size: int  # bytes of the largest file
    stem: str  # how the names of the files begin


class AboutParams(TypedDict, total=False):
    """What a file says of its model; see model/about.About."""

    name: str
    license: str
    license_name: str
    license_link: str
    url: str
    base_models: list[list[str]]  # name and page of each
    languages: list[str]
    quantized_by: str


class MixParams(TypedDict, total=False):
    """Types of single tensors; see worker/formats/mix."""

    tensor_types: list[tuple[str, str]]  # (regular expression, type)
    output_type: str
    embedding_type: str
    searched: bool  # whether those of the others stand in in/types/<format>, as the task `assign` leaves them


class ConvertJob(TypedDict):
    """One artifact to write."""

    format: str
    split: NotRequired[SplitParams]
    about: NotRequired[AboutParams]  # of formats that have a place for it
    imatrix: NotRequired[str]  # the name that in/imatrix goes by, where the artifact is quantized with it
    mix: NotRequired[MixParams]


class ImatrixParams(OriginParams):
    """Of the task `imatrix`."""

    tokenizer: str  # as QuestionParams has it
    group_norm_eps: float | None
    text: str  # what the text is called
    chunks: int  # of it, at most
    chunk_size: int  # tokens


class QuestionParams(OriginParams):
    """Of the tasks `reference`, `ask` and `smoke`: what a model is asked."""

    tokenizer: str  # auto, bytes, world, or tokenizer.json, which is then in/tokenizer
    group_norm_eps: float | None
    prompts: list[str]
    tokens: int  # of each continuation


class AskParams(QuestionParams, total=False):
    """The same with what is seldom said."""

    speed: bool  # whether tokens per second are measured
    text_tokens: int  # of the text at most
    logit_tokens: int  # after which all logits are kept, at most


class LimitParams(TypedDict):
    """What an artifact may lose; units as in worker/formats/base.Limits."""

    logits: float
    perplexity: float


class SmokeJob(TypedDict):
    """One artifact to try out. `limits` None stands for the format's own."""

    format: str
    input: str  # its name below in/
    limits: NotRequired[LimitParams | None]
    mix: NotRequired[MixParams]  # as it was converted with


class MeasureParams(OriginParams):
    """Of the task `measure`."""

    tokenizer: str  # as QuestionParams has it
    group_norm_eps: float | None
    tokens: int  # of the text, about
    kind: str  # the type


class AssignParams(OriginParams, MixParams):
    """Of the task `assign`; MixParams are types that are given."""

    group_norm_eps: float | None
    format: str
    target: dict[str, float]  # bits_per_weight, size in bytes, or kl in nats a token
    kinds: list[str]  # types to choose from
    tokens: int  # over which losses were measured
    about: NotRequired[AboutParams]  # what the file will say of its model, and
    imatrix: NotRequired[str]  # what in/imatrix will be called in it: both are bytes of it


class QualityParams(OriginParams):
    """Of the task `quality`."""

    tokenizer: str  # as QuestionParams has it
    group_norm_eps: float | None
    tokens: int  # of each domain, at most


class QualityJob(TypedDict):
    """One artifact to measure."""

    format: str
    input: str  # its name below in/
    limits: NotRequired[dict[str, dict[str, float]]]  # by domain: perplexity, kl, agreement


class JobRequest(TypedDict):
    """What every job has beside its parameters: its step's id, and the path of each output."""

    id: str
    outputs: dict[str, str]


class ConversionJobRequest(JobRequest):
    """A job of `convert`."""

    params: ConvertJob


class SmokeJobRequest(JobRequest):
    """A job of `ask` and `smoke`."""

    params: SmokeJob


class ConvertRequest(TypedDict):
    """A request to `convert`."""

    params: ConvertParams
    jobs: list[ConversionJobRequest]


class MeasureRequest(TypedDict):
    """A request to `measure`; its one job has no parameters."""

    params: MeasureParams
    jobs: list[JobRequest]


class AssignRequest(TypedDict):
    """A request to `assign`; its one job has no parameters."""

    params: AssignParams
    jobs: list[JobRequest]


class ImatrixRequest(TypedDict):
    """A request to `imatrix`; its one job has no parameters."""

    params: ImatrixParams
    jobs: list[JobRequest]


class QualityJobRequest(JobRequest):
    """A job of `quality`."""

    params: QualityJob


class QualityRequest(TypedDict):
    """A request to `quality`."""

    params: QualityParams
    jobs: list[QualityJobRequest]


class ReferenceRequest(TypedDict):
    """A request to `reference`; its one job has no parameters."""

    params: AskParams
    jobs: list[JobRequest]


class SmokeRequest(TypedDict):
    """A request to `ask` or `smoke`."""

    params: AskParams
    jobs: list[SmokeJobRequest]
