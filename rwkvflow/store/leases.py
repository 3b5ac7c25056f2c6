"""Who is doing which step, among workers that share nothing but a remote store.

    <url>/leases/<aa>/<key>/<number>.json   a claim; its holder writes a new beat into it again and again

A claim is a file that is written on condition that it is absent, so one of several gets it. When its beat has not
changed for a while, by the watcher's own clock, its holder is taken for dead, and the next number may be claimed, by
one of those who wait. No two clocks are compared, so a clock that is wrong or jumps does no harm. A holder who was only
slow does the step as well, and of the two results one is recorded; see remote.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from rwkvflow.base.errors import UsageError
from rwkvflow.store.conditional import create, holds
from rwkvflow.store.failures import Failures

TTL_S = 120.0  # without a new beat for so long, a claim is over
BEATS = 4  # in that time


class Leases:
    """The claims of one worker. Methods raise nothing for trouble with the store: then nothing is claimed."""

    def __init__(
        self, system: Any, root: str, shown: str, *, ttl_s: float = TTL_S, owner: str = "", round_: str = ""
    ) -> None:
        """Raises UsageError where the store does not keep conditions, so that everybody would win every claim."""
        self._fs, self._root, self.ttl_s = system, f"{root}/leases", ttl_s
        self.owner = owner or uuid.uuid4().hex
        self.failures = Failures(system, root, self.owner, round_)
        self._seen: dict[str, tuple[str, float]] = {}  # by claim: its beat, and when that was new to us
        self._guard = threading.Lock()
        if not holds(system, self._root):
            raise UsageError(
                f"the store {shown} does not refuse to write what is there already, so workers cannot share it",
                remedy="use S3, GCS or a folder that all see; `rwkvflow run --only` needs no such store",
            )

    def claim(self, key: str) -> str | None:
        """Claim a step: the claim's place, or None while somebody else has it."""
        with contextlib.suppress(Exception):  # each kind of file system has errors of its own
            numbers = self._numbers(key)
            last = numbers[-1] if numbers else 0
            if last and not self._over(self._place(key, last)):
                return None
            place = self._place(key, last + 1)
            if create(self._fs, place, self._beat()):
                return place
        return None

    def taken(self, key: str) -> bool:
        """Whether somebody has a claim on a step that is not over."""
        with contextlib.suppress(Exception):
            numbers = self._numbers(key)
            return bool(numbers) and not self._over(self._place(key, numbers[-1]))
        return False

    def died(self, place: str) -> int:
        """How many who held this claim's step before gave no sign of life any more, one after another."""
        return int(place.rpartition("/")[2].removesuffix(".json")) - 1

    @contextlib.contextmanager
    def held(self, places: list[str]) -> Iterator[None]:
        """Keep claims alive while the work is done, and give them up afterwards."""
        done = threading.Event()
        beating = threading.Thread(target=self._keep_alive, args=(places, done), daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join(timeout=self.ttl_s)
            for place in places:
                self._give_up(place)

    def _give_up(self, place: str) -> None:
        """Remove a claim, and those before it, which are over; one that came after it is another's."""
        folder, _, name = place.rpartition("/")
        with contextlib.suppress(Exception):
            for number in self._numbers(folder.rpartition("/")[2]):
                if number <= int(name.removesuffix(".json")):
                    self._fs.rm_file(f"{folder}/{number:06}.json")

    def _keep_alive(self, places: list[str], done: threading.Event) -> None:
        while not done.wait(self.ttl_s / BEATS):
            for place in places:
                with contextlib.suppress(Exception):
                    self._fs.pipe_file(place, self._beat())

    def _beat(self) -> bytes:
        return json.dumps({"owner": self.owner, "beat": uuid.uuid4().hex}).encode()

    def _over(self, place: str) -> bool:
        """Whether a claim's beat has been the same for too long."""
        try:
            beat = bytes(self._fs.cat_file(place)).decode("utf-8", "replace")
        except FileNotFoundError:
            return False  # given up this moment
        now = time.monotonic()
        with self._guard:
            known, since = self._seen.get(place, ("", now))
            if beat != known:
                known, since = beat, now
            self._seen[place] = (known, since)
        return now - since > self.ttl_s

    def _numbers(self, key: str) -> list[int]:
        folder = self._place(key, 0).rpartition("/")[0]
        self._fs.invalidate_cache(folder)
        try:
            names = [str(path).rpartition("/")[2] for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        found = [name.removesuffix(".json") for name in names if name.endswith(".json")]
        return sorted(int(name) for name in found if name.isdigit())

    def _place(self, key: str, number: int) -> str:
        return f"{self._root}/{key[:2]}/{key}/{number:06}.json"
