"""A target of a recipe's format: a step a model and type, one that chooses, and what is made with its choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.base.errors import DocumentError
from rwkvflow.execute.smoke import KNOWN_TO_JUDGE
from rwkvflow.plan.step import Ref
from tests.unit.stages.test_llama_stages import plan_of, recipe_of

PLAIN = """\
name: x
models: [{name: a, source: a.pth, imatrix: {}}]
formats: [gguf-q4_k_m, {format: gguf-q4_k_m-mixed, output_type: q8_0, target: TARGET}]
"""
TEXT = PLAIN.replace("TARGET", "{size: 900MB, types: [q4_k, q6_k, f16], tokens: 512}")
MIXED = "a/gguf-q4_k_m-mixed@py3.11"


def test_each_type_is_measured_once_and_the_choice_is_made_of_them() -> None:
    steps = plan_of(TEXT).steps
    measured = [name for name in steps if name.startswith("measure/")]
    assert measured == ["measure/a/q4_k-512@py3.11", "measure/a/q6_k-512@py3.11"]
    assert steps[measured[0]].inputs["imatrix"] == Ref("imatrix/a@py3.11", "imatrix")
    assert steps[measured[0]].params["params"]["kind"] == "q4_k"
    chosen = steps[f"assign/{MIXED}"]
    assert chosen.params["params"]["target"] == {"size": 900e6}
    assert chosen.params["params"]["output_type"] == "q8_0"
    assert chosen.inputs["losses/q6_k"] == Ref(measured[1], "losses")
    for stage in ("convert", "smoke"):
        step = steps[f"{stage}/{MIXED}"]
        assert step.inputs["types/gguf-q4_k_m-mixed"] == Ref(f"assign/{MIXED}", "types")
        assert step.params["job"]["mix"] == {"output_type": "q8_0", "searched": True}
        assert not any(name.startswith("types/") for name in steps[f"{stage}/a/gguf-q4_k_m@py3.11"].inputs)
    assert "types" not in KNOWN_TO_JUDGE


def test_another_target_measures_nothing_anew() -> None:
    one, other = plan_of(TEXT).steps, plan_of(TEXT.replace("size: 900MB", "bits_per_weight: 4.5")).steps
    for name in one:
        if name.startswith("measure/"):
            assert one[name] == other[name]
    assert one[f"assign/{MIXED}"].params != other[f"assign/{MIXED}"].params


def test_the_choice_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.yaml").touch()
    monkeypatch.chdir(tmp_path)
    publish = plan_of(TEXT + "publish: [{to: out}]\n").steps["publish"]
    assert publish.inputs[f"types/{MIXED}"] == Ref(f"assign/{MIXED}", "types")
    assert publish.inputs["imatrix/a"] == Ref("imatrix/a@py3.11", "imatrix")


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("{}", "wants tensor_types or a target"),
        ("{size: 900MB, kl: 0.1}", "one of bits_per_weight, size and kl"),
        ("{types: [q4_k]}", "one of bits_per_weight, size and kl"),
        ("{kl: 0.1, types: [iq3_s]}", "is none of"),
        ("{size: none}", "formats.1..target.size"),
    ],
)
def test_targets_that_are_none_are_refused(target: str, why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        recipe_of(PLAIN.replace("TARGET", target))


def test_only_mixed_formats_take_a_target() -> None:
    with pytest.raises(DocumentError, match="formats take a target"):
        recipe_of(TEXT.replace("gguf-q4_k_m-mixed", "gguf-q6_k"))
