"""The geometry of one layer beside its homology: intrinsic dimension, hubs, direction and spread of its activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.dimension import mle, persistent_homology_dimension, twonn
from cohomcli.topology.figures import Geometry
from cohomcli.topology.neighbours import nearest
from cohomcli.topology.pointcloud import distinct_rows
from cohomcli.topology.results import Array

NEIGHBOURS_MLE, NEIGHBOURS_HUBS = 20, 10
MOST_POINTS = 2_000
"""The work grows with the square of the number of points, the precision of these figures with its root."""


def geometry_of(x: NDArray[Any], seed: int = 0) -> Geometry:
    """The figures of activations `x` (n, d), finite; `seed` draws the points and the subsamples of `ph_dimension`.

    References: `dimension.py`; hubness, Radovanovic, Nanopoulos, Ivanovic, JMLR 11, 2010; mean cosine, Ethayarajh,
    EMNLP 2019 (arXiv:1909.00512); participation ratio, Gao et al. 2017; effective rank, Roy, Vetterli, EUSIPCO 2007.
    """
    everything = _drawn(x, seed)
    spectrum = covariance_spectrum(everything)
    points = everything[distinct_rows(everything)[0]]
    square = fast_distances(points)
    n = len(points)
    near = nearest(square, min(NEIGHBOURS_MLE, n - 1)) if n > 1 else np.zeros((n, 0), dtype=np.int64)
    lengths = exact_lengths(points, near)
    return Geometry(
        n_points=len(everything),
        twonn=twonn(lengths),
        mle=mle(lengths),
        ph_dimension=persistent_homology_dimension(square, seed),
        hubness=hubness(near[:, :NEIGHBOURS_HUBS]),
        mean_cosine=mean_cosine(everything),
        participation_ratio=participation_ratio(spectrum),
        effective_rank=effective_rank(spectrum),
    )


def _drawn(x: NDArray[Any], seed: int) -> Array:
    """At most `MOST_POINTS` rows of `x`, in order, as float64."""
    if len(x) <= MOST_POINTS:
        return np.array(x, dtype=np.float64)
    rows = np.random.default_rng(seed).choice(len(x), MOST_POINTS, replace=False)
    return np.array(x[np.sort(rows)], dtype=np.float64)


def fast_distances(points: Array) -> Array:
    """Euclidean distances (n, n) through one matrix product: accurate to about 1e-8 of the centred points' norm.

    Enough to rank neighbours; `exact_lengths` measures those that count.
    """
    centred = points - points.mean(axis=0)
    gram = centred @ centred.T
    norms = np.diag(gram)
    squares = norms[:, None] + norms - 2 * gram
    np.fill_diagonal(squares, 0.0)
    lengths: Array = np.sqrt(np.maximum(squares, 0.0))
    return lengths


def exact_lengths(points: Array, near: NDArray[np.int64]) -> Array:
    """Distances of each point to the rows `near` (n, k), by differences, ascending."""
    lengths = np.empty(near.shape)
    for row, columns in enumerate(near):
        apart = points[columns] - points[row]
        lengths[row] = np.sqrt(np.einsum("ij,ij->i", apart, apart))
    lengths.sort(axis=1)
    return lengths


def hubness(near: NDArray[np.int64]) -> float | None:
    """Skewness E[(N - mean)^3] / sd^3 of the k-occurrences N of n points, `near` (n, k) their neighbours.

    None when there are no neighbours; 0 when every point is the neighbour of equally many.
    """
    if near.size == 0:
        return None
    occurrences = np.bincount(near.ravel(), minlength=len(near)).astype(np.float64)
    centred = occurrences - occurrences.mean()
    variance = float((centred**2).mean())
    return float((centred**3).mean()) / variance**1.5 if variance > 0 else 0.0


def mean_cosine(x: Array) -> float | None:
    """Mean cosine over all pairs of different rows of `x` (n, d): (|sum of unit rows|^2 - n) / (n (n - 1)).

    None for a single row, and where a row is zero.
    """
    n = len(x)
    largest = np.abs(x).max(axis=1, keepdims=True)
    if n < 2 or not largest.all():
        return None
    unit = x / largest  # first, so that no square overflows
    unit /= np.sqrt(np.einsum("ij,ij->i", unit, unit))[:, None]
    total = unit.sum(axis=0)
    return float(np.clip((total @ total - n) / (n * (n - 1)), -1.0, 1.0))


def covariance_spectrum(x: Array) -> Array:
    """Eigenvalues of the scatter matrix of the centred `x` (n, d), descending, of the smaller of its two forms."""
    centred = x - x.mean(axis=0)
    scale = float(np.abs(centred).max(initial=0.0))
    if scale > 0:
        centred /= scale  # first, so that no square overflows
    n, d = x.shape
    gram = centred @ centred.T if n <= d else centred.T @ centred
    values: Array = np.linalg.eigvalsh(gram)[::-1]
    return np.where(values > values[0] * max(n, d) * np.finfo(np.float64).eps, values, 0.0) * scale**2


def participation_ratio(spectrum: Array) -> float | None:
    """(sum of eigenvalues)^2 / sum of their squares: k for k equal ones; None when all are zero."""
    total = float(spectrum.sum())
    shares = spectrum / total if total > 0 else spectrum
    return 1 / float(shares @ shares) if total > 0 else None


def effective_rank(spectrum: Array) -> float | None:
    """exp of the entropy of the singular values' shares, sqrt(eigenvalue) / sum; None when all are zero."""
    values = np.sqrt(spectrum[spectrum > 0])
    if len(values) == 0:
        return None
    shares = values / values.sum()
    return float(np.exp(-(shares @ np.log(shares))))
