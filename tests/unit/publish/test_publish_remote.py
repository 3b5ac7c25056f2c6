"""Publishing to folders that fsspec opens: in memory and on this machine. tests/e2e has S3."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from rwkvflow.base.errors import PublishError, RwkvflowError, StoreError
from rwkvflow.net.progress import Told
from rwkvflow.publish.remote_folder import RemoteFolderPublisher
from rwkvflow.release.names import STATE, SUMS
from tests.helpers.publishing import contents, release

OLD = {"a/a.bin": b"a" * 5000, "a/b.safetensors": b"b" * 5000, "gone/gone.bin": b"g"}
NEW = {"a/a.bin": b"A" * 5000, "a/b.safetensors": b"b" * 5000, "empty.json": b""}


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}/out" if request.param == "memory" else f"file://{tmp_path}/out"


def there(url: str) -> dict[str, bytes]:
    """path → bytes of all that is below."""
    system, root = fsspec.core.url_to_fs(url)
    found = system.find(root) if system.exists(root) else []
    return {path[len(root) + 1 :]: system.cat_file(path) for path in found if not path.endswith(STATE)}


def test_a_release_comes_goes_and_comes_back(url: str, tmp_path: Path) -> None:
    publisher = RemoteFolderPublisher(url)
    assert {change.kind for change in publisher.plan(release(OLD)).changes} == {"add"}
    publisher.apply(release(OLD, tmp_path / "store"), Told())
    assert there(url) == contents(release(OLD))
    assert publisher.plan(release(OLD)).lines() == [f"{url}: nothing to do", "  = 6 files there already"]
    assert RemoteFolderPublisher(url).apply(release(OLD), Told()).facts["changed"] == "0"
    kinds = {change.path: change.kind for change in RemoteFolderPublisher(url).plan(release(NEW)).changes}
    assert kinds == {
        "a/a.bin": "replace",
        "empty.json": "add",
        "gone/gone.bin": "delete",
        "provenance.json": "replace",
        SUMS: "replace",
    }
    told: list[tuple[int, int]] = []
    publisher.apply(release(NEW), Told(progress=lambda done, total: told.append((done, total))))
    assert there(url) == contents(release(NEW))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_cut_short_anywhere_it_is_no_release_and_then_goes_on(url: str) -> None:
    for number in range(40):
        RemoteFolderPublisher(url).apply(release(OLD), Told())
        assert there(url) == contents(release(OLD))
        publisher = RemoteFolderPublisher(url)
        publisher._fs = Failing(publisher._fs, number)
        with contextlib.suppress(PublishError):
            publisher.apply(release(NEW), Told())
        now = there(url)
        if SUMS in now:
            assert now in (contents(release(OLD)), contents(release(NEW)))
        if now == contents(release(NEW)) and publisher._fs.left > 0:
            break
    else:
        pytest.fail("it never got through")
    assert number > 8


class Failing:
    """A file system whose nth writing call fails."""

    def __init__(self, real: object, number: int) -> None:
        self.real, self.left = real, number

    def __getattr__(self, name: str) -> object:
        value = getattr(self.real, name)
        if name not in ("pipe_file", "rm_file", "open"):
            return value

        def call(*args: object, **options: object) -> object:
            self.left -= 1
            if self.left == -1:
                raise OSError("the connection was lost")
            return value(*args, **options)

        return call


def test_what_arrived_is_not_sent_again(url: str) -> None:
    publisher = RemoteFolderPublisher(url)
    publisher._fs = Failing(publisher._fs, 10**6)
    publisher.apply(release(OLD), Told())
    before = publisher._fs.left
    publisher.apply(release({**OLD, "more.bin": b"more"}), Told())
    # state, seal off, more.bin, provenance.json, state, seal on, state
    assert before - publisher._fs.left == 7


def test_what_was_changed_there_is_put_right(url: str) -> None:
    RemoteFolderPublisher(url).apply(release(OLD), Told())
    system, root = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{root}/a/a.bin", b"z" * 5000)
    assert [change.path for change in RemoteFolderPublisher(url).plan(release(OLD)).changes] == ["a/a.bin"]
    RemoteFolderPublisher(url).apply(release(OLD), Told())
    assert there(url) == contents(release(OLD))


def test_folders_of_others_are_left_alone(url: str) -> None:
    system, root = fsspec.core.url_to_fs(url)
    system.makedirs(root, exist_ok=True)
    system.pipe_file(f"{root}/thesis.tex", b"years of work")
    with pytest.raises(PublishError, match=r"holds files that rwkvflow did not publish, e\.g\. thesis\.tex"):
        RemoteFolderPublisher(url).apply(release(OLD), Told())
    assert there(url) == {"thesis.tex": b"years of work"}


def test_another_recipes_release_is_not_replaced(url: str) -> None:
    RemoteFolderPublisher(url).apply(release(OLD), Told())
    before = there(url)
    other = replace(release(NEW), name="other")
    for attempt in (RemoteFolderPublisher(url).plan, lambda made: RemoteFolderPublisher(url).apply(made, Told())):
        with pytest.raises(PublishError, match="and this recipe's is other"):
            attempt(other)
    assert there(url) == before


def test_a_users_file_where_the_release_has_one_is_refused_by_name(url: str) -> None:
    RemoteFolderPublisher(url).apply(release(OLD), Told())
    system, root = fsspec.core.url_to_fs(url)
    (added, *_) = sorted({file.path for file in release(NEW).files} - {file.path for file in release(OLD).files})
    system.makedirs(f"{root}/{added}".rpartition("/")[0], exist_ok=True)
    system.pipe_file(f"{root}/{added}", b"mine")
    system.pipe_file(f"{root}/notes.txt", b"mine")
    before = there(url)
    with pytest.raises(PublishError, match=f"holds {added}, which rwkvflow did not publish"):
        RemoteFolderPublisher(url).apply(release(NEW), Told())
    assert there(url) == before
    system.rm_file(f"{root}/{added}")
    RemoteFolderPublisher(url).apply(release(NEW), Told())
    assert there(url)["notes.txt"] == b"mine", "what is in nobody's way stays"


def test_damage_in_the_store_is_not_published(url: str, tmp_path: Path) -> None:
    made = release(OLD, tmp_path / "store")
    (tmp_path / "store" / "a" / "a.bin").write_bytes(b"A" * 5000)
    with pytest.raises(StoreError, match=r"a/a\.bin"):
        RemoteFolderPublisher(url).apply(made, Told())
    assert SUMS not in there(url)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(RwkvflowError, match="Install s3fs"):
        RemoteFolderPublisher("s3://bucket/out")
