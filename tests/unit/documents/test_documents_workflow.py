"""Workflows: the shipped one, a user's over it, and what can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import DocumentError
from rwkvflow.base.shipped import shipped
from rwkvflow.documents.load import load_document, load_workflow
from rwkvflow.documents.workflow import Stages
from rwkvflow.documents.yaml.units import seconds, size_bytes


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "w.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_workflow(path)
    except DocumentError as error:
        return [str(finding).removeprefix(f"{path}:") for finding in error.findings]
    return []


def test_the_shipped_workflow_limits_the_time_of_every_stage() -> None:
    workflow = load_workflow()
    for stage in Stages.model_fields:
        assert getattr(workflow.stages, stage).time is not None, stage
    assert workflow.extra == ()
    assert load_document(shipped("workflow.yaml")) == "workflow"


def test_the_example_in_the_shipped_workflow_is_right(tmp_path: Path) -> None:
    lines = shipped("workflow.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("#   extra:")
    example = [line[4:] for line in lines[start:] if line.startswith("#   ")]
    (tmp_path / "evaluate.py").touch()
    (tmp_path / "w.yaml").write_text("\n".join(example), encoding="utf-8")
    (stage,) = load_workflow(tmp_path / "w.yaml").extra
    assert stage.name == "evaluate"
    assert stage.command[0] == "python3"


def test_a_stage_that_is_named_replaces_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("stages: {convert: {memory: 2GiB}}\nextra: [{name: e, command: [x], outputs: [y]}]\n")
    workflow, default = load_workflow(path), load_workflow()
    assert (workflow.stages.convert.memory, workflow.stages.convert.time) == ("2GiB", None)
    assert workflow.stages.smoke == default.stages.smoke
    assert [stage.name for stage in workflow.extra] == ["e"]


EXTRA = "extra:\n  - {{name: e, command: [x], outputs: [y], {}}}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stages: {convrt: {}}\n", "1:10: stages: unknown key 'convrt'; did you mean 'convert'?"),
        (
            "stages: {convert: {time: 5 minutes}}\n",
            "1:26: stages.convert.time: expected a duration such as 90s, 30m or 2h, found the text '5 minutes'",
        ),
        (
            "stages: {convert: {time: 90}}\n",
            '1:26: stages.convert.time: expected text, found the number 90; write it in quotes: time: "90"',
        ),
        (
            "stages: {convert: {memory: 4GB}}\n",
            "1:28: stages.convert.memory: expected a size such as 512MiB or 4GiB, found the text '4GB'",
        ),
        (
            "stages: {convert: {time: 0s}}\n",
            "1:26: stages.convert.time: a limit of nothing; leave the key out for no limit",
        ),
        ("stages: {convert: {cores: 0}}\n", "1:27: stages.convert.cores: must be more than 0, found the number 0"),
        ("stages: {fetch: {retries: 99}}\n", "1:27: stages.fetch.retries: must be at most 20, found the number 99"),
        (
            EXTRA.format("each: modle"),
            "2:49: extra[0].each: expected one of artifact, model, found the text 'modle'; did you mean 'model'?",
        ),
        (
            "extra: [{name: e, command: x, outputs: [y]}]\n",
            "1:28: extra[0].command: expected a list, found the text 'x'; write a list: command: [x]",
        ),
        (
            "extra: [{name: e, command: [], outputs: [y]}]\n",
            "1:28: extra[0].command: the list is empty; give at least one",
        ),
        ("extra: [{name: e, command: [''], outputs: [y]}]\n", "1:29: extra[0].command[0]: the program has no name"),
        ("extra: [{name: e, command: [a], outputs: [y, y]}]\n", "1:46: extra[0].outputs[1]: duplicate output 'y'"),
        (
            "extra: [{name: smoke, command: [a], outputs: [y]}]\n",
            "1:16: extra[0].name: 'smoke' is the name of a built-in stage "
            "(fetch, wheels, image, engine, imatrix, measure, convert, reference, smoke, quality, publish)",
        ),
        (
            "extra: [{name: e, command: [a], outputs: [y]}, {name: E, command: [a], outputs: [y]}]\n",
            "1:55: extra[1].name: duplicate stage 'E'; the first is extra[0]",
        ),
        (
            EXTRA.format("inputs: {script: none.py}"),
            "2:60: extra[0].inputs.script: neither one of artifact, checkpoint, engine, smoke nor a file or folder "
            "beside the workflow: 'none.py'",
        ),
        (EXTRA.format("inputs: {a: artefact}"), "did you mean 'artifact'?"),
        (
            EXTRA.format("inputs: {a: /etc/passwd}"),
            "'/etc/passwd' is absolute; name a file or folder relative to the workflow",
        ),
        (
            EXTRA.format("inputs: {request.json: engine}"),
            "2:52: extra[0].inputs['request.json']: in/request.json is taken",
        ),
        (
            EXTRA.format("each: model, inputs: {a: artifact}"),
            "'artifact' exists for each artifact, and this stage runs for each model",
        ),
        (EXTRA.format("inputs: {a: smoke}"), "the smoke report exists only after smoke; add needs: smoke"),
        (EXTRA.format("inputs: {a/b: engine}"), "2:52: extra[0].inputs['a/b']: expected a name of letters"),
    ],
)
def test_one_mistake_gives_one_finding(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = problems(tmp_path, text)
    assert expected in found
    assert not expected[0].isdigit() or found.startswith(expected)


def test_inputs_that_exist_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for inputs in ("{a: data}", "{a: artifact, b: engine, c: checkpoint}"):
        assert problems(tmp_path, EXTRA.format(f"inputs: {inputs}")) == []
    assert problems(tmp_path, EXTRA.format("needs: smoke, inputs: {a: smoke}")) == []


@given(st.integers(0, 10**6))
def test_units(number: int) -> None:
    assert seconds(f"{number}s") == number
    assert seconds(f"{number}.5m") == number * 60 + 30
    assert seconds(f"{number}h") == number * 3600
    assert size_bytes(f"{number}MiB") == number << 20
    assert size_bytes(f"{number}.25GiB") == (number << 30) + (1 << 28)


@given(st.text(max_size=8))
def test_a_unit_is_understood_or_refused_with_a_value_error(text: str) -> None:
    for parse in (seconds, size_bytes):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "expected a" in str(error)  # noqa: PT017 - either way is right
