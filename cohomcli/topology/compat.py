"""The figures of ToDACoMM 0.1.0 from the same activations, artefacts included, for comparison with its results.

What differs from our own figures: the essential class counts as a bar of length max(birth) + 1 - birth, so every H0
total is one unit too long and not scale-covariant; PCA is a single-precision SVD; clouds above `max_points` are
silently subsampled. H0 counts are numbers of distinct points, not of finite bars.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from cohomcli.registry import Registry
from cohomcli.topology.persistence import rips
from cohomcli.topology.pointcloud import pairwise_distances
from cohomcli.topology.results import Array, Diagram


@dataclass(frozen=True)
class TodacommOptions:
    """The source system's settings, with the defaults of its pipeline; `pca` = 0 is its `None`."""

    pca: int = 50
    maxdim: int = 1
    metric: str = "euclidean"
    sampling: str = "uniform"
    max_points: int = 500
    seed: int = 42


def todacomm_figures(x: NDArray[Any], options: TodacommOptions, name: str = "points") -> dict[str, float]:
    """`H<k>_count`, `H<k>_total_persistence`, `H<k>_max_lifetime` of the (n, d) cloud `x`, as ToDACoMM gives them.

    Raises AnalysisIncomplete and UsageError like `pairwise_distances` and `rips`.
    """
    points = todacomm_pca(x, options.pca)
    if len(points) > options.max_points:
        points = SAMPLINGS.get(options.sampling)(points, options)
    distances = pairwise_distances(name, points.astype(np.float64), options.metric)
    return summarize_todacomm([as_bars(d) for d in rips(distances, options.maxdim)])


def todacomm_pca(x: NDArray[Any], k: int) -> NDArray[Any]:
    """Scores on the first k right singular vectors in the precision of `x`, returned as float32; `x` if d <= k."""
    if k == 0 or x.shape[1] <= k:
        return x
    centred = x - x.mean(axis=0, keepdims=True)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    scores: NDArray[np.float32] = (centred @ axes[:k].T).astype(np.float32)
    return scores


def as_bars(diagram: Diagram) -> Array:
    """All classes of a diagram as (k, 2) births and deaths, those that do not die with death infinity."""
    undying = np.concatenate([diagram.essential, diagram.censored])
    return np.concatenate([diagram.pairs, np.column_stack([undying, np.full_like(undying, np.inf)])])


def summarize_todacomm(diagrams: Sequence[Array]) -> dict[str, float]:
    """Count, summed and largest lifetime per dimension, an infinite death replaced by the largest birth + 1."""
    figures: dict[str, float] = {}
    for k, bars in enumerate(diagrams):
        births, deaths = bars.reshape(-1, 2).T
        deaths = np.where(np.isinf(deaths), births.max(initial=-np.inf) + 1.0, deaths)
        figures[f"H{k}_count"] = float(len(births))
        figures[f"H{k}_total_persistence"] = float(np.sum(deaths - births))
        figures[f"H{k}_max_lifetime"] = float(np.max(deaths - births, initial=0.0))
    return figures


def _uniform(points: NDArray[Any], options: TodacommOptions) -> NDArray[Any]:
    chosen = np.random.RandomState(options.seed).choice(len(points), size=options.max_points, replace=False)
    return points[chosen]


def _multiscale(points: NDArray[Any], options: TodacommOptions) -> NDArray[Any]:
    """Half of the points drawn uniformly, the rest evenly from the 50 nearest neighbours of 10 random centres."""
    rng = np.random.RandomState(options.seed)
    n_uniform = options.max_points // 2
    per_centre = (options.max_points - n_uniform) // 10
    parts = [points[rng.choice(len(points), size=n_uniform, replace=False)]]
    for centre in rng.choice(len(points), size=10, replace=False):
        nearest = np.argsort(cdist(points[[centre]], points)[0], kind="stable")[:50]
        parts.append(points[rng.choice(nearest, size=min(per_centre, len(nearest)), replace=False)])
    return np.unique(np.concatenate(parts), axis=0)


def _adaptive(points: NDArray[Any], options: TodacommOptions) -> NDArray[Any]:
    """Points drawn with probability proportional to one over the mean distance to the nearest neighbours."""
    k = min(20, len(points) // 10)
    neighbours = np.sort(cdist(points, points), axis=1)[:, 1:k]
    density = 1.0 / (neighbours.mean(axis=1) + 1e-8)
    rng = np.random.RandomState(options.seed)
    return points[rng.choice(len(points), size=options.max_points, replace=False, p=density / density.sum())]


Sampling = Callable[[NDArray[Any], TodacommOptions], NDArray[Any]]
SAMPLINGS = Registry("sampling")
SAMPLINGS.add("uniform", _uniform)
SAMPLINGS.add("multiscale", _multiscale)
SAMPLINGS.add("adaptive", _adaptive)
