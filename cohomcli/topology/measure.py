"""What a measure between two representations of the same texts is: how it prepares one, how it compares two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.registry import Registry
from cohomcli.topology.figures import MeasureKind
from cohomcli.topology.results import Array

MEASURES = Registry("measure")


@dataclass(frozen=True)
class Measure:
    """A measure between two representations (n, d) and (n, d') of the same n texts, row i being text i.

    `prepare` does the work that depends on one representation alone, so that a matrix over L representations prepares L
    times and not L^2 times; `compare` takes two prepared ones. A "divergence" is 0 for equal representations and grows,
    a "similarity" is `high` for equal ones and falls. Values lie in [`low`, `high`]. A value that is not defined, as
    for points that all coincide, is NaN. `paper` is where the definition stands.
    """

    name: str
    title: str
    kind: MeasureKind
    prepare: Callable[[Array], Any]
    compare: Callable[[Any, Any], float]
    paper: str
    low: float = 0.0
    high: float = inf
    symmetric: bool = True
    same_texts: bool = True

    @property
    def bounded(self) -> bool:
        """Whether values of different texts and sample sizes share one scale."""
        return self.high < inf

    @property
    def of_itself(self) -> float:
        """The value between a representation and itself, where it is defined."""
        return self.high if self.kind == "similarity" else 0.0

    def __call__(self, x: ArrayLike, y: ArrayLike) -> float:
        """The measure between `x` (n, d) and `y` (n, d'), any real dtype.

        Raises:
            UsageError: the numbers of rows differ.
            AnalysisIncomplete: an array that is no finite (n, d) with n >= 2.
        """
        first, second = representation(x), representation(y)
        if len(first) != len(second):
            raise UsageError(
                f"{self.name} compares representations of the same texts, but these have {len(first)} and "
                f"{len(second)} rows"
            )
        return self.compare(self.prepare(first), self.prepare(second))


def representation(x: ArrayLike, name: str = "representation") -> Array:
    """`x` as a float64 (n, d) array.

    Raises:
        AnalysisIncomplete: wrong shape, fewer than two rows, or values that are not finite.
    """
    points = np.asarray(x, dtype=np.float64)
    if points.ndim != 2 or len(points) < 2 or points.shape[1] == 0:
        raise AnalysisIncomplete(f"{name!r} has shape {points.shape}: two rows or more of one width are needed")
    if not np.isfinite(points).all():
        raise AnalysisIncomplete(f"{name!r} has values that are not finite")
    return points
