"""Commands that others carry out: what they get, what of their answers counts, and what is done when they are lost.

The workers here are threads with stores of their own, who know only what they are sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import pytest

from rwkvflow.base.errors import EnvironmentMissing, RwkvflowError, StepFailed
from rwkvflow.base.events import Event, StepFinished, StepLog, StepStarted
from rwkvflow.base.hashing import file_digest
from rwkvflow.execute.base import Job, Made, Outcome, Product, Work
from rwkvflow.execute.cluster.elsewhere import TRIES, Elsewhere
from rwkvflow.execute.cluster.fitness import Need
from rwkvflow.execute.cluster.words import Answer, Ended, Message, Told, parse_message
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Ref, Step, StepLimits
from rwkvflow.store.record import Output, Record
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store


def step(name: str, *needs: str, action: str = "sandbox", batch: str | None = None) -> Step:
    inputs = {need: Ref(need, "out") for need in needs}
    return Step(name, name[0], action, {"name": name}, inputs, ("out",), limits=StepLimits(cores=1), batch=batch)


PLAN = Plan(
    [
        step("f", action="fetch"),
        step("a1", "f", batch="a"),
        step("a2", "f", batch="a"),
        step("b", "a1"),
        step("p", "a2", "b", action="publish"),
    ],
    ["p"],
)


class FakeCrew:
    """Carries out what a message says, with a store of its own; `tamper` may change an answer, by its number."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder, self.url = folder, url
        self.answers: list[Callable[[Message, str], object]] = []
        self.messages: list[Message] = []
        self.without: list[list[str]] = []
        self.known_bytes: set[str] = set()

    def capacity(self) -> float:
        return 2

    def weight(self, need: Need) -> float:
        return 1

    def perform(
        self, message: Message, need: Need, told: Told, cancel: threading.Event, without: Iterable[str]
    ) -> tuple[object, str]:
        assert parse_message(message.to_text()) == message
        self.messages.append(message)
        self.without.append(sorted(without))
        worker = f"tcp://{len(self.without[-1])}"
        told({"kind": "started", "worker": worker})
        told({"kind": "log", "step": next(iter(message.steps)), "lines": ["at work"]})
        text = self.work(message)
        change = self.answers.pop(0) if self.answers else lambda message, text: text
        return change(message, text), worker

    def work(self, message: Message) -> str:
        store = Store(self.folder / "worker") if message.store is None else Store(Path(message.store))
        remote = store.remote = Remote(message.remote, lambda text: None) if message.remote else None
        ended = {}
        for name, key in message.steps.items():
            held = ""
            inputs = PLAN.steps[name].inputs.values() if name in PLAN.steps else ()
            for need in sorted(value.step for value in inputs if isinstance(value, Ref)):
                output = message.known[need][1].outputs["out"]
                if remote is not None and output.digest in self.known_bytes:
                    remote.doubt([output], damaged=True)
                if not store.bring([output]):
                    return Answer("w", refused="it cannot get it", lost=(output.digest,)).to_text()
                path = store.path(output.digest)
                assert path is not None
                held += f"({path.read_text()})"
            with store.scratch() as folder:
                (folder / "x").write_text("same" if name.startswith("s") else name + held)
                output = store.put_file(folder / "x")
            if remote is not None:
                remote.doubt([o for o in [output] if o.digest in message.damaged], damaged=True)
                path = store.path(output.digest)
                assert path is not None
                assert remote.put(output, path, store)
            else:
                store.record(key, Record(name, {"out": output}, 0.5, {"by": "w"}))
            ended[name] = Ended("done", {"out": output}, {"by": "w"}, 0.5)
        return Answer("w", ended).to_text()


class Home:
    """A run whose sandbox is elsewhere. `url` None: with one store for all."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.told: list[str] = []
        self.events: list[Event] = []
        self.here: list[str] = []
        self.store = Store(folder / "home")
        self.remote = Remote(url, self.told.append) if url else None
        self.store.remote = self.remote
        self.crew = FakeCrew(folder, url)
        self.url = url

    def action(self, jobs: Iterable[Job], work: Work) -> dict[str, Made | RwkvflowError]:
        made: dict[str, Made | RwkvflowError] = {}
        for job in jobs:
            self.here.append(job.step.id)
            held = "".join(f"({job.inputs[name].read_text()})" for name in sorted(job.inputs))
            (work.folder / job.step.id).write_text(job.step.id + held)
            made[job.step.id] = Made({"out": Product(work.folder / job.step.id)})
        return made

    def run(self, plan: Plan = PLAN) -> dict[str, Outcome]:
        with self.store.scratch() as folder:
            (folder / "x").write_text("documents")
            self.bundle = self.store.put_file(folder / "x")
        away = Elsewhere(
            self.store, self.crew, [self.bundle], topic="t", sandbox="host", need=lambda step: Need(),
            remote=self.remote, url=self.url,
        )  # fmt: skip
        actions = {"fetch": self.action, "publish": self.action}
        executor = LocalExecutor(self.store, actions, {}, self.events.append, run="r", cores=1, elsewhere=away)
        return executor.run(plan)

    def text(self, outcome: Outcome) -> str:
        path = self.store.path(outcome.outputs["out"].digest)
        assert path is not None
        return path.read_text()


EXPECTED = "p(a2(f))(b(a1(f)))"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote"


@pytest.mark.parametrize("shared", [False, True], ids=["remote store", "one store"])
def test_a_plan_is_carried_out_elsewhere_with_the_events_of_one_here(tmp_path: Path, url: str, shared: bool) -> None:
    home = Home(tmp_path, None if shared else url)
    outcomes = home.run()
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(PLAN.steps, "done")
    assert home.text(outcomes["p"]) == EXPECTED
    assert home.here == ["f", "p"], "this machine fetches and publishes"
    assert [sorted(message.steps) for message in home.crew.messages] == [["a1", "a2"], ["b"]]
    started = [event.step for event in home.events if isinstance(event, StepStarted)]
    finished = [event.step for event in home.events if isinstance(event, StepFinished)]
    assert sorted(started) == sorted(finished) == sorted(PLAN.steps)
    assert StepLog("b", "at work") in home.events
    assert home.told == []
    record = home.store.lookup(outcomes["b"].key or "")
    assert record is not None
    assert record.notes == {"by": "w"}


def test_the_remote_store_gets_bytes_before_records_and_one_record_a_step(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)
    outcomes = home.run()
    other = Store(tmp_path / "other")
    other.remote = Remote(url, home.told.append)
    for name in ("f", "a1", "a2", "b"):
        record = other.lookup(outcomes[name].key or "")
        assert record is not None
        assert other.bring(record.outputs.values())
    again = Home(tmp_path / "again", url)
    found = again.run()
    assert again.crew.messages == [], "all of it is there"
    assert again.text(found["p"]) == EXPECTED


def test_bytes_stay_where_they_are_until_somebody_here_needs_them(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)
    outcomes = home.run(Plan([*PLAN], ["b"]))
    assert home.store.path(outcomes["b"].outputs["out"].digest), "a target is brought"
    assert home.store.path(outcomes["a1"].outputs["out"].digest) is None
    assert outcomes["b"].status == "done"


def lie(**changes: str) -> Callable[[Message, str], object]:
    """An answer about bytes that nobody has."""

    def change(message: Message, text: str) -> object:
        outputs = {"out": Output("sha256:" + "0" * 64, "file", 3)}
        return Answer("liar", {name: Ended("done", outputs) for name in message.steps}).to_text()

    return change


@pytest.mark.parametrize("shared", [False, True], ids=["remote store", "one store"])
@pytest.mark.parametrize(
    "odd",
    [
        lie(),
        lambda message, text: "rubbish",
        lambda message, text: None,
        lambda message, text: Answer("w", refused="its disk is full").to_text(),
        lambda message, text: Answer("w", {name: Ended("cancelled") for name in message.steps}).to_text(),
    ],
    ids=["bytes that are not there", "no answer", "nothing", "a full disk", "a worker that is told to end"],
)
def test_an_answer_that_does_not_count_goes_to_another_worker(
    tmp_path: Path, url: str, odd: Callable[[Message, str], object], shared: bool
) -> None:
    home = Home(tmp_path, None if shared else url)
    home.crew.answers = [odd]
    outcomes = home.run()
    assert home.text(outcomes["p"]) == EXPECTED
    assert home.crew.without[:2] == [[], ["tcp://0"]], "and not to the same"


def test_after_some_workers_a_step_fails_with_what_each_said(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)
    home.crew.answers = [lambda message, text: Answer("w", refused="its disk is full").to_text()] * TRIES
    outcomes = home.run()
    assert outcomes["a1"].status == "failed"
    assert str(outcomes["a1"].error).count("its disk is full") == TRIES
    assert outcomes["p"].status == "skipped"


def test_where_nobody_is_left_a_step_fails_with_the_reason(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path, url)

    def nobody(*_: object) -> tuple[object, str]:
        raise EnvironmentMissing("the cluster has no worker")

    monkeypatch.setattr(home.crew, "perform", nobody)
    outcomes = home.run()
    assert isinstance(outcomes["a1"].error, EnvironmentMissing)
    assert outcomes["b"].status == "skipped"


def spoil(url: str, output: Output) -> None:
    """Other bytes of the same size under a hash, as only somebody else would put there."""
    _, root = fsspec.core.url_to_fs(url)
    name = output.digest.removeprefix("sha256:")
    place = Path(root) / "blobs" / name[:2] / name
    place.write_bytes(bytes(byte ^ 1 for byte in place.read_bytes()))


def test_a_blob_that_somebody_spoils_is_noticed_here_and_mended(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)

    def spoiled(message: Message, text: str) -> object:
        from rwkvflow.execute.cluster.words import parse_answer

        spoil(url, parse_answer(text, list(message.steps)).steps["b"].outputs["out"])
        return text

    home.crew.answers = [lambda message, text: text, spoiled]
    outcomes = home.run()
    assert home.text(outcomes["p"]) == EXPECTED
    assert [sorted(message.steps) for message in home.crew.messages] == [["a1", "a2"], ["b"], ["b"]]
    assert any("damaged" in text for text in home.told)


def test_an_input_that_somebody_spoils_is_sent_again(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)
    fetched: list[Output] = []

    def lost(message: Message, text: str) -> object:
        output = message.known["f"][1].outputs["out"]
        fetched.append(output)
        spoil(url, output)
        return Answer("w", refused="it cannot get what the steps need", lost=(output.digest,)).to_text()

    home.crew.answers = [lost]
    outcomes = home.run()
    assert home.text(outcomes["p"]) == EXPECTED
    _, root = fsspec.core.url_to_fs(url)
    name = fetched[0].digest.removeprefix("sha256:")
    assert file_digest(Path(root) / "blobs" / name[:2] / name) == fetched[0].digest


def test_documents_that_somebody_spoils_are_sent_again(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)

    def lost(message: Message, text: str) -> object:
        assert home.remote is not None
        path = home.store.path(message.bundle.digest)
        assert path is not None
        assert home.remote.put(message.bundle, path, home.store)
        spoil(url, message.bundle)
        return Answer("w", refused="it cannot get the documents", lost=(message.bundle.digest,)).to_text()

    home.crew.answers = [lost]
    outcomes = home.run()
    assert home.text(outcomes["p"]) == EXPECTED
    assert Store(tmp_path / "later").path(home.bundle.digest) is None
    assert Remote(url, print).bring(home.bundle, Store(tmp_path / "later")), "what it has is whole again"


def test_one_file_that_many_steps_made_may_be_spoilt_once(tmp_path: Path, url: str) -> None:
    """Each of them misses it, which is no sign of somebody who spoils it again and again."""
    names = [f"s{number}" for number in range(6)]
    plan = Plan([*(step(name) for name in names), step("p", *names, action="publish")], ["p"])
    home = Home(tmp_path, url)
    spoilt: list[Path] = []

    def spoil(message: Message, text: str) -> str:
        if len(home.crew.messages) == len(names) and not spoilt:
            spoilt.extend((tmp_path / "remote").glob("blobs/*/*"))
            for path in spoilt:
                path.chmod(0o644)
                path.write_bytes(b"x" * path.stat().st_size)
        return text

    home.crew.answers = [spoil] * len(names)
    outcomes = home.run(plan)
    assert spoilt
    assert {name: outcome.error for name, outcome in outcomes.items() if not outcome.ok} == {}


def test_a_store_that_somebody_spoils_again_and_again_ends_the_step(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)

    def lost(message: Message, text: str) -> object:
        digest = message.known["f"][1].outputs["out"].digest
        return Answer("w", refused="it cannot get what the steps need", lost=(digest,)).to_text()

    home.crew.answers = [lost] * 20
    outcomes = home.run()
    assert "does not stay in the remote store" in str(outcomes["a1"].error)
    assert len(home.crew.messages) == TRIES


def test_what_failed_there_failed_here(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path, url)
    home.crew.answers = [
        lambda message, text: Answer(
            "w", {n: Ended("failed", error=StepFailed("odd")) for n in message.steps}
        ).to_text()
    ]
    outcomes = home.run()
    assert (outcomes["a1"].status, str(outcomes["a1"].error)) == ("failed", "odd")
    assert outcomes["p"].status == "skipped"
    assert len(home.crew.messages) == 1, "a step that fails is not tried on all workers"


def test_steps_that_begin_together_send_what_they_share_once(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Plan([step("f", action="fetch"), *(step(f"a{number}", "f") for number in range(6))], [])
    plan = Plan(list(wide), [f"a{number}" for number in range(6)])
    monkeypatch.setattr(FakeCrew, "capacity", lambda self: 6)
    monkeypatch.setattr(f"{__name__}.PLAN", plan)
    home = Home(tmp_path, url)
    written: list[str] = []
    assert home.remote is not None
    write = home.remote._write

    def slow(place: str, content: bytes | Path) -> None:
        written.append(place)
        time.sleep(0.05)
        write(place, content)

    monkeypatch.setattr(home.remote, "_write", slow)
    outcomes = home.run(plan)
    assert all(outcome.status == "done" for outcome in outcomes.values())
    name = outcomes["f"].outputs["out"].digest.removeprefix("sha256:")
    assert [place.rpartition("/")[2] for place in written].count(name) == 1
