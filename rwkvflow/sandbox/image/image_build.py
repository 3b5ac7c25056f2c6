"""One image build through the engine's classic builder: context streamed in, output streamed out, network off."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import StepFailed
from rwkvflow.base.lines import LineSplitter, Tail
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox.base import OnLine
from rwkvflow.sandbox.daemon import plain_errors, remedy_for
from rwkvflow.sandbox.image.archive import ArchiveEntry, stream

if TYPE_CHECKING:
    import docker

POLL_S = 0.2


# What engines say where a layer that the builder has just made or found is gone: someone pruned images meanwhile.
# The last is of a stage to copy from; those have names of our own, and are built before.
LOST_LAYER = (
    "unknown parent image ID",
    "failed to get layer",
    "layer does not exist",
    "No such image: sha256:",
    "invalid from flag value",
)


class LayerLost(StepFailed):
    """The build cannot go on, and would succeed from the start."""


class _Stopped(Exception):
    """The build was cancelled or took too long."""


class ImageBuild:
    """A build under way. `run` is called once."""

    def __init__(
        self, client: docker.DockerClient, limits: StepLimits, on_line: OnLine, cancel: threading.Event
    ) -> None:
        self._client = client
        self._limits = limits
        self._tail = Tail(on_line)
        self._cancel = cancel
        self._start = time.monotonic()
        self._abandoned = threading.Event()  # the thread that talks to the engine should stop
        self._response: Any = None

    def run(self, entries: Iterable[ArchiveEntry], tag: str, labels: Mapping[str, str]) -> None:
        """Build and tag. Raises StepFailed with the end of the log; where cancelled, StepFailed that says so."""
        messages: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(maxsize=1000)
        talker = threading.Thread(target=self._talk, args=(list(entries), tag, labels, messages), daemon=True)
        talker.start()
        lines = LineSplitter(self._tail)
        try:
            while True:
                self._check()
                try:
                    message = messages.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                if message is None:
                    break
                if isinstance(message, BaseException):
                    with plain_errors("image build"):
                        raise message
                self._take(message, lines)
        except _Stopped as stopped:
            raise StepFailed(f"image build {stopped}\n{self._tail}".rstrip()) from None
        finally:
            self._abandoned.set()
            _shut(self._response)
            talker.join(timeout=10)
        lines.close()

    def _check(self) -> None:
        if self._cancel.is_set():
            raise _Stopped("cancelled")
        limit = self._limits.time_s
        if limit is not None and time.monotonic() - self._start > limit:
            raise _Stopped(f"stopped: it took longer than {limit:g} s, the stage's time limit in workflow.yaml")

    def _take(self, message: dict[str, Any], lines: LineSplitter) -> None:
        if "error" in message:
            lines.close()
            text = str((message.get("errorDetail") or {}).get("message") or message["error"])
            log = str(self._tail)
            kind = LayerLost if any(words in text for words in LOST_LAYER) else StepFailed
            raise kind(
                f"image build: {text}\n{log}".rstrip(),
                remedy=remedy_for(text) or remedy_for(log.rpartition("\n")[2]) or "the lines above come from the build",
            )
        if "stream" in message:
            lines.feed(str(message["stream"]).encode())
        elif "status" in message and "progressDetail" not in message:
            lines.feed(f"{message['status']}\n".encode())

    # ---- in the talking thread -----------------------------------------------------------------------------------

    def _talk(
        self, entries: list[ArchiveEntry], tag: str, labels: Mapping[str, str], messages: queue.Queue[Any]
    ) -> None:
        try:
            api = self._client.api
            # Not images.build(): that adds the user's proxies to the build and hides the connection, which has to
            # be shut to cancel. version=1 is the classic builder.
            self._response = api.post(
                f"{api.base_url}/v{api.api_version}/build",
                params=self._parameters(tag, labels),
                headers={"Content-Type": "application/x-tar"},
                data=stream(entries, self._continue),
                stream=True,
                timeout=None,
            )
            if self._response.status_code != 200:
                self._put(messages, {"error": _explanation(self._response.text)})
            for line in self._response.iter_lines(chunk_size=None):
                if line:
                    self._put(messages, json.loads(line))
        except _Stopped:
            return
        except Exception as error:
            self._put(messages, error)
        self._put(messages, None)

    def _put(self, messages: queue.Queue[Any], message: Any) -> None:
        """Wait for room, as long as somebody takes messages."""
        while not self._abandoned.is_set():
            with contextlib.suppress(queue.Full):
                messages.put(message, timeout=0.5)
                return

    def _continue(self) -> None:
        if self._abandoned.is_set():
            raise _Stopped

    def _parameters(self, tag: str, labels: Mapping[str, str]) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "version": "1",
            "t": tag,
            "rm": True,
            "forcerm": True,
            "networkmode": "none",
            "labels": json.dumps(dict(labels), sort_keys=True),
        }
        if self._limits.memory:
            parameters["memory"] = parameters["memswap"] = self._limits.memory
        if self._limits.cores:
            parameters["cpuperiod"], parameters["cpuquota"] = 100_000, int(self._limits.cores * 100_000)
        return parameters


def _explanation(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or "the engine refused the build"


def _shut(response: Any) -> None:
    """Close a response that another thread reads: it wakes up, and the engine stops what it was doing."""
    if response is None:
        return
    from docker.types import CancellableStream

    with contextlib.suppress(Exception):  # closed by the other side already, or no socket to be found
        CancellableStream(iter(()), response).close()
    response.close()
