"""What goes to a cluster's workers and comes back, and who of them is fit: the parts that need no cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError, SmokeFailed, StepFailed, UsageError
from rwkvflow.execute.cluster.fitness import (
    CORES,
    MEMORY,
    Greeting,
    Need,
    WantedWorker,
    lacks,
    need_of,
    parse_executor,
    parse_greeting,
    refusal,
    resources,
    unfit,
)
from rwkvflow.execute.cluster.words import (
    Answer,
    AnswerError,
    Ended,
    Message,
    parse_answer,
    parse_event,
    parse_message,
)
from rwkvflow.plan.step import Step, StepLimits
from rwkvflow.store.record import Output, Record

OUTPUT = Output(f"sha256:{'ab' * 32}", "file", 12)
MESSAGE = Message(
    "t",
    "topic",
    OUTPUT,
    {"convert/x": "cd" * 32},
    {"fetch/x": ("ef" * 32, Record("fetch/x", {"file": OUTPUT}))},
    "s3://bucket/x",
    None,
    "docker",
    (OUTPUT.digest,),
)
WORKER = Greeting("one", "1", "sha256:c0de", "linux-x86_64", "host", 4, 8 << 30)
WANTED = WantedWorker("1", "sha256:c0de", "linux-x86_64", "host")


def test_a_message_is_plain_text_and_comes_back_the_same() -> None:
    text = MESSAGE.to_text()
    assert parse_message(text) == MESSAGE
    assert set(json.loads(text)) == {
        "protocol", "token", "topic", "bundle", "steps", "known", "remote", "store", "sandbox", "damaged",
    }  # fmt: skip


def test_a_message_of_another_protocol_is_refused_by_name() -> None:
    text = json.dumps(json.loads(MESSAGE.to_text()) | {"protocol": 2})
    with pytest.raises(AnswerError, match="protocol 2, and this is 1: versions of rwkvflow differ"):
        parse_message(text)


def test_an_answer_comes_back_the_same() -> None:
    done = Ended("done", {"artifact": OUTPUT}, {"words": "a"}, 1.5)
    failed = Ended("failed", error=SmokeFailed("too far off", remedy="raise the limit"))
    answer = parse_answer(Answer("w", {"a": done, "b": failed}).to_text(), ["a", "b"])
    assert answer.steps["a"] == done
    error = answer.steps["b"].error
    assert isinstance(error, SmokeFailed)
    assert (error.message, error.remedy) == ("too far off", "raise the limit")
    refused = Answer("w", refused="no", lost=(OUTPUT.digest,))
    assert parse_answer(refused.to_text(), ["a"]) == refused


def entry(**changes: Any) -> str:
    step = {"status": "done", "outputs": {"artifact": vars(OUTPUT)}, "notes": {}, "seconds": 1, "error": None} | changes
    return json.dumps({"protocol": 1, "worker": "w", "steps": {"a": step}, "refused": "", "lost": []})


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"{}",
        "",
        "[]",
        "{}",
        "[" * 100_000,
        entry(status="perfect"),
        entry(outputs={}),
        entry(outputs={"../x": vars(OUTPUT)}),
        entry(outputs={"artifact": {**vars(OUTPUT), "digest": "sha256:.."}}),
        entry(outputs={"artifact": {**vars(OUTPUT), "size": -1}}),
        entry(outputs={"artifact": {**vars(OUTPUT), "kind": "link"}}),
        entry(seconds=float("inf")),
        entry(notes=3),
        entry(status="failed", seconds=10**400),
        json.dumps(json.loads(entry()) | {"steps": {}}),
        json.dumps({key: value for key, value in json.loads(entry()).items() if key != "worker"}),
        json.dumps(json.loads(entry()) | {"refused": "x", "lost": ["nothing"]}),
    ],
)
def test_an_odd_answer_is_none(text: Any) -> None:
    with pytest.raises(AnswerError):
        parse_answer(text, ["a"])


def test_an_unknown_error_is_a_plain_one_and_its_text_is_bounded() -> None:
    told = {"kind": "KeyboardInterrupt", "message": "x" * 1_000_000, "remedy": None}
    error = parse_answer(entry(status="failed", error=told), ["a"]).steps["a"].error
    assert type(error) is RwkvflowError
    assert len(error.message) == 20_000


def test_odd_events_are_dropped_and_others_are_fit_to_show() -> None:
    odds: list[Any] = [None, [], {"kind": 1}, {"kind": "log", "lines": "x"}, {"kind": "progress", "done": "x"}]
    odds += [{"kind": "progress", "done": 10**400}, {"kind": "progress", "done": float("inf")}]
    for odd in [*odds, {"kind": "unheard of"}]:
        assert parse_event(odd) is None
    assert parse_event({"kind": "progress", "done": float("nan")}) is None
    assert parse_event({"kind": "started", "name": "w on h", "worker": "tls://1.2.3.4:5"}) == {
        "kind": "started",
        "worker": "w on h",
    }, "Dask itself says under which address it runs, and a person knows names"
    assert parse_event({"kind": "started", "name": "\x1b[31mw"}) != {"kind": "started", "worker": "\x1b[31mw"}
    progress = parse_event({"kind": "progress", "step": "a", "done": 1, "total": None, "unit": "B"})
    assert progress == {"kind": "progress", "step": "a", "done": 1.0, "total": None, "unit": "B", "label": ""}


# ---- who is fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": "2"}, "it has rwkvflow 2, and this is 1"),
        ({"code": "sha256:0ther"}, "other code"),
        ({"platform": "linux-aarch64"}, "it is linux-aarch64"),
        ({"sandbox": "docker"}, "no sandbox host"),
        ({"problem": "it does not see the store"}, "does not see the store"),
    ],
)
def test_why_a_worker_is_not_fit(change: dict[str, Any], why: str) -> None:
    assert unfit(WORKER, WANTED) is None
    assert why in str(unfit(replace(WORKER, **change), WANTED))


def test_an_odd_greeting_is_none() -> None:
    assert parse_greeting(WORKER.to_text()) == WORKER
    for change in ({"cores": 0}, {"cores": "many"}, {"memory": -1}, {"cores": 1e400}):
        with pytest.raises(ValueError, match=r"."):
            parse_greeting(json.dumps(json.loads(WORKER.to_text()) | change))
    with pytest.raises(ValueError, match=r"."):
        parse_greeting(3)


def test_limits_of_the_users_own_workflow_are_needs_and_shipped_ones_are_not() -> None:
    step = Step("smoke/x", "smoke", "sandbox", {}, {}, ("smoke",), limits=StepLimits(cores=2, memory=64 << 30))
    assert need_of(step, ["convert"]) == Need()
    assert need_of(step, ["smoke"]) == Need(2, 64 << 30)


def test_what_no_worker_has_is_refused_with_what_the_largest_has() -> None:
    need = Need(8, 16 << 30)
    assert lacks(WORKER, need)
    assert not lacks(replace(WORKER, cores=8, memory=None), need), "without a limit it has as much as one likes"
    error = refusal(need, {"a": WORKER, "b": replace(WORKER, cores=2)}, {})
    assert isinstance(error, EnvironmentMissing)
    assert "it needs 8 cores and 16.00 GiB; of 2 workers the largest has 4 cores and 8.00 GiB" in error.message
    assert "one at tcp: old" in refusal(need, {}, {"tcp": "one at tcp: old"}).message
    assert "no worker" in refusal(need, {}, {}).message


def test_a_step_without_cores_takes_all_of_the_smallest_worker() -> None:
    both = [WORKER, replace(WORKER, cores=2)]
    assert resources(Need(), both) == {CORES: 2}
    assert resources(Need(memory=1 << 30), both) == {CORES: 2, MEMORY: float(1 << 30)}
    assert resources(Need(3), both) == {CORES: 3}


@pytest.mark.parametrize(
    ("text", "kind", "address", "workers"),
    [
        ("local", "local", "", 0),
        ("dask", "own", "", 0),
        ("dask=4", "own", "", 4),
        ("dask=tls://farm.example:8786", "at", "tls://farm.example:8786", 0),
        ("dask=tcp://127.0.0.1:8786", "at", "tcp://127.0.0.1:8786", 0),
        ("dask=tcp://localhost:8786", "at", "tcp://localhost:8786", 0),
        ("dask=tcp://[::1]:8786", "at", "tcp://[::1]:8786", 0),
    ],
)
def test_executors(text: str, kind: str, address: str, workers: int) -> None:
    found = parse_executor(text)
    assert (found.kind, found.address, found.workers) == (kind, address, workers)


@pytest.mark.parametrize(
    "text",
    ["", "dusk", "dask=", "dask=0", "dask=-1", "dask=x", "dask=tls://host", "dask=ucx://host:1", "dask=tls://h:99999",
     "dask=tls://me:secret@host:1", "dask=tls://host:1/x", "local=4"],
)  # fmt: skip
def test_what_is_no_executor(text: str) -> None:
    with pytest.raises(UsageError):
        parse_executor(text)


@pytest.mark.parametrize("host", ["farm", "10.0.0.1", "192.0.2.1", "127.0.0.1.example", "[2001:db8::1]"])
def test_a_scheduler_without_tls_elsewhere_is_refused_unless_one_says_so(host: str) -> None:
    with pytest.raises(UsageError, match="runs code on all its workers"):
        parse_executor(f"dask=tcp://{host}:8786")
    assert parse_executor(f"dask=tcp://{host}:8786", insecure=True).address == f"tcp://{host}:8786"


def test_errors_of_workers_keep_their_exit_code() -> None:
    answer = Answer("w", {"a": Ended("failed", error=StepFailed("x"))})
    error = parse_answer(answer.to_text(), ["a"]).steps["a"].error
    assert error is not None
    assert error.exit_code == StepFailed.exit_code
