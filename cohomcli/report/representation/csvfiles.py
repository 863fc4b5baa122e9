"""Geometry, similarity, tracking and attention as CSV: full precision, one row per fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from cohomcli.report.csvfile import Cell, write_csv
from cohomcli.report.document import Fact
from cohomcli.results import Entry
from cohomcli.topology.figures import BarFigures, Geometry, GraphFigures, HeadTopology, PatternDistances

GEOMETRY = Fact("tables/geometry.csv", "intrinsic dimension, hubness, mean cosine and ranks of every layer")
SIMILARITY = Fact("tables/similarity.csv", "every measure between every two layers")
TRACKING = Fact("tables/tracking.csv", "classes tracked over the layers, and neighbours kept")
ATTENTION = Fact("tables/attention.csv", "the attention graph of every head")
REPRESENTATION_FILES = (GEOMETRY, SIMILARITY, TRACKING, ATTENTION)


def write_representation_tables(entries: Sequence[Entry], out: Path) -> list[Path]:
    """Writes the tables that any entry has into `out`/tables; returns their paths."""
    written = []
    for fact, header, rows in (
        (GEOMETRY, _GEOMETRY_HEADER, list(_geometry_rows(entries))),
        (SIMILARITY, _SIMILARITY_HEADER, list(_similarity_rows(entries))),
        (TRACKING, _TRACKING_HEADER, list(_tracking_rows(entries))),
        (ATTENTION, _attention_header(entries), list(_attention_rows(entries))),
    ):
        if rows:
            (out / "tables").mkdir(parents=True, exist_ok=True)
            write_csv(out / fact.label, header, rows)
            written.append(out / fact.label)
    return written


_GEOMETRY_HEADER = ["model", "dataset", "layer", *(field.name for field in fields(Geometry))]
_SIMILARITY_HEADER = ["model", "dataset", "measure", "layer", "other", "value"]
_TRACKING_HEADER = ["model", "dataset", "layer", "dimension", "alive", "born", "died", "neighbours_kept"]


def _geometry_rows(entries: Sequence[Entry]) -> Iterator[list[Cell]]:
    for entry in entries:
        for layer in entry.topology.layers if entry.topology else ():
            if layer.geometry is not None:
                yield [entry.model, entry.dataset, layer.name, *asdict(layer.geometry).values()]


def _similarity_rows(entries: Sequence[Entry]) -> Iterator[list[Cell]]:
    for entry in entries:
        for matrix in entry.representation.similarity if entry.representation else ():
            for layer, row in zip(matrix.layers, matrix.values, strict=True):
                for other, value in zip(matrix.layers, row, strict=True):
                    yield [entry.model, entry.dataset, matrix.measure, layer, other, value]


def _tracking_rows(entries: Sequence[Entry]) -> Iterator[list[Cell]]:
    for entry in entries:
        tracking = entry.representation.tracking if entry.representation else None
        if tracking is None:
            continue
        for tracked in tracking.dimensions:
            for at, layer in enumerate(tracking.layers):
                kept = tracking.kept[at] if at < len(tracking.kept) else None
                counts = tracked.alive[at], tracked.born[at], tracked.died[at]
                yield [entry.model, entry.dataset, layer, tracked.dimension, *counts, kept]


def _attention_header(entries: Sequence[Entry]) -> list[str]:
    thresholds = next((head.graph for entry in entries for head in _heads(entry)), ())
    graph = [field.name for field in fields(GraphFigures) if field.name != "threshold"]
    return [
        *("model", "dataset", "layer", "head"),
        *(f"{part}_{field.name}" for part in ("h0", "h1") for field in fields(BarFigures)),
        *(field.name for field in fields(PatternDistances)),
        *(f"{name}_{figures.threshold:g}" for figures in thresholds for name in graph),
    ]


def _attention_rows(entries: Sequence[Entry]) -> Iterator[list[Cell]]:
    for entry in entries:
        for head in _heads(entry):
            parts = (asdict(part).values() for part in (head.h0, head.h1, head.patterns))
            graph = (value for figures in head.graph for name, value in asdict(figures).items() if name != "threshold")
            yield [entry.model, entry.dataset, head.layer, head.head, *(v for part in parts for v in part), *graph]


def _heads(entry: Entry) -> tuple[HeadTopology, ...]:
    attention = entry.representation.attention if entry.representation else None
    return attention.heads if attention is not None else ()
