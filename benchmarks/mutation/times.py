"""A pytest plugin: CPU seconds of every test's phases, subprocesses included, and whether it passed, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

WHERE = "COHOM_TEST_TIMES"
rows: dict[str, dict[str, Any]] = {}


def cpu_seconds() -> float:
    """CPU seconds of this process and its ended children."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Time a test's fixtures."""
    yield from _timed(item, "setup")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Time a test."""
    yield from _timed(item, "call")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Time what follows a test."""
    yield from _timed(item, "teardown")


def _timed(item: pytest.Item, phase: str) -> Generator[None]:
    begun = cpu_seconds()
    try:
        yield
    finally:
        rows.setdefault(item.nodeid, {})[phase] = cpu_seconds() - begun


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note whether the test itself passed."""
    if report.when == "call":
        rows.setdefault(report.nodeid, {})["passed"] = report.passed


def pytest_unconfigure() -> None:
    """Write the file that the environment names."""
    Path(os.environ[WHERE]).write_text(json.dumps({"tests": rows, "seconds": cpu_seconds()}))
