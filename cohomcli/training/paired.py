"""Differences between arms, paired by seed: bootstrap intervals, a paired t test, and Holm's correction over all.

A verdict other than "no evidence" needs both: the bootstrap interval at the level corrected for the number of
comparisons (Bonferroni) leaves out zero, and the t test's p, adjusted by Holm (1979), is below 1 - level. With five
seeds the percentile interval alone would call one null arm in sixteen, because five differences of equal sign are
enough for it; the t test alone trusts a normal distribution. Fewer than five seeds are never evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cohomcli.training.ablation_results import Metric, PairedComparison, Verdict

LEAST_SEEDS = 5
_ENUMERATED = 6  # up to so many seeds every resample is counted, so that the interval has no randomness of its own
_DRAWS = 20_000


@dataclass(frozen=True)
class Differences:
    """By seed, `arm` minus `against` in the metric."""

    arm: str
    against: str
    values: tuple[float, ...]


def judge(differences: Sequence[Differences], metric: Metric, level: float = 0.95) -> tuple[PairedComparison, ...]:
    """A comparison for each, judged as one family at confidence `level`."""
    if not differences:
        return ()
    p_values = [paired_p(one.values) for one in differences]
    adjusted = holm(p_values)
    corrected = 1 - (1 - level) / len(differences)
    found = []
    for one, p, p_adjusted in zip(differences, p_values, adjusted, strict=True):
        interval = bootstrap_interval(one.values, corrected)
        enough = len(one.values) >= LEAST_SEEDS and p_adjusted < 1 - level
        found.append(
            PairedComparison(
                arm=one.arm,
                against=one.against,
                difference=float(np.mean(one.values)),
                interval=interval,
                p_value=p,
                p_adjusted=p_adjusted,
                detectable=detectable(one.values, corrected),
                verdict=_verdict(interval, metric) if enough else "no evidence",
            )
        )
    return tuple(found)


def _verdict(interval: tuple[float, float], metric: Metric) -> Verdict:
    low, high = interval if metric == "accuracy" else (-interval[1], -interval[0])
    if low > 0:
        return "helps"
    return "hurts" if high < 0 else "no evidence"


def bootstrap_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Percentile bootstrap of the mean (Efron 1979): every resample up to six values, else 20,000 drawn ones."""
    x = np.asarray(values, dtype=np.float64)
    means = _resampled_means(x)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(x: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(x)
    rows = _all_resamples(n) if n <= _ENUMERATED else np.random.default_rng(0).integers(n, size=(_DRAWS, n))
    means: NDArray[np.float64] = x[rows].mean(axis=1)
    return means


@cache
def _all_resamples(n: int) -> NDArray[np.int64]:
    """The n^n ways to draw n of n with replacement, (n^n, n)."""
    return np.stack(np.meshgrid(*[np.arange(n)] * n, indexing="ij"), axis=-1).reshape(-1, n)


def paired_p(values: Sequence[float]) -> float:
    """Two-sided p of the t test for mean zero; 1 when all differences are zero or there are fewer than two."""
    from scipy.stats import ttest_1samp

    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2 or not x.any():
        return 1.0
    if np.ptp(x) == 0:  # no spread: the sign test is all that can be said
        return float(2.0 ** (1 - len(x)))
    return float(ttest_1samp(x, 0.0).pvalue)


def detectable(values: Sequence[float], level: float) -> float:
    """Half width of the t interval at `level`: a mean difference of this size would just have been called."""
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float("inf")
    return float(t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[int(at)])
        adjusted[int(at)] = min(1.0, running)
    return adjusted
