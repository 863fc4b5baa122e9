"""Rank over the rationals by schoolbook elimination: the slow truth that the precision tests compare with."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def fraction_rank(matrix: np.ndarray) -> int:
    """Rank over Q by schoolbook elimination in rationals."""
    rows = [[Fraction(x) for x in row] for row in matrix.tolist()]
    rank = 0
    for column in range(matrix.shape[1]):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            if rows[i][column]:
                factor = rows[i][column] / rows[rank][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank
