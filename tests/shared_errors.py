"""A pytest plugin: what a shared fixture failed of is printed with the first test that wanted it; the rest name it.

pytest raises the one exception of a fixture again for every test that asks for it, and would print all of it each time:
41 times 5,000 lines where the run that 41 tests look at ends badly.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

LONGEST = 200  # characters of the reminder

_first: dict[int, tuple[BaseException, str]] = {}  # by id(): the exception (held, so that no id is used twice), a test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shorten the report of a set-up that failed of what another test's set-up failed of already."""
    report = yield
    if call.when != "setup" or not report.failed or call.excinfo is None:
        return report
    error = call.excinfo.value
    _, where = _first.setdefault(id(error), (error, item.nodeid))
    if where != item.nodeid:
        told = (str(error).strip().splitlines() or [""])[0][:LONGEST]
        report.longrepr = f"as printed for {where}: {type(error).__name__}: {told}"
        report.sections = []
    return report
