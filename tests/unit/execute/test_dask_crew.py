"""The workers of a cluster as Dask shows them: who is left out, who is lost, and that nothing waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rwkvflow.base.errors import EnvironmentMissing, StepFailed
from rwkvflow.execute.cluster import dask
from rwkvflow.execute.cluster.dask import DaskCrew
from rwkvflow.execute.cluster.fitness import CORES, Greeting, Need, WantedWorker
from rwkvflow.execute.cluster.words import Message
from rwkvflow.store.record import Output

WORKER = Greeting("one", "1", "sha256:c0de", "linux-x86_64", "host", 4, 8 << 30)
WANTED = WantedWorker("1", "sha256:c0de", "linux-x86_64", "host")
MESSAGE = Message("token", "topic", Output(f"sha256:{'ab' * 32}", "file", 1), {"a": "k"}, {})
NEED = Need()


class FakeFuture:
    """A task that ends when it is told to."""

    def __init__(self, key: str) -> None:
        self.key, self.status, self.value = key, "pending", ""
        self.callbacks: list[Callable[[Any], None]] = []

    def done(self) -> bool:
        return self.status != "pending"

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def end(self, status: str, value: Any = "") -> None:
        self.status, self.value = status, value
        for callback in self.callbacks:
            callback(self)

    def result(self, timeout: float) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class FakeClient:
    """A client whose workers say what `said` has. `task` is called with each task that is given out."""

    def __init__(self, said: dict[str, Any], task: Callable[[FakeClient, FakeFuture], None]) -> None:
        self.said, self.task = said, task
        self.status = "running"
        self.given: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.placed: set[str] = set()
        self.handler: Callable[[Any], None] = lambda event: None

    def subscribe_topic(self, topic: str, handler: Callable[[Any], None]) -> None:
        self.handler = handler

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        assert n_workers == -1, "Dask shows five of them unless one asks for all"
        return {"workers": {address: {"name": address} for address in self.said}}

    def run(self, function: Any, text: str, *, workers: list[str], on_error: str) -> dict[str, Any]:
        return {address: self.said[address] for address in workers}

    def submit(self, function: Any, text: str, **how: Any) -> FakeFuture:
        assert isinstance(text, str)
        self.given.append(how)
        future = FakeFuture(how["key"])
        self.task(self, future)
        return future

    def who_has(self, futures: list[Any]) -> dict[str, list[str]]:
        return {future.key: ["tcp://one"] for future in futures}

    def processing(self) -> dict[str, list[str]]:
        return {"tcp://one": sorted(self.placed)}

    def cancel(self, futures: list[FakeFuture], *, force: bool) -> None:
        self.cancelled += [future.key for future in futures]


def crew(client: FakeClient) -> DaskCrew:
    made = DaskCrew(
        client,
        WANTED, topic="topic", greet=lambda text: text, greeting="", carry_out=lambda text: text,
    )  # fmt: skip
    made._look()
    while not made._known():
        pass
    return made


def perform(made: DaskCrew, cancel: threading.Event | None = None, without: tuple[str, ...] = ()) -> tuple[object, str]:
    return made.perform(MESSAGE, NEED, lambda event: None, cancel or threading.Event(), without)


def well(client: FakeClient, future: FakeFuture) -> None:
    future.end("finished", "answer")


def test_those_who_are_not_fit_are_left_out_with_the_reason() -> None:
    client = FakeClient(
        {
            "tcp://one": WORKER.to_text(),
            "tcp://old": replace(WORKER, version="0.9").to_text(),
            "tcp://none": ModuleNotFoundError("No module named 'rwkvflow'"),
            "tcp://odd": 3,
        },
        well,
    )
    made = crew(client)
    assert list(made.fit()) == ["tcp://one"]
    words = made.unfit()
    assert "it has rwkvflow 0.9, and this is 1" in words["tcp://old"]
    assert "it has no rwkvflow" in words["tcp://none"]
    assert "does not answer as rwkvflow does" in words["tcp://odd"]
    assert perform(made) == ("answer", "tcp://one")
    assert client.given[0]["workers"] == ["tcp://one"]
    assert client.given[0]["allow_other_workers"] is False
    assert client.given[0]["resources"] == {CORES: 4}


def test_what_nobody_can_do_is_refused_before_anything_is_given_out() -> None:
    client = FakeClient({"tcp://one": WORKER.to_text()}, well)
    made = crew(client)
    made.refuse({"a": Need(4, 8 << 30)})
    with pytest.raises(EnvironmentMissing, match=r"b: it needs 5 cores; of 1 workers the largest has 4 cores"):
        made.refuse({"a": NEED, "b": Need(5)})
    with pytest.raises(EnvironmentMissing, match="no other worker"):
        perform(made, without=("tcp://one",))
    assert client.given == []


class SlowClient(FakeClient):
    """One whose workers take their time to say what they are."""

    def run(self, function: Any, text: str, *, workers: list[str], on_error: str) -> dict[str, Any]:
        if not self.answers.wait(timeout=30):
            raise TimeoutError
        return super().run(function, text, workers=workers, on_error=on_error)

    def __init__(self, said: dict[str, Any], task: Callable[[FakeClient, FakeFuture], None]) -> None:
        super().__init__(said, task)
        self.answers = threading.Event()

    def unsubscribe_topic(self, topic: str) -> None:
        """As the client does."""

    def close(self) -> None:
        """As the client does."""


def entered(client: SlowClient) -> DaskCrew:
    return DaskCrew(
        client,
        WANTED, topic="topic", greet=lambda text: text, greeting="", carry_out=lambda text: text,
    )  # fmt: skip


def test_workers_that_are_slow_to_answer_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine takes half a minute to import what a greeting needs; the cluster has workers nevertheless."""
    monkeypatch.setattr(dask, "GREET_S", 0.1)
    client = SlowClient({"tcp://one": WORKER.to_text()}, well)
    with entered(client) as made:
        assert made.fit() == {}
        threading.Timer(0.3, client.answers.set).start()
        made.refuse({"a": Need(4)})
        assert list(made.fit()) == ["tcp://one"]


def test_workers_that_never_answer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "GREET_S", 0.1)
    monkeypatch.setattr(dask, "SLOW_S", 0.3)
    client = SlowClient({"tcp://one": WORKER.to_text()}, well)
    with entered(client) as made:
        with pytest.raises(EnvironmentMissing, match="tcp://one at tcp://one: it has not said yet what it is"):
            made.refuse({"a": NEED})
        client.answers.set()


def test_a_cluster_that_loses_all_its_workers_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "LEFT_S", 0.3)
    client = FakeClient({"tcp://one": WORKER.to_text()}, well)
    made = crew(client)
    client.said = {}
    made._look()
    with pytest.raises(EnvironmentMissing, match="no worker"):
        perform(made)


@pytest.mark.parametrize("refused", [True, False], ids=["another has refused it", "the others are too small"])
def test_a_worker_that_is_started_again_is_waited_for(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """One refuses, or is too small; the other is lost just then. Its nanny takes seconds to start it again."""
    monkeypatch.setattr(dask, "LOOK_S", 0.05)
    client = FakeClient(
        {"tcp://one": WORKER.to_text(), "tcp://two": replace(WORKER, name="two", cores=8).to_text()}, well
    )
    made = crew(client)
    del client.said["tcp://two"]
    made._look()
    assert list(made.fit()) == ["tcp://one"]

    def back() -> None:
        client.said["tcp://three"] = replace(WORKER, name="two", cores=8).to_text()
        made._look()

    timer = threading.Timer(0.5, back)
    timer.start()
    need, without = (NEED, ["tcp://one"]) if refused else (Need(8), [])
    assert made.perform(MESSAGE, need, lambda event: None, threading.Event(), without)[0] == "answer"
    timer.join()
    assert client.given[0]["workers"] == ["tcp://three"]


def test_one_that_is_lost_for_good_or_is_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient({"tcp://one": WORKER.to_text(), "tcp://two": replace(WORKER, name="two").to_text()}, well)
    made = crew(client)
    del client.said["tcp://two"]
    made._look()
    client.said["tcp://three"] = replace(WORKER, name="two").to_text()
    made._look()
    while not made._known():
        pass
    with pytest.raises(EnvironmentMissing, match="no other worker"):  # at once: LEFT_S is a minute
        perform(made, without=("tcp://one", "tcp://three"))
    monkeypatch.setattr(dask, "LEFT_S", 0.3)
    del client.said["tcp://three"]
    made._look()
    with pytest.raises(EnvironmentMissing, match="no other worker"):
        perform(made, without=("tcp://one",))
    assert client.given == []


@pytest.mark.parametrize(
    "trouble",
    [TimeoutError("Timed out trying to connect"), replace(WORKER, problem="it does not see the store").to_text()],
    ids=["a link", "a store"],
)
def test_one_whose_trouble_has_passed_is_fit(monkeypatch: pytest.MonkeyPatch, trouble: object) -> None:
    """A loaded machine takes no connection, a store does not answer: of that moment, and not for the whole run."""
    monkeypatch.setattr(dask, "AGAIN_S", 0.2)
    client = FakeClient({"tcp://one": trouble}, well)
    made = crew(client)
    assert list(made.unfit()) == ["tcp://one"]
    client.said["tcp://one"] = WORKER.to_text()
    made._look()
    assert made.fit() == {}, "not at once"
    end = time.monotonic() + 30
    while not made.fit() and time.monotonic() < end:
        made._look()
        time.sleep(0.01)
    assert perform(made) == ("answer", "tcp://one")
    assert made.unfit() == {}


def test_one_that_is_another_version_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "AGAIN_S", 0.0)
    client = FakeClient({"tcp://one": replace(WORKER, version="0.9").to_text()}, well)
    made = crew(client)
    client.said["tcp://one"] = WORKER.to_text()
    for _ in range(3):
        made._look()
        time.sleep(0.05)
    assert made.fit() == {}


def test_a_task_that_no_worker_has_is_given_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask keeps a task whose workers are gone for ever, although others like them have come."""
    monkeypatch.setattr(dask, "UNPLACED_S", 0.3)
    monkeypatch.setattr(dask, "LOOK_S", 0.05)

    def task(client: FakeClient, future: FakeFuture) -> None:
        if len(client.given) > 1:
            well(client, future)

    client = FakeClient({"tcp://one": WORKER.to_text()}, task)
    assert perform(crew(client)) == ("answer", "tcp://one")
    assert len(client.given) == 2
    assert client.cancelled == [client.given[0]["key"]]


def test_a_task_that_has_just_ended_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler lists it no more, and the word that it is done is on its way: hours of work may be in it."""
    monkeypatch.setattr(dask, "UNPLACED_S", 0.1)
    monkeypatch.setattr(dask, "LOOK_S", 0.3)
    future = FakeFuture("")

    class Ended(FakeClient):
        def processing(self) -> dict[str, list[str]]:
            if self.placed:
                threading.Timer(0.2, lambda: future.end("finished", "answer")).start()
            self.placed.clear()
            return {}

    def task(client: FakeClient, given: FakeFuture) -> None:
        nonlocal future
        future = given
        client.placed.add(given.key)

    client = Ended({"tcp://one": WORKER.to_text()}, task)
    assert perform(crew(client)) == ("answer", "tcp://one")
    assert (len(client.given), client.cancelled) == (1, [])


def test_a_task_that_is_being_done_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask, "UNPLACED_S", 0.1)
    monkeypatch.setattr(dask, "LOOK_S", 0.05)

    def task(client: FakeClient, future: FakeFuture) -> None:
        client.placed.add(future.key)
        threading.Timer(0.6, well, [client, future]).start()

    client = FakeClient({"tcp://one": WORKER.to_text()}, task)
    assert perform(crew(client)) == ("answer", "tcp://one")
    assert len(client.given) == 1


def test_a_task_that_killed_its_workers_fails_and_a_lost_link_is_told() -> None:
    class KilledWorker(Exception):
        pass

    killed = FakeClient({"tcp://one": WORKER.to_text()}, lambda _, future: future.end("error", KilledWorker("a")))
    with pytest.raises(StepFailed, match="each worker that began it was lost"):
        perform(crew(killed))

    def cut(client: FakeClient, future: FakeFuture) -> None:
        client.status = "closed"
        future.end("cancelled")

    with pytest.raises(EnvironmentMissing, match="the link to the scheduler is lost"):
        perform(crew(FakeClient({"tcp://one": WORKER.to_text()}, cut)))


def test_who_stops_cancels_and_waits_for_the_worker_to_have_stopped() -> None:
    cancel = threading.Event()

    def task(client: FakeClient, future: FakeFuture) -> None:
        client.placed.add(future.key)
        cancel.set()
        ended = {"token": "token", "kind": "ended"}
        threading.Timer(0.5, client.handler, [(0.0, ended)]).start()

    client = FakeClient({"tcp://one": WORKER.to_text()}, task)
    made = crew(client)
    client.subscribe_topic("topic", made._hear)
    with pytest.raises(StepFailed, match="stopped"):
        perform(made, cancel)
    assert client.cancelled == [client.given[0]["key"]]


def test_events_reach_their_task_alone_and_odd_ones_nobody() -> None:
    told: list[Any] = []

    def task(client: FakeClient, future: FakeFuture) -> None:
        for token, lines in (("token", ["mine"]), ("other", ["not mine"]), (None, 3)):
            client.handler((0.0, {"token": token, "kind": "log", "step": "a", "lines": lines}))
        for odd in (None, 3, (1, 2, 3), (0.0, "text")):
            client.handler(odd)
        well(client, future)

    client = FakeClient({"tcp://one": WORKER.to_text()}, task)
    made = crew(client)
    client.subscribe_topic("topic", made._hear)
    assert made.perform(MESSAGE, NEED, told.append, threading.Event(), ()) == ("answer", "tcp://one")
    assert told == [{"kind": "log", "step": "a", "lines": ["mine"]}]
