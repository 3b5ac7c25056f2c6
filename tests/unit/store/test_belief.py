"""What a store is told and does not believe: records of a stranger's, and blobs under a digest that is not theirs."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.hashing import text_digest
from rwkvflow.cli import cli
from rwkvflow.execute.actions import actions
from rwkvflow.execute.base import Job, Made, Work
from rwkvflow.plan.step import Step, StepLimits, expected
from rwkvflow.store.collect import collect, entries, forget_remote
from rwkvflow.store.record import Output, Record, Wanted, parse_record
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store

KEY = "ab" * 32
DIGEST = "sha256:" + "cd" * 32
WANTED = Wanted("convert/a/b@c", {"artifact": "file"})
GOOD: dict[str, Any] = {
    "key": KEY,
    "step": "convert/a/b@c",
    "outputs": {"artifact": {"digest": DIGEST, "kind": "file", "size": 7}},
    "seconds": 1.0,
    "notes": {},
}


class Place:
    """A store with a remote one, in memory, that a stranger writes to."""

    def __init__(self, folder: Path, *, write: bool = True) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"
        self.told: list[str] = []
        self.store = Store(folder / "store")
        self.store.remote = Remote(self.url, self.told.append, write=write)
        self.fs, self.root = fsspec.core.url_to_fs(self.url)

    def says(self, data: bytes | dict[str, Any]) -> None:
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.fs.pipe_file(f"{self.root}/index/{KEY[:2]}/{KEY}.json", text)

    def index(self) -> list[Path]:
        return sorted((self.store.root / "index").rglob("*.json"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


def output(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "outputs": {"artifact": {**GOOD["outputs"]["artifact"], **changes}}}


WICKED: dict[str, bytes | dict[str, Any]] = {
    "no outputs": {**GOOD, "outputs": {}},
    "outputs that are a list": {**GOOD, "outputs": []},
    "an output that is none": {**GOOD, "outputs": {"artifact": None}},
    "one output more": {**GOOD, "outputs": {**GOOD["outputs"], "more": GOOD["outputs"]["artifact"]}},
    "another output": {**GOOD, "outputs": {"other": GOOD["outputs"]["artifact"]}},
    "an output that leads out": {**GOOD, "outputs": {"../x": GOOD["outputs"]["artifact"]}},
    "another kind": output(kind="tree"),
    "no kind": output(kind="link"),
    "a negative size": output(size=-1),
    "a size that is no whole number": output(size=7.5),
    "a size that is true": output(size=True),
    "a size beyond all disks": output(size=1 << 70),
    "a digest that leads out": output(digest="sha256:../../../../etc/passwd"),
    "a digest in capitals": output(digest="sha256:" + "CD" * 32),
    "a digest of another kind": output(digest="md5:" + "cd" * 32),
    "a digest that is a list": output(digest=[]),
    "another step": {**GOOD, "step": "smoke/a/b@c"},
    "another key": {**GOOD, "key": "ef" * 32},
    "no key": without("key"),
    "no step": without("step"),
    "no notes": without("notes"),
    "seconds that are no number": {**GOOD, "seconds": "soon"},
    "seconds beyond all numbers": {**GOOD, "seconds": 10**400},
    "notes that are a list": {**GOOD, "notes": ["x"]},
    "control characters": {**GOOD, "step": "\x1b[2J\x07"},
    "a list": b"[]",
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "a million brackets": b"[" * 1_000_000,
    "a million brackets in it": json.dumps(GOOD).encode()[:-1] + b', "x": ' + b"[" * 1_000_000,
    "five million bytes": json.dumps({**GOOD, "notes": {"x": "y" * 5_000_000}}).encode(),
    "infinity": json.dumps(GOOD).replace("1.0", "Infinity").encode(),
}


@pytest.mark.parametrize("name", WICKED)
def test_a_record_that_is_not_the_steps_is_told_and_dropped(name: str, place: Place) -> None:
    place.says(WICKED[name])
    assert place.store.lookup(KEY, WANTED) is None
    assert len(place.told) == 1
    assert place.told[0].isprintable()
    assert len(place.told[0]) < 500
    assert place.index() == []


def test_a_good_record_is_taken_and_marked(place: Place, tmp_path: Path) -> None:
    place.says(GOOD)
    found = place.store.lookup(KEY, WANTED)
    assert found is not None
    assert found.outputs["artifact"] == Output(DIGEST, "file", 7)
    assert place.told == []
    alone = Store(tmp_path / "store")
    assert alone.lookup(KEY, WANTED) is None, "without the remote store, what it said does not count"
    alone.remote = Remote(f"memory://{uuid.uuid4().hex}", place.told.append)
    assert alone.lookup(KEY, WANTED) is None, "nor with another one"
    assert place.store.lookup(KEY, WANTED) == found
    assert place.store.lookup(KEY, Wanted("convert/a/b@c", {"artifact": "tree"})) is None


def test_the_same_work_under_another_name_is_taken(place: Place) -> None:
    """An engine that two images share is recorded by the one that was first."""
    place.says({**GOOD, "step": "convert/other/b@elsewhere"})
    found = place.store.lookup(KEY, WANTED)
    assert found is not None
    assert place.told == []
    assert place.store.lookup(KEY, WANTED) == found, "nor is it dropped where it is known here"


def test_marked_records_can_be_dropped(place: Place, tmp_path: Path) -> None:
    place.says(GOOD)
    place.store.record("12" * 32, Record("mine", {"x": Output(DIGEST, "file", 1)}))
    assert place.store.lookup(KEY, WANTED) is not None
    words = ["cache", "--store", str(tmp_path / "store"), "forget-remote"]
    other = CliRunner().invoke(cli, [*words, "memory://other"])
    assert other.output == "0 records forgotten\n"
    assert len(place.index()) == 2
    assert CliRunner().invoke(cli, [*words, place.url]).output == "1 record forgotten\n"
    assert [path.stem for path in place.index()] == ["12" * 32]
    assert forget_remote(place.store) == 0


def test_what_was_done_here_carries_no_mark_and_goes_out_without_one(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"artifact")
    record = Record("convert/a/b@c", {"artifact": place.store.put_file(path)})
    place.store.record(KEY, record)
    assert "remote" not in json.loads(place.index()[0].read_text())
    place.store.share(KEY, record, contents=True, again=False)
    (sent,) = [name for name in place.fs.find(place.root) if "/index/" in name]
    assert "remote" not in json.loads(place.fs.cat_file(sent))


def test_a_stranger_cannot_unmark_a_record(place: Place, tmp_path: Path) -> None:
    place.says({**GOOD, "remote": ""})
    assert place.store.lookup(KEY, WANTED) is not None
    assert Store(tmp_path / "store").lookup(KEY, WANTED) is None


def test_nothing_is_sent_to_a_remote_store_that_is_only_read(tmp_path: Path) -> None:
    place = Place(tmp_path, write=False)
    path = tmp_path / "file"
    path.write_bytes(b"artifact")
    record = Record("convert/a/b@c", {"artifact": place.store.put_file(path)})
    place.store.share(KEY, record, contents=True, again=True)
    assert place.fs.find(place.root) == []
    place.says(GOOD)
    assert place.store.lookup(KEY, WANTED) is not None


@pytest.mark.parametrize("name", WICKED)
def test_odd_records_of_this_machine_end_nothing(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = store.root / "index" / KEY[:2] / f"{KEY}.json"
    path.parent.mkdir()
    data = WICKED[name]
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    store.lookup(KEY, WANTED)
    entries(store)
    with store.exclusive():
        collect(store)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "digest", "kind", "size"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(json_values)
def test_any_json_is_a_record_or_a_value_error(value: Any) -> None:
    try:
        record = parse_record(value)
    except ValueError:
        return
    assert record.outputs


# ---- blobs -----------------------------------------------------------------------------------------------------


def test_a_whole_blob_is_never_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "good").write_bytes(b"good")
    digest = store.put_file(tmp_path / "good").digest
    inode = store.path(digest).stat().st_ino  # type: ignore[union-attr]
    (tmp_path / "evil").write_bytes(b"evil")
    store.put_file(tmp_path / "evil", digest)
    blob = store.path(digest)
    assert blob is not None
    assert (blob.read_bytes(), blob.stat().st_ino) == (b"good", inode)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "a link", "a folder"])
def test_a_damaged_blob_is_mended(damage: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "good").write_bytes(b"good")
    digest = store.put_file(tmp_path / "good").digest
    blob = store.path(digest)
    assert blob is not None
    blob.chmod(0o644)
    if damage in ("a link", "a folder"):
        blob.unlink()
        if damage == "a folder":
            blob.mkdir()
        else:
            blob.symlink_to("/etc/hostname")
    else:
        blob.write_bytes(b"evil" if damage == "other bytes" else b"g")
    (tmp_path / "good").write_bytes(b"good")
    store.put_file(tmp_path / "good", digest)
    assert not blob.is_symlink()
    assert blob.read_bytes() == b"good"


def test_a_damaged_tree_is_mended_and_a_whole_one_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def make() -> Path:
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/file").write_bytes(b"good")
        return tmp_path / "tree"

    digest = store.put_tree(make()).digest
    tree = store.path(digest)
    assert tree is not None
    inode = tree.stat().st_ino
    assert store.put_tree(make()).digest == digest
    assert tree.stat().st_ino == inode
    (tree / "file").chmod(0o644)
    (tree / "file").write_bytes(b"evil")
    store.put_tree(make())
    assert (tree / "file").read_bytes() == b"good"


def fetch_step(data: bytes, resolved: str, folder: Path) -> Step:
    sha256 = text_digest(data).removeprefix("sha256:")
    return Step(
        id="fetch/m",
        stage="fetch",
        action="fetch",
        params={"sha256": sha256, "size": len(data)},
        inputs={},
        outputs=("file",),
        local={"resolved": resolved, "folder": str(folder)},
    )


def test_fetch_verifies_what_lies_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    step = fetch_step(b"good", "m.pth", tmp_path)
    assert expected(step).digests == {"file": text_digest(b"good")}
    blob = store.root / "blobs" / step.params["sha256"][:2] / step.params["sha256"]
    blob.parent.mkdir()
    blob.write_bytes(b"evil")
    (tmp_path / "m.pth").write_bytes(b"good")
    job = Job(step, KEY, None, {}, {}, lambda line: None, lambda line: None, lambda *told: None)
    import threading

    made = actions(store, None)["fetch"]([job], Work(tmp_path, StepLimits(), threading.Event()))["fetch/m"]  # type: ignore[arg-type]
    assert isinstance(made, Made)
    assert made.outputs["file"].path == tmp_path / "m.pth"


def test_a_remote_record_of_a_fetch_names_the_pinned_file(place: Place) -> None:
    step = fetch_step(b"good", "m.pth", Path("/"))
    place.says({**GOOD, "step": "fetch/m", "outputs": {"file": {"digest": DIGEST, "kind": "file", "size": 4}}})
    assert place.store.lookup(KEY, expected(step)) is None
    assert "pinned" in place.told[0]
