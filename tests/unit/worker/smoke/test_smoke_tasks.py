"""The worker's tasks "reference" and "smoke" as the host calls them, on safetensors artifacts (no engine needed)."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.worker.advice import given_by_recipe
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.formats.equal import can_be_equal
from rwkvflow.worker.formats.runner import Task, run_artifact
from rwkvflow.worker.protocol import parse
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.smoke.questions import read_answers, read_reference, write_answers
from rwkvflow.worker.tasks import ask as ask_task
from rwkvflow.worker.tasks import reference as reference_task
from rwkvflow.worker.tasks import smoke as smoke_task
from tests.helpers import checkpoints

PARAMS: dict[str, Any] = {"tokenizer": "auto", "prompts": ["The ", ""], "tokens": 4, "group_norm_eps": None}
TEXT = "The quiet owl lived at the edge of the forest. " * 8


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sandbox's working directory with a checkpoint and a text."""
    for folder in ("in/engine", "out"):
        (tmp_path / folder).mkdir(parents=True)
    checkpoints.make(tmp_path / "in" / "m.pth", version="7", vocab=256, seed=3)
    (tmp_path / "in" / "m.pth").rename(tmp_path / "in" / "checkpoint")
    (tmp_path / "in" / "text").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(task: str, params: dict[str, Any], jobs: list[dict[str, Any]]) -> Any:
    """As the host sends it."""
    return {"task": task, "params": {**PARAMS, **params}, "jobs": jobs}


def make_reference(capsys: pytest.CaptureFixture[str], **params: Any) -> list[dict[str, Any]]:
    job: dict[str, Any] = {
        "id": "reference/m@i",
        "params": {},
        "outputs": {"reference": "out/deep/reference.npz", "questions": "out/q"},
    }
    reference_task.run(request("reference", params, [job]))
    Path("out/deep/reference.npz").rename("in/reference")
    Path("out/q").rename("in/questions")
    return messages(capsys)


def messages(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [message for line in capsys.readouterr().out.splitlines() if (message := parse(line))]


def run_smoke(capfd: pytest.CaptureFixture[str], *jobs: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    full: list[dict[str, Any]] = [
        {
            "id": f"smoke/{n}",
            "params": {"format": "safetensors", "limits": {"logits": 1e-4, "perplexity": 1e-4}, **job},
            "outputs": {"smoke": f"out/{n}/smoke.json"},
        }
        for n, job in enumerate(jobs)
    ]
    asked = [{**job, "outputs": {"answers": f"out/answers-{n}"}} for n, job in enumerate(full)]
    ask_task.run(request("ask", params, asked))
    found = messages(capfd)
    told = {output["job"] for output in of("output", found)}
    found = [message for message in found if "output" not in message]
    for n, job in enumerate(full):  # one at a time: here several jobs may have the same format
        if job["id"] in told:
            Path(f"out/answers-{n}").replace(f"in/answers-{job['params']['format']}")
            smoke_task.run(request("smoke", params, [job]))
    return found + messages(capfd)


def of(kind: str, found: list[dict[str, Any]]) -> list[Any]:
    return [message[kind] for message in found if kind in message]


def artifact(name: str, seed: int = 3, **sizes: Any) -> Path:
    path = checkpoints.make(Path("in") / f"{name}.safetensors", **{"version": "7", "vocab": 256, "seed": seed, **sizes})
    return path.rename(path.with_suffix(""))


def test_reference_holds_what_smoke_needs_and_is_deterministic(place: Path, capsys: Any) -> None:
    found = make_reference(capsys)
    first = Path("in/reference").read_bytes()
    kept = read_reference(Path("in/reference"))
    assert kept.questions.text == tuple(TEXT.encode())
    assert kept.questions.logits == 64
    assert kept.answers.logits.shape == (len(TEXT), 256), "as many as the divergence needs"
    assert kept.answers.losses.shape == (len(TEXT) - 1,)
    assert [len(row) for row in kept.answers.continuations] == [4, 4]
    assert kept.questions.prompts == (tuple(b"The "), (0,))
    output, questions = of("output", found)
    assert questions["name"] == "questions"
    assert (output["job"], output["size"]) == ("reference/m@i", len(first))
    assert {note["key"] for note in of("note", found)} == {"perplexity", "continuation"}
    make_reference(capsys)
    assert Path("in/reference").read_bytes() == first


def test_a_text_too_short_and_one_that_is_not_utf8(place: Path, capsys: Any) -> None:
    Path("in/text").write_text("T")
    with pytest.raises(WorkerError, match=r"less than two tokens.*smoke\.text"):
        make_reference(capsys)
    Path("in/text").write_bytes(b"abc\xff")
    with pytest.raises(WorkerError, match="not UTF-8 \\(byte 3\\)"):
        make_reference(capsys)


def test_a_checkpoint_full_of_nan_is_named_as_the_culprit(place: Path, capsys: Any) -> None:
    entries = checkpoints.entries("7", vocab=256)
    bad = [
        checkpoints.array_entry(e.name, np.full(e.shape, np.nan, np.float32), "bf16") if e.name == "head.weight" else e
        for e in entries
    ]
    checkpoints.write_pth(Path("in/checkpoint"), bad)
    with pytest.raises(WorkerError, match=r"the checkpoint itself is broken: .*256 of 256 logits are NaN"):
        make_reference(capsys)


def test_a_vocabulary_nobody_knows_runs_on_pseudo_random_tokens(place: Path, capfd: Any) -> None:
    checkpoints.make(Path("in/m.pth"), version="4", vocab=320).rename("in/checkpoint")
    found = make_reference(capfd)
    assert any("pseudo-random" in note["value"] for note in of("note", found))
    artifact("a", seed=0, version="4", vocab=320)
    found = run_smoke(capfd, {"input": "a"})
    assert len(of("output", found)) == 1
    assert "pseudo-random" in json.loads(Path("out/0/smoke.json").read_text())["note"]


def test_equal_artifacts_pass_and_the_report_says_so(place: Path, capfd: Any) -> None:
    make_reference(capfd)
    artifact("a")
    found = run_smoke(capfd, {"input": "a"}, {"input": "a", "limits": None})
    assert of("failed", found) == []
    assert [output["job"] for output in of("output", found)] == ["smoke/0", "smoke/1"]
    report = json.loads(Path("out/0/smoke.json").read_text())
    assert report["passed"] is True
    assert (report["logits"], report["perplexity_rise"], report["agreement"]) == (0, 0, 1)
    assert (report["kl_divergence"], report["kl_divergence_tokens"]) == (0, len(TEXT))
    assert (report["evaluated"], report["bits_per_weight"]) == ("tensors", 16), "the checkpoint's own, in bf16"
    assert not {"speed", "tokens_per_second"} & report.keys()
    assert [c["prompt"] for c in report["continuations"]] == ["The ", ""]
    assert all(c["text"] for c in report["continuations"]), "the reference's"
    # What was run, and what follows from the judge's comparison of tensors.
    assert report["compared_tokens"] == 16
    assert "equal, bit for bit: the figures over the text are therefore the reference's own" in report["proof"]
    assert "was run over the first 16 tokens" in report["proof"]
    assert Path("out/1/smoke.json").read_bytes() == Path("out/0/smoke.json").read_bytes()
    assert sorted(path.name for path in Path("out").iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("name", "checkpoint", "held", "brief"),
    [
        ("safetensors-f32", "bf16", "f32", True),  # wider, and the same values
        ("safetensors-f32", "f16", "f32", True),
        ("safetensors-f16", "f16", "f16", True),
        ("safetensors-f16", "f32", "f16", False),  # rounded
    ],
)
def test_an_artifact_with_other_values_is_asked_all(
    name: str, checkpoint: str, held: str, brief: bool, place: Path, capfd: Any
) -> None:
    source = checkpoints.make(Path("in/m.pth"), version="7", vocab=256, seed=3, dtype=checkpoint)
    source.rename("in/checkpoint")
    make_reference(capfd)
    with open_checkpoint(Path("in/checkpoint")) as opened:
        entries = [checkpoints.array_entry(n, opened.float32(n), held) for n in opened.tensors]
    checkpoints.write_safetensors(Path("in/a"), entries)
    assert of("failed", run_smoke(capfd, {"input": "a", "format": name, "limits": None})) == []
    report = json.loads(Path("out/0/smoke.json").read_text())
    assert report["compared_tokens"] == (16 if brief else 64)
    assert ("bit for bit" in report.get("proof", "")) == brief
    assert report["kl_divergence_tokens"] == len(TEXT)


def test_the_judge_believes_no_equality_that_it_has_not_seen(place: Path, capfd: Any) -> None:
    make_reference(capfd)
    artifact("good")
    good = Path("in/good").read_bytes()
    job: dict[str, Any] = {
        "id": "smoke/0",
        "params": {"format": "safetensors", "input": "good"},
        "outputs": {"smoke": "out/smoke.json"},
    }
    ask_task.run(request("ask", {}, [{**job, "outputs": {"answers": "out/answers"}}]))
    assert of("failed", messages(capfd)) == []
    Path("out/answers").rename("in/answers-safetensors")
    told = Path("in/answers-safetensors").read_bytes()

    def judged() -> list[str]:
        smoke_task.run(request("smoke", {}, [job]))
        return [failure["message"] for failure in of("failed", messages(capfd))]

    # A command that answers for the checkpoint, and leaves another file: one bit, a name, a shape, or none at all.
    for content in (good[:-1] + bytes([good[-1] ^ 1]), good.replace(b"head.weight", b"head.weighs"), good[:-1], b""):
        Path("in/good").write_bytes(content)
        assert judged() == ["safetensors: its answers are none to the questions that were asked"]
    Path("in/good").unlink()
    assert judged() == ["safetensors: its answers are none to the questions that were asked"]
    # The file is the checkpoint's, but what ran it saw another one: whatever the recipe lets pass.
    Path("in/good").write_bytes(good)
    assert judged() == []
    brief = read_answers(Path("in/answers-safetensors"))
    write_answers(Path("in/answers-safetensors"), replace(brief, logits=brief.logits[:, ::-1]))
    job["params"]["limits"] = {"logits": 99.0, "perplexity": 99.0}
    (failure,) = judged()
    assert "its tensors are the checkpoint's, bit for bit, but what the safetensors package reads" in failure
    Path("in/answers-safetensors").write_bytes(told)
    assert judged() == []


def test_what_the_reference_computes_with_must_be_in_the_artifact_as_well(tmp_path: Path) -> None:
    plain = checkpoints.make(tmp_path / "plain.pth", version="7", vocab=256)
    entries = checkpoints.entries("7", vocab=256)
    state = checkpoints.array_entry("blocks.0.att.time_state", np.zeros((2, 64, 64), np.float32), "f32")
    stateful = tmp_path / "state.pth"
    checkpoints.write_pth(stateful, [*entries, state])
    half = checkpoints.make(tmp_path / "half.pth", version="7", vocab=256, dtype="f16")
    able = {name: item for name, item in FORMATS.items() if item.may_be_equal}
    assert set(able) == {"safetensors", "safetensors-f16", "safetensors-f32", "mlx"}
    for item in able.values():
        assert item.runs_here == frozenset(), "a runtime may come to anything"
        assert not item.half
        assert item.is_read_here
    assert all(can_be_equal(plain, item) for item in able.values())
    assert [name for name, item in able.items() if not can_be_equal(stateful, item)] == ["mlx"]
    assert [name for name, item in able.items() if not can_be_equal(half, item)] == ["mlx"], "it computes in fp16"
    assert not can_be_equal(plain, FORMATS["ggml-f32"])


def test_each_bad_artifact_fails_alone_with_its_reason(place: Path, capfd: Any) -> None:
    make_reference(capfd)
    artifact("good")
    good = Path("in/good").read_bytes()
    Path("in/flipped").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    Path("in/cut").write_bytes(good[:-10])
    Path("in/empty").write_bytes(b"")
    artifact("smaller", layers=1)
    artifact("wide", dtype="f32")
    names = ("flipped", "good", "cut", "absent", "empty", "smaller", "wide")
    found = run_smoke(capfd, *({"input": name} for name in names))
    assert [output["job"] for output in of("output", found)] == ["smoke/1"]
    failed = {failure["job"]: failure["message"] for failure in of("failed", found)}
    assert failed.keys() == {f"smoke/{n}" for n in (0, 2, 3, 4, 5, 6)}
    assert "head.weight has other bytes" in failed["smoke/0"]
    for number in (2, 4):
        assert "the safetensors package refuses it" in failed[f"smoke/{number}"]
    assert "in/absent: cannot open it" in failed["smoke/3"]
    assert "lacks 'blocks.1." in failed["smoke/5"]
    assert "emb.weight is f32 [256, 128] in the artifact and bf16 [256, 128]" in failed["smoke/6"]


def test_how_far_it_has_come_is_told_of_each_artifact_and_of_the_reference(place: Path, capfd: Any) -> None:
    found = [(told["label"], told["done"]) for told in of("progress", make_reference(capfd))]
    layers = [done for label, done in found if label == "text"]
    assert layers[:2] == [1, 2]
    assert [done for label, done in found if label == "continuation"] == list(range(PARAMS["tokens"]))
    artifact("a")
    artifact("b")
    told = of("progress", run_smoke(capfd, {"input": "a"}, {"input": "b"}))
    for job in ("smoke/0", "smoke/1"):
        mine = [entry["label"] for entry in told if entry.get("job") == job]
        assert mine.count("emb.weight") == 2, "its tensors are compared, by its consumer and by the judge"


def test_a_crash_costs_one_artifact(place: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_reference(capfd)
    artifact("good")
    # A real process that really dies: the order runs a module that kills itself for one of the artifacts.
    Path("lib").mkdir()
    Path("lib/dying.py").write_text(
        "import os, signal, sys\n"
        "from rwkvflow.worker.formats.safetensors import run as runner\n"
        "from rwkvflow.worker.tasks import consume\n"
        "real = runner.run\n"
        "def run(task, questions):\n"
        "    if 'crash' in task.artifact.name:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if 'memory' in task.artifact.name:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if 'quit' in task.artifact.name:\n"
        "        os._exit(3)\n"
        "    return real(task, questions)\n"
        "runner.run = run\n"
        "sys.exit(consume.main(sys.argv[1:]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(place / "lib"))
    monkeypatch.setattr(ask_task, "CONSUMERS", "dying")
    names = ("good", "crash", "memory", "good", "quit")
    for name in ("crash", "memory", "quit"):
        artifact(name)
    found = run_smoke(capfd, *({"input": name} for name in names))
    assert [output["job"] for output in of("output", found)] == ["smoke/0", "smoke/3"]
    failed = {failure["job"]: failure["message"] for failure in of("failed", found)}
    assert "crashed (SIGSEGV)" in failed["smoke/1"]
    assert "needed more memory" in failed["smoke/2"]
    assert "exit code 3" in failed["smoke/4"]


def test_limits_are_enforced_and_the_report_is_still_written(place: Path, capfd: Any) -> None:
    make_reference(capfd)
    # A reference of another model: the artifact equals its checkpoint, and answers differently.
    checkpoints.make(Path("in/m.pth"), version="7", vocab=256, seed=4, dtype="f32").rename("in/checkpoint")
    artifact("a", seed=4, dtype="f16")
    job = {"input": "a", "format": "safetensors-f16"}
    with given_by_recipe():
        found = run_smoke(capfd, job, {**job, "limits": {"logits": 99.0, "perplexity": 99.0}})
    (failure,) = of("failed", found)
    assert failure["job"] == "smoke/0"
    assert "which `smoke: {limits: {safetensors-f16: {logits: …}}}` in the recipe changes" in failure["message"]
    assert json.loads(Path("out/0/smoke.json").read_text())["passed"] is False
    assert json.loads(Path("out/1/smoke.json").read_text())["passed"] is True


def test_a_format_without_a_consumer_says_so() -> None:
    unable = replace(FORMATS["safetensors"], name="papyrus-q9", runner="")
    with pytest.raises(WorkerError, match="nothing here can run the format papyrus-q9"):
        run_artifact(Task(Path("a"), Path("b"), Path("c"), None, unable), None)  # type: ignore[arg-type]


def test_every_registered_format_has_a_consumer() -> None:
    assert FORMATS
    for item in FORMATS.values():
        spec = importlib.util.find_spec(item.runner)
        assert spec is not None, item.name
        assert "def run(task: Task, questions: Questions) -> Answers:" in Path(str(spec.origin)).read_text(), item.name
