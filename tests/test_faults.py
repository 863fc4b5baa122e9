"""The fault and fuzz suites of benchmarks/ in short: a few seeded trials, a few thousand inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*words: str) -> dict:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return json.loads(done.stdout)


def test_a_few_faults_lose_nothing() -> None:
    found = _run("benchmarks.faults", "--trials", "6", "--seed", "1")
    assert (found["trials"], found["failed"]) == (6, [])


@pytest.mark.parametrize("target", ["gate", "config", "file", "certificate"])
def test_a_few_thousand_hostile_inputs_are_accepted_or_refused(target: str) -> None:
    pytest.importorskip("atheris")
    if target == "certificate":
        pytest.importorskip("flint")
    (row,) = _run("benchmarks.fuzz", "--target", target, "--runs", "3000")["targets"]
    assert row["executions"] == 3000
