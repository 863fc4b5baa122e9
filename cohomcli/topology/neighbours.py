"""Which texts are each other's nearest neighbours: shared between layers, tracked over them, and how unevenly spread.

Neighbourhood overlap: Doimo, Glielmo, Ansuini, Laio, NeurIPS 2020 (arXiv:2007.03506).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from cohomcli.topology.measure import MEASURES, Measure
from cohomcli.topology.results import Array

NEIGHBOURS = 10


def nearest(square: Array, k: int) -> NDArray[np.int64]:
    """The k nearest other rows of every row of a distance matrix (n, n), (n, k), nearest first.

    Ties go to the earlier row, so that the result does not depend on a sorting algorithm. Needs 1 <= k < n.
    """
    hollow = square.copy()
    np.fill_diagonal(hollow, np.inf)
    order: NDArray[np.int64] = np.empty((len(hollow), k), dtype=np.int64)
    for row, lengths in enumerate(hollow):
        reach = lengths[np.argpartition(lengths, k - 1)[k - 1]]
        columns = np.flatnonzero(lengths <= reach)  # k of them, more where the k-th distance ties
        order[row] = columns[np.argsort(lengths[columns], kind="stable")][:k]
    return order


def neighbour_sets(x: Array, k: int = NEIGHBOURS) -> NDArray[np.bool_]:
    """Whether j is among the k nearest of i, (n, n); k is at most n - 1."""
    n = len(x)
    k = min(k, n - 1)
    sets = np.zeros((n, n), dtype=np.bool_)
    np.put_along_axis(sets, nearest(squareform(pdist(x)), k), True, axis=1)
    return sets


def neighbourhood_overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The mean share of the k nearest neighbours that a text keeps from one representation to the other.

    Two unrelated representations share k / (n - 1) on average.
    """
    return float(np.count_nonzero(a & b) / np.count_nonzero(a))


MEASURES.add(
    "neighbours",
    Measure(
        "neighbours",
        f"shared {NEIGHBOURS} neighbours",
        "similarity",
        partial(neighbour_sets, k=NEIGHBOURS),
        neighbourhood_overlap,
        "arXiv:2007.03506",
        0.0,
        1.0,
    ),
)
