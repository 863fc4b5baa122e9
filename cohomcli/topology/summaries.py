"""Figures of persistence diagrams: counts, lifetimes, persistence entropy and Betti curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.results import Array, BettiCurve, Diagram, DimensionSummary

GRID_SIZE = 256
PAST_LAST_DEATH = 1.02


def summarize(diagram: Diagram, scale: float) -> DimensionSummary:
    """The figures of one diagram; `scale` is the cloud's mean pairwise distance.

    A cloud of scale 0 has no bars of positive length, so its `_over_scale` figures are 0 like their numerators.
    """
    lifetimes = diagram.pairs[:, 1] - diagram.pairs[:, 0]
    total = float(lifetimes.sum())
    longest = float(lifetimes.max(initial=0.0))
    return DimensionSummary(
        dimension=diagram.dimension,
        count=len(lifetimes),
        total_persistence=total,
        max_lifetime=longest,
        entropy=persistence_entropy(lifetimes),
        essential=len(diagram.essential),
        censored=len(diagram.censored),
        total_over_scale=total / scale if scale > 0 else 0.0,
        max_over_scale=longest / scale if scale > 0 else 0.0,
    )


def persistence_entropy(lifetimes: Array) -> float:
    """-sum p log p in nats with p = lifetime / total; 0 for no bars, at most log(number of bars).

    Chintakunta, Gentimis, Gonzalez-Diaz, Jimenez, Krim, "An entropy-based persistence barcode", 2015.
    """
    if len(lifetimes) == 0:
        return 0.0
    p = lifetimes / lifetimes.max()  # the largest divided out first: no total overflows or underflows
    p /= p.sum()
    p = p[p > 0]
    return max(0.0, -float(p @ np.log(p)))


def betti_curve(diagrams: Sequence[Diagram], size: int = GRID_SIZE) -> BettiCurve:
    """Exact Betti numbers of all `diagrams` at `size` evenly spaced filtration values.

    The grid runs from 0 to 2% past the largest finite death, where the curves have reached their final values; with
    censored classes it stops at that death, because nothing is known past the threshold. A cloud without finite
    bars gets the grid [0, 1].
    """
    last = max((float(d.pairs[:, 1].max(initial=0.0)) for d in diagrams), default=0.0)
    censored = any(len(d.censored) for d in diagrams)
    end = (last if censored else last * PAST_LAST_DEATH) or 1.0
    grid = np.linspace(0.0, end, size)
    return BettiCurve(grid, np.stack([_alive(d, grid) for d in diagrams]))


def _alive(diagram: Diagram, grid: Array) -> NDArray[np.int64]:
    """Classes with birth <= t < death at each t: births so far minus deaths so far."""
    births = np.sort(np.concatenate([diagram.pairs[:, 0], diagram.essential, diagram.censored]))
    deaths = np.sort(diagram.pairs[:, 1])
    alive = np.searchsorted(births, grid, "right") - np.searchsorted(deaths, grid, "right")
    return alive.astype(np.int64)
