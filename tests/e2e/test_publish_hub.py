"""Publishing to the hub: the real client against the stand-in, on loopback, with everything going wrong in turn."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import publishing
import pytest
from publishing import POLICY, Process, contents, release

from rwkvflow.errors import Interrupted, PublishError, StoreError
from rwkvflow.publish.artifacts import from_file
from rwkvflow.publish.base import Published, Told
from rwkvflow.publish.hub import LARGEST, HubOptions, HubPublisher, weight_suffixes
from rwkvflow.publish.names import SUMS
from rwkvflow.publish.release import Release
from rwkvflow.stages import hub_session
from tests.standin import Repository, Seen, StandIn

TOKEN = "hf_plantedPLANTEDplanted0123456789"  # noqa: S105 - of nobody
REPO = "me/models"
OLD = {
    "tiny7/tiny7-Q5_1.bin": b"five" * 5000,
    "tiny7/tiny7.safetensors": b"safe" * 4000,
    "tiny7/smoke/tiny7-Q5_1.bin.json": b'{"passed": true}\n',
    "gone/gone.bin": b"gone" * 100,
}
NEW = {
    "tiny7/tiny7-Q5_1.bin": b"FIVE" * 5000,
    "tiny7/tiny7.safetensors": OLD["tiny7/tiny7.safetensors"],
    "tiny7/smoke/tiny7-Q5_1.bin.json": b'{"passed": true, "again": 1}\n',
    "added/added.gguf": b"gguf" * 3000,
}


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with StandIn(tmp_path / "hub") as net:
        net.tokens[TOKEN] = "me"
        monkeypatch.setenv("HF_ENDPOINT", net.endpoint)
        yield net


def publish(files: dict[str, bytes], *, told: Told | None = None, repo: str = REPO, **options: object) -> Published:
    return HubPublisher(repo, HubOptions(**options), POLICY).apply(release(files), told or Told())  # type: ignore[arg-type]


def holds(repository: Repository, files: dict[str, bytes], revision: str = "main") -> bool:
    """Whether a commit holds exactly this release, besides .gitattributes."""
    there = repository.contents(revision)
    there.pop(".gitattributes", None)
    return there == contents(release(files))


def commits(net: StandIn) -> int:
    return len(net.requests("POST", path="/commit/"))


def uploads(net: StandIn) -> int:
    return len(net.requests("PUT", host="cdn"))


# ---- the way it is meant ---------------------------------------------------------------------------------------


def test_a_release_is_one_commit_and_a_tag(net: StandIn) -> None:
    made = publish(OLD)
    repository = net.hub.repositories[REPO]
    assert holds(repository, OLD)
    assert commits(net) == 1
    assert uploads(net) == 3  # .bin, .bin, .safetensors; the rest is inside the commit
    sums = hashlib.sha256(contents(release(OLD))[SUMS]).hexdigest()
    assert repository.tags == {f"release-{sums[:12]}": repository.branches["main"]}
    assert made.to == f"hf://{REPO}@release-{sums[:12]}"
    assert made.facts["commit"] == repository.branches["main"]


def test_publishing_again_does_nothing(net: StandIn) -> None:
    publish(OLD)
    before = dict(net.hub.repositories[REPO].branches)
    net.seen.clear()
    made = publish(OLD)
    assert net.hub.repositories[REPO].branches == before
    assert {seen.method for seen in net.seen} <= {"GET", "HEAD"}
    assert made.facts["changed"] == "0"


def test_one_changed_artifact_is_one_commit_and_one_upload(net: StandIn) -> None:
    publish(OLD)
    net.seen.clear()
    changed = {**OLD, "tiny7/tiny7-Q5_1.bin": b"other" * 999}
    publish(changed)
    assert (commits(net), uploads(net)) == (1, 1)
    assert holds(net.hub.repositories[REPO], changed)
    assert len(net.hub.repositories[REPO].tags) == 2


def test_files_that_are_no_longer_in_the_release_go_and_files_of_others_stay(net: StandIn) -> None:
    publish(OLD)
    net.hub.repositories[REPO].commit({"notes.md": b"mine"})
    publish(NEW)
    there = net.hub.repositories[REPO].contents()
    assert "gone/gone.bin" not in there
    assert there.pop("notes.md") == b"mine"
    there.pop(".gitattributes")
    assert there == contents(release(NEW))


def test_weights_go_to_lfs_whatever_their_size_and_empty_files_do_not(net: StandIn) -> None:
    publish({"a/a.gguf": b"small", "a/empty.bin": b"", "a/a.json": b"{}"})
    repository = net.hub.repositories[REPO]
    head = repository.find("main")
    assert head is not None
    assert {path for path, entry in head.files.items() if entry.lfs} == {"a/a.gguf"}
    lines = repository.contents()[".gitattributes"].decode().splitlines()
    for suffix in weight_suffixes():
        assert lines.count(f"*{suffix} filter=lfs diff=lfs merge=lfs -text") == 1


def test_large_files_go_in_parts(net: StandIn, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 30
    made = release({"big/big.safetensors": data}, tmp_path / "big")
    told: list[tuple[int, int]] = []
    HubPublisher(REPO, policy=POLICY).apply(made, Told(progress=lambda done, total: told.append((done, total))))
    assert uploads(net) == 4  # of 8 MiB at most
    assert net.hub.repositories[REPO].contents()["big/big.safetensors"] == data
    assert told[-1][0] == told[-1][1] >= 30 << 20
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({done for done, _ in told}) > 10  # told while it goes


def test_the_plan_says_it_beforehand_and_changes_nothing(net: StandIn) -> None:
    publisher = HubPublisher(REPO, HubOptions(private=True, tag="v1"), POLICY)
    plan = publisher.plan(release(OLD))
    assert plan.lines()[:3] == [f"hf://{REPO}:", "  creates the private repository", "  sets the tag v1"]
    assert "  + gone/gone.bin  0.0 MB" in plan.lines()
    publisher.apply(release(OLD), Told())
    assert publisher.plan(release(OLD)).lines()[0] == f"hf://{REPO}: nothing to do"
    net.seen.clear()
    plan = HubPublisher(REPO, policy=POLICY).plan(release(NEW))
    kinds = {change.path: change.kind for change in plan.changes}
    assert kinds == {
        "tiny7/tiny7-Q5_1.bin": "replace",
        "tiny7/smoke/tiny7-Q5_1.bin.json": "replace",
        "provenance.json": "replace",
        "SHA256SUMS": "replace",
        "added/added.gguf": "add",
        "gone/gone.bin": "delete",
    }
    assert plan.unchanged == 3  # the safetensors, the card, .gitattributes
    assert {seen.method for seen in net.seen} == {"GET"}


def test_private_repositories_branches_and_tags(net: StandIn) -> None:
    publish(OLD, private=True, tag="v1")
    repository = net.hub.repositories[REPO]
    assert repository.private
    assert repository.tags == {"v1": repository.branches["main"]}
    publish(NEW, branch="next", tag="v2")
    assert holds(repository, OLD)
    assert holds(repository, NEW, "next")
    with pytest.raises(PublishError, match=r"is private, and the recipe says that it is to be public"):
        publish(NEW, private=False)
    with pytest.raises(PublishError, match=r"has a tag v1 already") as caught:
        publish(NEW, tag="v1")
    assert "another tag" in str(caught.value.remedy)
    assert holds(repository, OLD)


def test_going_back_to_an_older_release(net: StandIn) -> None:
    publish(OLD)
    publish(NEW)
    net.seen.clear()
    publish(OLD)
    assert holds(net.hub.repositories[REPO], OLD)
    assert uploads(net) == 0  # the hub has the contents still
    assert len(net.hub.repositories[REPO].tags) == 2


# ---- what cannot be ---------------------------------------------------------------------------------------------


def test_without_a_token(net: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with pytest.raises(PublishError, match="needs a token") as caught:
        publish(OLD)
    assert "HF_TOKEN" in str(caught.value.remedy)
    assert net.seen == []


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_nobody_knows_this_one", REPO, "the hub does not know this token"),
        (TOKEN, "someone/else", "may not write to hf://someone/else"),
        (TOKEN, "other/theirs", "may not write to hf://other/theirs"),
    ],
)
def test_tokens_that_may_not(
    net: StandIn, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, message: str
) -> None:
    net.hub.create("other/theirs").commit({"README.md": b"# theirs"})
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=message) as caught:
        publish(OLD, repo=repo)
    assert token not in str(caught.value)
    assert net.hub.repositories["other/theirs"].contents() == {"README.md": b"# theirs"}


def test_a_file_over_the_hubs_limit_is_refused_before_anything_is_asked(net: StandIn, tmp_path: Path) -> None:
    made = release(OLD)
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    file_of = type(made.files[0])("large.bin", "sha256:" + "0" * 64, LARGEST + 1, large)
    with pytest.raises(PublishError, match=r"large\.bin has 50\.0 GB"):
        HubPublisher(REPO, policy=POLICY).apply(Release("tiny", (*made.files, file_of), ()), Told())
    assert net.seen == []


def test_files_that_rwkvflow_did_not_publish_are_not_replaced(net: StandIn) -> None:
    theirs = net.hub.create(REPO)
    theirs.commit({"README.md": b"# by hand", "tiny7/tiny7-Q5_1.bin": b"by hand"})
    with pytest.raises(PublishError, match="that rwkvflow did not publish"):
        publish(OLD)
    assert theirs.contents() == {"README.md": b"# by hand", "tiny7/tiny7-Q5_1.bin": b"by hand"}
    theirs.commit({"tiny7/tiny7-Q5_1.bin": None})
    publish(OLD)  # a card made on the hub's own page is replaced; its history keeps it
    assert holds(theirs, OLD)


def test_damage_in_the_store_is_not_published(net: StandIn, tmp_path: Path) -> None:
    made = release(OLD, tmp_path / "store")
    damaged = tmp_path / "store" / "gone" / "gone.bin"
    damaged.write_bytes(b"GONE" * 100)
    with pytest.raises(StoreError, match=r"gone/gone\.bin"):
        HubPublisher(REPO, policy=POLICY).apply(made, Told())
    assert set(net.hub.repositories[REPO].contents()) == {".gitattributes"}


def test_a_gitignore_that_keeps_files_out_is_noticed(net: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.standin.writing import Writing

    original = Writing.write_commit

    def forgetful(self: Writing, values: dict[str, str], query: object, headers: dict[str, str], body: bytes) -> object:
        kept = b"\n".join(line for line in body.splitlines() if b"smoke" not in line)
        return original(self, values, query, headers, kept)

    monkeypatch.setattr(Writing, "write_commit", forgetful)
    with pytest.raises(PublishError, match=r"does not hold what was sent: tiny7/smoke"):
        publish(OLD)


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
    from huggingface_hub.utils import close_session

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


def test_release_files_come_from_disk_too(tmp_path: Path) -> None:
    made = release(OLD, tmp_path / "r")
    assert contents(publishing.from_folder(tmp_path / "r")) == contents(made)
    assert from_file("x", tmp_path / "r" / "README.md").size == len(publishing.CARD_TEXT)
