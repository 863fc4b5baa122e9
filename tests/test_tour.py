"""The tour of the documentation: every command prints what the page shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tour import agree

ROOT = Path(__file__).parents[1]


def test_the_tour_shows_what_its_commands_print() -> None:
    """Word for word; `python -m benchmarks.tour` also compares the numbers, which differ between processors."""
    pytest.importorskip("flint")
    command = [sys.executable, "-m", "benchmarks.tour", "--words"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]


@pytest.mark.parametrize(
    ("shown", "found", "equal"),
    [
        ("loss 4.291 in 6 steps", "loss 4.292 in 6 steps", True),
        ("loss 4.291 in 6 steps", "loss 4.6 in 6 steps", False),
        ("loss 4.291 in 6 steps", "cost 4.291 in 6 steps", False),
        ("run: experiments/20261128T133312Z-a-df1cfa", "run: experiments/20270101T000000Z-a-0a1b2c", True),
    ],
)
def test_words_must_be_equal_and_numbers_close(shown: str, found: str, equal: bool) -> None:
    assert agree(shown, found) is equal
