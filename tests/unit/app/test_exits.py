"""Exit codes and small faults: what ends a command is said, with its own code, and never with a traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.__main__ import settle
from rwkvflow.app.pipeline import Finished
from rwkvflow.base import machine, process
from rwkvflow.base.errors import (
    EnvironmentMissing,
    FetchError,
    PublishError,
    RwkvflowError,
    SmokeFailed,
    StepFailed,
    StoreError,
    UsageError,
)
from rwkvflow.base.files import locked, read_json, write_json
from rwkvflow.base.outputs import put
from rwkvflow.cli import cli
from rwkvflow.execute.base import Outcome
from rwkvflow.publish.folder import _own_disk
from rwkvflow.sandbox import pythons
from rwkvflow.store.store import default_root

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "demo" / "rwkv7-demo.pth"
FULL = OSError(errno.ENOSPC, "No space left on device")


def code(*errors: RwkvflowError) -> int:
    outcomes = {str(index): Outcome("failed", error=error) for index, error in enumerate(errors)}
    error = Finished(outcomes, 1.0).error()
    assert error is not None
    return error.exit_code


def test_what_failed_first_decides_the_code_also_where_a_release_fails_for_it() -> None:
    release = PublishError("nothing to publish")
    assert code(FetchError("x")) == code(FetchError("x"), release) == 7
    assert code(StoreError("x")) == code(StoreError("x"), release) == 8
    assert code(StoreError("x"), StepFailed("y"), release) == 8
    assert code(StepFailed("x"), release) == 5
    assert code(EnvironmentMissing("x"), release) == 4
    assert code(release) == 9
    assert code(SmokeFailed("x")) == 6
    assert code(FetchError("x"), StepFailed("y")) == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_releases_disk_is_not_the_stores(number: int, tmp_path: Path) -> None:
    with pytest.raises(PublishError) as caught, _own_disk(tmp_path / "out"):
        raise OSError(number, os.strerror(number), str(tmp_path / "out"))
    assert str(tmp_path / "out") in caught.value.message
    assert "store" not in str(caught.value)


@pytest.mark.parametrize("size", ["1KiB", "0GiB", "20 GB", "5MB", "1.5GiB"])
def test_any_size_will_do_for_gc(size: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["cache", "--store", str(tmp_path / "s"), "gc", "--max-size", size])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("size", ["1", "KiB", "-1GiB", "1TiBx", "", "nan", "1e3MB"])
def test_what_is_no_size_is_said(size: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["cache", "--store", str(tmp_path / "s"), "gc", "--max-size", size])
    assert isinstance(result.exception, UsageError)


def test_the_cache_folder_is_absolute_or_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RWKVFLOW_STORE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "cache", "./cache", "../cache", "~/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_root() == tmp_path / ".cache/rwkvflow"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert default_root() == tmp_path / "c/rwkvflow"


def test_a_store_that_may_not_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s"
    assert CliRunner().invoke(cli, ["cache", "--store", str(store), "verify"]).exit_code == 0
    opened = Path.open

    def refuse(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if path.is_relative_to(store) and mode != "r":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    for command in ("verify", "gc"):
        result = CliRunner().invoke(cli, ["cache", "--store", str(store), command])
        assert isinstance(result.exception, StoreError), result.exception
        assert "RWKVFLOW_STORE" in str(result.exception)


def test_what_is_damaged_and_cannot_be_removed_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "s/blobs/ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"other")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    result = CliRunner().invoke(cli, ["cache", "--store", str(tmp_path / "s"), "verify"])
    assert isinstance(result.exception, StoreError), result.exception
    assert blob.exists()


def test_half_a_character_ends_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"note": "a\ud800b", "b\udc80": 1})
    assert read_json(tmp_path / "x.json") == {"note": "a\ud800b", "b\udc80": 1}
    header = json.dumps(
        {"__metadata__": {"half": "\ud83d"}, "x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    )
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    for more in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "rwkvflow", "inspect", str(path), *more], capture_output=True, text=True, timeout=60
        )
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 1)


def test_an_end_while_starting_is_an_end(tmp_path: Path) -> None:
    """SIGTERM comes while the command line is imported."""
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nimport time\ntime.sleep(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rwkvflow", "formats"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_the_path_that_may_not_be_read_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "x")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(EnvironmentMissing, match="no such program"):
        process.run(["nosuchprogram"], env={"PATH": str(tmp_path)})
    there = tmp_path / "there"
    there.touch()
    there.chmod(stat.S_IRWXU)
    with pytest.raises(EnvironmentMissing, match="there: Permission denied"):
        process.run(["there"], env={"PATH": str(tmp_path)})
    with pytest.raises(EnvironmentMissing, match="Permission denied"):
        process.run([str(tmp_path / "absent/x")])


def test_a_folder_of_pythons_that_may_not_be_read_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    assert isinstance(list(pythons._candidates("3.11")), list)


def test_redirects_without_end_are_a_failed_download() -> None:
    import threading

    import httpx

    from rwkvflow.documents.sources import HubSource
    from rwkvflow.net.http import Connection, Policy
    from rwkvflow.net.hub import Hub

    def round_and_round() -> None:
        raise httpx.TooManyRedirects("Exceeded maximum allowed redirects.")

    with Connection(Policy(), threading.Event()) as connection, pytest.raises(FetchError, match="without end"):
        Hub.of_environment()._call(round_and_round, HubSource("o/n", "x.pth"), connection)


def test_a_prompt_of_any_bytes_is_text() -> None:
    from rwkvflow.cli.generate import _whole

    assert _whole("a\udcffb") == "a\ufffdb"
    assert _whole("\udce6\udcbc\udca2 é") == "漢 é"


def test_a_pipe_of_windows_carries_the_bytes_of_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="cp1252", newline="\r\n")
    settle(stream)
    print("模型 é \udc80", file=stream, flush=True)
    assert written.getvalue() == "模型 é \\udc80\n".encode()


def test_a_code_page_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    monkeypatch.setattr(sys, "platform", "win32")
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="cp1252")
    settle(stream)
    print("模é", file=stream, flush=True)
    assert written.getvalue() == b"\\u6a21\xe9\n"


def test_a_place_that_cannot_be_is_refused_before_librwkv_is_built(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "new" / "m.gguf"
    words = [sys.executable, "-m", "rwkvflow", "convert", str(DEMO), str(target), "--format", "gguf-f16", "--no-check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == UsageError.exit_code
    assert done.stderr.startswith(f"error: {target}: {tmp_path / 'file'} is no folder")
    assert "building" not in done.stderr


def test_a_place_that_the_system_refuses_is_said(tmp_path: Path) -> None:
    """As Windows refuses con.gguf."""
    code = (
        "import errno, sys; from rwkvflow.app import convert; from rwkvflow.__main__ import main\n"
        "def refuse(*_): raise OSError(errno.ENOTDIR, 'Not a directory', 'con.gguf')\n"
        "convert.find_library = refuse; main()"
    )
    words = ["convert", str(DEMO), str(tmp_path / "m.gguf"), "--format", "gguf-f16", "--no-check"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: con.gguf: Not a directory\n"


def test_what_another_program_has_open_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_bytes(b"new")

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Access denied", str(path), 5, str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UsageError, match=r"m\.gguf cannot be replaced: Access denied") as caught:
        put(tmp_path / "new", tmp_path / "m.gguf")
    assert "rwkvflow serve" in str(caught.value.remedy)


def test_a_lock_that_is_not_left_is_gone_and_serves_all_who_wait(tmp_path: Path) -> None:
    for removes in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "REMOVES_OPEN_FILES", removes)
            with locked(tmp_path / "lock", machine.EXCLUSIVE, leave=False):
                assert (tmp_path / "lock").exists()
                with pytest.raises(BlockingIOError), locked(tmp_path / "lock", machine.EXCLUSIVE | machine.AT_ONCE):
                    raise AssertionError
            assert not (tmp_path / "lock").exists()
