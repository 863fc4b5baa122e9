"""How much an input that nobody has seen may err, judged by the errors of those that were measured.

Errors of one plan vary from input to input, mostly log-normally; where attention nearly ties, with a far heavier tail.
Two estimates of the quantile that one unseen input in `1 / LEVEL` exceeds, and the larger counts:
- the predictive quantile of normal logarithms, exp(mean + t s sqrt(1 + 1/n)), Student's t with n - 1 + PRIOR_WEIGHT
  degrees of freedom; s pools the sample with a prior spread, so that few inputs, even one, give a bound (Gelman et al.,
  Bayesian Data Analysis, 3.3, with a scaled inverse chi-squared prior);
- Weissman's quantile of a Pareto tail (JASA 73, 1978), x_(k+1) (k / (n LEVEL))^gamma with Hill's estimate of gamma
  (Annals of Statistics 3, 1975) from the k largest of n: a few outliers among the measured ones raise it steeply.
Both assume that unseen inputs are drawn as the measured ones were; nothing here is a guarantee without that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.spec import ErrorNorm

LEVEL = 1e-3
# Standard deviation of log error between inputs, about the root mean square over the models of
# `benchmarks.closed_loop`; of kl, which is a squared error, twice as large.
PRIOR_SPREAD: dict[ErrorNorm, float] = {"rel-l2": 0.12, "max-abs": 0.2, "kl": 0.25}
PRIOR_WEIGHT = 4  # the prior counts as much as so many inputs
FEWEST_FOR_TAIL = 8
TAIL_SHARE = 4  # the largest n / TAIL_SHARE make the tail
SMALLEST = 1e-3  # of the largest error: what is smaller counts as this, logarithms of 0 being of no use


def unseen_bound(errors: Sequence[float], norm: ErrorNorm) -> float:
    """The error that one unseen input in 1,000 exceeds (estimated), never less than the largest of `errors`.

    `errors` (n,) >= 0 are those of single inputs under one plan, in the units of `norm`; inf when one is not finite.

    Raises:
        ValueError: no errors, or a negative one.
    """
    if not len(errors) or min(errors) < 0:
        raise ValueError("an unseen error is judged by at least one error, none of them negative")
    largest = max(errors)
    if not all(map(math.isfinite, errors)):
        return math.inf
    if largest == 0.0:
        return 0.0
    logs = np.log(np.maximum(np.asarray(errors, dtype=np.float64) / largest, SMALLEST))
    return largest * math.exp(max(0.0, predictive_quantile(logs, PRIOR_SPREAD[norm]), tail_quantile(logs)))


def predictive_quantile(logs: NDArray[np.float64], prior_spread: float, level: float = LEVEL) -> float:
    """What a further draw of normal `logs` (n,) exceeds with probability `level`."""
    from scipy.stats import t

    n, freedom = len(logs), len(logs) - 1 + PRIOR_WEIGHT
    squares = float(np.square(logs - logs.mean()).sum()) + PRIOR_WEIGHT * prior_spread**2
    return float(logs.mean() + t.isf(level, freedom) * math.sqrt(squares / freedom * (1.0 + 1.0 / n)))


def tail_quantile(logs: NDArray[np.float64], level: float = LEVEL) -> float:
    """The same for a Pareto tail of exp(`logs`) (n,); -inf when there are too few to see one."""
    n = len(logs)
    return -math.inf if n < FEWEST_FOR_TAIL else pareto_quantile(np.sort(logs)[::-1], n // TAIL_SHARE, level)


def pareto_quantile(descending: NDArray[np.float64], k: int, level: float) -> float:
    """Weissman's quantile, a logarithm, from the logarithms of a sample in descending order and its `k` largest."""
    index = float((descending[:k] - descending[k]).mean())
    return float(descending[k] + index * math.log(k / (len(descending) * level)))
