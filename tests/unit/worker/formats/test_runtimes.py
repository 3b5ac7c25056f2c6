"""The table of what runs what, and of how each format is proved, is what formats and runners do."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvflow.worker.errors import UnknownModelError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.runtimes import BY_NAME, RUNTIMES, TENSORS, proof_of, runs
from rwkvflow.worker.formats.web_rwkv.run import RUNS
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.variants import VARIANTS, refuse_variant
from rwkvflow.worker.model.versions import ALL_VERSIONS, HYBRIDS
from tests.helpers import checkpoints

FAMILIES = {item.family for item in FORMATS.values()}
CALLED = {"rwkv": "the rwkv package", "transformers": "RwkvForCausalLM of transformers"}


@pytest.mark.parametrize("version", sorted(ALL_VERSIONS))
def test_a_version_is_refused_where_the_table_says_so(version: str) -> None:
    shapes = checkpoints.shapes(version, layers=1, width=64, vocab=64)
    architecture = architecture_of({name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()})
    for item in FORMATS.values():
        refused = f"cannot hold version {version}" in (item.refuse(architecture) or "")
        assert refused == (proof_of(item, version) is None), item.name


def test_every_family_has_a_runtime_for_each_of_its_versions() -> None:
    assert {family for runtime in RUNTIMES for family in runtime.families} == FAMILIES
    for item in FORMATS.values():
        for version in item.versions:
            assert any(item.family in one.families and version in one.runs for one in RUNTIMES), (item.name, version)


def test_a_proof_names_a_runtime_that_was_measured() -> None:
    for item in FORMATS.values():
        for version in item.versions:
            proof = proof_of(item, version) or TENSORS
            if proof != TENSORS:
                assert BY_NAME[CALLED.get(proof, proof)].runs[version] == "measured"


def test_what_the_runner_of_web_rwkv_runs() -> None:
    assert {version for version in ALL_VERSIONS if runs("web-rwkv-py", version)} == RUNS


def test_what_a_runtime_would_do_instead_is_not_what_it_runs() -> None:
    for runtime in RUNTIMES:
        assert not set(runtime.instead) & set(runtime.runs)
        assert set(runtime.runs) | set(runtime.instead) <= ALL_VERSIONS | set(HYBRIDS)
    assert set(BY_NAME["rwkv.cpp"].instead) == {"5.1"}


def test_every_variant_is_refused_in_every_format(tmp_path: Path) -> None:
    """Before a format is asked."""
    examples = {
        "4a or 4b": "blocks.0.tiny_q.weight",
        "8 rc00-hybrid": "blocks.0.qkv.kkup.weight",
        "7b": "blocks.0.qkv.qq.weight",
        "8 rc00": "blocks.0.ffn.enn.weight",
        "7a": "blocks.0.ffn.s_emb.weight",
    }
    assert examples.keys() <= {variant.name for variant in VARIANTS}
    shapes = checkpoints.shapes("7", layers=1, width=64, vocab=64)
    for name, mark in examples.items():
        tensors = {tensor: TensorInfo(tensor, "bf16", shape) for tensor, shape in shapes.items()}
        with pytest.raises(UnknownModelError, match=name.split(" (")[0]):
            refuse_variant({**tensors, mark: TensorInfo(mark, "bf16", (64, 64))})
