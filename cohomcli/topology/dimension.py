"""Intrinsic dimension of a cloud: from two neighbours, from k neighbours, and from how its spanning tree grows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from cohomcli.topology.results import Array

DISCARDED = 0.1
FEWEST_FOR_PH = 80
SIZES, REPLICATES, LARGEST = 8, 8, 512


def twonn(neighbours: Array, discarded: float = DISCARDED) -> float | None:
    """TwoNN (Facco, d'Errico, Rodriguez, Laio, Scientific Reports 7, 2017, arXiv:1803.06992).

    `neighbours` (n, k >= 2) holds the distances of each point to its nearest others, ascending. The ratio mu of the
    second to the first is Pareto distributed with exponent d, whatever the density; d is the slope through the origin
    of -log(1 - F(mu)) over log mu, without the largest `discarded` share of the ratios. Points whose nearest neighbour
    lies on them have no ratio. None when fewer than two ratios are left, or when all of them are 1.
    """
    if neighbours.shape[1] < 2:
        return None
    apart = neighbours[neighbours[:, 0] > 0]
    n = len(apart)
    kept = int(n * (1 - discarded))
    if kept < 2:
        return None
    x = np.log(np.sort(apart[:, 1] / apart[:, 0])[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / n)
    square = float(x @ x)
    return float(x @ y) / square if square > 0 else None


def mle(neighbours: Array) -> float | None:
    """Maximum likelihood over the k nearest neighbours (Levina, Bickel, NIPS 2004).

    Per point 1/d = mean of log(T_k / T_j) over j < k; over the points the inverses are averaged, as MacKay and
    Ghahramani (2005) showed they must be. Points with coinciding neighbours are left out. None when nothing is left.
    """
    if neighbours.shape[1] < 2:
        return None
    apart = neighbours[neighbours[:, 0] > 0]
    if len(apart) == 0:
        return None
    inverse = float(np.log(apart[:, -1:] / apart[:, :-1]).mean())
    return 1 / inverse if inverse > 0 else None


def persistent_homology_dimension(square: Array, seed: int = 0) -> float | None:
    """The H0 persistent-homology dimension of a distance matrix (n, n): Schweinhart 2020; Birdal et al., NeurIPS 2021
    (arXiv:2111.13171); Tulchinskii et al., NeurIPS 2023 (arXiv:2306.04723).

    The total H0 persistence of m points grows as m^(1 - 1/d). The slope of its logarithm over log m is fitted on
    `SIZES` sizes up to n/2, or `LARGEST` if that is less, from a quarter of it, the median of `REPLICATES` subsamples
    without replacement each. None below `FEWEST_FOR_PH` points, where the fit says nothing, and when points coincide.
    """
    n = len(square)
    if n < FEWEST_FOR_PH:
        return None
    rng = np.random.default_rng(seed)
    largest = min(n // 2, LARGEST)
    sizes = np.unique(np.geomspace(largest / 4, largest, SIZES).round().astype(int))
    totals = [np.median([_tree(square, rng.permutation(n)[:size]) for _ in range(REPLICATES)]) for size in sizes]
    if min(totals) <= 0:
        return None
    slope = float(np.polyfit(np.log(sizes), np.log(totals), 1)[0])
    return 1 / (1 - slope) if slope < 1 else None


def _tree(square: Array, rows: NDArray[np.int64]) -> float:
    condensed = squareform(square[np.ix_(rows, rows)], checks=False)
    return float(linkage(condensed, "single")[:, 2].sum())
