"""What of rwkvflow other programs may import: `from rwkvflow.api import Model`.

Everything else may move from one version to the next. docs/reference/python-api.md says what the names are for and
what is promised of them. A name is loaded when it is asked for, so that importing this module loads nothing heavy.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvflow.app.pipeline import Finished as Finished
    from rwkvflow.app.pipeline import Prepared as Prepared
    from rwkvflow.app.pipeline import Request as Request
    from rwkvflow.app.pipeline import execute as execute
    from rwkvflow.app.pipeline import prepare as prepare
    from rwkvflow.base.errors import DocumentError as DocumentError
    from rwkvflow.base.errors import RwkvflowError as RwkvflowError
    from rwkvflow.base.events import Event as Event
    from rwkvflow.documents.load import load_lock as load_lock
    from rwkvflow.documents.load import load_recipe as load_recipe
    from rwkvflow.documents.load import load_workflow as load_workflow
    from rwkvflow.documents.schema import schema_of as schema_of
    from rwkvflow.engine.binding import Model as Model
    from rwkvflow.engine.errors import EngineError as EngineError
    from rwkvflow.engine.sampling import Sampling as Sampling
    from rwkvflow.engine.session import generate as generate
    from rwkvflow.engine.tokenizer import Tokenizer as Tokenizer
    from rwkvflow.release.check import Findings as Findings
    from rwkvflow.release.check import check_release as check_release
    from rwkvflow.worker.errors import WorkerError as WorkerError
    from rwkvflow.worker.read.compare import compare as compare
    from rwkvflow.worker.read.inspect import describe as describe

#: Public name: the module that has it.
PUBLIC: Mapping[str, str] = {
    "Model": "rwkvflow.engine.binding",
    "Tokenizer": "rwkvflow.engine.tokenizer",
    "Sampling": "rwkvflow.engine.sampling",
    "generate": "rwkvflow.engine.session",
    "describe": "rwkvflow.worker.read.inspect",
    "compare": "rwkvflow.worker.read.compare",
    "load_recipe": "rwkvflow.documents.load",
    "load_workflow": "rwkvflow.documents.load",
    "load_lock": "rwkvflow.documents.load",
    "schema_of": "rwkvflow.documents.schema",
    "Request": "rwkvflow.app.pipeline",
    "Prepared": "rwkvflow.app.pipeline",
    "Finished": "rwkvflow.app.pipeline",
    "prepare": "rwkvflow.app.pipeline",
    "execute": "rwkvflow.app.pipeline",
    "Event": "rwkvflow.base.events",
    "check_release": "rwkvflow.release.check",
    "Findings": "rwkvflow.release.check",
    "RwkvflowError": "rwkvflow.base.errors",
    "DocumentError": "rwkvflow.base.errors",
    "EngineError": "rwkvflow.engine.errors",
    "WorkerError": "rwkvflow.worker.errors",
}

#: Name that will go: (the module that has it, the version in which it goes, what to use in its place).
DEPRECATED: Mapping[str, tuple[str, str, str]] = {}

__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    if name in DEPRECATED:
        module, version, instead = DEPRECATED[name]
        warnings.warn(f"rwkvflow.api.{name} goes in version {version}; use {instead}", DeprecationWarning, stacklevel=2)
    elif name in PUBLIC:
        module = PUBLIC[name]
    else:
        raise AttributeError(f"rwkvflow.api has no {name}; its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
