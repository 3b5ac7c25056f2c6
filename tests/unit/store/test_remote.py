"""The remote store: what one stores another finds; what is damaged is noticed, told and never used."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest

from rwkvflow.base.errors import UsageError
from rwkvflow.base.hashing import text_digest
from rwkvflow.store.address import redacted
from rwkvflow.store.record import Output, Record
from rwkvflow.store.remote import TROUBLES, Remote
from rwkvflow.store.store import Store

KEY = "ab" * 32


class Pair:
    """Two stores of two people that share a remote one."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.told: list[str] = []
        self.mine, self.yours = self.store(folder / "mine"), self.store(folder / "yours")
        self.fs, self.root = fsspec.core.url_to_fs(url)

    def store(self, folder: Path) -> Store:
        store = Store(folder)
        store.remote = Remote(self.url, self.told.append)
        return store

    def object(self, below: str) -> str:
        found = [path for path in self.fs.find(self.root) if f"/{below}/" in path]
        assert len(found) == 1
        return str(found[0])

    def put(self, below: str, data: bytes) -> None:
        self.fs.pipe_file(self.object(below), data)

    def get(self, below: str) -> bytes:
        return bytes(self.fs.cat_file(self.object(below)))


@pytest.fixture(params=["file", "memory"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    url = f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{uuid.uuid4().hex}"
    return Pair(tmp_path, url)


def make(store: Store, folder: Path, *, tree: bool = False) -> Record:
    """A finished step of a store."""
    source = folder / uuid.uuid4().hex
    if tree:
        (source / "lib").mkdir(parents=True)
        (source / "lib/librwkv.so").write_bytes(b"elf" * 100)
        (source / "lib/librwkv.so").chmod(0o755)
        (source / "patch.diff").touch()
        output = store.put_tree(source)
    else:
        source.write_bytes(b"artifact" * 100)
        output = store.put_file(source)
    record = Record("convert/a/b@c", {"artifact": output}, 1.5, {"perplexity": "3.1"})
    store.record(KEY, record)
    return record


def listing(folder: Path) -> list[tuple[str, int]]:
    return [(path.relative_to(folder).as_posix(), path.stat().st_mode & 0o111) for path in sorted(folder.rglob("*"))]


@pytest.mark.parametrize("tree", [False, True])
def test_what_one_stores_another_finds(pair: Pair, tmp_path: Path, tree: bool) -> None:
    record = make(pair.mine, tmp_path, tree=tree)
    pair.mine.share(KEY, record, contents=True, again=False)
    assert pair.yours.lookup(KEY) == record
    output = record.outputs["artifact"]
    assert not pair.yours.present(output)
    assert pair.yours.obtainable(output)
    assert pair.yours.bring(record.outputs.values())
    mine, yours = pair.mine.path(output.digest), pair.yours.path(output.digest)
    assert mine is not None
    assert yours is not None
    paths = [(path.relative_to(yours).as_posix(), path.stat().st_mode & 0o111) for path in sorted(yours.rglob("*"))]
    assert paths == [
        (path.relative_to(mine).as_posix(), path.stat().st_mode & 0o111) for path in sorted(mine.rglob("*"))
    ]
    assert tree or yours.read_bytes() == mine.read_bytes()
    assert not pair.told
    assert not [path for path in pair.fs.find(pair.root) if "/." in path.removeprefix(pair.root)]


def test_what_nobody_stored_is_absent(pair: Pair) -> None:
    assert pair.yours.lookup(KEY) is None
    assert not pair.yours.bring([Output(text_digest("x"), "file", 1)])
    assert not pair.told


def test_record_without_contents(pair: Pair, tmp_path: Path) -> None:
    record = make(pair.mine, tmp_path)
    pair.mine.share(KEY, record, contents=False, again=False)
    assert pair.yours.lookup(KEY) == record
    assert not pair.yours.bring(record.outputs.values())
    assert not pair.told


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-20],
        lambda data: b"",
        lambda data: data + b"more",
        lambda data: b"X" + data[1:],
        lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:],
        lambda data: b"\0" * len(data),
    ],
)
def test_damage_is_noticed_told_and_mended(pair: Pair, tmp_path: Path, tree: bool, damage: object) -> None:
    record = make(pair.mine, tmp_path, tree=tree)
    pair.mine.share(KEY, record, contents=True, again=False)
    below = "trees" if tree else "blobs"
    whole = pair.get(below)
    pair.put(below, damage(whole))  # type: ignore[operator]
    output = record.outputs["artifact"]
    if pair.yours.bring([output]):  # what follows the end of an archive is nobody's
        assert tree
        assert pair.get(below)[: len(whole) - 20] == whole[: len(whole) - 20]
        return
    assert pair.yours.path(output.digest) is None
    assert not list((pair.yours.root / "tmp").iterdir())
    assert len(pair.told) == 1
    assert "damaged" in pair.told[0]
    assert not pair.yours.obtainable(output)
    pair.yours.share(KEY, make(pair.yours, tmp_path, tree=tree), contents=True, again=True)
    assert pair.get(below) == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry | {"key": "cd" * 32},
        lambda entry: entry | {"outputs": {"artifact": {"digest": "sha256:../../etc", "kind": "file", "size": 1}}},
        lambda entry: entry | {"outputs": {"artifact": {"digest": text_digest("x"), "kind": "link", "size": 1}}},
        lambda entry: entry | {"outputs": {"artifact": {"digest": text_digest("x"), "kind": "file", "size": -1}}},
        lambda entry: entry | {"outputs": [1]},
        lambda entry: entry | {"notes": None},
        lambda entry: {},
        lambda entry: [entry],
        lambda entry: "text",
    ],
)
def test_damaged_records_are_ignored(pair: Pair, tmp_path: Path, change: object) -> None:
    pair.mine.share(KEY, make(pair.mine, tmp_path), contents=True, again=False)
    pair.put("index", json.dumps(change(json.loads(pair.get("index")))).encode())  # type: ignore[operator]
    assert pair.yours.lookup(KEY) is None
    assert "damaged" in pair.told[0]
    assert not list((pair.yours.root / "index").iterdir())


def test_cut_record_is_ignored(pair: Pair, tmp_path: Path) -> None:
    pair.mine.share(KEY, make(pair.mine, tmp_path), contents=True, again=False)
    pair.put("index", pair.get("index")[:50])
    assert pair.yours.lookup(KEY) is None
    assert "damaged" in pair.told[0]


def test_shared_once(pair: Pair, tmp_path: Path) -> None:
    record = make(pair.mine, tmp_path)
    pair.mine.share(KEY, record, contents=True, again=False)
    pair.fs.rm(pair.object("index"))
    pair.mine.share(KEY, record, contents=True, again=False)
    assert not [path for path in pair.fs.find(pair.root) if "/index/" in path]
    pair.mine.share(KEY, record, contents=True, again=True)
    assert pair.object("index")


def test_trouble_is_told_and_then_left_alone(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make(pair.mine, tmp_path)
    remote = pair.mine.remote
    assert isinstance(remote, Remote)
    calls = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise ConnectionError("no route to host")

    for name in ("info", "open", "put_file", "pipe_file", "makedirs"):
        monkeypatch.setattr(remote._fs, name, fail)
    for number in range(TROUBLES + 2):
        assert remote.lookup(f"{number:064}") is None
    assert not remote.bring(record.outputs["artifact"], pair.mine)
    assert len(pair.told) == TROUBLES
    assert "no route to host" in pair.told[0]
    assert "no more reading" in pair.told[-1]
    assert len(calls) == TROUBLES
    for _ in range(TROUBLES + 2):
        assert not remote.send(KEY, record, pair.mine, contents=True)
    assert len(pair.told) == 2 * TROUBLES
    assert "no more writing" in pair.told[-1]


def test_one_that_may_only_be_read(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make(pair.mine, tmp_path)
    pair.mine.share(KEY, record, contents=True, again=False)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("403")

    for name in ("put_file", "pipe_file"):
        monkeypatch.setattr(type(pair.fs), name, refuse)
    monkeypatch.setattr("rwkvflow.store.remote.create", refuse)
    for number in range(TROUBLES + 2):
        pair.yours.share(f"{number:064}", record, contents=False, again=False)
        assert pair.yours.lookup(KEY) == record
    assert len(pair.told) == TROUBLES
    assert pair.yours.bring(record.outputs.values())


def test_half_sent_counts_for_nothing(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make(pair.mine, tmp_path)
    remote = pair.mine.remote
    assert isinstance(remote, Remote)

    def dies(source: str, target: str) -> None:
        with pair.fs.open(target, "wb") as file:
            file.write(Path(source).read_bytes()[:100])
        raise ConnectionResetError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(remote._fs, "put_file", dies)
        pair.mine.share(KEY, record, contents=True, again=False)
    assert pair.yours.lookup(KEY) is None
    assert not pair.yours.bring(record.outputs.values())
    remote._troubles["writing"] = 0
    pair.mine.share(KEY, record, contents=True, again=False)
    fresh = pair.store(tmp_path / "fresh")
    assert fresh.lookup(KEY) == record
    assert fresh.bring(record.outputs.values())


def test_a_folder_is_taken_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it is named, it is the same store."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared").mkdir()
    named = [Remote(text, print) for text in ("shared", "./shared", str(tmp_path / "shared"))]
    url = (tmp_path / "shared").as_uri()
    assert {remote.id for remote in named} == {Remote(url, print).id}
    assert {remote.shown for remote in named} == {url}


def test_bad_urls_say_so() -> None:
    for url in ("plain", "nosuchthing://x/y"):
        with pytest.raises(UsageError):
            Remote(url, print)


def test_secrets_do_not_show() -> None:
    assert redacted("https://me:tok3n@host/x?sig=abc") == "https://host/x"
    assert redacted("s3://bucket/folder") == "s3://bucket/folder"
