"""With HQ_NO_SKIPS=1 a skipped test is a failure: everything that tests need is installed there.

A test that a machine cannot run whatever is installed (it has a GPU, the user is root) gives a
reason that begins with `MACHINE`, and stays skipped.
"""

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

MACHINE = "this machine:"
FORBIDDEN = os.environ.get("HQ_NO_SKIPS", "") not in ("", "0")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a file that is skipped as a whole."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    if FORBIDDEN and report.skipped and not hasattr(report, "wasxfail"):
        where = report.longrepr
        reason = str(where[2]) if isinstance(where, tuple) else str(where)
        if MACHINE not in reason:
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} is skipped, and HQ_NO_SKIPS is set. {reason}"
    return report
