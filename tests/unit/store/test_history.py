"""The history of runs: what happened stays readable whatever the run came to, and secrets stay out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkvflow.base.events import Notice, RunStarted, StepFinished, StepLog, StepProgress
from rwkvflow.store.history import KEPT, History, hide, read, runs, secrets
from rwkvflow.store.store import Store


def test_events_are_kept_but_not_logs_and_progress(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with History(store, "r") as history:
        history(RunStarted("a.yaml", "host", "asked for", 3))
        history(StepLog("s", "line"))
        history(StepProgress("s", 1, 2))
        history(StepFinished("s", "convert", "done", 1.0, key="k"))
    found = list(read(history.path))
    assert [entry["event"] for entry in found] == ["RunStarted", "StepFinished"]
    assert found[1]["key"] == "k"
    assert found[0]["at"] <= found[1]["at"]
    assert runs(store, "r") == [history.path]
    history(Notice("too late"))
    assert len(list(read(history.path))) == 2


def test_a_killed_run_is_readable(tmp_path: Path) -> None:
    with History(Store(tmp_path), "r") as history:
        history(RunStarted("a.yaml", "host", "asked for", 3))
    with history.path.open("a") as file:
        file.write('[1]\n\n{"no": "event"}\n{"event": "StepFin')
    assert [entry["event"] for entry in read(history.path)] == ["RunStarted"]


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(KEPT + 3):
        with History(store, "r") as last:
            pass
    found = runs(store, "r")
    assert len(found) == KEPT
    assert found[0] == last.path


def test_secrets_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", 'hf_pla"nted\\token')
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghij")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    with History(Store(tmp_path), "r") as history:
        history(Notice('401 for hf_pla"nted\\token on abcdefghij'))
    (entry,) = read(history.path)
    assert entry["message"] == "401 for *** on ***"
    assert "planted" not in history.path.read_text()
    json.loads(history.path.read_text())


def test_longer_secrets_go_first() -> None:
    found = secrets({"A_TOKEN": "12345678", "B_PASSWORD": "1234567890", "PLAIN": "abcdefgh", "C_SECRET": "x"})
    assert found == ["1234567890", "12345678"]
    assert hide("1234567890", found) == "***"
