"""The numbers of a topology analysis as CSV: full precision, one row per fact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cohomcli.report.csvfile import Cell, write_csv
from cohomcli.report.document import Fact
from cohomcli.report.layers import dimensions_of, summary_of
from cohomcli.results import Entry
from cohomcli.topology.results import Diagram, LayerTopology

LAYERS = Fact("tables/layers.csv", "the figures of every layer in full precision")
BETTI = Fact("tables/betti.csv", "every Betti curve: the number of bars alive at each distance")
DIAGRAMS = Fact("tables/diagrams.csv", "every bar: birth, death, and whether it dies (finite), never dies (essential) "
                "or was alive where the filtration ended (censored)")  # fmt: skip

LIMITS = Fact("tables/limits.csv", "the 95% confidence limits of every figure that has them")
LOOPS = Fact("tables/loops.csv", "the texts that form the longest loops: one row per text, in order along the loop")


def write_tables(entries: Sequence[Entry], out: Path) -> list[Path]:
    """Writes the tables of all entries into `out`/tables; returns their paths. Nothing is written without topology."""
    rows = [(entry, layer) for entry in entries if entry.topology for layer in entry.topology.layers]
    if not rows:
        return []
    (out / "tables").mkdir(parents=True, exist_ok=True)
    dimensions = dimensions_of(layer for _, layer in rows)
    write_csv(out / LAYERS.label, _layer_header(dimensions), (_layer_row(e, layer, dimensions) for e, layer in rows))
    write_csv(out / BETTI.label, ["model", "dataset", "layer", "dimension", "distance", "betti"], _betti_rows(rows))
    header = ["model", "dataset", "layer", "dimension", "birth", "death", "kind"]
    write_csv(out / DIAGRAMS.label, header, _diagram_rows(rows))
    written = [out / LAYERS.label, out / BETTI.label, out / DIAGRAMS.label]
    if any(summary.intervals for _, layer in rows for summary in layer.summaries):
        header = ["model", "dataset", "layer", "dimension", "figure", "value", "low", "high"]
        write_csv(out / LIMITS.label, header, _limit_rows(rows))
        written.append(out / LIMITS.label)
    if any(layer.loops for _, layer in rows):
        header = ["model", "dataset", "layer", "loop", "birth", "death", "closed", "position", "text_index", "text"]
        write_csv(out / LOOPS.label, header, _loop_rows(rows))
        written.append(out / LOOPS.label)
    return written


_CLOUD = (
    "n_points",
    "n_distinct",
    "ambient_dim",
    "pca_dim",
    "explained_variance",
    "mean_norm",
    "scale",
    "metric",
    "engine",
    "threshold",
    "n_landmarks",
    "covering_radius",
    "diagram_error",
)
_SUMMARY = (
    "count",
    "total_persistence",
    "max_lifetime",
    "entropy",
    "essential",
    "censored",
    "total_over_scale",
    "max_over_scale",
    "statistic",
    "null_median",
    "null_95",
    "p_value",
    "p_holm",
    "p_joint",
)


def _layer_header(dimensions: Sequence[int]) -> list[str]:
    return ["model", "dataset", "layer", *_CLOUD, *(f"h{k}_{name}" for k in dimensions for name in _SUMMARY)]


def _layer_row(entry: Entry, layer: LayerTopology, dimensions: Sequence[int]) -> list[Cell]:
    cells: list[Cell] = [entry.model, entry.dataset, layer.name, *(getattr(layer, name) for name in _CLOUD)]
    for dimension in dimensions:
        summary = summary_of(layer, dimension)
        cells += [None if summary is None else getattr(summary, name) for name in _SUMMARY]
    return cells


def _betti_rows(rows: Iterable[tuple[Entry, LayerTopology]]) -> Iterator[list[Cell]]:
    for entry, layer in rows:
        distances = layer.betti.grid.tolist()
        for dimension, curve in enumerate(layer.betti.values.tolist()):
            for distance, betti in zip(distances, curve, strict=True):
                yield [entry.model, entry.dataset, layer.name, dimension, distance, betti]


def _diagram_rows(rows: Iterable[tuple[Entry, LayerTopology]]) -> Iterator[list[Cell]]:
    for entry, layer in rows:
        for diagram in layer.diagrams:
            for birth, death, kind in _bars(diagram):
                yield [entry.model, entry.dataset, layer.name, diagram.dimension, birth, death, kind]


def _loop_rows(rows: Iterable[tuple[Entry, LayerTopology]]) -> Iterator[list[Cell]]:
    for entry, layer in rows:
        texts = entry.sample.texts if entry.sample else ()
        for number, loop in enumerate(layer.loops, start=1):
            bar: list[Cell] = [number, loop.birth, loop.death, loop.closed]
            for position, index in enumerate(loop.points, start=1):
                text = texts[index] if index < len(texts) else ""
                yield [entry.model, entry.dataset, layer.name, *bar, position, index, text]


def _limit_rows(rows: Iterable[tuple[Entry, LayerTopology]]) -> Iterator[list[Cell]]:
    for entry, layer in rows:
        for summary in layer.summaries:
            for name, (low, high) in (summary.intervals or {}).items():
                yield [
                    entry.model, entry.dataset, layer.name, summary.dimension, name, getattr(summary, name), low, high,
                ]  # fmt: skip


def _bars(diagram: Diagram) -> Iterator[tuple[float, float | None, str]]:
    for birth, death in diagram.pairs.tolist():
        yield birth, death, "finite"
    for birth in diagram.essential.tolist():
        yield birth, None, "essential"
    for birth in diagram.censored.tolist():
        yield birth, None, "censored"
