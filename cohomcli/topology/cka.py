"""Centred kernel alignment: how far the similarities between texts agree in two representations.

Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019 (arXiv:1905.00414).
The debiased version takes the unbiased HSIC of Song et al. (JMLR 13, 2012), as Nguyen, Raghu, Kornblith (ICLR 2021,
arXiv:2010.15327) do: with few texts the plain one is near 1 for unrelated wide representations.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist, squareform

from cohomcli.topology.measure import MEASURES, Measure
from cohomcli.topology.results import Array

BANDWIDTH = 1.0
"""Width of the Gaussian kernel in units of the median distance, the default of Kornblith et al.'s code."""

PARALLEL = 1e-20
"""Relative squared size below which what centring leaves of a kernel matrix is rounding."""


def linear_kernel(x: Array) -> Array:
    """X X^T of the centred `x` (n, d), (n, n)."""
    centred = x - x.mean(axis=0)
    kernel: Array = centred @ centred.T
    return kernel


def rbf_kernel(x: Array, bandwidth: float = BANDWIDTH) -> Array:
    """exp(-|x_i - x_j|^2 / (2 s^2)) with s^2 = `bandwidth`^2 times the median entry of the matrix of |x_i - x_j|^2."""
    squares = squareform(pdist(x, "sqeuclidean"))
    unit = float(np.median(squares))
    kernel: Array = np.exp(-squares / (2 * bandwidth**2 * unit)) if unit > 0 else np.full_like(squares, np.nan)
    return kernel


def centred(kernel: Array) -> Array:
    """H K H of norm 1, with H = I - 1/n: the inner product of two of these is CKA. NaN where nothing is left of K."""
    rows = kernel.mean(axis=1, keepdims=True)
    return _unit(kernel - rows - rows.T + rows.mean(), kernel)


def u_centred(kernel: Array) -> Array:
    """The U-centred kernel of norm 1, whose inner products are unbiased (Szekely, Rizzo 2014, equation 2.1).

    Zero diagonal; for i != j, K_ij - (K_i. + K_.j) / (n - 2) + K_.. / ((n - 1)(n - 2)), sums without the diagonal.
    NaN for fewer than 4 rows, and where nothing is left of K.
    """
    n = len(kernel)
    if n < 4:
        return np.full_like(kernel, np.nan)
    hollow = kernel.copy()
    np.fill_diagonal(hollow, 0.0)
    rows = hollow.sum(axis=1, keepdims=True)
    result = hollow - (rows + rows.T) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(result, 0.0)
    return _unit(result, kernel)


def _unit(matrix: Array, kernel: Array) -> Array:
    square, whole = float(np.vdot(matrix, matrix)), float(np.vdot(kernel, kernel))
    return matrix / np.sqrt(square) if square > PARALLEL * whole else np.full_like(matrix, np.nan)


def cka(a: Array, b: Array) -> float:
    """<A, B> of two centred kernels of norm 1."""
    return float(np.clip(np.vdot(a, b), -1.0, 1.0))


def linear_cka_kernel(x: Array) -> Array:
    """What linear CKA compares."""
    return centred(linear_kernel(x))


def debiased_cka_kernel(x: Array) -> Array:
    """What debiased linear CKA compares."""
    return u_centred(linear_kernel(x))


def rbf_cka_kernel(x: Array) -> Array:
    """What CKA with a Gaussian kernel compares."""
    return centred(rbf_kernel(x))


_PLAIN, _DEBIASED = "arXiv:1905.00414", "arXiv:2010.15327"
for _measure in (
    Measure("cka", "linear CKA", "similarity", linear_cka_kernel, cka, _PLAIN, 0.0, 1.0),
    Measure("cka-rbf", "RBF CKA", "similarity", rbf_cka_kernel, cka, _PLAIN, 0.0, 1.0),
    Measure("cka-debiased", "debiased CKA", "similarity", debiased_cka_kernel, cka, _DEBIASED, -1.0, 1.0),
):
    MEASURES.add(_measure.name, _measure)
