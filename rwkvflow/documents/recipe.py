"""The recipe: what the user wants. Field descriptions end up in the JSON Schema that editors show."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from rwkvflow.documents.parts import (
    CMAKE_OPTION,
    EXPECT,
    IMAGE_REFERENCE,
    LANGUAGE,
    LICENSE,
    PYTHON,
    REPOSITORY,
    SPLIT,
    TARGET,
    TORCH,
    Commit,
    FormatEntry,
    FormatItem,
    Many,
    Name,
    Sha256,
    Smoke,
    Strict,
)
from rwkvflow.documents.yaml.units import split_bytes


class Lora(Strict):
    """A LoRA, or PiSSA, Bone or DiSHA, that is merged into a checkpoint before it is converted."""

    source: str = Field(min_length=1, description="A .pth or .safetensors file, written as a model's source")
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="The alpha that a LoRA was trained with; its rank is read from the tensors. PiSSA, Bone and DiSHA "
        "have none",
    )
    init: str | None = Field(
        default=None, min_length=1, description="PiSSA: the file of what it began with (init_lora_A and init_lora_B)"
    )
    sha256: Sha256 | None = Field(default=None, description="Expected digest of the file")


class InitialState(Strict):
    """Initial states of a model, as state tuning makes them."""

    source: str = Field(min_length=1, description="A .pth or .safetensors file of blocks.N.att.time_state")
    sha256: Sha256 | None = Field(default=None, description="Expected digest of the file")


class Calibration(Strict):
    """What a model's importance matrix is computed over; its quantized gguf-* files are then made with it."""

    text: str = Field(
        default="calibration",
        min_length=1,
        description="calibration: the text that ships, of English, Chinese, code, numbers and dialogue; or a UTF-8 "
        "file, relative to the recipe",
    )
    chunks: int = Field(default=128, ge=1, le=100_000, description="Read at most so many chunks of the text")
    chunk_size: int = Field(default=512, ge=8, le=65_536, description="Tokens of a chunk")


class Model(Strict):
    """One checkpoint to convert."""

    name: Name = Field(description="File names and identifiers are made from it, e.g. rwkv7-world-0.1b")
    source: str = Field(
        min_length=1,
        description="A path (relative to the recipe), file:, https://… or hf://owner/name[@revision]/path; a folder or "
        "repository of a Hugging Face model as well",
    )
    sha256: Sha256 | None = Field(
        default=None, description="Expected digest of the file; else the lock's first download decides"
    )
    lora: Lora | None = Field(default=None, description="Merged into it first")
    state: InitialState | None = Field(default=None, description="Goes along into formats that have a place for it")
    tokenizer: str = Field(
        default="auto",
        description="auto (by vocabulary size), bytes, world, or the source of a tokenizer.json (20B models)",
    )
    ignore_tensors: Many[Annotated[str, StringConstraints(min_length=1, max_length=200)]] = Field(
        default=(),
        description="Globs of names: tensors that rwkvflow does not know and that are left out, which the card says",
    )
    imatrix: Calibration | None = Field(
        default=None, description="Compute an importance matrix, and quantize gguf-* files with it"
    )
    group_norm_eps: float | None = Field(
        default=None, gt=0, lt=1, description="Epsilon of the head group norm (ln_x) of versions 5 to 7; default 64e-5"
    )


def image_name(python: str, torch: str | None) -> str:
    """What an image is called where the recipe gives no name: py3.11, py3.11-torch2.13.0."""
    return f"py{python}" + (f"-torch{torch}".replace("+", "-") if torch else "")


class Image(Strict):
    """One container image to work in; on the host sandbox, one virtual environment."""

    base: Annotated[str, StringConstraints(pattern=IMAGE_REFERENCE)] | None = Field(
        default=None,
        description="Base image with this Python: a registry reference, or one in the engine such as "
        "`rwkvflow image bootstrap` makes; default: the slim image of this Python, or, where no registry is reached, "
        "such a one",
    )
    python: Annotated[str, StringConstraints(pattern=PYTHON)] = Field(
        default="3.11", description='In quotes, e.g. "3.11"; without them 3.10 is the number 3.1'
    )
    torch: Annotated[str, StringConstraints(pattern=TORCH)] | None = Field(
        default=None, description='PyTorch version such as "2.13.0"; left out where nothing needs it'
    )
    wheels: Many[str] = Field(default=(), description="Further requirements, e.g. tokenizers==0.20.3")
    name: Name = Field(
        default_factory=lambda data: image_name(data["python"], data["torch"]),
        description="Identifier after the @; default py<python>[-torch<version>]",
    )


class PatchRule(Strict):
    """How to change what CMake wrote, before it is built."""

    name: Name = Field(description="For messages and the provenance")
    files: Many[str] = Field(min_length=1, description="Globs below the build folder, e.g. build.ninja, **/flags.make")
    pattern: str = Field(min_length=1, description="Python regular expression")
    replace: str = Field(description=r"Replacement; \1 and \g<name> refer to groups")
    expect: Annotated[str, StringConstraints(pattern=EXPECT)] = Field(
        default="1+", description='How many matches there must be over all files: "3", "1+" or "any"'
    )
    when: dict[Literal["host", "target", "cmake"], str] = Field(
        default_factory=dict,
        description="Applies only where all of these hold: host and target are globs over <system>-<processor>, "
        "cmake is a version specifier such as >=3.25",
    )


def _submodules_kind(value: Any) -> str | None:
    return "(flag)" if isinstance(value, bool) else "(paths)" if isinstance(value, list | tuple) else None


Submodules = Annotated[
    Annotated[bool, Tag("(flag)")] | Annotated[Many[str], Field(min_length=1), Tag("(paths)")],
    Discriminator(
        _submodules_kind,
        custom_error_type="expected",
        custom_error_message="true, false or a list of paths",
    ),
]


class Git(Strict):
    """An engine from a git repository."""

    git: str = Field(min_length=1, description="Clone URL")
    ref: str | None = Field(default=None, description="Branch or tag; the lock pins it to a commit")
    commit: Commit | None = Field(default=None, description="Full commit hash")
    submodules: Submodules = Field(
        default=False, description="Fetch its submodules and theirs, or a list: those at these paths alone"
    )
    folder: str = Field(default=".", description="Folder of CMakeLists.txt inside the repository")


class LocalFolder(Strict):
    """An engine from a folder on this machine."""

    path: str = Field(min_length=1, description="Relative to the recipe")


def _source_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "(builtin)"
    if isinstance(value, Git | LocalFolder):
        return "(git)" if isinstance(value, Git) else "(folder)"
    if isinstance(value, dict):
        return "(folder)" if "path" in value and "git" not in value else "(git)"
    return None


def _option_kind(value: Any) -> str | None:
    return {str: "(text)", bool: "(flag)", int: "(number)"}.get(type(value))


# Tags in parentheses cannot be keys, so that explain.py can tell them from the places of a document.
UNION_TAGS = frozenset(
    {"(builtin)", "(git)", "(folder)", "(text)", "(flag)", "(paths)", "(number)", "(name)", "(entry)"}
)

EngineSource = Annotated[
    Annotated[Literal["builtin"], Tag("(builtin)")]
    | Annotated[Git, Tag("(git)")]
    | Annotated[LocalFolder, Tag("(folder)")],
    Discriminator(
        _source_kind,
        custom_error_type="expected",
        custom_error_message="the word builtin, or a mapping with git: or path:",
    ),
]
CMakeValue = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[bool, Tag("(flag)")] | Annotated[int, Tag("(number)")],
    Discriminator(
        _option_kind,
        custom_error_type="expected",
        custom_error_message="text, true, false or a whole number",
    ),
]


class Engine(Strict):
    """The native engine: any CMake project whose library has the C API of rwkv.h."""

    source: EngineSource = Field(default="builtin", description="builtin is librwkv")
    toolchain: Literal["zig", "system"] = Field(
        default="zig", description="zig comes as wheels and needs nothing installed; system is what the image has"
    )
    target: Annotated[str, StringConstraints(pattern=TARGET)] | None = Field(
        default=None, description="zig target triple; default: Linux gnu of the image's processor"
    )
    targets: Many[Annotated[str, StringConstraints(pattern=TARGET)]] = Field(
        default=(),
        description="Further zig target triples, such as aarch64-linux-musl: built as well and published below engine/",
    )
    library: str | None = Field(default=None, description="Glob of the built library to use, default **/librwkv.*")
    cmake: dict[Annotated[str, StringConstraints(pattern=CMAKE_OPTION)], CMakeValue] = Field(
        default_factory=dict, description="-D options"
    )
    patches: Many[PatchRule] = Field(default=(), description="Applied after the shipped rules")


class Publish(Strict):
    """One place to publish to."""

    to: str = Field(
        min_length=1,
        description="A folder, relative to the recipe; hf://owner/name; oci://registry/name:tag; s3://bucket/folder "
        "or any URL that fsspec can write to",
    )
    private: bool | None = Field(
        default=None, description="hf:// only: whether the repository is private; default: as it is, or as new ones are"
    )
    branch: str | None = Field(default=None, description="hf:// only; default main")
    tag: str | None = Field(
        default=None, description="hf:// only: tag of the release; default release- and digits of its SHA256SUMS"
    )


class Card(Strict):
    """What the release's README.md says beyond what is known: its title, its licence, whom it is made from."""

    template: str | None = Field(
        default=None,
        description="A Jinja template of your own, relative to the recipe; it may extend README.md.j2, the shipped one",
    )
    title: str | None = Field(default=None, min_length=1, description="Default: the recipe's name")
    about: str | None = Field(default=None, description="Markdown that comes first")
    license: Annotated[str, StringConstraints(pattern=LICENSE)] | None = Field(
        default=None, description="As the Hugging Face Hub names it, e.g. apache-2.0; other with a name and a link"
    )
    license_name: str | None = Field(default=None, min_length=1, description="Where license is other")
    license_link: str | None = Field(default=None, min_length=1, description="Where license is other")
    language: Many[Annotated[str, StringConstraints(pattern=LANGUAGE)]] = Field(
        default=(), description="Codes of the languages, e.g. en"
    )
    base_model: Many[Annotated[str, StringConstraints(pattern=REPOSITORY)]] = Field(
        default=(), description="owner/name; default: the hub repositories that the checkpoints come from"
    )
    tags: Many[Annotated[str, StringConstraints(min_length=1)]] = Field(
        default=(), description="Added to those that follow from the formats"
    )
    library_name: str | None = Field(default=None, min_length=1, description="Default rwkv")
    pipeline_tag: str | None = Field(default=None, min_length=1, description="Default text-generation")
    quantized_by: str | None = Field(default=None, min_length=1, description="Who you are; default rwkvflow")


class Sign(Strict):
    """How the release is signed, in the format of OpenSSF's model-signing."""

    key: str = Field(
        min_length=1,
        description="Private key on the curve P-256 as PEM, relative to the recipe; its password, where it has one, "
        "comes from RWKVFLOW_SIGN_PASSWORD",
    )


class Combination(Strict):
    """Which combinations a rule is about: shell globs, all of which must match."""

    model: str = Field(default="*", description="Glob of model names")
    format: str = Field(default="*", description="Glob of format names")
    image: str = Field(default="*", description="Glob of image names")


class Matrix(Strict):
    """Changes to models × formats × images. `exclude` first, then `include` adds."""

    exclude: Many[Combination] = Field(default=(), description="Combinations to leave out")
    include: Many[Combination] = Field(
        default=(), description="Kept although excluded; names a format outside `formats` to add it"
    )


class Recipe(Strict):
    """recipe.yaml as a whole."""

    version: Literal[1] = Field(default=1, description="Of the recipe's format, not of your recipe")
    name: Name = Field(description="What the release is called")
    models: Many[Model] = Field(min_length=1, description="The checkpoints to convert")
    formats: Many[FormatItem] = Field(min_length=1, description="`rwkvflow formats` lists them")
    split: Annotated[str, StringConstraints(pattern=SPLIT)] | None = Field(
        default=None,
        description="The largest file, e.g. 5GB: an artifact above it is split as its runtime expects, or refused",
    )
    images: Many[Image] = Field(default=(Image(),), min_length=1, description="`image:` with one mapping works too")
    engine: Engine = Field(default_factory=Engine, description="The native engine; default librwkv")
    smoke: Smoke = Field(default_factory=Smoke, description="How each artifact is tested")
    publish: Many[Publish] = Field(default=(), description="Where artifacts go that passed smoke")
    card: Card | None = Field(default=None, description="What the release's README.md says")
    sign: Sign | None = Field(default=None, description="Signs the release; it is not signed without")
    matrix: Matrix = Field(default_factory=Matrix, description="Changes to models × formats × images")

    @property
    def format_names(self) -> tuple[str, ...]:
        """The names of `formats`, in order."""
        return tuple(item if isinstance(item, str) else item.name for item in self.formats)

    def entry_of(self, name: str) -> FormatEntry | None:
        """What the recipe says of a format beside its name."""
        return next((item for item in self.formats if isinstance(item, FormatEntry) and item.name == name), None)

    def split_of(self, name: str) -> int | None:
        """Bytes above which a file of the format has to be split; None where it is written as it is."""
        entry = self.entry_of(name)
        size = (entry and entry.split) or self.split
        return None if size in (None, "none") else split_bytes(str(size))

    @model_validator(mode="before")
    @classmethod
    def _one_image(cls, data: Any) -> Any:
        """`image: {…}` is `images: [{…}]`."""
        if isinstance(data, dict) and "image" in data and "images" not in data:
            return {
                ("images" if key == "image" else key): ([value] if key == "image" else value)
                for key, value in data.items()
            }
        return data
