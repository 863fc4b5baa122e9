"""Principal components from a covariance that is accumulated over blocks of rows, so that the rows may lie on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from cohomcli.topology.results import Array

# A block of rows is converted to float64 at a time: 32 MiB. Its size is fixed, so that sums are always formed in the
# same order and activations read from disk give the numbers that the same ones in memory give.
BLOCK_CELLS = 2**22


def row_blocks(x: NDArray[Any], rows: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, Array]]:
    """Blocks of `x` (n, d), or of its rows `rows` (m,), as float64 copies with their positions in 0..m."""
    m = len(x) if rows is None else len(rows)
    size = max(1, BLOCK_CELLS // x.shape[1])
    for start in range(0, m, size):
        at = slice(start, min(start + size, m))
        yield at, np.array(x[at] if rows is None else x[rows[at]], dtype=np.float64)


def principal_components(
    x: NDArray[Any], weights: NDArray[np.int64], k: int, rows: NDArray[np.int64] | None = None
) -> tuple[Array, float]:
    """Scores (m, k) float64 of the rows `rows` of `x` (all of them: None) on their first k principal axes, and the
    share of variance they keep.

    Row i counts `weights[i]` times. The eigenproblem is solved on the smaller of the (m, m) Gram and the (d, d)
    scatter matrix, in float64: with the condition number squared, a coordinate is known to about 1e-8 of the first
    singular value, far below the 6e-8 relative step of float32 activations on the points' norm. Needs
    1 <= k < min(m, d); deterministic for a given BLAS on one thread. Memory beyond the result: 16 min(m, d)^2 bytes
    and one block of rows, or all of them where m <= d.
    """
    mean = sum(weights[at] @ block for at, block in row_blocks(x, rows)) / weights.sum()
    if len(weights) <= x.shape[1]:
        return _from_gram(np.concatenate([block for _, block in row_blocks(x, rows)]), mean, weights, k)
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for at, block in row_blocks(x, rows):
        block -= mean
        block *= np.sqrt(weights[at], dtype=np.float64)[:, None]
        scatter += block.T @ block
    vectors, _, explained = _leading(scatter, k)
    scores = np.empty((len(weights), k))
    for at, block in row_blocks(x, rows):
        scores[at] = (block - mean) @ vectors
    return scores, explained


def _from_gram(points: Array, mean: Array, weights: NDArray[np.int64], k: int) -> tuple[Array, float]:
    root = np.sqrt(weights, dtype=np.float64)[:, None]
    points -= mean
    points *= root
    vectors, values, explained = _leading(points @ points.T, k)
    return vectors * np.sqrt(values) / root, explained


def _leading(matrix: Array, k: int) -> tuple[Array, Array, float]:
    """Vectors (columns) and values of the k largest eigenvalues of a positive semi-definite `matrix`; their share."""
    total, size = float(np.trace(matrix)), len(matrix)
    values, vectors = eigh(matrix, subset_by_index=(size - k, size - 1), overwrite_a=True, check_finite=False)
    values = np.clip(values[::-1], 0.0, None)
    return vectors[:, ::-1], values, min(float(values.sum()) / total, 1.0) if total > 0 else 1.0
