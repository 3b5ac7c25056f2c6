"""The tables of tensors: what tells a version, and what of a checkpoint nobody knows."""

from __future__ import annotations

import itertools

import pytest

from rwkvflow.worker.model.architecture import architecture_of, unknown
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.model.versions import SPECS, STATEFUL, VERSION_SPECS, VERSIONS, all_specs, tell_version
from tests.helpers import checkpoints

LETTERS = set("VCAFHNR")


def infos(version: str, **more: tuple[int, ...]) -> dict[str, TensorInfo]:
    shapes = checkpoints.shapes(version, layers=2, width=64) | {name.replace("__", "."): s for name, s in more.items()}
    return {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_is_consistent(version: str) -> None:
    spec = SPECS[version]
    names = [name for item in spec.tensors for name in (item.name, item.also) if name]
    assert len(names) == len(set(names))
    letters = {part for item in spec.tensors for dim in item.shape for part in str(dim).split("*")}
    assert {part for part in letters if not part.isdigit()} <= LETTERS
    assert set(spec.has) <= {item.name for item in spec.tensors}
    assert not set(spec.lacks) & {item.name for item in spec.tensors}
    assert not spec.wide or spec.wide in spec.has
    pairs = {item.low_rank for item in spec.tensors if item.low_rank}
    assert pairs == {item.low_rank for item in spec.tensors if item.tells_rank}, "every pair's rank is told"
    assert (spec.heads_from is None) == (version not in STATEFUL)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_told_by_its_own_tensors(version: str) -> None:
    assert tell_version(checkpoints.shapes(version, layers=1, width=128).items()) == version


def test_no_two_versions_have_the_same_marks() -> None:
    for one, other in itertools.combinations(VERSION_SPECS, 2):
        assert (one.has, one.lacks, one.wide) != (other.has, other.lacks, other.wide)


def test_the_order_of_the_file_is_the_authors() -> None:
    names = [name for name, _ in all_specs("7", 2)]
    assert names[0] == "emb.weight"
    assert names[1:3] == ["blocks.0.ln0.weight", "blocks.0.ln0.bias"]
    assert "blocks.1.ln0.weight" not in names
    assert names[-1] == "head.weight"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_version_has_is_known(version: str) -> None:
    tensors = infos(version)
    assert unknown(tensors, architecture_of(tensors)) == ()


@pytest.mark.parametrize(
    ("version", "more"),
    [
        # All tensors of a version, and more. Variants, which are known by name, are told elsewhere.
        ("4", {"blocks__0__extra_q__weight": (8, 64), "head_x__weight": (256, 64), "mask": (4, 4)}),
        ("7", {"blocks__0__ffn__x_emb__weight": (320, 1024), "blocks__0__ffn__x0": (1, 64)}),
        ("7", {"blocks__1__qkx__qq__weight": (64, 64)}),
        ("7", {"blocks__0__ffn__emm__weight": (320, 64)}),
        ("6", {"blocks__0__att__time_state": (3, 5, 7)}),  # of a state's name, and of no state's shape
        ("4", {"blocks__0__att__time_state": (1, 64, 64)}),  # which has no heads
    ],
)
def test_what_nobody_knows_is_told_by_name(version: str, more: dict[str, tuple[int, ...]]) -> None:
    tensors = infos(version, **more)
    assert unknown(tensors, architecture_of(tensors)) == tuple(name.replace("__", ".") for name in more)


def test_known_extras_are_no_riddle() -> None:
    tensors = infos(
        "7",
        blocks__0__att__time_state=(1, 64, 64),
        blocks__0__att__v0=(1, 1, 64),
        blocks__0__att__v1=(64, 32),
        blocks__0__att__v2=(32, 64),
        loss=(1,),
        ema__decay=(1,),
    )
    architecture = architecture_of(tensors)
    assert architecture.extra == ("loss", "ema.decay")
    assert unknown(tensors, architecture) == ()
