"""The Dockerfile of an image: pure text in, pure text out.

The build context that it expects:

    base/, worker/, code/     what is copied to the root: rwkvflow/stage.py, which the RUN lines call; the files of the
                              worker's wheels, as if installed in opt/rwkvflow/site, see unpack.py; the folder above
                              rwkvflow/worker, as opt/rwkvflow/code
    toolchain/                the files of the toolchain's wheels
    engines/<name>/           CMake project of each engine
    requests/<name>.json      its build-engine request

Stages: base, wheels, toolchain, engine-<name>, worker. Only the last is kept: it has each engine at
/opt/rwkvflow/engine/<name>, and no compiler and no installer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from rwkvflow.base.errors import UsageError
from rwkvflow.base.hashing import file_digest
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.lock import LockedBase

if TYPE_CHECKING:
    from jinja2 import Template

NOBODY = "65534:65534"
LOCAL = "docker-daemon:"  # the transport's usual name for "an image in this engine, from no registry"

# The same in images and on the host: nothing here may differ between two machines.
ENVIRONMENT: Mapping[str, str] = {
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "SOURCE_DATE_EPOCH": "1704067200",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONUNBUFFERED": "1",
}

_REFERENCE = re.compile(
    r"^(?P<name>[a-z0-9]+(?:[._-][a-z0-9]+)*(?::[0-9]{1,5}(?=/))?(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
_PYTHON = re.compile(r"^3\.\d{1,2}$")
_NAME = re.compile(r"^[a-z][a-z0-9_.-]{0,60}$")
_KEY = re.compile(r"^[A-Za-z_][A-Za-z0-9._-]*$")


def split_reference(reference: str) -> tuple[str, str | None, str | None]:
    """(name, tag, digest) of an image reference. Raises UsageError where it is none."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or len(reference) > 400:
        raise UsageError(
            f"{reference!r} is no image reference",
            remedy="write it as name:tag or name@sha256:<64 hex digits>, lower case",
        )
    return match["name"], match["tag"], match["digest"]


def pinned_reference(base: LockedBase) -> str:
    """One string for a locked base: "name@sha256:…" in a registry, "docker-daemon:name:tag@sha256:…" for a local one.

    The digest of a local one is that of its root file system; such an image can only be checked, not asked for, by
    it: see `from_reference`.
    """
    name, tag, _ = split_reference(base.reference)
    if base.kind == "registry":
        return f"{name}@{base.digest}"
    return f"{LOCAL}{name}:{tag or 'latest'}@{base.digest}"


def from_reference(pinned: str) -> str:
    """What stands after FROM. For a local base: a tag named after the digest, given once the digest was checked."""
    name, tag, digest = split_reference(pinned.removeprefix(LOCAL))
    if digest is None:
        raise UsageError(f"base image {pinned} is not pinned to a digest", remedy="run `rwkvflow lock`")
    if not pinned.startswith(LOCAL):
        return f"{name}:{tag}@{digest}" if tag else f"{name}@{digest}"
    return f"rwkvflow/base:{digest.removeprefix('sha256:')[:24]}"


def render_dockerfile(
    *,
    base: LockedBase | None,
    python: str,
    engines: Sequence[str],
    toolchain: bool = True,
    labels: Mapping[str, str] | None = None,
) -> str:
    """The Dockerfile; empty without a base image, which only the host sandbox can do without.

    `engines` are their names in the context, `toolchain` tells whether the context brings one (else the base image's
    is used), `labels` go onto the final image. Raises UsageError for a value that does not belong into a Dockerfile.
    """
    if base is None:
        return ""
    if not _PYTHON.fullmatch(python):
        raise UsageError(f"{python!r} is no Python version", remedy='write it like "3.11"')
    return _rendered(
        "Dockerfile.j2",
        base,
        python,
        {**_standard_labels(base), **(labels or {})},
        zig=toolchain,
        engines=list(engines),
        environment=list(ENVIRONMENT.items()),
    )


def render_tool_dockerfile(base: LockedBase, python: str, version: str, source: str | None = None) -> str:
    """The Dockerfile of rwkvflow itself; its context has base/ and site/, copied to the root, with the files of all
    wheels below site/opt/rwkvflow/site. `source` is where the sources are, if anybody said it.
    """
    labels = {
        "org.opencontainers.image.title": "rwkvflow",
        "org.opencontainers.image.description": "Converts RWKV checkpoints as a recipe says, with proof",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        **({"org.opencontainers.image.source": source} if source else {}),
    }
    return _rendered("rwkvflow.Dockerfile.j2", base, python, {**_of_base(base), **labels})


def _rendered(template: str, base: LockedBase, python: str, labels: Mapping[str, str], **more: object) -> str:
    return _template(template).render(
        base=pinned_reference(base),
        user=NOBODY,
        labels=sorted(labels.items()),
        python=python,
        stage_digest=file_digest(shipped("images/stage.py")),
        **more,
    )


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701 - a Dockerfile, not HTML; every value passes a filter below
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        newline_sequence="\n",
    )
    environment.filters.update({"exec": _exec, "pair": _pair, "image": from_reference, "name": _name})
    return environment.from_string(shipped(f"images/{name}").read_text(encoding="utf-8"))


def _standard_labels(base: LockedBase) -> dict[str, str]:
    return {
        "org.opencontainers.image.title": "rwkvflow worker",
        "org.opencontainers.image.description": "Converts and verifies RWKV checkpoints; runs without network",
        **_of_base(base),
        "org.rwkvflow.stage": "worker",
    }


def _of_base(base: LockedBase) -> dict[str, str]:
    return {
        "org.opencontainers.image.base.name": base.reference,
        "org.opencontainers.image.base.digest": base.digest,
    }


def _exec(argv: Sequence[str]) -> str:
    """The JSON form of RUN and CMD: read by no shell, and Docker expands no variables in it."""
    for item in argv:
        _printable(item, "argument")
    return json.dumps(list(argv), ensure_ascii=True)


def _pair(item: tuple[str, str]) -> str:
    """ "key"="value" for ENV and LABEL, where Docker would expand $ and take \\ as an escape."""
    key, value = item
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key!r} is no name of a label or variable")
    _printable(value, key)
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{key}"="{quoted}"'


def _printable(value: str, what: str) -> None:
    if not value.isprintable():
        raise UsageError(f"{what}: {value!r} has characters that a Dockerfile cannot hold")


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of an engine")
    return name
