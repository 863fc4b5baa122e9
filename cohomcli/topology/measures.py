"""The door to measures between representations and between diagrams, by name, and matrices of them.

`MEASURES` maps a name to a `Measure`: `measure(x, y) -> float` on activations (n, d) and (n, d') of the same n texts.
`DIAGRAM_DISTANCES` maps a name to a function `(Diagram, Diagram) -> float`, inf when no matching exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.progress import Progress, silent

# importing a file of measures registers what it holds
from cohomcli.topology import cca, cka, neighbours, rtd, spanning  # noqa: F401
from cohomcli.topology.distances import DIAGRAM_DISTANCES
from cohomcli.topology.measure import MEASURES, Measure, representation
from cohomcli.topology.results import Array

__all__ = ["DIAGRAM_DISTANCES", "MEASURES", "Measure", "MeasureMatrix", "representation_distances"]

STEP = "similarity"


@dataclass(frozen=True)
class MeasureMatrix:
    """`values[i, j]` is the measure between representations `names[i]` and `names[j]`, NaN where it is not defined."""

    measure: str
    names: tuple[str, ...]
    values: Array


def representation_distances(
    layers: Mapping[str, ArrayLike],
    measures: Sequence[str],
    progress: Progress = silent,
    available_bytes: int | None = None,
) -> dict[str, MeasureMatrix]:
    """Every named measure between every two of the representations, (n, d_i) arrays of the same n texts.

    Raises:
        UsageError: an unknown measure, or representations of different numbers of texts.
        AnalysisIncomplete: an array that is no finite (n, d) with n >= 2, or too little memory.
    """
    wanted: list[Measure] = [MEASURES.get(name) for name in measures]
    sizes = {name: len(np.asarray(x)) for name, x in layers.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"measures compare representations of the same texts, but these differ in size: {sizes}")
    _check_memory(len(layers), max(sizes.values(), default=0), available_bytes)
    matrices, steps = {}, len(wanted) * len(layers)
    for at, measure in enumerate(wanted):
        prepared = [measure.prepare(representation(x, name)) for name, x in layers.items()]
        values = np.empty((len(layers), len(layers)))
        for row in range(len(layers)):
            progress(STEP, at * len(layers) + row, steps)
            _fill_row(values, row, measure, prepared)
        matrices[measure.name] = MeasureMatrix(measure.name, tuple(layers), values)
    progress(STEP, steps, steps)
    return matrices


def _check_memory(n_layers: int, n: int, available: int | None) -> None:
    """A prepared layer holds at most an (n, n) float64 matrix; the cone of a pair under RTD takes about 15 of them."""
    needed = 8 * n**2 * (n_layers + 15)
    if available is not None and needed > available:
        raise AnalysisIncomplete(
            f"a similarity matrix over {n_layers} layers of {n} texts needs about {needed / 2**30:.1f} GiB, "
            f"{available / 2**30:.1f} GiB are free",
            "analyse fewer texts, or choose layers with --layers",
        )


def _fill_row(values: Array, row: int, measure: Measure, prepared: Sequence[Any]) -> None:
    """Row `row`, and of a symmetric measure its column: only the pairs from the diagonal on are measured."""
    for column in range(row if measure.symmetric else 0, len(prepared)):
        values[row, column] = measure.compare(prepared[row], prepared[column])
        if measure.symmetric:
            values[column, row] = values[row, column]
