"""What the files of a release are called, and which files beside them are none of it."""

from __future__ import annotations

from rwkvflow.base.names import path_problem
from rwkvflow.base.outputs import MARKER

CARD = "README.md"
QUALITY = "quality.json"
PLOT, DOMAIN_PLOT = "quality.svg", "quality-domains.svg"
CATALOGUE = "catalogue.json"
RECIPE, LOCK = "recipe.yaml", "recipe.lock.yaml"
ENGINE = "engine"  # folder of what concerns the engine: patches, and engines for other machines by target
SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.json"
SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"
STATE = MARKER  # which step key made the folder, and the size and time of each file

# Each of these holds digests of all that stand before it, so it cannot be among what it lists.
UNLISTED_IN_STATEMENT = frozenset({PROVENANCE, SUMS, SIGNATURE})
UNLISTED_IN_SUMS = frozenset({SUMS, SIGNATURE})

# What others say of a release, which comes later than it. No model can be called so: names begin with no dot.
ATTESTATIONS = ".attestations"

# What publishing, git and the hub's client leave in a folder; nothing that anybody loads as part of a model.
NOT_OF_A_RELEASE = (STATE, ATTESTATIONS, ".gitattributes", ".git", ".cache/huggingface")


def belongs(path: str) -> bool:
    """Whether a file (POSIX, relative to the release) is part of the release."""
    return not any(path == name or path.startswith(name + "/") for name in NOT_OF_A_RELEASE)


def smoke_report(path: str) -> str:
    """Where the smoke report of an artifact lies."""
    model, _, name = path.partition("/")
    return f"{model}/smoke/{name}.json"


def quality_report(path: str) -> str:
    """Where the quality report of an artifact lies, where it has one."""
    model, _, name = path.partition("/")
    return f"{model}/quality/{name}.json"


def types_report(path: str) -> str:
    """Where the types of an artifact's matrices stand, where they were searched for."""
    model, _, name = path.partition("/")
    return f"{model}/types/{name}.json"


def is_plain(path: str) -> bool:
    """Whether a name may stand in a release: relative, inside it, one line, no part that means something else."""
    return path_problem(path) is None
