"""The tour of the documentation: every command prints what the page shows."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tour import CLOSE, agree

ROOT = Path(__file__).parents[1]


def test_the_tour_shows_what_its_commands_print() -> None:
    """Word for word; `python -m benchmarks.tour` also compares the numbers, whose last digits differ by processor."""
    pytest.importorskip("flint")
    command = [sys.executable, "-m", "benchmarks.tour", "--words"]
    plain = os.environ | {"COHOM_OUTPUT__PLOTS": "false"}  # pictures are not printed
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


@pytest.mark.parametrize(
    ("shown", "found", "least"),
    [
        ("loss 4.291 in 6 steps", "loss 4.291 in 6 steps", 0.0),
        ("run: experiments/20261128T133312Z-a-df1cfa", "run: experiments/20270101T000000Z-a-0a1b2c", 0.0),
        ("loss 4.291 in 6 steps", "loss 4.292 in 6 steps", CLOSE),
        ("loss 4.291 in 0 steps", "loss 4.6 in 0 steps", math.inf),
        ("loss 4.291 in 6 steps", "cost 4.291 in 6 steps", None),
    ],
)
def test_words_must_be_equal_and_numbers_within_the_tolerance(shown: str, found: str, least: float | None) -> None:
    """`least` is the smallest tolerance that accepts it, of those that the command offers."""
    accepted = [one for one in (0.0, CLOSE, math.inf) if agree(shown, found, one)]
    assert (accepted[0] if accepted else None) == least
