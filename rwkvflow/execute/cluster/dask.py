"""The workers of a Dask cluster: who is there, who is fit, and one task after another for them.

Dask decides which worker gets a task and gives it to another one when that worker is lost. What Dask does not do is
done here: it would wait for ever for a worker that can never come, it knows nothing of versions, and it does not stop a
task that runs. What is sent is text and the names of two functions; see `app.clusters.on_worker`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import EnvironmentMissing, StepFailed
from rwkvflow.execute.cluster.fitness import (
    Greeting,
    Need,
    WantedWorker,
    lacks,
    parse_greeting,
    refusal,
    resources,
    unfit,
)
from rwkvflow.execute.cluster.words import Message, Told, parse_event

if TYPE_CHECKING:
    from distributed import Client

LOOK_S = 1.0  # how often it is looked who is there
GREET_S = 20.0  # how long those who are there at first may take to answer
SLOW_S = 120.0  # the same, where without them a step could not be carried out: loaded machines, slow file servers
AGAIN_S = 10.0  # after so long a worker is asked again whose trouble may have passed
LEFT_S = 60.0  # without anybody who is fit for so long, a step fails
UNPLACED_S = 5.0  # a task that no worker has for so long is given out anew
STOP_S = 20.0  # how long workers may take to stop their commands


class DaskCrew:
    """The workers behind one client. Use as a context; leaving it stops what it started."""

    def __init__(
        self,
        client: Client,
        wanted: WantedWorker,
        *,
        topic: str,
        greet: Callable[..., Any],
        greeting: str,
        carry_out: Callable[[str], str],
        close: Callable[[], object] = lambda: None,
    ) -> None:
        """greet, carry_out: functions that workers can import; `greeting` is what the first one is told."""
        self._client, self._wanted, self._topic, self._close = client, wanted, topic, close
        self._greet, self._greeting, self._carry_out = greet, greeting, carry_out
        self._guard = threading.Lock()  # held for a moment only: the client's own thread takes it, too
        self._asking = threading.Lock()
        self._seen: dict[str, str] = {}  # names by address, of those who were greeted, or are being greeted
        self._fit: dict[str, Greeting] = {}  # by address
        self._unfit: dict[str, str] = {}  # by address, why
        self._again: dict[str, float] = {}  # by address, when the unfit are asked again whose trouble may pass
        self._lost: dict[str, tuple[float, Greeting]] = {}  # by name, when; those who have not come back
        self._listeners: dict[str, queue.SimpleQueue[Any]] = {}  # by token of a task
        self._patience = 0.0  # until then, those who have not answered are waited for
        self._done = threading.Event()
        self._placed: tuple[float, frozenset[str]] = (0.0, frozenset())
        self._watch = threading.Thread(target=self._look_out, name="rwkvflow-cluster", daemon=True)

    def __enter__(self) -> DaskCrew:
        self._client.subscribe_topic(self._topic, self._hear)
        self._look()
        end, self._patience = time.monotonic() + GREET_S, time.monotonic() + SLOW_S
        while time.monotonic() < end and not self._known():
            time.sleep(0.05)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with contextlib.suppress(Exception):
            self._client.unsubscribe_topic(self._topic)
        for closing in (self._client.close, self._close):
            with contextlib.suppress(Exception):
                closing()

    def fit(self) -> dict[str, Greeting]:
        """Those who can work, by address."""
        with self._guard:
            return dict(self._fit)

    def unfit(self) -> dict[str, str]:
        """Why others cannot, by address; also those who have not answered yet."""
        with self._guard:
            words = "it has not said yet what it is"
            silent = {at: f"{name}: {words}" for at, name in self._seen.items() if at not in self._fit}
            return silent | self._unfit

    def refuse(self, needs: Mapping[str, Need]) -> None:
        """Raises EnvironmentMissing where a step, by its id, can be carried out by nobody who is there."""
        while (step := self._beyond(needs)) and self._seen and not self._known() and time.monotonic() < self._patience:
            time.sleep(0.05)
        if step:
            error = refusal(needs[step], self.fit(), self.unfit())
            raise EnvironmentMissing(f"{step}: {error.message}", remedy=error.remedy)

    def _beyond(self, needs: Mapping[str, Need]) -> str:
        """The first step that nobody can carry out, as far as one knows; "" for none."""
        fit = self.fit().values()
        return next((step for step, need in needs.items() if all(lacks(worker, need) for worker in fit)), "")

    def capacity(self) -> float:
        """The cores of all who can work."""
        return sum(worker.cores for worker in self.fit().values())

    def weight(self, need: Need) -> float:
        """The cores that a step takes."""
        return next(iter(resources(need, self.fit().values()).values()))

    # ---- who is there ------------------------------------------------------------------------------------------

    def _known(self) -> bool:
        with self._guard:
            return bool(self._seen) and len(self._fit) + len(self._unfit) == len(self._seen)

    def _look_out(self) -> None:
        while not self._done.wait(LOOK_S):
            with contextlib.suppress(Exception):  # the link may be down for a moment
                self._look()

    def _look(self) -> None:
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        with self._guard:
            for gone in self._seen.keys() - set(workers):
                del self._seen[gone]
                self._unfit.pop(gone, None)
                self._again.pop(gone, None)
                if (lost := self._fit.pop(gone, None)) is not None:
                    self._lost[lost.name] = (time.monotonic(), lost)
            new = [address for address in workers if address not in self._seen]
            self._seen.update({address: f"{workers[address].get('name', '')} at {address}" for address in new})
            new += [address for address, due in self._again.items() if due <= time.monotonic()]
            for address in new:
                self._again.pop(address, None)
            asked = [(address, self._seen[address]) for address in new]
        for one in asked:  # each by itself: one that does not answer keeps nobody waiting
            threading.Thread(target=self._meet, args=one, daemon=True).start()

    def _meet(self, address: str, name: str) -> None:
        passing = False  # a link that was down, a store that did not answer: of that moment, not of the worker
        try:
            said = self._client.run(self._greet, self._greeting, workers=[address], on_error="return").get(address)
            if isinstance(said, ImportError):
                problem: str | None = f"it has no rwkvflow ({said})"
            elif isinstance(said, BaseException):
                problem, passing = f"{type(said).__name__}: {said}", isinstance(said, OSError)
            else:
                worker = parse_greeting(said)
                problem = unfit(worker, self._wanted)
                passing = problem == worker.problem
        except Exception as error:
            passing = isinstance(error, OSError)
            problem = f"it does not answer as rwkvflow does: {type(error).__name__}: {error}"
        with self._guard:
            if address not in self._seen:
                return  # it is gone again
            if problem is not None:
                self._unfit[address] = f"{name}: {problem}"
                if passing:
                    self._again[address] = time.monotonic() + AGAIN_S
            else:
                self._unfit.pop(address, None)
                self._fit[address] = worker
                self._lost.pop(worker.name, None)

    # ---- one task ----------------------------------------------------------------------------------------------

    def perform(
        self, message: Message, need: Need, told: Told, cancel: threading.Event, without: Iterable[str]
    ) -> tuple[object, str]:
        """What a worker answers, and its address. Raises RwkvflowError where nobody does."""
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._guard:
            self._listeners[message.token] = heard
        try:
            return self._perform(message, need, told, cancel, frozenset(without), heard)
        finally:
            with self._guard:
                del self._listeners[message.token]

    def _perform(
        self,
        message: Message,
        need: Need,
        told: Told,
        cancel: threading.Event,
        without: frozenset[str],
        heard: queue.SimpleQueue[Any],
    ) -> tuple[object, str]:
        future, given, nobody, missed = None, 0.0, 0.0, 0.0
        while True:
            if cancel.is_set():
                self._stop(future, heard)
                raise StepFailed("stopped")
            now = time.monotonic()
            if future is None:
                able = {
                    address: worker
                    for address, worker in self.fit().items()
                    if address not in without and not lacks(worker, need)
                }
                if able:
                    future, given, nobody, missed = self._submit(message, need, able), now, 0.0, 0.0
                    future.add_done_callback(lambda _: heard.put(None))
                else:
                    nobody = nobody or now
                    soon = not without and now - nobody <= 2 * LOOK_S
                    if not soon and (now - nobody > LEFT_S or not self._expected(need, now)):
                        if without:
                            raise EnvironmentMissing("no other worker can carry it out")
                        raise refusal(need, self.fit(), self.unfit())
            self._tell(heard, told)
            if future is None:
                continue
            if future.done():
                self._tell(heard, told, wait=0.0)
                found = self._result(future)
                if found is not None:
                    return found
                future = None
            elif now - given > UNPLACED_S:
                if self._is_placed(future.key, now):
                    missed = 0.0
                elif not missed:
                    missed = now  # it may have ended this moment, and the word of that be on its way
                elif now - missed > 2 * LOOK_S:
                    self._client.cancel([future], force=True)
                    future = None

    def _expected(self, need: Need, now: float) -> bool:
        """Whether one who can do it may be there in a moment: started again, or about to say what it is."""
        with self._guard:
            silent = len(self._fit) + len(self._unfit) < len(self._seen)
            lost = any(now - since <= LEFT_S and not lacks(worker, need) for since, worker in self._lost.values())
            return silent or lost or not self._fit

    def _submit(self, message: Message, need: Need, able: Mapping[str, Greeting]) -> Any:
        first = next(iter(message.steps))
        return self._client.submit(
            self._carry_out,
            message.to_text(),
            key=f"rwkvflow-{first}-{message.token[:8]}-{uuid.uuid4().hex[:8]}",
            pure=False,
            resources=resources(need, able.values()),
            workers=list(able),
            allow_other_workers=False,
        )

    def _result(self, future: Any) -> tuple[object, str] | None:
        """What came back, and from whom; None where it has to be given out anew."""
        if future.status == "cancelled":
            if self._client.status != "running":
                raise EnvironmentMissing(
                    "the link to the scheduler is lost", remedy="what is finished is kept; run the same command again"
                )
            return None
        try:
            has = self._client.who_has([future])
            text = future.result(timeout=STOP_S)
        except TimeoutError:
            return None
        except Exception as error:  # what Dask, or the function's import, has to say
            if type(error).__name__ == "KilledWorker":
                raise StepFailed(
                    f"each worker that began it was lost: {error}",
                    remedy="see the workers' own logs; out of memory is the usual reason",
                ) from error
            raise StepFailed(f"the cluster could not carry it out: {type(error).__name__}: {error}") from error
        return text, next((str(address) for addresses in has.values() for address in addresses), "")

    def _is_placed(self, key: str, now: float) -> bool:
        """Whether some worker has a task; asked for all tasks together, every few seconds."""
        with self._asking:
            since, keys = self._placed
            if now - since > LOOK_S:
                try:
                    keys = frozenset(str(name) for names in self._client.processing().values() for name in names)
                except Exception:
                    return True  # the link is down for a moment
                self._placed = (now, keys)
            return key in keys

    def _stop(self, future: Any, heard: queue.SimpleQueue[Any]) -> None:
        """Cancel a task; the worker notices, and says when its command has ended."""
        if future is None or future.done():
            return
        with contextlib.suppress(Exception):
            placed = self._is_placed(future.key, time.monotonic())
            self._client.cancel([future], force=True)
            end = time.monotonic() + (STOP_S if placed else 0.0)
            while (left := end - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    event = heard.get(timeout=min(left, 0.5))
                    if event is not None and event["kind"] == "ended":
                        return

    # ---- events ------------------------------------------------------------------------------------------------

    def _hear(self, event: Any) -> None:
        """In the client's own thread, which must not wait for anything."""
        told = event[1] if isinstance(event, tuple | list) and len(event) == 2 else None
        if isinstance(told, dict) and (found := parse_event(told)) is not None:
            with self._guard:
                heard = self._listeners.get(str(told.get("token")))
            if heard is not None:
                heard.put(found)

    @staticmethod
    def _tell(heard: queue.SimpleQueue[Any], told: Told, wait: float = 0.2) -> None:
        with contextlib.suppress(queue.Empty):
            event = heard.get(timeout=wait) if wait else heard.get_nowait()
            while True:
                if event is not None and event["kind"] != "ended":
                    told(event)
                event = heard.get_nowait()
