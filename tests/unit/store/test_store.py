"""The store: atomic, content-addressed, safe between processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import RwkvflowError, StoreError
from rwkvflow.base.files import clear_errors
from rwkvflow.base.hashing import manifest_digest, text_digest, tree_digest
from rwkvflow.store.collect import collect, entries, verify
from rwkvflow.store.record import Output, Record
from rwkvflow.store.store import Store, run_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, data: bytes) -> Output:
    with store.scratch() as scratch:
        path = scratch / "file"
        path.write_bytes(data)
        return store.put_file(path)


def test_a_file_comes_back_by_its_digest_and_cannot_be_written(store: Store) -> None:
    output = put(store, b"hello")
    path = store.path(output.digest)
    assert path is not None
    assert path.read_bytes() == b"hello"
    assert output == Output(text_digest(b"hello"), "file", 5)
    assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def test_a_truncated_blob_counts_as_absent(store: Store) -> None:
    output = put(store, b"hello")
    path = store.path(output.digest)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"hel")
    assert not store.present(output)
    assert store.present(put(store, b"hello")), "storing it again mends it"


def test_trees_keep_names_contents_and_the_executable_bit(store: Store) -> None:
    def make(mode: int) -> Output:
        with store.scratch() as scratch:
            folder = scratch / "tree"
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "tool").write_text("x")
            (folder / "bin" / "tool").chmod(mode)
            return store.put_tree(folder)

    plain, executable = make(0o600), make(0o700)
    assert plain.digest != executable.digest
    path = store.path(executable.digest)
    assert path is not None
    assert os.access(path / "bin" / "tool", os.X_OK)
    assert tree_digest(path) == executable.digest
    assert make(0o755) == executable, "only the executable bit counts, and storing twice is fine"


def test_a_link_out_of_a_tree_is_refused(store: Store, tmp_path: Path) -> None:
    with store.scratch() as scratch:
        (scratch / "tree").mkdir()
        (scratch / "tree" / "link").symlink_to(tmp_path)
        with pytest.raises(StoreError, match="leaves its folder"):
            store.put_tree(scratch / "tree")


def test_records_survive_and_damaged_ones_count_as_absent(store: Store) -> None:
    key = "ab" * 32
    record = Record("convert/x", {"artifact": put(store, b"1")}, 1.5, {"a": "b"})
    store.record(key, record)
    assert store.lookup(key) == record
    (store.root / "index" / "ab" / f"{key}.json").write_text("{")
    assert store.lookup(key) is None
    store.record(key, record)
    store.forget(key)
    assert store.lookup(key) is None


def test_a_file_of_the_users_is_known_until_it_changes(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "checkpoint.pth"
    mine.write_bytes(b"weights")
    output = store.adopt(mine, text_digest(b"weights"))
    assert store.path(output.digest) == mine
    assert store.adopted(mine, output.digest)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(b"weights")
    assert not store.adopted(copy, output.digest), "nobody has hashed that one"
    store.adopt(copy, output.digest)
    mine.write_bytes(b"weightS")
    os.utime(mine, ns=(1, 1))
    assert not store.adopted(mine, output.digest)
    assert store.path(output.digest) == copy
    copy.unlink()
    assert store.path(output.digest) is None


def test_a_run_reads_its_own_copy_and_not_that_of_a_project_that_may_go_away(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"weights")
        digest = Store(tmp_path / "store").adopt(tmp_path / name, text_digest(b"weights")).digest
    for name in ("c", "a", "b"):
        run = Store(tmp_path / "store")
        assert run.adopted(tmp_path / name, digest)  # what a run begins with, for each file of its recipe
        assert run.path(digest) == tmp_path / name
        assert not run.adopted(tmp_path / "elsewhere", digest)
        assert run.path(digest) == tmp_path / name
    (tmp_path / "b").unlink()
    assert run.path(digest) == tmp_path / "a", "its own is gone: any other has the same bytes"


def test_digests_are_checked_before_they_become_paths(store: Store) -> None:
    for bad in ("sha256:../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "G" * 64):
        with pytest.raises(RwkvflowError, match="not a sha256 digest"):
            store.path(bad)


def _crash(root: Path) -> None:
    with Store(root).scratch() as scratch:
        (scratch / "half").write_bytes(b"x")
        os._exit(9)


def test_scratch_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(store: Store) -> None:
    process = multiprocessing.get_context("fork").Process(target=_crash, args=(store.root,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with store.scratch() as mine:
        assert len(list((store.root / "tmp").iterdir())) == 4
        with store.using():
            assert sorted(path.name for path in (store.root / "tmp").iterdir()) == [mine.name, mine.name + ".lock"]
    assert not list((store.root / "tmp").iterdir())


def test_garbage_is_what_no_record_refers_to(store: Store) -> None:
    used, unused = put(store, b"used"), put(store, b"unused")
    store.record("cd" * 32, Record("step", {"out": used}))
    with store.exclusive():
        assert [entry.digest for entry in collect(store, dry_run=True)] == [unused.digest]
        assert store.present(unused)
        collect(store)
    assert store.present(used)
    assert not store.present(unused)


def test_gc_drops_the_oldest_until_it_fits_and_their_records(store: Store) -> None:
    for index, name in enumerate(("old", "new")):
        key = f"{index}" * 64
        store.record(key, Record(name, {"out": put(store, name.encode() * 100)}))
        os.utime(store.root / "index" / key[:2] / f"{key}.json", (index + 1, index + 1))
    with store.exclusive():
        gone = collect(store, max_bytes=300)
    assert [entry.steps for entry in gone] == [("old",)]
    assert store.lookup("0" * 64) is None
    assert store.lookup("1" * 64) is not None


def test_gc_refuses_while_a_run_uses_the_store(store: Store) -> None:
    with store.using(), pytest.raises(StoreError, match="a run is using"), store.exclusive():
        pass


def test_verify_finds_and_removes_a_flipped_byte(store: Store) -> None:
    good, bad = put(store, b"good"), put(store, b"bad!")
    path = store.path(bad.digest)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"bad?")
    assert [damage.digest for damage in verify(store)] == [bad.digest]
    assert store.present(good)
    assert not store.present(bad)
    assert [entry.digest for entry in entries(store)] == [good.digest]


def test_what_is_no_blob_is_found_too(store: Store) -> None:
    """Whatever somebody puts there by hand, under whatever name and in whatever folder."""
    good = put(store, b"good")
    store.record("cd" * 32, Record("step", {"out": good}))
    for place in ("aa/notes.txt", f"aa/{good.digest[7:]}", f"aa/{'AB' * 32}"):
        path = store.root / "blobs" / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"else")
    assert {damage.path.name for damage in verify(store)} == {"notes.txt", good.digest[7:], "AB" * 32}
    assert store.present(good)
    (store.root / "blobs" / "aa" / "notes.txt").write_bytes(b"else")
    looked: list[object] = []
    with store.exclusive():
        assert [entry.path.name for entry in collect(store, on_look=looked.append)] == ["notes.txt"]
    assert len(looked) == 3, "a record and two files"


def test_a_blob_that_several_steps_made_is_named_with_all(store: Store) -> None:
    made = put(store, b"made")
    for number, name in enumerate(("b", "a", "b", "c")):
        store.record(f"{number}" * 64, Record(name, {"out": made}))
    [entry] = entries(store)
    assert entry.steps == ("a", "b", "c")


def test_a_full_disk_says_what_to_do() -> None:
    with pytest.raises(StoreError, match="no space left") as caught, clear_errors("storing x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "cache gc" in (caught.value.remedy or "")


def test_what_a_step_was_made_of_is_remembered_by_recipe(store: Store, tmp_path: Path) -> None:
    run = run_id(tmp_path / "recipe.yaml")
    assert store.recall(run, "convert/a/b@c") is None
    store.remember(run, "convert/a/b@c", {"code": "1"})
    assert store.recall(run, "convert/a/b@c") == {"code": "1"}
    assert store.recall(run_id(tmp_path / "other.yaml"), "convert/a/b@c") is None


def _append(root: Path, path: Path) -> None:
    store = Store(root)
    for _ in range(50):
        with store.working_on("key"):
            value = int(path.read_text())
            path.write_text(str(value + 1))


def test_one_process_at_a_time_works_on_a_key(store: Store, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(store.root, counter)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "200"


rows = st.lists(st.tuples(st.text(min_size=1), st.text(), st.booleans()), unique_by=lambda row: row[0])


@given(rows, st.randoms())
def test_a_manifest_does_not_depend_on_order(entries: list[tuple[str, str, bool]], random: object) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert manifest_digest(entries) == manifest_digest(shuffled)


def test_a_relative_place_holds_wherever_a_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store(Path("store")).root == tmp_path / "store"
