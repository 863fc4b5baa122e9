"""Tables of what was asked for beside the diagrams: the texts of the longest loops, and landmarks with their error."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.report.document import Column, Table
from cohomcli.report.layers import summary_of
from cohomcli.report.names import clean, number
from cohomcli.results import Entry
from cohomcli.topology.results import LayerTopology, Loop

EXCERPT = 60
LISTED = 12


def asked_tables(entry: Entry) -> list[Table]:
    """The tables of loops, landmarks and thresholds that `entry` has."""
    layers = entry.topology.layers if entry.topology else ()
    texts = entry.sample.texts if entry.sample else ()
    tables = []
    if any(layer.loops for layer in layers):
        tables.append(_loop_table(layers, texts))
    if any(layer.n_landmarks for layer in layers):
        tables.append(_landmark_table([layer for layer in layers if layer.n_landmarks]))
    if any(layer.threshold is not None for layer in layers):
        tables.append(_threshold_table([layer for layer in layers if layer.threshold is not None]))
    return tables


def _loop_table(layers: Sequence[LayerTopology], texts: Sequence[str]) -> Table:
    columns = (
        Column("layer", "in forward order", numeric=False),
        Column("born", "when the loop closes"),
        Column("dies", "when it is filled"),
        Column("lifetime / scale", "death minus birth, divided by the layer's scale"),
        Column("texts", "on the loop"),
        Column("along the loop", "number and beginning of every text", numeric=False, prose=True),
    )
    rows = tuple(
        (
            clean(layer.name, 60),
            number(loop.birth, zeros=True),
            number(loop.death, zeros=True),
            number((loop.death - loop.birth) / layer.scale, 3, zeros=True),
            f"{len(loop.points):,}",
            _along(loop, texts),
        )
        for layer in layers
        for loop in layer.loops
    )
    note = (
        "The longest H1 bars of every layer, each with one cycle of texts that appears with the bar and is filled when "
        "it dies. Other cycles can represent the same bar. Numbers count the analysed texts from 0; of equal points "
        "the first text is named. tables/loops.csv has the whole texts."
    )
    return Table("Texts of the longest loops", columns, rows, note)


def _along(loop: Loop, texts: Sequence[str]) -> str:
    shown = [f"{i}: {clean(texts[i], EXCERPT)}" if i < len(texts) else str(i) for i in loop.points[:LISTED]]
    rest = [f"and {len(loop.points) - LISTED} more"] if len(loop.points) > LISTED else []
    return " | ".join([*shown, *rest]) + ("" if loop.closed else " (several closed paths)")


def _landmark_table(layers: Sequence[LayerTopology]) -> Table:
    top = max((summary.dimension for layer in layers for summary in layer.summaries), default=0)
    columns = (
        Column("layer", "in forward order", numeric=False),
        Column("landmarks", "points analysed"),
        Column("of", "distinct points"),
        Column("covering radius", "every point has a landmark so near"),
        Column("guaranteed error", "no bar end is further from that of the whole cloud"),
        *(Column(f"H{k} longest", "longest finite lifetime") for k in range(top + 1)),
    )
    rows = tuple(
        (
            clean(layer.name, 60),
            f"{layer.n_landmarks:,}",
            f"{layer.n_distinct:,}",
            number(layer.covering_radius, zeros=True),
            number(layer.diagram_error, zeros=True),
            *(number(s.max_lifetime if (s := summary_of(layer, k)) else None, zeros=True) for k in range(top + 1)),
        )
        for layer in layers
    )
    note = (
        "Bottleneck distance between these diagrams and those of all points, at most twice the covering radius. A bar "
        "that lives no longer than twice the guaranteed error may be absent from the whole cloud, and the other way "
        "round."
    )
    return Table("Landmarks and their guaranteed error", columns, rows, note)


def _threshold_table(layers: Sequence[LayerTopology]) -> Table:
    dimensions = sorted({summary.dimension for layer in layers for summary in layer.summaries})
    columns = (
        Column("layer", "in forward order", numeric=False),
        Column("threshold", "length at which the filtration ends"),
        *(Column(f"H{k} {kind}", meaning) for k in dimensions for kind, meaning in _KINDS),
    )
    rows = []
    for layer in layers:
        cells = [clean(layer.name, 60), number(layer.threshold, zeros=True)]
        for k in dimensions:
            summary = summary_of(layer, k)
            cells += [f"{summary.count:,}", f"{summary.censored:,}", f"{summary.essential:,}"] if summary else [""] * 3
        rows.append(tuple(cells))
    return Table("Classes at the threshold", columns, tuple(rows))


_KINDS = (
    ("finite", "bars that die below the threshold"),
    ("censored", "classes alive at the threshold: when they die is not known"),
    ("essential", "classes that never die, whatever the threshold"),
)
