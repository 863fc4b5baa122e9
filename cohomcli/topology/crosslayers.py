"""Every layer of one model against every layer of another: the matrix that shows which depths correspond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cohomcli.progress import Progress, silent
from cohomcli.topology.diagramdrift import diagram_drift
from cohomcli.topology.drift import DIAGRAMS, Subject
from cohomcli.topology.figures import MeasureKind
from cohomcli.topology.measure import representation
from cohomcli.topology.measures import MEASURES

STEP = "layers by layers"
MOST_PAIRS = 6
"""Pairs of analyses that get a matrix: a report with more would be a catalogue."""


@dataclass(frozen=True)
class CrossLayers:
    """`values[i][j]` is the `measure` between layer i of `row` and layer j of `against`; None where it is not defined.

    `matched[i]` is the layer of `against` that layer i of `row` is most like. `reason` says why there are no values.
    """

    row: int
    against: int
    measure: str
    kind: MeasureKind
    layers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    values: tuple[tuple[float | None, ...], ...] = ()
    matched: tuple[str | None, ...] = ()
    reason: str = ""


def cross_layers(
    subjects: Sequence[Subject], pairs: Sequence[tuple[int, int | None]], measure: str, progress: Progress = silent
) -> tuple[CrossLayers, ...]:
    """A matrix for the first `MOST_PAIRS` of the `pairs` (row, against), by any measure, bounded or not.

    Layers of different width and models of different depth, and of different pooling, can be compared: only the texts
    must be the same.

    Raises:
        AnalysisIncomplete: stored activations are not finite.
    """
    wanted = [(row, against) for row, against in pairs if against is not None][:MOST_PAIRS]
    found: list[CrossLayers] = []
    for row, against in wanted:
        progress(STEP, len(found), len(wanted))
        found.append(_matrix(subjects[row], subjects[against], measure))
    progress(STEP, len(wanted), len(wanted))
    return tuple(found)


def _matrix(one: Subject, other: Subject, measure: str) -> CrossLayers:
    kind: MeasureKind = "divergence" if measure == DIAGRAMS else MEASURES.get(measure).kind
    if one.sample != other.sample:
        return CrossLayers(one.row, other.row, measure, kind, reason="not the same texts")
    names, others = (tuple(layer.name for layer in subject.layers) for subject in (one, other))
    values = _diagrams(one, other) if measure == DIAGRAMS else _activations(one, other, measure)
    if not values:
        return CrossLayers(one.row, other.row, measure, kind, reason="a run keeps no activations")
    plain = tuple(tuple(value if math.isfinite(value) else None for value in row) for row in values)
    matched = tuple(_nearest(row, others, kind) for row in plain)
    return CrossLayers(one.row, other.row, measure, kind, names, others, plain, matched)


def _diagrams(one: Subject, other: Subject) -> list[list[float]]:
    return [[diagram_drift(first, second) for second in other.layers] for first in one.layers]


def _activations(one: Subject, other: Subject, measure: str) -> list[list[float]]:
    """The columns are prepared once, the rows one after another."""
    if one.activations is None or other.activations is None:
        return []
    chosen = MEASURES.get(measure)
    columns = [chosen.prepare(representation(other.activations.layer(layer.name))) for layer in other.layers]
    rows = (chosen.prepare(representation(one.activations.layer(layer.name))) for layer in one.layers)
    return [[chosen.compare(row, column) for column in columns] for row in rows]


def _nearest(row: Sequence[float | None], others: Sequence[str], kind: MeasureKind) -> str | None:
    known = [(value if kind == "divergence" else -value, at) for at, value in enumerate(row) if value is not None]
    return others[min(known)[1]] if known else None
