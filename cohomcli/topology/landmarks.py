"""Landmarks: a few points of a cloud, chosen by maxmin, and how far their diagrams can be from the whole cloud's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.metrics import Space


@dataclass(frozen=True)
class Landmarks:
    """`indices` (k,) of the chosen rows in the order they were chosen; every row is within `radius` of one of them."""

    indices: NDArray[np.int64]
    radius: float

    @property
    def diagram_error(self) -> float:
        """Upper bound of the bottleneck distance between the diagrams on the landmarks and on the whole cloud.

        d_B <= 2 d_GH <= 2 d_H = 2 radius for Vietoris-Rips filtrations by diameter, every dimension (Chazal, de Silva,
        Oudot 2014, theorem 5.2). It needs a metric: cosine and correlation distances break the triangle inequality.
        """
        return 2.0 * self.radius


def maxmin(space: Space, k: int) -> Landmarks:
    """`k` landmarks of `space`, the first row first, then always the row farthest from those chosen (Gonzalez 1985).

    The radius is at most twice the best that k landmarks can have. O(k m) time, O(m) memory; 1 <= k <= len(space).
    """
    nearest = np.full(len(space), np.inf)
    indices = np.zeros(k, dtype=np.int64)
    for at in range(k):
        if at:
            indices[at] = int(nearest.argmax())
        chosen = space.rows[indices[at] : indices[at] + 1]
        np.minimum(nearest, space.between(chosen, space.rows)[0], out=nearest)
    return Landmarks(indices, float(nearest.max()))
