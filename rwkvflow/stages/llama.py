"""llama.cpp, which `gguf-*` is tested with: its sources come from the source package of PyPI's llama-cpp-python.

Only recipes that make such formats fetch and build it. It is built as an engine like librwkv, once for all images with
the same toolchain.
"""

from __future__ import annotations

from collections.abc import Iterable

from rwkvflow.base.errors import LockError
from rwkvflow.base.hashing import tree_digest
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.lock import LLAMA, LockedPackage
from rwkvflow.lock.pins import package as pinned_package
from rwkvflow.plan.step import LocalInput, Ref, Step
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.worker.formats import FORMATS

SOURCE = Ref("fetch/llama.cpp", "folder")
ROOT = "vendor/llama.cpp"  # in the package
# What is needed of it to build the library, and to convert Hugging Face folders as llama.cpp does.
KEPT = (
    *("CMakeLists.txt", "LICENSE", "cmake", "licenses", "include", "src", "vendor"),
    *("ggml/CMakeLists.txt", "ggml/cmake", "ggml/include", "ggml/src/ggml-cpu", "ggml/src/*"),
    *("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf"),
)


def wanted(blueprint: Blueprint, image: str | None = None) -> bool:
    """Whether a format of this run (in this image) is tested with llama.cpp."""
    return _needed(which.format for which in blueprint.artifacts if image in (None, which.image))


def _needed(formats: Iterable[str]) -> bool:
    return any(FORMATS[name].engine == LLAMA for name in formats)


def step(blueprint: Blueprint) -> Step:
    """Brings the sources, laid out as the project that the engine stage builds."""
    locked = package(blueprint)
    project = shipped("images/llama.cpp")
    return Step(
        id=SOURCE.step,
        stage="fetch",
        action="source-package",
        params={
            **locked.model_dump(mode="json", exclude_none=True),
            "root": ROOT,
            "kept": list(KEPT),
            "into": LLAMA,
        },
        inputs={"project": LocalInput(tree_digest(project), project)},
        outputs=(SOURCE.output,),
        limits=blueprint.limits("fetch", cores=0),
    )


def package(blueprint: Blueprint) -> LockedPackage:
    """The lock's entry. Raises LockError."""
    found = (blueprint.lock.packages or {}).get(LLAMA)
    if found is None:
        raise LockError("the lock does not pin llama.cpp, which gguf-* is tested with", remedy="run `rwkvflow lock`")
    if found != pinned_package(LLAMA):
        raise LockError(
            "the lock names another llama.cpp than this rwkvflow builds",
            remedy="run `rwkvflow lock`, or the version of rwkvflow that made the lock",
        )
    return found
