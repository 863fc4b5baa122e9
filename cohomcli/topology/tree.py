"""Minimum spanning tree and mean distance of a cloud in O(n) memory: H0 of clouds whose distances do not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.metrics import Space
from cohomcli.topology.results import Array

# Rows whose distances to all others are held at a time; 256 x 50,000 float64 take 100 MiB.
BLOCK_CELLS = 2**22


@dataclass(frozen=True)
class SpanningTree:
    """`lengths` (m - 1,) float64 of the edges of a minimum spanning tree, ascending; mean distance over all pairs."""

    lengths: Array
    mean_distance: float


def spanning_tree(space: Space, multiplicity: NDArray[np.int64]) -> SpanningTree:
    """Prim's algorithm on distances computed row by row and dropped: O(m^2 k) time, O(m k) memory.

    The lengths are the merge heights of single linkage on the condensed distances, bit for bit. Every pair is seen
    exactly once, when its first point enters the tree, so the mean over the pairs costs nothing more; row i counts
    `multiplicity[i]` times in it. (Prim 1957; Gower, Ross 1969.)

    Raises:
        AnalysisIncomplete: a distance overflows.
    """
    m = len(space)
    outside, weights = space.rows[1:].copy(), multiplicity[1:].astype(np.float64)
    nearest, lengths = np.full(m - 1, np.inf), np.empty(m - 1)
    row, weight, total = space.rows[:1].copy(), float(multiplicity[0]), 0.0
    for step, left in enumerate(range(m - 1, 0, -1)):
        distances = space.between(row, outside[:left])[0]
        total += weight * float(distances @ weights[:left])
        np.minimum(nearest[:left], distances, out=nearest[:left])
        new, last = int(nearest[:left].argmin()), left - 1
        lengths[step], weight = nearest[new], float(weights[new])
        row[0] = outside[new]
        outside[new], weights[new], nearest[new] = outside[last], weights[last], nearest[last]
    space.check(total)
    return SpanningTree(np.sort(lengths), _mean(total, multiplicity))


def mean_distance(space: Space, multiplicity: NDArray[np.int64]) -> float:
    """Mean distance over all pairs of the cloud, coinciding points included, in blocks of rows; 0.0 for one point.

    Raises:
        AnalysisIncomplete: a distance overflows.
    """
    m, weights, total = len(space), multiplicity.astype(np.float64), 0.0
    rows = max(1, BLOCK_CELLS // max(m, 1))
    for start in range(0, m, rows):
        some, rest = slice(start, start + rows), slice(start, None)
        distances = space.between(space.rows[some], space.rows[rest])
        inside = distances[:, : distances.shape[0]]
        inside[:] = np.triu(inside, 1)  # pairs inside the block appear twice in it
        total += float(weights[some] @ distances @ weights[rest])
    space.check(total)
    return _mean(total, multiplicity)


def _mean(total: float, multiplicity: NDArray[np.int64]) -> float:
    n = int(multiplicity.sum())
    return total / (n * (n - 1) / 2) if n > 1 else 0.0
