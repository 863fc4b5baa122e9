"""A short run of `benchmarks.fuzz_engines`: no bar that only one engine has."""

from collections import Counter

import numpy as np
import pytest

from benchmarks import fuzz_engines
from benchmarks.fuzz_engines import KINDS, differences, problem


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_no_unexplained_bar(kind):
    compared = 0
    for seed in range(kind, 400, len(KINDS)):
        problems, bars = differences(problem(seed + 10**6))  # other inputs than a run of the benchmark
        assert not problems
        compared += bars
    assert compared > 100


def test_the_comparison_sees_a_single_wrong_bar(monkeypatch):
    right = fuzz_engines.ours
    given = next(p for p in map(problem, range(100)) if len(right(p)[1].pairs))

    def wrong(p):
        diagrams = right(p)
        diagrams[1].pairs[0, 1] = np.nextafter(np.float32(diagrams[1].pairs[0, 1]), np.float32(np.inf))
        return diagrams

    monkeypatch.setattr(fuzz_engines, "ours", wrong)
    problems, _ = differences(given)
    assert Counter(text.split(": ")[1] for text in problems) == Counter(["gudhi H1", "ripser H1"])
