"""Pairwise distances of a representation in units of their 0.9 quantile, as the RTD family compares them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform

from cohomcli.topology.results import Array

QUANTILE = 0.9


@dataclass(frozen=True)
class PairDistances:
    """Distances between the n rows of a representation.

    `condensed` is float64 in pdist order, divided by the 0.9 quantile of the whole (n, n) matrix, its zero diagonal
    included, as the authors of RTD do. Where that quantile is 0, the unit does not exist and `condensed` is all NaN.
    """

    n: int
    condensed: Array

    @property
    def defined(self) -> bool:
        """Whether the distances have a unit."""
        return not np.isnan(self.condensed[0])

    @property
    def square(self) -> Array:
        """The (n, n) matrix."""
        matrix: Array = squareform(self.condensed)
        return matrix

    @cached_property
    def tree_weight(self) -> float:
        """Weight of the minimum spanning tree; NaN without a unit."""
        return tree_weight(self.condensed)

    @cached_property
    def tree_edges(self) -> NDArray[np.int64]:
        """The edges of a minimum spanning tree, (n - 1,) positions in `condensed`, ascending."""
        return spanning_tree(self.square)

    @cached_property
    def merge_times(self) -> Array:
        """At which length each pair of rows comes to lie in one component; in pdist order."""
        merged: Array = cophenet(linkage(self.condensed, "single"))
        return merged


def pair_distances(x: Array) -> PairDistances:
    """Euclidean distances of `x` (n, d) in units of their 0.9 quantile."""
    condensed = pdist(x)
    unit = float(np.quantile(squareform(condensed), QUANTILE))
    return PairDistances(len(x), condensed / unit if unit > 0 else np.full_like(condensed, np.nan))


def tree_weight(condensed: Array) -> float:
    """Weight of the minimum spanning tree of a condensed distance vector: the sum of the single-linkage heights.

    NaN when the vector is NaN.
    """
    if np.isnan(condensed[0]):
        return float("nan")
    return float(linkage(condensed, "single")[:, 2].sum())


def spanning_tree(square: Array) -> NDArray[np.int64]:
    """Positions in pdist order of the edges of a minimum spanning tree of the complete graph `square` (n, n), sorted.

    Prim's algorithm on the dense matrix, O(n^2). Among edges of equal length the one that leads to the first row wins.
    """
    n = len(square)
    reach, parent = square[0].copy(), np.zeros(n, dtype=np.int64)
    reach[0] = np.inf
    edges = np.empty((n - 1, 2), dtype=np.int64)
    outside = np.ones(n, dtype=np.bool_)
    outside[0] = False
    for at in range(n - 1):
        new = int(np.argmin(reach))
        edges[at] = new, parent[new]
        outside[new] = False
        nearer = outside & (square[new] < reach)
        reach[nearer] = square[new, nearer]
        parent[nearer] = new
        reach[new] = np.inf
    low, high = edges.min(axis=1), edges.max(axis=1)
    return np.sort(low * (2 * n - low - 1) // 2 + high - low - 1)
