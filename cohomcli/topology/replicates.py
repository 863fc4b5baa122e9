"""Bars of the many clouds that tests and intervals draw: as `rips` without its exact lengths, for speed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage

from cohomcli.topology.engines import ENGINES
from cohomcli.topology.results import Array

TESTED_UP_TO = 1  # H2 of a few hundred points takes seconds: too long for hundreds of replicates


def bars_of(distances: Array, maxdim: int, engine: str) -> list[Array]:
    """Births and deaths (k, 2) of positive length in H0 .. H_maxdim, from condensed `distances`; `maxdim` is 0 or 1.

    `engine` is a name in ENGINES. H0 is float64; H1 is rounded to float32 (relative 6e-8), as engines hand it out.
    """
    scale = float(distances.mean()) if len(distances) else 0.0
    if scale == 0.0:
        return [np.zeros((0, 2)) for _ in range(maxdim + 1)]
    heights = linkage(distances, "single")[:, 2]
    heights = heights[heights > 0]
    found = [np.column_stack([np.zeros_like(heights), heights])]
    if maxdim > 0:
        enough = len(distances) >= 6  # the smallest flag complex with a cycle has four points
        raw = ENGINES.get(engine)(distances / scale, 1, np.inf)[0] if enough else np.zeros((0, 2))
        pairs = np.asarray(raw, dtype=np.float64).reshape(-1, 2)
        found.append(pairs[pairs[:, 1] > pairs[:, 0]] * scale)
    return found


def lifetimes_of(bars: Array) -> Array:
    """Deaths minus births."""
    lifetimes: Array = bars[:, 1] - bars[:, 0]
    return lifetimes


def between(square: Array, rows: NDArray[np.int64]) -> Array:
    """Condensed distances of the points `rows` (m,), cut from the (n, n) matrix of all of them."""
    upper = np.triu_indices(len(rows), 1)
    cut: Array = square[rows[upper[0]], rows[upper[1]]]
    return cut
