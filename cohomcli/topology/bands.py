"""Confidence limits of a layer's figures and Betti curves from subsamples drawn without replacement.

The estimand is E f_n: the expected figure over fresh samples of as many texts n, from wherever these were drawn (PCA is
held fixed). The limits are f_n -+ t sqrt(V_n). V_n, the variance of f over such samples, comes from subsamples:

1. Two disjoint halves of the texts are independent samples of h = n / 2. So half their squared difference, averaged
   over random splits, estimates the variance V_h without bias, whatever f is.
2. The spread of f over all subsamples of m texts underestimates V_m, because they overlap. If f were a sum of terms of
   c texts each (Hoeffding 1948), two subsamples that share r m texts would correlate by r^c, and the spread be
   V_m (1 - (m/n)^c): c = 1 is the correction that the jackknife takes for granted. Persistence mixes many orders; a
   mixture with c - 1 Poisson of mean q correlates by r exp(-q (1 - r)), which is q = 0 for sums and fits persistence
   up to q about 5. V_h and the spread over halves give q; with it, the spread at m = 0.8 n gives V_m.
3. V changes like a power of the sample size, whose exponent is read off V_h and V_m (the rate is estimated, as in
   Bertail, Politis, Romano, JASA 94, 1999): this carries V_m on to V_n.

Student's t makes up for the scatter of V_n; its degrees of freedom were set per figure on simulations and the coverage
then measured on fresh ones (docs/topology.md says for which clouds and sizes). The entropy of H0 scatters in proportion
to how far it is below its maximum log(n - 1), so its limits are those of the logarithm of that distance.

Longest bars have no limits: they depend on few texts, so their variance cannot be had from one sample (measured
coverage of the above: 91 to 99% in H1, 78 to 94% in H0). Nor has the entropy of H1, whose variance a sample of low
entropy overestimates and one of high entropy underestimates (90 to 97%).

A bootstrap with replacement is not offered. Points drawn twice have distance 0, so a resample is a cloud of 0.63 n
points: its figures are those of a smaller sample, and its percentile interval need not even hold the figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.distance import squareform
from scipy.stats import t as student

from cohomcli.topology.replicates import bars_of, between, lifetimes_of
from cohomcli.topology.results import Array, BettiCurve, DimensionSummary
from cohomcli.topology.summaries import persistence_entropy

LEVEL = 0.95
LARGE_SHARE = 0.8
MIN_TEXTS = 20
MOST_MIXED = 8.0  # mean excess order: above it there is only noise
RATES = (-3.0, 3.0)  # likewise for the exponent of the variance
# Student's degrees of freedom of the figures that have limits, by dimension. The count of H0 has none, because it is
# that of the distinct texts less one.
DEGREES: tuple[dict[str, int], ...] = (
    {"total_persistence": 10, "entropy": 6, "total_over_scale": 10},
    {"count": 9, "total_persistence": 7, "total_over_scale": 7},
)
CURVE_DEGREES = 11
FIGURES = ("count", "total_persistence", "entropy", "total_over_scale")
# Gaussian smoothing of a curve's variance ratios and of its variance, by dimension, as shares of the grid
WIDTHS = ((0.0375, 0.025), (0.0625, 0.0375))


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
    high = np.minimum(values + curves, np.where(np.arange(len(curves)) == 0, float(n), np.inf)[:, None])
    return Limits(intervals, np.maximum(values - curves, 0.0), high)


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
    errors = np.sqrt(variance(first, second, large, sizes))
    found = {}
    for name, error in zip(FIGURES, errors, strict=True):
        if name not in DEGREES[dimension]:
            continue
        half = float(error) * quantile(DEGREES[dimension][name])
        centre = float(getattr(summary, name))
        found[name] = (max(0.0, centre - half), centre + half)
        if dimension == 0 and name == "entropy":
            found[name] = below(float(np.log(max(summary.count, 1))), centre, half)
    return found


def below(most: float, value: float, half: float) -> tuple[float, float]:
    """The interval `value` -+ `half` made on the scale log(`most` - value): longer downwards, never above `most`."""
    distance = most - value
    if distance <= 0 or half == 0:
        return max(0.0, value - half), value + half
    factor = float(np.exp(half / distance))
    return max(0.0, most - distance * factor), most - distance / factor


def _figures(sample: _Sample, dimension: int) -> list[float]:
    """In the order of FIGURES."""
    lifetimes = lifetimes_of(sample.bars[dimension])
    total = float(lifetimes.sum())
    return [len(lifetimes), total, persistence_entropy(lifetimes), total / (sample.scale if sample.scale > 0 else 1.0)]


def quantile(degrees: int) -> float:
    """Half the length of the 95% interval in estimated standard deviations."""
    return float(student.ppf((1 + LEVEL) / 2, degrees))


def variance(first: Array, second: Array, large: Array, sizes: tuple[int, int, int]) -> Array:
    """V_n of F figures from their values on disjoint halves `first`, `second` and on larger samples, each (S, F).

    `sizes` are the texts of a half, of a larger sample, and all n. See the head of this file.
    """
    apart, spread = at_half(first, second)
    pooled = large.var(axis=0, ddof=1)
    carried: Array = pooled * _inflation(pooled, apart, spread, sizes)
    return carried


def at_half(first: Array, second: Array) -> tuple[Array, Array]:
    """V_h of F figures by disjoint halves, each (S, F), and the spread over all halves."""
    return ((first - second) ** 2).mean(axis=0) / 2, np.concatenate([first, second]).var(axis=0, ddof=1)


def _mixing(apart: Array, spread: Array, share: float) -> Array:
    """q from spread = apart (1 - share exp(-q (1 - share)))."""
    left = np.clip(1 - spread / np.where(apart > 0, apart, 1.0), np.finfo(float).tiny, share)
    mixing: Array = np.clip(np.log(share / left) / (1 - share), 0.0, MOST_MIXED)
    return mixing


def _inflation(pooled: Array, apart: Array, spread: Array, sizes: tuple[int, int, int]) -> Array:
    """V_n over `pooled`, the spread of the larger samples; `apart` is V_h and `spread` that of the halves."""
    half, large, n = sizes
    share = large / n
    shared = share * np.exp(-_mixing(apart, spread, half / n) * (1 - share))
    at_large = pooled / (1 - shared)
    both = (apart > 0) & (at_large > 0)
    ratio = np.where(both, at_large, 1.0) / np.where(both, apart, 1.0)
    rate = np.clip(np.log(ratio) / np.log(large / half), *RATES)
    inflation: Array = (n / large) ** rate / (1 - shared)
    return inflation


def _curve_errors(dimension: int, betti: BettiCurve, groups: _Groups, sizes: tuple[int, int, int]) -> Array:
    """Half-widths along the grid. Curves of smaller samples are read where the points are as crowded as in the whole.

    That is at t s_m / s_n, with s_m the mean merge height of m texts, extended to n as a power of the size. What is
    learnt about the mixture of orders and the rate at one place is shared with its neighbours, and so, more narrowly,
    is the variance: where few bars are alive, the subsamples of one sample all miss the same ones.
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
    wide, narrow = WIDTHS[dimension]
    pooled, apart, spread = (_smooth(values, wide) for values in (pointwise, apart, spread))
    inflation = _inflation(pooled, apart, spread, sizes)
    errors: Array = quantile(CURVE_DEGREES) * np.sqrt(_smooth(pointwise, narrow) * inflation)
    return errors


def _smooth(values: Array, width: float) -> Array:
    """`values` along the grid under a Gaussian whose standard deviation is the share `width` of the grid."""
    smoothed: Array = gaussian_filter1d(values, width * len(values), mode="nearest")
    return smoothed


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
