"""A store of a million blobs answers in the time of one of a thousand, and is looked after in bounded memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench_load import asked, fill, look_after

MANY = int(os.environ.get("RWKVFLOW_BENCH_STEPS", "1000000"))


@pytest.mark.soak
def test_a_store_of_a_million_answers_as_one_of_a_thousand(tmp_path: Path) -> None:
    few = asked(fill(tmp_path / "few", 1000), 1000)
    store = fill(tmp_path / "many", MANY)
    many = asked(store, MANY)
    for what, seconds in few.items():
        print(f"{what}: {1e6 * seconds:.0f} µs among 1000, {1e6 * many[what]:.0f} µs among {MANY}")
    slower = {what: many[what] / few[what] for what in few if many[what] > 3 * few[what] + 50e-6}
    assert not slower, "times as long, of the processor"
    memory = look_after(store, MANY)
    assert memory["verify"] < 100, "bytes for each blob"
    assert max(memory.values()) < 900
