"""
The promises of docs/operations.md: what a test found of one, and all of them in one table.

A test of a promise is marked ``promises`` and tells its figure before it holds anything to it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

Promise = Callable[[int, str], None]


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Return what tells the figure of a promise, by its number in the table."""

    def tell(number: int, figure: str) -> None:
        request.node.user_properties.append(("promise", [number, figure]))

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the promises that were tested, and whether each was kept."""
    rows = []
    for outcome, said in (("passed", "passed"), ("failed", "FAILED"), ("error", "FAILED")):
        for report in terminalreporter.stats.get(outcome, ()):
            if not isinstance(report, pytest.TestReport):
                continue  # it did not even begin
            told = [value for name, value in report.user_properties if name == "promise"]
            if not told and said == "FAILED" and "promises" in report.keywords:
                told = [[0, f"{report.nodeid} told no figure"]]
            rows += [(number, figure, said) for number, figure in told]
    if rows:
        terminalreporter.section("promises")
    for number, figure, said in sorted(rows):
        terminalreporter.line(f"{number or '?':>2}  {said}  {figure}")
