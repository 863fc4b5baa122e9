"""Metrics of point clouds: each is a kernel of scipy on suitably prepared rows, for all pairs or for some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

from cohomcli.errors import AnalysisIncomplete
from cohomcli.registry import Registry
from cohomcli.topology.results import Array

# |u - v|^2 / 2 of two unit vectors that differ by rounding only (1 ulp per coordinate) is about eps^2 ~ 5e-32.
PARALLEL = 1e-30
ANGULAR = ("cosine", "correlation")


@dataclass(frozen=True)
class Space:
    """Prepared rows (m, k) float64 of one layer with the kernel that measures them.

    `condensed` and `between` give the same float64 value for the same two rows.
    """

    layer: str
    metric: str
    rows: Array
    kernel: str
    angular: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def condensed(self) -> Array:
        """All distances, length m (m - 1) / 2 in scipy's pdist order. Raises AnalysisIncomplete if one overflows."""
        distances = self._finished(pdist(self.rows, self.kernel))
        self.check(float(distances.max(initial=0.0)))
        return distances

    def between(self, some: Array, others: Array) -> Array:
        """Distances (a, b) from the prepared rows `some` (a, k) to `others` (b, k)."""
        return self._finished(cdist(some, others, self.kernel))

    def check(self, largest: float) -> None:
        """Refuse a cloud with a distance that is not finite."""
        if not np.isfinite(largest):
            raise AnalysisIncomplete(
                f"layer {self.layer!r}: {self.metric} distances overflow float64", "rescale the activations"
            )

    def _finished(self, distances: Array) -> Array:
        if self.angular:  # squared chords of unit vectors
            distances /= 2.0
            distances[distances < PARALLEL] = 0.0
        return distances


def _plain(kernel: str) -> Callable[[str, Array], Space]:
    """A metric that scipy computes and that is defined for every pair of rows."""

    def space(layer: str, points: Array) -> Space:
        return Space(layer, kernel, points, kernel)

    return space


def _cosine(layer: str, points: Array) -> Space:
    """1 - cos(u, v) = |u/|u| - v/|v||^2 / 2, which keeps its accuracy for nearly parallel rows."""
    return _angular(layer, points, np.all(points == 0.0, axis=1), "cosine", "zero")


def _correlation(layer: str, points: Array) -> Space:
    """1 - Pearson correlation of the rows: the cosine distance of the row-centred points."""
    constant = points.max(axis=1) == points.min(axis=1)
    return _angular(layer, points - points.mean(axis=1, keepdims=True), constant, "correlation", "constant")


def _angular(layer: str, rows: Array, undefined: NDArray[np.bool_], metric: str, what: str) -> Space:
    if undefined.any():
        raise AnalysisIncomplete(
            f"layer {layer!r}: {int(undefined.sum())} of {len(rows)} distinct rows are {what}, "
            f"where the {metric} distance is undefined",
            "use --metric euclidean",
        )
    largest = np.abs(rows).max(axis=1, keepdims=True)  # divided out first: squares neither overflow nor underflow
    unit = rows / largest
    unit /= np.sqrt(np.einsum("ij,ij->i", unit, unit))[:, None]
    return Space(layer, metric, unit, "sqeuclidean", angular=True)


METRICS = Registry("metric")
METRICS.add("euclidean", _plain("euclidean"))
METRICS.add("manhattan", _plain("cityblock"))
METRICS.add("chebyshev", _plain("chebyshev"))
METRICS.add("cosine", _cosine)
METRICS.add("correlation", _correlation)


def space_of(layer: str, points: Array, metric: str) -> Space:
    """`points` (m, d) float64 prepared for `metric`.

    Raises:
        UsageError: unknown metric.
        AnalysisIncomplete: the metric is undefined for some row of `layer`.
    """
    space: Space = METRICS.get(metric)(layer, points)
    return space
