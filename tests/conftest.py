"""What all tests share: deterministic property tests, and nothing that reaches a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import settings
from proofchecks import check_runs

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")
# Tiny models and two cores: a second thread only waits. Set before torch is loaded, and inherited by subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


# A file is one worker's, so the longest begin first; the others follow by name.
LONGEST = ("test_tour", "test_precision_exports", "test_precision_capture", "test_precision_apply", "test_prove_refute")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _every_proof_of_the_suite_verifies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the last test: whatever `proved` any run folder of the session claims is checked without torch."""
    yield
    if find_spec("flint") is not None:
        _, wrong = check_runs(tmp_path_factory.getbasetemp())
        assert not wrong
