"""Tables of what was measured beside homology: geometry, tracking and attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean, number, percent
from cohomcli.results import Entry
from cohomcli.topology.figures import AttentionTopology, Geometry, HeadTopology, LayerTracking
from cohomcli.topology.results import LayerTopology

GEOMETRY: dict[str, str] = {
    "twonn": "intrinsic dimension by the two nearest neighbours",
    "mle": "intrinsic dimension by 20 neighbours, maximum likelihood",
    "ph_dimension": "intrinsic dimension by the growth of H0 persistence",
    "hubness": "skewness of how often a text is among the 10 nearest neighbours of others",
    "mean_cosine": "mean cosine between two texts",
    "participation_ratio": "directions that carry the variance",
    "effective_rank": "exponential entropy of the singular values",
}
HEADINGS = {
    "twonn": "TwoNN",
    "mle": "MLE",
    "ph_dimension": "PH dimension",
    "hubness": "hubness",
    "mean_cosine": "mean cosine",
    "participation_ratio": "participation ratio",
    "effective_rank": "effective rank",
}


def representation_tables(entry: Entry) -> list[Table]:
    """The tables of one entry, in reading order; none where nothing was measured."""
    tables = []
    if entry.topology is not None and any(layer.geometry for layer in entry.topology.layers):
        tables.append(geometry_table(entry.topology.layers))
    if entry.representation is not None and entry.representation.tracking is not None:
        tables.append(tracking_table(entry.representation.tracking))
    if entry.representation is not None and entry.representation.attention is not None:
        tables.append(attention_table(entry.representation.attention))
    return tables


def geometry_table(layers: Sequence[LayerTopology]) -> Table:
    """Intrinsic dimension, hubness, direction and spread of every layer."""
    columns = (
        Column("layer", "in forward order", numeric=False),
        *(Column(HEADINGS[key], text) for key, text in GEOMETRY.items()),
    )
    rows = tuple((clean(layer.name, 60), *_geometry_cells(layer.geometry)) for layer in layers)
    n = max((layer.geometry.n_points for layer in layers if layer.geometry), default=0)
    note = (
        f"Of {n:,} texts at full width, before PCA. Three estimates of the intrinsic dimension: they agree where the "
        "points fill a smooth shape evenly, and fall short of large dimensions."
    )
    return Table("Geometry", columns, rows, note)


def _geometry_cells(geometry: Geometry | None) -> tuple[str, ...]:
    if geometry is None:
        return (DASH,) * len(GEOMETRY)
    return tuple(number(getattr(geometry, key), 3, zeros=True) for key in GEOMETRY)


def tracking_table(tracking: LayerTracking) -> Table:
    """Classes alive, born and dying at every layer, and neighbours kept to the next."""
    columns = [Column("layer", "in forward order", numeric=False)]
    for tracked in tracking.dimensions:
        columns += [
            Column(f"H{tracked.dimension} alive", "classes of the neighbour graph's clique complex"),
            Column(f"H{tracked.dimension} born", "that the layer before did not have"),
            Column(f"H{tracked.dimension} last seen", "that the next layer does not have"),
        ]
    columns.append(Column("neighbours kept", "share of its neighbours that a text keeps to the next layer"))
    rows = []
    for at, name in enumerate(tracking.layers):
        counts = [f"{count:,}" for t in tracking.dimensions for count in (t.alive[at], t.born[at], t.died[at])]
        kept = percent(tracking.kept[at], zeros=True) if at < len(tracking.kept) else DASH
        rows.append((clean(name, 60), *counts, kept))
    lives = ", ".join(
        f"H{t.dimension} {number(t.mean_life, 3)}" for t in tracking.dimensions if t.mean_life is not None
    )
    note = (
        f"Zigzag persistence of the graphs that join each of {tracking.n_texts:,} texts to its {tracking.neighbours} "
        f"nearest neighbours, with their triangles. Mean life in layers: {lives or 'nothing lives'}."
    )
    return Table("Tracked over the layers", tuple(columns), tuple(rows), note)


ATTENTION: dict[str, tuple[str, Callable[[HeadTopology], float]]] = {
    "H0 mean": ("mean lifetime in H0: 1 minus the weight that joins a token to the rest", lambda head: head.h0.mean),
    "H1 bars": ("finite bars in H1", lambda head: head.h1.count),
    "H1 total": ("total persistence in H1", lambda head: head.h1.total),
    "to first": ("distance to the pattern where all attend to the first token", lambda head: head.patterns.to_first),
    "to previous": ("distance to the pattern of the token before", lambda head: head.patterns.to_previous),
    "to itself": ("distance to the pattern of the token itself", lambda head: head.patterns.to_self),
}


def attention_table(attention: AttentionTopology) -> Table:
    """The heads of every block: the mean of each figure and its range over the heads."""
    columns = (
        Column("block", "in forward order", numeric=False),
        Column("heads"),
        *(Column(name, f"{meaning}: mean, smallest to largest") for name, (meaning, _) in ATTENTION.items()),
    )
    rows = []
    for layer in dict.fromkeys(head.layer for head in attention.heads):
        heads = [head for head in attention.heads if head.layer == layer]
        spans = [_span([value(head) for head in heads]) for _, value in ATTENTION.values()]
        rows.append((clean(layer, 60), str(len(heads)), *spans))
    note = (
        f"Attention as a graph on the tokens of {attention.n_texts:,} texts ({attention.n_tokens:,} tokens), filtered "
        "by 1 minus the larger of the two weights of a pair. Mean over the heads, with the smallest and the largest; "
        "every head by itself is in tables/attention.csv."
    )
    return Table("Attention graphs", columns, tuple(rows), note)


def _span(values: Sequence[float]) -> str:
    middle = number(fmean(values), 3)
    low, high = number(min(values), 3), number(max(values), 3)
    return middle if low == high else f"{middle} ({low} to {high})"
