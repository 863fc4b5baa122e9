"""Spearman correlation between model-level figures, with permutation p-values and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cohomcli.topology.results import Array

MIN_N = 4
EXACT_UP_TO = 8
N_PERMUTATIONS = 9_999
SLACK = 1e-12  # equal correlations may differ by rounding; both sides of the count must treat them as equal


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho between `figure` and `against` over `n` independent units, or None and the `reason`.

    `p_value` is two-sided, from all n! permutations ("exact") or from 9,999 seeded ones ("monte-carlo"). `p_holm` is
    corrected for all correlations of the comparison (Holm 1979).
    """

    figure: str
    against: str
    n: int
    rho: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    method: str = ""
    reason: str = ""


def correlate(figure: str, x: Sequence[float | None], against: str, y: Sequence[float], seed: int = 0) -> Correlation:
    """Rank correlation of `x` with `y`, one value per independent unit; units where `x` is None are left out."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if a is not None]
    n = len(known)
    if n < MIN_N:
        return Correlation(figure, against, n, reason=f"{n} comparable models; at least {MIN_N} are needed")
    u, v = (_standard_ranks([pair[i] for pair in known]) for i in (0, 1))
    if u is None or v is None:
        return Correlation(figure, against, n, reason=f"{figure if u is None else against} is the same for all models")
    rho = float(np.clip(u @ v, -1.0, 1.0))
    exact = n <= EXACT_UP_TO
    p = _exact_p(u, v, rho) if exact else _monte_carlo_p(u, v, rho, seed)
    return Correlation(figure, against, n, rho, p, method="exact" if exact else "monte-carlo")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors), 1.0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return [float(p) for p in result]


def _standard_ranks(values: Sequence[float]) -> Array | None:
    """Mean ranks, centred and of norm 1, so that a dot product is Spearman's rho; None when all are tied."""
    ranks = rankdata(values)
    centred: Array = ranks - ranks.mean()
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > 0 else None


def _exact_p(u: Array, v: Array, rho: float) -> float:
    orders = np.array(list(permutations(range(len(v)))), dtype=np.int64)
    return float(np.mean(_as_extreme(v[orders] @ u, rho)))


def _monte_carlo_p(u: Array, v: Array, rho: float, seed: int) -> float:
    """(hits + 1) / (permutations + 1): never zero, and valid as a p-value (Phipson, Smyth 2010)."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(v, (N_PERMUTATIONS, 1)), axis=1)
    return float((np.count_nonzero(_as_extreme(shuffled @ u, rho)) + 1) / (N_PERMUTATIONS + 1))


def _as_extreme(rhos: Array, observed: float) -> NDArray[np.bool_]:
    return np.abs(rhos) >= abs(observed) - SLACK
