"""Point clouds: validation, distinct rows, principal components and pairwise distances of one layer's activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.spatial.distance import pdist

from cohomcli.errors import AnalysisIncomplete
from cohomcli.registry import Registry
from cohomcli.topology.results import Array

# |u - v|^2 / 2 of two unit vectors that differ by rounding only (1 ulp per coordinate) is about eps^2 ~ 5e-32.
PARALLEL = 1e-30


@dataclass(frozen=True)
class PointCloud:
    """The distinct points of a layer, as analysed.

    `points` is (m, k) float64 without equal rows; row i stands for `multiplicity[i]` (m,) of the `n_points` given
    points. Coinciding points add only zero-length bars to a Vietoris-Rips diagram, so homology is computed on the
    distinct ones; `scale` counts them all.
    """

    points: Array
    multiplicity: NDArray[np.int64]
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
    """Accept a finite (n, d) array with n >= 1 and d >= 1.

    Raises:
        AnalysisIncomplete: wrong shape, no rows, or rows with NaN or infinity; names the layer and counts them.
    """
    if x.ndim != 2 or 0 in x.shape:
        raise AnalysisIncomplete(f"layer {name!r} is not a point cloud: shape {x.shape}, expected (points, width)")
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(x.sum(dtype=np.float64)):  # a finite sum has finite terms: one pass in the usual case
            return
    bad = int(np.count_nonzero(~np.isfinite(x).all(axis=1)))
    if bad:
        raise AnalysisIncomplete(
            f"layer {name!r}: {bad} of {len(x)} activation rows are not finite (NaN or infinity)",
            "look for overflow in the model, or leave the layer out with --layers",
        )


def distinct_rows(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The different rows of `x` (n, d) in order of first appearance, and how often each occurs (-0.0 equals 0.0)."""
    if len(np.unique(x[:, 0])) == len(x):  # different first coordinates: nothing more to compare
        return x, np.ones(len(x), dtype=np.int64)
    rows = np.ascontiguousarray(x) + x.dtype.type(0)
    first: dict[bytes, int] = {}
    group = np.fromiter((first.setdefault(row.tobytes(), len(first)) for row in rows), dtype=np.int64, count=len(rows))
    if len(first) == len(rows):
        return rows, np.ones(len(rows), dtype=np.int64)
    _, index = np.unique(group, return_index=True)
    return rows[index], np.bincount(group).astype(np.int64)


def principal_components(x: Array, weights: NDArray[np.int64], k: int) -> tuple[Array, float]:
    """Scores of `x` (m, d) on its first k principal axes, and the share of variance they keep.

    Row i counts `weights[i]` times. The eigenproblem is solved on the smaller of the (m, m) Gram and the (d, d)
    scatter matrix, in float64: with the condition number squared, a coordinate is known to about 1e-8 of the first
    singular value, far below the 6e-8 relative step of float32 activations on the points' norm. Needs
    1 <= k < min(m, d); deterministic for a given BLAS on one thread.
    """
    root = np.sqrt(weights, dtype=np.float64)[:, None]
    centred = x - (weights @ x) / weights.sum()
    centred *= root
    m, d = x.shape
    gram = centred @ centred.T if m <= d else centred.T @ centred
    total = float(np.trace(gram))
    values, vectors = eigh(gram, subset_by_index=(len(gram) - k, len(gram) - 1), overwrite_a=True, check_finite=False)
    values = np.clip(values[::-1], 0.0, None)
    vectors = vectors[:, ::-1]
    scores = vectors * np.sqrt(values) if m <= d else centred @ vectors
    return scores / root, min(float(values.sum()) / total, 1.0) if total > 0 else 1.0


def make_cloud(x: NDArray[Any], pca: int, metric: str = "euclidean") -> PointCloud:
    """The cloud of one layer, x (n, d) finite, reduced to `pca` principal components (0: keep the full width).

    m distinct points span at most m - 1 dimensions, so with m - 1 <= pca the projection is an isometry: it keeps all
    the variance and is skipped. PCA centres and rotates, which only Euclidean distances survive, so the other metrics
    are measured at full width.
    """
    rows, multiplicity = distinct_rows(x)
    points = rows.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", points, points))
    mean_norm = float(norms @ multiplicity) / len(x)
    m, d = points.shape
    reduced, explained = d, 1.0
    if metric == "euclidean" and 0 < pca < d:
        reduced = min(pca, m - 1)
        if pca < m - 1:
            points, explained = principal_components(points, multiplicity, pca)
    return PointCloud(points, multiplicity, len(x), d, reduced, explained, mean_norm)


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
    distances: Array = METRICS.get(metric)(name, points)
    if distances.size and not np.isfinite(distances.max()):
        raise AnalysisIncomplete(f"layer {name!r}: {metric} distances overflow float64", "rescale the activations")
    return distances


def _plain(scipy_name: str) -> Callable[[str, Array], Array]:
    """A metric that scipy computes and that is defined for every pair of rows."""

    def distances(name: str, points: Array) -> Array:
        condensed: Array = pdist(points, scipy_name)
        return condensed

    return distances


def _cosine(name: str, points: Array) -> Array:
    """1 - cos(u, v) = |u/|u| - v/|v||^2 / 2, which keeps its accuracy for nearly parallel rows."""
    return _angular(name, points, np.all(points == 0.0, axis=1), "cosine", "zero")


def _correlation(name: str, points: Array) -> Array:
    """1 - Pearson correlation of the rows: the cosine distance of the row-centred points."""
    constant = points.max(axis=1) == points.min(axis=1)
    return _angular(name, points - points.mean(axis=1, keepdims=True), constant, "correlation", "constant")


def _angular(name: str, rows: Array, undefined: NDArray[np.bool_], metric: str, what: str) -> Array:
    if undefined.any():
        raise AnalysisIncomplete(
            f"layer {name!r}: {int(undefined.sum())} of {len(rows)} distinct rows are {what}, "
            f"where the {metric} distance is undefined",
            "use --metric euclidean",
        )
    largest = np.abs(rows).max(axis=1, keepdims=True)  # divided out first: squares neither overflow nor underflow
    unit = rows / largest
    unit /= np.sqrt(np.einsum("ij,ij->i", unit, unit))[:, None]
    distances: Array = pdist(unit, "sqeuclidean") / 2.0
    distances[distances < PARALLEL] = 0.0
    return distances


METRICS = Registry("metric")
METRICS.add("euclidean", _plain("euclidean"))
METRICS.add("manhattan", _plain("cityblock"))
METRICS.add("chebyshev", _plain("chebyshev"))
METRICS.add("cosine", _cosine)
METRICS.add("correlation", _correlation)
