"""What an image build does when the engine loses a layer to somebody's prune."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from rwkvflow.base.errors import StepFailed
from rwkvflow.base.lines import LineSplitter
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox import docker as module
from rwkvflow.sandbox.docker import BUILDS, DockerSandbox
from rwkvflow.sandbox.image.image_build import ImageBuild, LayerLost

LOST = "failed to export image: failed to set parent sha256:3a2b: unknown parent image ID sha256:3a2b"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (LOST, LayerLost),
        ("invalid from flag value engine-librwkv: No such image: sha256:2c24", LayerLost),
        ("No such image: sha256:b7f077e02b69", LayerLost),
        ("No such image: python:3.11-slim", StepFailed),
        ("The command '/bin/false' returned a non-zero code: 1", StepFailed),
    ],
)
def test_what_an_engine_says_of_a_lost_layer_is_known(said: str, kind: type) -> None:
    build = ImageBuild(None, StepLimits(), lambda line: None, threading.Event())  # type: ignore[arg-type]
    with pytest.raises(StepFailed) as raised:
        build._take({"error": said}, LineSplitter(lambda line: None))
    assert type(raised.value) is kind


@pytest.mark.parametrize(("failures", "built"), [(0, True), (BUILDS - 1, True), (BUILDS, False)])
def test_a_lost_layer_is_built_again(failures: int, built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    lines: list[str] = []

    class Losing:
        def __init__(self, *_: Any) -> None:
            pass

        def run(self, *_: Any) -> None:
            runs.append(1)
            if len(runs) <= failures:
                raise LayerLost(LOST)

    monkeypatch.setattr(module, "ImageBuild", Losing)
    monkeypatch.setattr(module, "ensure_base", lambda *_: None)
    monkeypatch.setattr(module, "context", lambda _: ())
    monkeypatch.setattr(module, "settle", lambda *_: None)
    monkeypatch.setattr(DockerSandbox, "_possible", lambda self, limits: limits)
    spec: Any = SimpleNamespace(base="b", tag="t", labels={}, image="i")
    sandbox = DockerSandbox(SimpleNamespace())  # type: ignore[arg-type]
    if built:
        sandbox.build(spec, StepLimits(), lines.append, threading.Event())
    else:
        with pytest.raises(LayerLost, match="unknown parent"):
            sandbox.build(spec, StepLimits(), lines.append, threading.Event())
    assert len(runs) == min(failures + 1, BUILDS)
    assert len(lines) == min(failures, BUILDS - 1)
