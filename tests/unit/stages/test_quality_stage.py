"""`smoke.quality: full`: which artifacts are measured, and that quick has no trace of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.base.errors import DocumentError
from rwkvflow.plan.step import Ref
from tests.unit.stages.test_llama_stages import plan_of, recipe_of

QUICK = """\
name: x
models: [{name: a, source: a.pth}]
formats: [ggml-q4_0, gguf-q8_0, safetensors]
publish: [{to: out}]
"""
FULL = QUICK + "smoke: {quality: full, quality_tokens: 256, limits: {ggml-q4_0: {domains: {code: {kl: 0.1}}}}}\n"


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's file, whose text a release holds."""
    (tmp_path / "x.yaml").touch()
    monkeypatch.chdir(tmp_path)


def test_quick_has_no_trace_of_it() -> None:
    plan = plan_of(QUICK)
    assert not [name for name in plan.steps if name.startswith("quality/")]
    assert "measured" not in str(plan.steps["publish"].params)


def test_full_measures_what_librwkv_runs_in_one_command() -> None:
    plan, quick = plan_of(FULL), plan_of(QUICK)
    measured = [name for name in plan.steps if name.startswith("quality/")]
    assert measured == ["quality/a/ggml-q4_0@py3.11", "quality/a/gguf-q8_0@py3.11"]
    step, other = (plan.steps[name] for name in measured)
    assert step.batch == other.batch == "quality/a@py3.11"
    assert step.params["params"] == {"tokenizer": "auto", "group_norm_eps": None, "tokens": 256}
    assert step.params["job"]["limits"] == {"code": {"kl": 0.1}}
    assert "limits" not in other.params["job"]
    assert step.inputs["artifact-ggml-q4_0"] == Ref("convert/a/ggml-q4_0@py3.11", "artifact")
    publish = plan.steps["publish"]
    assert publish.inputs["quality/a/ggml-q4_0@py3.11"] == Ref(measured[0], "quality")
    assert [entry.get("measured", False) for entry in publish.params["release"]["entries"]] == [True, True, False]
    for name, step in quick.steps.items():
        if name != "publish" and not name.startswith("smoke/a/ggml-q4_0"):
            assert plan.steps[name].params == step.params, f"{name} is made anew for nothing"


def test_limits_by_domain_want_full_and_a_domain() -> None:
    limits = "smoke: {limits: {ggml-q4_0: {domains: {code: {kl: 0.1}}}}}\n"
    with pytest.raises(DocumentError, match="limits by domain are held where smoke has quality: full"):
        recipe_of(QUICK + limits)
    with pytest.raises(DocumentError, match="cooking"):
        recipe_of(FULL.replace("code:", "cooking:"))
