"""A pytest plugin: what a shared fixture failed of is printed with the first test that wanted it; the rest name it.

pytest raises the one exception of a fixture again for every test that asks for it, and would print all of it each time:
41 times 5,000 lines where the run that 41 tests look at ends badly.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

LONGEST = 400  # characters of the reminder

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
        told = _why(str(error))[:LONGEST]
        report.longrepr = f"as printed for {where}: {type(error).__name__}: {told}"
        report.sections = []
    return report


def _why(text: str) -> str:
    """The line that says what went wrong: the first one of a run's log that tells of a failure, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("failed ", "error: "))), lines[0] if lines else "")
