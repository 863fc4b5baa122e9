"""Confidence limits: their variance on statistics with known variance, their coverage, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import binom

from cohomcli.topology.bands import (
    DEGREES,
    FIGURES,
    Limits,
    Texts,
    _inflation,
    at_half,
    below,
    limits,
    quantile,
    variance,
)
from cohomcli.topology.persistence import rips
from cohomcli.topology.results import Array, BettiCurve, DimensionSummary
from cohomcli.topology.summaries import betti_curve, summarize


def subsampled(values: Array, power: float, rng: np.random.Generator, splits: int = 200) -> Array:
    """V_n of sum(values) / size^power by `variance`, from splits of the (n,) values."""
    n = len(values)
    half, large = n // 2, round(0.8 * n)
    orders = np.array([rng.permutation(n) for _ in range(splits)])
    parts = [values[orders[:, at]] for at in (slice(0, half), slice(half, 2 * half), slice(0, large))]
    figures = [(part.sum(axis=1) / part.shape[1] ** power)[:, None] for part in parts]
    return variance(figures[0], figures[1], figures[2], (half, large, n))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0], ids=["sum", "root", "mean"])
def test_variance_of_linear_statistics(power: float) -> None:
    """A sum of independent terms over n^power has variance n^(1 - 2 power), whatever the rate."""
    rng = np.random.default_rng(1)
    found = [subsampled(rng.standard_normal(60), power, rng)[0] for _ in range(60)]
    assert np.mean(found) == pytest.approx(60 ** (1 - 2 * power), rel=0.15)


def test_variance_of_a_constant_is_zero() -> None:
    constant = np.full((10, 1), 3.0)
    assert variance(constant, constant, constant, (10, 16, 20)).tolist() == [0.0]


def test_disjoint_halves_are_unbiased_where_overlapping_ones_are_not() -> None:
    """Sum over pairs of x_i x_j with E x = 0 among h of n = 2 h texts: variance h (h - 1) / 2, all of it of order 2.

    Overlapping subsamples of half of the texts spread by 3/4 of it, not by the 1/2 of a linear statistic.
    """
    rng = np.random.default_rng(2)
    half, apart, spread = 20, [], []
    for _ in range(400):
        x = rng.standard_normal(2 * half)
        orders = x[np.array([rng.permutation(2 * half) for _ in range(100)])]
        parts = (orders[:, :half], orders[:, half:])
        first, second = (((p.sum(axis=1) ** 2 - (p**2).sum(axis=1)) / 2)[:, None] for p in parts)
        one, all_of_them = at_half(first, second)
        apart.append(one[0])
        spread.append(all_of_them[0])
    truth = half * (half - 1) / 2
    assert np.mean(apart) == pytest.approx(truth, rel=0.12)
    assert np.mean(spread) == pytest.approx(0.75 * truth, rel=0.12)


def ring(n: int, rng: np.random.Generator) -> Array:
    angle = rng.uniform(0, 2 * np.pi, n)
    points = 0.15 * rng.standard_normal((n, 4))
    points[:, :2] += np.column_stack([np.cos(angle), np.sin(angle)])
    return points


def found(points: Array, subsamples: int = 40, seed: int = 0) -> tuple[Limits, list[DimensionSummary], BettiCurve]:
    distances = pdist(points)
    diagrams = rips(distances, 1)
    summaries = [summarize(diagram, float(distances.mean())) for diagram in diagrams]
    betti = betti_curve(diagrams)
    texts = Texts(distances, np.arange(len(points)), "redzed", 1)
    answer = limits(texts, summaries, betti, subsamples, seed)
    assert answer is not None
    return answer, summaries, betti


def test_coverage_of_the_expected_figures() -> None:
    """Of 80 simulations, as many hold the mean as the binomial law with 90 to 99% allows."""
    rng, runs = np.random.default_rng(3), 80
    centres, insides = [], []
    names = ("total_persistence", "total_over_scale")
    for seed in range(runs):
        answer, summaries, _ = found(ring(40, rng), 40, seed)
        centres.append([getattr(summaries[k], name) for k in (0, 1) for name in names])
        insides.append([answer.intervals[k][name] for k in (0, 1) for name in names])
    truth = np.mean(centres, axis=0)
    limits_of = np.array(insides)
    hits = ((limits_of[:, :, 0] <= truth) & (truth <= limits_of[:, :, 1])).sum(axis=0)
    assert np.all(hits >= binom.ppf(0.001, runs, 0.90))
    assert np.mean(hits) <= 0.995 * runs  # limits that hold everything are useless


@pytest.mark.parametrize("mean", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("power", [-1.0, 0.0, 2.0])
def test_variance_of_mixed_orders(mean: float, power: float) -> None:
    """The spreads of a figure whose orders are 1 + Poisson(mean) and whose variance is (size / n)^power give V_n = 1.

    E r^(1 + K) = r exp(-mean (1 - r)) is the correlation of two subsamples that share r of their texts.
    """
    half, large, n = 50, 80, 100
    shared = {size: (size / n) * np.exp(-mean * (1 - size / n)) for size in (half, large)}
    apart = np.array([(half / n) ** power])
    spread = apart * (1 - shared[half])
    pooled = np.array([(large / n) ** power * (1 - shared[large])])
    found = pooled * _inflation(pooled, apart, spread, (half, large, n))
    assert found[0] == pytest.approx(1.0)


def test_limits_below_a_maximum() -> None:
    """On the scale log(most - value) the interval is symmetric, and it never reaches the maximum."""
    low, high = below(4.0, 3.5, 0.2)
    assert np.log(4.0 - low) - np.log(0.5) == pytest.approx(np.log(0.5) - np.log(4.0 - high)) == pytest.approx(0.4)
    assert low < 3.3
    assert 3.5 < high < 3.7
    assert below(4.0, 3.5, 50.0)[1] <= 4.0
    assert below(4.0, 4.0, 0.1) == pytest.approx((3.9, 4.1))
    assert below(4.0, 3.5, 1e-6) == pytest.approx((3.5, 3.5), abs=1e-5)


def test_quantiles_are_students() -> None:
    assert quantile(8) == pytest.approx(2.306, abs=5e-4)
    assert quantile(6) == pytest.approx(2.447, abs=5e-4)


def test_limits_shrink_with_more_texts() -> None:
    rng = np.random.default_rng(4)
    small, large = (found(ring(n, rng))[0].intervals[1]["total_over_scale"] for n in (40, 160))
    few, many = (found(ring(n, rng))[0].intervals[0]["entropy"] for n in (40, 160))
    assert many[1] - many[0] < few[1] - few[0]
    assert small != large


def test_what_has_limits() -> None:
    answer, summaries, betti = found(ring(30, np.random.default_rng(5)))
    assert [set(each) for each in answer.intervals] == [set(degrees) for degrees in DEGREES]
    assert set(DEGREES[0]) == set(FIGURES) - {"count"}
    assert set(DEGREES[1]) == set(FIGURES) - {"entropy"}
    assert answer.low.shape == answer.high.shape == betti.values.shape
    assert all(low >= 0 for each in answer.intervals for low, _ in each.values())
    assert summaries[1].count > 0


def test_limits_are_reproducible_and_seeded() -> None:
    points = ring(30, np.random.default_rng(6))
    assert found(points, seed=1)[0].intervals == found(points, seed=1)[0].intervals
    assert found(points, seed=1)[0].intervals != found(points, seed=2)[0].intervals


def test_limits_scale_with_the_cloud() -> None:
    points = ring(30, np.random.default_rng(7))
    one, ten = found(points)[0], found(1000.0 * points)[0]
    assert np.allclose(ten.intervals[1]["total_persistence"], 1000 * np.array(one.intervals[1]["total_persistence"]))
    assert np.allclose(ten.intervals[1]["total_over_scale"], one.intervals[1]["total_over_scale"], rtol=1e-5)
    assert np.allclose(one.low, ten.low)
    assert np.allclose(one.high, ten.high)


def test_coinciding_texts_are_drawn_as_texts() -> None:
    """20 points of which ten stand for two texts each: subsamples count texts, so the number of pieces varies.

    So the Betti curve of H0 has limits already at 0, which it has not for 20 texts on points of their own.
    """
    points = ring(20, np.random.default_rng(8))
    distances = pdist(points)
    diagrams = rips(distances, 1)
    summaries = [summarize(diagram, float(distances.mean())) for diagram in diagrams]
    owner = np.repeat(np.arange(20), [2] * 10 + [1] * 10)
    answer = limits(Texts(distances, owner, "redzed", 1), summaries, betti_curve(diagrams), 40, 0)
    assert answer is not None
    alone = limits(Texts(distances, np.arange(20), "redzed", 1), summaries, betti_curve(diagrams), 40, 0)
    assert alone is not None
    wide, narrow = ((one.high - one.low)[0, 0] for one in (answer, alone))
    assert narrow < 0.1 < 1 < wide


def test_too_few_texts_or_subsamples_give_none() -> None:
    points = ring(19, np.random.default_rng(9))
    distances = pdist(points)
    diagrams = rips(distances, 1)
    summaries = [summarize(diagram, float(distances.mean())) for diagram in diagrams]
    texts = Texts(distances, np.arange(19), "redzed", 1)
    assert limits(texts, summaries, betti_curve(diagrams), 100, 0) is None
