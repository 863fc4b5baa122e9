"""Point clouds: validation, distinct rows, reduction and pairwise distances of one layer's activations."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import AnalysisIncomplete
from cohomcli.topology.metrics import METRICS, space_of
from cohomcli.topology.pca import principal_components, row_blocks
from cohomcli.topology.results import Array

__all__ = ["METRICS", "PointCloud", "distinct_rows", "make_cloud", "pairwise_distances", "scale", "validate"]


@dataclass(frozen=True)
class PointCloud:
    """The distinct points of a layer, as analysed.

    `points` is (m, k) float64 without equal rows; row i stands for `multiplicity[i]` (m,) of the `n_points` given
    points, the first of which is row `first[i]` (m,) of what was given. Coinciding points add only zero-length bars to
    a Vietoris-Rips diagram, so homology is computed on the distinct ones; `scale` counts them all.
    """

    points: Array
    multiplicity: NDArray[np.int64]
    first: NDArray[np.int64]
    n_points: int
    ambient_dim: int
    pca_dim: int
    explained_variance: float
    mean_norm: float

    @property
    def n_distinct(self) -> int:
        """Number of pairwise different points."""
        return len(self.points)


def validate(name: str, x: NDArray[Any]) -> None:
    """Accept a finite (n, d) array with n >= 1 and d >= 1; it may be memory-mapped.

    Raises:
        AnalysisIncomplete: wrong shape, no rows, or rows with NaN or infinity; names the layer and counts them.
    """
    if x.ndim != 2 or 0 in x.shape:
        raise AnalysisIncomplete(f"layer {name!r} is not a point cloud: shape {x.shape}, expected (points, width)")
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(x.sum(dtype=np.float64)):  # a finite sum has finite terms: one pass in the usual case
            return
    bad = sum(int(np.count_nonzero(~np.isfinite(block).all(axis=1))) for _, block in row_blocks(x))
    if bad:
        raise AnalysisIncomplete(
            f"layer {name!r}: {bad} of {len(x)} activation rows are not finite (NaN or infinity)",
            "look for overflow in the model, or leave the layer out with --layers",
        )


def distinct_rows(x: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each different row of `x` (n, d) first appears, ascending, and how often it occurs (-0.0 equals 0.0).

    Rows are told apart by a 128-bit BLAKE2 digest, so that they need not be kept.
    """
    if len(np.unique(x[:, 0])) == len(x):  # different first coordinates: nothing more to compare
        return np.arange(len(x)), np.ones(len(x), dtype=np.int64)
    seen: dict[bytes, int] = {}
    group = np.empty(len(x), dtype=np.int64)
    for at, block in row_blocks(x):
        block += 0.0  # turns -0.0 into 0.0
        group[at] = [seen.setdefault(blake2b(row.tobytes(), digest_size=16).digest(), len(seen)) for row in block]
    _, first = np.unique(group, return_index=True)
    return first.astype(np.int64), np.bincount(group).astype(np.int64)


def make_cloud(x: NDArray[Any], pca: int, metric: str = "euclidean") -> PointCloud:
    """The cloud of one layer, x (n, d) finite, reduced to `pca` principal components (0: keep the full width).

    m distinct points span at most m - 1 dimensions, so with m - 1 <= pca the projection is an isometry: it keeps all
    the variance and is skipped. PCA centres and rotates, which only Euclidean distances survive, so the other metrics
    are measured at full width. Where PCA applies and m > d, `x` is read in blocks and may be larger than memory.
    """
    first, multiplicity = distinct_rows(x)
    rows = None if len(first) == len(x) else first
    m, d = len(first), x.shape[1]
    norms = np.concatenate([np.sqrt(np.einsum("ij,ij->i", block, block)) for _, block in row_blocks(x, rows)])
    reduced, explained = d, 1.0
    if metric == "euclidean" and 0 < pca < d:
        reduced = min(pca, m - 1)
    if reduced < d and pca < m - 1:
        points, explained = principal_components(x, multiplicity, pca, rows)
    else:
        points = np.array(x if rows is None else x[rows], dtype=np.float64)
    return PointCloud(points, multiplicity, first, len(x), d, reduced, explained, float(norms @ multiplicity) / len(x))


def scale(distances: Array, multiplicity: NDArray[np.int64]) -> float:
    """Mean pairwise distance over all pairs of the cloud, coinciding ones included; 0.0 for a single point.

    `distances` is the condensed float64 vector of the m distinct points, `multiplicity` (m,) their counts.
    """
    m, n = len(multiplicity), int(multiplicity.sum())
    if n < 2 or m < 2:
        return 0.0
    if m == n:
        return float(distances.mean())
    starts = np.cumsum([0, *range(m - 1, 0, -1)])
    weighted = (multiplicity[i] * (distances[starts[i] : starts[i + 1]] @ multiplicity[i + 1 :]) for i in range(m - 1))
    return float(sum(weighted)) / (n * (n - 1) / 2)


def pairwise_distances(name: str, points: Array, metric: str) -> Array:
    """Condensed distances, length m (m - 1) / 2 in scipy's pdist order, float64, of `points` (m, d).

    Raises:
        UsageError: unknown metric.
        AnalysisIncomplete: the metric is undefined for some row of layer `name`, or a distance overflows.
    """
    return space_of(name, points, metric).condensed()
