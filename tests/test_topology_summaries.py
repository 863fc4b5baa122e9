"""Figures of diagrams: closed forms of the entropy, Betti curves counted by hand, scale-free twins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.topology.persistence import rips
from cohomcli.topology.results import Diagram
from cohomcli.topology.summaries import GRID_SIZE, betti_curve, persistence_entropy, summarize

NONE = np.zeros(0)


def diagram(pairs, essential=(), censored=(), dimension=1):
    return Diagram(
        dimension, np.array(pairs, float).reshape(-1, 2), np.array(essential, float), np.array(censored, float)
    )


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("length", [1e-300, 1.0, 1e300])
def test_entropy_of_equal_bars_is_the_logarithm_of_their_number(k, length):
    assert persistence_entropy(np.full(k, length)) == pytest.approx(math.log(k), abs=1e-12)


def test_entropy_of_a_half_and_two_quarters():
    assert persistence_entropy(np.array([2.0, 1.0, 1.0])) == pytest.approx(1.5 * math.log(2), rel=1e-15)


def test_entropy_of_nothing_is_zero():
    assert persistence_entropy(NONE) == 0.0


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_entropy_is_bounded_and_scale_free(lifetimes):
    entropy = persistence_entropy(np.array(lifetimes))
    assert 0 <= entropy <= math.log(len(lifetimes)) + 1e-12
    assert persistence_entropy(np.array(lifetimes) * 1e5) == pytest.approx(entropy, abs=1e-9)


def test_figures_of_a_diagram():
    summary = summarize(diagram([[1, 3], [2, 2.5]], essential=[0], censored=[1, 1]), scale=2.0)
    assert (summary.dimension, summary.count, summary.essential, summary.censored) == (1, 2, 1, 2)
    assert (summary.total_persistence, summary.max_lifetime) == (2.5, 2.0)
    assert (summary.total_over_scale, summary.max_over_scale) == (1.25, 1.0)
    assert summary.entropy == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))


def test_figures_of_nothing_are_zero():
    summary = summarize(diagram([], essential=[0], dimension=0), scale=0.0)
    figures = (summary.count, summary.total_persistence, summary.max_lifetime, summary.entropy)
    assert (*figures, summary.total_over_scale, summary.max_over_scale) == (0, 0.0, 0.0, 0.0, 0.0, 0.0)


def brute_force_betti(diagram, t):
    undying = np.concatenate([diagram.essential, diagram.censored])
    return sum(b <= t < d for b, d in diagram.pairs) + sum(b <= t for b in undying)


@pytest.mark.parametrize("threshold", [np.inf, 2.0])
def test_betti_curve_counts_the_classes_alive(threshold):
    diagrams = rips(np.random.default_rng(0).normal(size=(40, 4)), threshold=threshold)
    curve = betti_curve(diagrams)
    assert curve.grid.shape == (GRID_SIZE,)
    assert curve.values.shape == (2, GRID_SIZE)
    for k, alive in enumerate(curve.values):
        assert alive.tolist() == [brute_force_betti(diagrams[k], t) for t in curve.grid]
    last = max(d.pairs[:, 1].max() for d in diagrams)
    assert curve.grid[0] == 0.0
    if np.isinf(threshold):
        assert last < curve.grid[-1] < 1.05 * last
        assert curve.values[:, 0].tolist() == [40, 0]
        assert curve.values[:, -1].tolist() == [1, 0]
    else:
        assert curve.grid[-1] == last <= threshold


def test_a_class_is_alive_at_its_birth_and_dead_at_its_death():
    curve = betti_curve([diagram([[1.0, 2.0]], censored=[5.0])], size=5)
    assert curve.grid.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert curve.values.tolist() == [[0, 0, 1, 1, 0]]


def test_betti_curve_of_one_point():
    curve = betti_curve(rips(np.zeros((1, 3))))
    assert (curve.grid[0], curve.grid[-1]) == (0.0, 1.0)
    assert set(curve.values[0]) == {1}
    assert set(curve.values[1]) == {0}
