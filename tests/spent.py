"""A pytest plugin: where a run's time goes, file by file, printed at its end; and which files begin first.

With several workers a file goes to one of them whole (`--dist loadfile --no-loadscope-reorder`), so the run cannot be
over before the longest one is: the long ones begin first, and what is short fills the gaps. CPU is that of the tests
and of the programs that they waited for; what containers used is not in it.
"""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Generator

import pytest

SHOWN = 40  # files
# Seconds of what takes a minute or more, with two workers on two cores; the rest is told apart by its folder.
LONG = {
    "e2e/test_all_formats.py": 450,
    "engine/test_avx512_emulated.py": 300,  # where the processor has no AVX-512; a third of that where it has
    "engine/test_targets.py": 285,
    "e2e/test_host.py": 250,
    "e2e/test_docker.py": 250,
    "e2e/test_matrix.py": 135,
    "engine/test_librwkv_hostile.py": 125,
    "engine/test_librwkv_sanitized.py": 115,
    "e2e/test_remote_s3.py": 105,
    "engine/test_fuzz.py": 100,
    "engine/test_consumers.py": 100,
    "e2e/test_rebuild.py": 100,
    "e2e/test_remote_keys.py": 85,
    "redteam/test_documents.py": 85,
    "redteam/test_wheels.py": 70,
    "e2e/test_publish_hub_faults.py": 65,
    "e2e/test_sandbox_docker.py": 60,
    "engine/test_smoke_ggml.py": 60,
}
FOLDERS = {"e2e": 30, "serve": 30, "engine": 20, "redteam": 10}  # tests/unit: 0

CPU = "seconds of CPU"
START = pytest.StashKey[float]()
_spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # by file: seconds, of CPU
_ended: dict[str, tuple[float, str]] = {}  # by worker: when its last test ended, seconds since 1970, and its file


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests by how long their file takes; within a file, and among equals, the order stays."""

    def seconds(item: pytest.Item) -> int:
        folder, name = item.path.parent.name, item.path.name
        return LONG.get(f"{folder}/{name}", FOLDERS.get(folder, 0))

    items.sort(key=lambda item: -seconds(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note what was used before a test."""
    item.stash[START] = _cpu()
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """What a test used is said with its last report, which reaches the process that prints."""
    if call.when == "teardown":
        item.user_properties.append((CPU, _cpu() - item.stash[START]))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up, in the process that prints."""
    file = report.nodeid.partition("::")[0]
    spent = _spent[file]
    if worker := getattr(report, "worker_id", None):
        _ended[worker] = max(_ended.get(worker, (0.0, "")), (report.stop, file))
    spent[0] += report.duration
    if report.when == "teardown":
        spent[1] += sum(float(str(value)) for name, value in report.user_properties if name == CPU)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table."""
    rows = sorted(_spent.items(), key=lambda item: -item[1][0])[:SHOWN]
    if len(_spent) > 1:
        terminalreporter.section("seconds, and those of CPU, by file")
        for name, (seconds, cpu) in rows:
            terminalreporter.write_line(f"{seconds:9.1f} {cpu:9.1f}  {name}")
    last = max((end for end, _ in _ended.values()), default=0.0)
    for worker, (end, file) in sorted(_ended.items()):
        terminalreporter.write_line(f"{worker} ended {last - end:.0f} s before the last one, with {file}")
