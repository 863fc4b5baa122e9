"""Confidence limits of a layer's figures and Betti curves from subsamples drawn without replacement.

The estimand is E f_n: the expected figure over fresh samples of as many texts n, from wherever these were drawn (PCA is
held fixed). The limits are f_n -+ t sqrt(V_n). V_n, the variance of f over such samples, comes from subsamples:

1. Two disjoint halves of the texts are independent samples of h = n / 2. So half their squared difference, averaged
   over random splits, estimates the variance V_h without bias, whatever f is.
2. The spread of f over all subsamples of m texts underestimates V_m, because they overlap. If f were a sum of terms of
   c texts each (Hoeffding 1948), the spread would be V_m (1 - (m/n)^c): c = 1 is the finite-population correction that
   the jackknife takes for granted. V_h and the spread over halves give the effective c, for persistence about 1 to 4.
3. With that c, the spread at m = 0.8 n gives V_m. V changes like a power of the sample size, whose exponent is read
   off V_h and V_m (the rate is estimated, as in Bertail, Politis, Romano, JASA 94, 1999): this carries V_m on to V_n.

The widest gap of H0 has no limits: it depends on one or two outlying texts, so its variance cannot be had from one
sample (measured coverage of the above: 78 to 94% instead of 95%).

A bootstrap with replacement is not offered. Points drawn twice have distance 0, so a resample is a cloud of 0.63 n
points: its figures are those of a smaller sample, and its percentile interval need not even hold the figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform
from scipy.stats import t as student

from cohomcli.topology.replicates import bars_of, between, lifetimes_of
from cohomcli.topology.results import Array, BettiCurve, DimensionSummary
from cohomcli.topology.summaries import persistence_entropy

LEVEL = 0.95
LARGE_SHARE = 0.8
MIN_TEXTS = 20
DEGREES = 8  # of freedom of Student's t: the logarithm of V_n scatters by about 0.5, and 2 / 0.5^2 = 8
ORDERS = (1.0, 5.0)  # effective c is kept in here: below 1 and above 5 is noise
RATES = (-3.0, 3.0)  # likewise for the exponent of the variance
EXTREMES = ("max_lifetime", "max_over_scale")  # without limits in H0
FIGURES = ("count", "total_persistence", "max_lifetime", "entropy", "total_over_scale", "max_over_scale")


@dataclass(frozen=True)
class Limits:
    """`intervals[k]` by figure, for dimension k; `low` and `high` (dimensions, grid) of the Betti curves."""

    intervals: tuple[dict[str, tuple[float, float]], ...]
    low: Array
    high: Array


@dataclass(frozen=True)
class Texts:
    """The texts of a layer: condensed `distances` of its m distinct points, the point `owner[i]` of each of n texts.

    `engine` computes the bars up to H_maxdim (0 or 1).
    """

    distances: Array
    owner: NDArray[np.int64]
    engine: str
    maxdim: int


@dataclass(frozen=True)
class _Sample:
    """What is kept of one subsample: its bars per dimension and its mean pairwise distance."""

    bars: list[Array]
    scale: float


def limits(
    texts: Texts, summaries: Sequence[DimensionSummary], betti: BettiCurve, subsamples: int, seed: int
) -> Limits | None:
    """95% limits around `summaries` and `betti`, which are those of all texts; None with too few texts or subsamples.

    Draws subsamples / 2 random splits in halves, and the first 0.8 n texts of each order as a larger subsample.
    """
    n, splits = len(texts.owner), subsamples // 2
    if n < MIN_TEXTS or splits < 2:
        return None
    square = squareform(texts.distances)
    rng = np.random.default_rng(seed)
    half, large = n // 2, round(LARGE_SHARE * n)
    first, second, bigger = [], [], []
    for _ in range(splits):
        order = texts.owner[rng.permutation(n)]
        first.append(_sample(square, order[:half], texts))
        second.append(_sample(square, order[half : 2 * half], texts))
        bigger.append(_sample(square, order[:large], texts))
    sizes = (half, large, n)
    dimensions = range(texts.maxdim + 1)
    intervals = tuple(_intervals(k, summaries[k], (first, second, bigger), sizes) for k in dimensions)
    curves = np.array([_curve_errors(k, betti, (first, second, bigger), sizes) for k in dimensions])
    values = betti.values[: len(curves)]
    return Limits(intervals, np.maximum(values - curves, 0.0), values + curves)


def _sample(square: Array, owner: NDArray[np.int64], texts: Texts) -> _Sample:
    """Texts on the same point add nothing to the bars, but count in the mean distance."""
    distances = between(square, owner)
    scale = float(distances.mean())
    distinct = np.unique(owner)
    if len(distinct) < len(owner):
        distances = between(square, distinct)
    return _Sample(bars_of(distances, texts.maxdim, texts.engine), scale)


_Groups = tuple[list[_Sample], list[_Sample], list[_Sample]]


def _intervals(
    dimension: int, summary: DimensionSummary, groups: _Groups, sizes: tuple[int, int, int]
) -> dict[str, tuple[float, float]]:
    first, second, large = (np.array([_figures(s, dimension) for s in group]) for group in groups)
    errors = half_widths(variance(first, second, large, sizes))
    centres = [float(getattr(summary, name)) for name in FIGURES]
    return {
        name: (max(0.0, centre - float(error)), centre + float(error))
        for name, centre, error in zip(FIGURES, centres, errors, strict=True)
        if dimension > 0 or name not in EXTREMES
    }


def _figures(sample: _Sample, dimension: int) -> list[float]:
    """In the order of FIGURES."""
    lifetimes = lifetimes_of(sample.bars[dimension])
    total, longest = float(lifetimes.sum()), float(lifetimes.max(initial=0.0))
    unit = sample.scale if sample.scale > 0 else 1.0
    return [len(lifetimes), total, longest, persistence_entropy(lifetimes), total / unit, longest / unit]


def half_widths(variances: Array) -> Array:
    """Half the length of the 95% interval of an estimator with these estimated variances."""
    quantile = float(student.ppf((1 + LEVEL) / 2, DEGREES))
    widths: Array = quantile * np.sqrt(variances)
    return widths


def variance(first: Array, second: Array, large: Array, sizes: tuple[int, int, int]) -> Array:
    """V_n of F figures from their values on disjoint halves `first`, `second` and on larger samples, each (S, F).

    `sizes` are the texts of a half, of a larger sample, and all n. See the head of this file.
    """
    apart, spread = at_half(first, second)
    order = _order(apart, spread, sizes)
    return _carried(large.var(axis=0, ddof=1), apart, order, sizes)


def at_half(first: Array, second: Array) -> tuple[Array, Array]:
    """V_h of F figures by disjoint halves, each (S, F), and the spread over all halves."""
    return ((first - second) ** 2).mean(axis=0) / 2, np.concatenate([first, second]).var(axis=0, ddof=1)


def _order(apart: Array, spread: Array, sizes: tuple[int, int, int]) -> Array:
    """The effective c of the Hoeffding decomposition: spread = apart (1 - (h/n)^c)."""
    share = sizes[0] / sizes[2]
    left = np.clip(1 - spread / np.where(apart > 0, apart, 1.0), share ** ORDERS[1], share ** ORDERS[0])
    order: Array = np.log(left) / np.log(share)
    return order


def _carried(spread: Array, apart: Array, order: Array, sizes: tuple[int, int, int]) -> Array:
    """V_n from the spread over the larger samples; `apart` is V_h."""
    half, large, n = sizes
    at_large = spread / (1 - (large / n) ** order)
    both = (apart > 0) & (at_large > 0)
    ratio = np.where(both, at_large, 1.0) / np.where(both, apart, 1.0)
    rate = np.clip(np.log(ratio) / np.log(large / half), *RATES)
    carried: Array = at_large * (n / large) ** rate
    return carried


def _curve_errors(dimension: int, betti: BettiCurve, groups: _Groups, sizes: tuple[int, int, int]) -> Array:
    """Half-widths along the grid. Curves of smaller samples are read where the points are as crowded as in the whole.

    That is at t s_m / s_n, with s_m the mean merge height of m texts, extended to n as a power of the size. Order and
    rate are common to the curve: they come from variances summed over the grid.
    """
    half, large, n = sizes
    spacing_half, spacing_large = (_spacing(group) for group in (groups[0] + groups[1], groups[2]))
    if spacing_half == 0 or spacing_large == 0:
        return np.zeros(len(betti.grid))
    growth = np.log(spacing_large / spacing_half) / np.log(large / half)
    spacing = spacing_large * (n / large) ** growth
    first, second = (_curves(group, dimension, betti.grid * spacing_half / spacing) for group in groups[:2])
    bigger = _curves(groups[2], dimension, betti.grid * spacing_large / spacing)
    apart, spread = at_half(first, second)
    pointwise = bigger.var(axis=0, ddof=1)
    total = np.array([apart.sum()])
    if total[0] == 0 or pointwise.sum() == 0:
        return np.zeros(len(betti.grid))
    order = _order(total, np.array([spread.sum()]), sizes)
    summed = np.array([pointwise.sum()])
    return half_widths(pointwise * _carried(summed, total, order, sizes) / summed)


def _spacing(group: Sequence[_Sample]) -> float:
    heights = np.concatenate([sample.bars[0][:, 1] for sample in group])
    return float(heights.mean()) if len(heights) else 0.0


def _curves(group: Sequence[_Sample], dimension: int, grid: Array) -> Array:
    """Betti curves (samples, grid); the class of H0 that never dies is left out, as a constant."""
    return np.array([_alive(sample.bars[dimension], grid) for sample in group])


def _alive(bars: Array, grid: Array) -> Array:
    born = np.searchsorted(np.sort(bars[:, 0]), grid, "right")
    dead = np.searchsorted(np.sort(bars[:, 1]), grid, "right")
    return (born - dead).astype(np.float64)
