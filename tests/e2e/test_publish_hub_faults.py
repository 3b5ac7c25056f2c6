"""Publishing to the hub with all that can go wrong: the network, other publishers, kill -9 at every request."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvflow.base.errors import Interrupted, PublishError
from rwkvflow.net import hub_session
from rwkvflow.net.progress import Told
from rwkvflow.publish.hub import HubPublisher
from tests.helpers.hub_releases import NEW, OLD, REPO, TOKEN, commits, holds, publish, uploads
from tests.helpers.publishing import POLICY, Process, contents, release
from tests.standin import Seen, StandIn

# ---- the network ------------------------------------------------------------------------------------------------

WRITES = ["repos/create", "validate-yaml", "preupload", "objects/batch", "upload/", "verify", "/commit/", "/tag/"]
READS = [r"/revision/main", "/tree/", "/refs", "/resolve/"]


# The client itself repeats these after a status or a lost answer, a second later: dropping them is enough to see.
REPEATED = ("upload/", "verify", "objects/batch", "preupload")
FAULTS = [("drop", path) for path in [*WRITES, *READS]]
FAULTS += [(kind, path) for kind in ("lost", "status") for path in [*WRITES, *READS] if path not in REPEATED]


@pytest.mark.parametrize(("kind", "path"), FAULTS)
def test_every_request_may_fail_once(net: StandIn, kind: str, path: str) -> None:
    net.fault(kind, path, status=503)  # type: ignore[arg-type]
    publish(NEW)
    repository = net.hub.repositories[REPO]
    assert holds(repository, NEW)
    assert len(repository.commits) == 2  # the first one of every repository, and ours
    assert len(repository.tags) == 1


def test_rate_limits_are_waited_for(net: StandIn) -> None:
    net.fault("status", "/commit/", status=429, headers={"Retry-After": "0"}, times=2)
    log: list[str] = []
    publish(OLD, told=Told(log=log.append))
    assert commits(net) == 3
    assert sum("429" in line for line in log) == 2
    assert holds(net.hub.repositories[REPO], OLD)


def test_a_limit_that_is_too_long_is_told(net: StandIn) -> None:
    net.fault("status", "/commit/", status=429, headers={"Retry-After": "7200"})
    with pytest.raises(PublishError, match="asks to wait 7200 s") as caught:
        publish(OLD)
    assert "not sent again" in str(caught.value.remedy)


def test_giving_up_leaves_the_old_release_and_uploads_are_not_repeated(net: StandIn) -> None:
    publish(OLD)
    net.fault("status", "/commit/", status=503, times=99)
    with pytest.raises(PublishError, match="gave up after 4 attempts"):
        publish(NEW)
    repository = net.hub.repositories[REPO]
    assert holds(repository, OLD)
    net.faults = type(net.faults)()
    net.seen.clear()
    publish(NEW)
    assert holds(repository, NEW)
    assert uploads(net) == 0


def test_a_lost_answer_of_the_commit_is_not_a_second_commit(net: StandIn) -> None:
    publish(OLD)
    net.fault("lost", "/commit/")
    net.seen.clear()
    publish(NEW)
    assert commits(net) == 1
    assert len(net.hub.repositories[REPO].commits) == 3


def test_stopping(net: StandIn, tmp_path: Path) -> None:
    stop = threading.Event()
    made = release({"big/big.bin": os.urandom(1 << 20) * 25}, tmp_path / "big")

    def progress(done: int, total: int) -> None:
        if done > 10 << 20:
            stop.set()

    with pytest.raises(Interrupted, match="stopped"):
        HubPublisher(REPO, policy=POLICY).apply(made, Told(progress=progress, cancel=stop))
    assert set(net.hub.repositories[REPO].contents()) == {".gitattributes"}


def test_stopping_while_the_hub_says_nothing(net: StandIn) -> None:
    """Ctrl-C does not wait for an answer. Whether the commit was made shows the next time."""
    stop = threading.Event()
    net.fault("stall", "/commit/", seconds=60)
    on_commit(net, lambda: threading.Timer(0.3, stop.set).start())
    start = time.monotonic()
    with pytest.raises(Interrupted):
        publish(OLD, told=Told(cancel=stop))
    assert time.monotonic() - start < 10
    publish(OLD)
    assert commits(net) == 1
    assert holds(net.hub.repositories[REPO], OLD)


def test_a_hub_that_says_nothing_is_given_up(net: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr(hub_session, "READ_S", 0.5)
    close_session()
    net.fault("stall", "/commit/", seconds=60)
    publish(OLD)
    close_session()
    assert holds(net.hub.repositories[REPO], OLD)
    assert commits(net) == 1


# ---- others -----------------------------------------------------------------------------------------------------


def on_commit(net: StandIn, action: object) -> None:
    """Do something once, just before the hub looks at a commit."""

    def hook(phase: str, seen: Seen) -> None:
        if phase == "before" and "/commit/" in seen.path and seen.method == "POST":
            net.on_request = None
            action()  # type: ignore[operator]

    net.on_request = hook


def test_a_commit_of_others_that_touches_nothing_of_ours(net: StandIn) -> None:
    publish(OLD)
    repository = net.hub.repositories[REPO]
    on_commit(net, lambda: repository.commit({"notes.md": b"theirs"}))
    log: list[str] = []
    publish(NEW, told=Told(log=log.append))
    there = repository.contents()
    assert there.pop("notes.md") == b"theirs"
    there.pop(".gitattributes")
    assert there == contents(release(NEW))
    assert any("somebody else committed" in line for line in log)


def test_a_commit_of_others_that_touches_the_release(net: StandIn) -> None:
    publish(OLD)
    repository = net.hub.repositories[REPO]
    on_commit(net, lambda: repository.commit({"README.md": b"# theirs"}))
    with pytest.raises(PublishError, match=r"somebody else changed README\.md in commit") as caught:
        publish(NEW)
    assert "run again" in str(caught.value.remedy)
    assert repository.contents()["README.md"] == b"# theirs"
    assert repository.contents()["tiny7/tiny7-Q5_1.bin"] == OLD["tiny7/tiny7-Q5_1.bin"]
    publish(NEW)
    assert holds(repository, NEW)


def test_the_same_release_from_elsewhere(net: StandIn) -> None:
    publish(OLD)
    repository = net.hub.repositories[REPO]
    on_commit(net, lambda: publish(NEW))
    publish(NEW)
    assert holds(repository, NEW)
    assert len(repository.commits) == 3


def test_two_publishers_race(net: StandIn, tmp_path: Path) -> None:
    """Different releases: one of them is there in the end, whole; the other says so."""
    publish(OLD)
    other = {**NEW, "tiny7/tiny7-Q5_1.bin": b"third" * 4000}
    errors: dict[int, Exception] = {}
    barrier = threading.Barrier(2)

    def run(index: int, files: dict[str, bytes]) -> None:
        barrier.wait()
        try:
            publish(files)
        except PublishError as error:
            errors[index] = error

    threads = [threading.Thread(target=run, args=(i, files)) for i, files in enumerate((NEW, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository = net.hub.repositories[REPO]
    assert [holds(repository, NEW), holds(repository, other)].count(True) == 1
    for error in errors.values():
        assert "somebody else changed" in str(error)
    assert len(errors) <= 1
    for commit in list(repository.commits.values())[1:]:
        there = {path for path in commit.files if path != ".gitattributes"}
        assert there in (set(contents(release(OLD))), set(contents(release(NEW))))


# ---- killed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(net: StandIn) -> Iterator[Process]:
    process = Process({"HF_ENDPOINT": net.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"})
    yield process
    process.close()


def test_killed_at_every_request(net: StandIn, process: Process, tmp_path: Path) -> None:
    """kill -9 before and after the work of each request: the branch is the old or the new release, then the new one."""
    publish(OLD, tag="old", repo="me/old")
    old = net.hub.repositories["me/old"]
    release(NEW, tmp_path / "new")
    old.copy("me/counted")
    net.seen.clear()
    process.start("me/counted", tmp_path / "new", tag="new")
    code, output = process.wait()
    assert code == 0, output
    methods = [seen.method for seen in net.seen]
    assert len(methods) > 10
    assert holds(net.hub.repositories["me/counted"], NEW)
    seen_states = set()
    for phase in ("before", "after"):
        for number, method in enumerate(methods):
            if phase == "after" and method in ("GET", "HEAD"):
                continue  # reading does no work: the same as before it
            name = f"me/{phase}-{number}"
            repository = old.copy(name)
            state = kill_at(net, process, name, tmp_path / "new", phase, number)
            seen_states.add(state)
            before = len(net.requests("PUT", host="cdn", path=name))
            process.start(name, tmp_path / "new", tag="new")
            code, output = process.wait()
            assert code == 0, output
            assert holds(repository, NEW), (phase, number)
            assert len(repository.commits) == len(old.commits) + 1, (phase, number)
            assert repository.tags["new"] == repository.branches["main"]
            after = len(net.requests("PUT", host="cdn", path=name))
            assert after - before <= (2 if before == 0 else 3 - before + 1)
            assert TOKEN not in output
    assert seen_states == {"old", "new"}


def kill_at(net: StandIn, process: Process, name: str, folder: Path, phase: str, number: int) -> str:
    """Publish, kill at that request; which release the branch then holds."""
    count = [0]
    ready = threading.Event()
    pid = [0]

    def hook(now: str, seen: Seen) -> None:
        if now != phase:
            return
        count[0] += 1
        if count[0] == number + 1:
            ready.wait(10)
            os.kill(pid[0], signal.SIGKILL)

    net.on_request = hook
    pid[0] = process.start(name, folder, tag="new")
    ready.set()
    code, _ = process.wait()
    net.on_request = None
    assert code == -9, (phase, number)
    repository = net.hub.repositories[name]
    if holds(repository, OLD):
        return "old"
    assert holds(repository, NEW), (phase, number)
    return "new"


# ---- the token ---------------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_nowhere_else(
    net: StandIn, process: Process, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release({**NEW, "big/big.bin": os.urandom(1 << 20) * 21}, tmp_path / "new")
    net.fault("status", "/commit/", status=403, headers={"X-Error-Message": f"no rights for {TOKEN}"})
    process.start(REPO, tmp_path / "new")
    code, output = process.wait()
    assert code == PublishError.exit_code
    assert "no rights for ***" in output
    net.fault("status", "/commit/", status=503, headers={"X-Error-Message": f"Bearer {TOKEN}"})
    process.start(REPO, tmp_path / "new")
    code, again = process.wait()
    assert code == 0
    assert "503" in again
    assert TOKEN not in output + again + caplog.text
    assert all("authorization" not in seen.headers for seen in net.requests(host="cdn"))
    assert all(TOKEN not in seen.path for seen in net.seen)
    for data in net.hub.repositories[REPO].contents().values():
        assert TOKEN.encode() not in data
