"""Factors and inverses of positive definite matrices in their own memory: a Gram is the largest thing here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from cohomcli.errors import AnalysisIncomplete

_TILE = 512


def invert(matrix: Tensor) -> Tensor:
    """Replace the symmetric `matrix` (n, n), contiguous float32 or float64 on the CPU, by its inverse; returns it.

    Raises:
        AnalysisIncomplete: it is not positive definite.
    """
    potrf, potri = _lapack(matrix, "potrf", "potri")
    columns = matrix.numpy().T  # what LAPACK, which counts by columns, takes in place; the matrix is symmetric
    with _one_thread():
        _, info = potrf(columns, lower=1, overwrite_a=1, clean=0)
        _refuse(info)
        _, info = potri(columns, lower=1, overwrite_c=1)
    _refuse(info)
    for start in range(0, len(matrix), _TILE):  # LAPACK wrote one triangle
        end = start + _TILE
        tile = matrix[start:end, start:end]
        tile.copy_(tile.triu() + tile.triu(1).T)
        matrix[end:, start:end] = matrix[start:end, end:].T
    return matrix


def upper_factor(matrix: Tensor) -> Tensor:
    """Replace the symmetric `matrix` (n, n) by U, upper triangular, with U^T U the matrix; returns it.

    Raises:
        AnalysisIncomplete: it is not positive definite.
    """
    (potrf,) = _lapack(matrix, "potrf")
    with _one_thread():
        _, info = potrf(matrix.numpy().T, lower=1, overwrite_a=1, clean=1)  # by rows its L is U
    _refuse(info)
    return matrix


def _lapack(matrix: Tensor, *names: str) -> Any:
    from scipy.linalg import get_lapack_funcs

    return get_lapack_funcs(names, (matrix.numpy(),))


def _one_thread() -> AbstractContextManager[Any]:
    """OpenBLAS keeps some 32 MiB for every thread it ever used, and rounds otherwise with another number of them."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _refuse(info: int) -> None:
    if info != 0:
        raise AnalysisIncomplete("the Gram of the calibration data is not positive definite", "give other texts")
