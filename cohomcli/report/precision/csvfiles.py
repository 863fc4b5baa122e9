"""A precision analysis as CSV: the plan, the obstructions, the baselines, the trade-off, the curvature, the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cohomcli.precision.result import BytesRow, PrecisionResult, WeightsResult
from cohomcli.report.csvfile import Cell, write_csv
from cohomcli.report.document import Fact
from cohomcli.report.precision.digest import ways
from cohomcli.results import Entry

Rows = Iterator[list[Cell]]


@dataclass(frozen=True)
class _File:
    """One CSV file: its place and meaning, its columns after model and data set, and its rows of one result."""

    fact: Fact
    header: tuple[str, ...]
    rows: Callable[[PrecisionResult], Rows]


def _plan(result: PrecisionResult) -> Rows:
    for r in result.plan:
        shape = "x".join(str(n) for n in r.shape)
        yield [r.op, r.target, r.module, r.kind, shape, r.format, r.bytes, r.share, r.largest, r.reason]


def _obstructions(result: PrecisionResult) -> Rows:
    for found in result.obstructions:
        for op in found.ops:
            yield [found.format, op.op, op.target, op.module, op.kind, op.reason]


_BYTES = ("total", "weights", "activations", "casts", "n_casts", "peak_memory")


def _ways(result: PrecisionResult) -> Rows:
    for w in ways(result):
        yield [w.key, w.label, w.semantics, w.error, w.ran, w.n_overflows, *_byte_cells(w.bytes), w.note]


def _byte_cells(row: BytesRow | None) -> list[Cell]:
    return [None if row is None else getattr(row, name) for name in _BYTES]


def _trade_offs(result: PrecisionResult) -> Rows:
    for p in result.pareto:
        yield [p.epsilon, p.predicted_error, p.measured_error, p.objective, p.lower_bound]


def _curvature(result: PrecisionResult) -> Rows:
    for c in result.curvature:
        yield [c.op, c.target, c.module, c.condition, c.measured, c.bound, c.formula, c.reference]


_FILES = (
    _File(
        Fact("tables/plan.csv", "the format of every operation and weight, with its reason and share of the error"),
        ("name", "target", "module", "kind", "shape", "format", "bytes", "share", "largest", "reason"),
        _plan,
    ),
    _File(
        Fact("tables/obstructions.csv", "every operation and weight where a format is inadmissible, with the reason"),
        ("format", "name", "target", "module", "kind", "reason"),
        _obstructions,
    ),
    _File(
        Fact("tables/baselines.csv", "the plan and all baselines: error, bytes, overflows"),
        ("way", "label", "semantics", "error", "ran", "overflows", *(f"bytes_{name}" for name in _BYTES), "note"),
        _ways,
    ),
    _File(
        Fact("tables/pareto.csv", "the cheapest plan for every tolerance"),
        ("epsilon", "predicted_error", "measured_error", "objective", "lower_bound"),
        _trade_offs,
    ),
    _File(
        Fact("tables/curvature.csv", "curvature and conditioning of the largest contributors"),
        ("name", "target", "module", "condition", "measured", "bound", "formula", "reference"),
        _curvature,
    ),
)
_WEIGHTS = Fact("tables/weights.csv", "every weight tensor in every format: rounding error, or why it does not fit")
_WEIGHT_HEADER = ("name", "shape", "dtype", "numel", "largest", "format", "error", "refused")

PRECISION_FILES = (*(file.fact for file in _FILES), _WEIGHTS)
"""The CSV files that a precision analysis may leave."""


def write_precision_tables(entries: Sequence[Entry], out: Path) -> list[Path]:
    """Writes the tables of all entries into `out`/tables; returns their paths. Files without a row are left out.

    Raises:
        OSError: a file cannot be written.
    """
    programs = [(e, e.precision) for e in entries if isinstance(e.precision, PrecisionResult)]
    written = []
    for file in _FILES:
        rows = [[e.model, e.dataset, *row] for e, result in programs for row in file.rows(result)]
        if rows:
            written.append(_write(out / file.fact.label, file.header, rows))
    weights = [(e, e.precision) for e in entries if isinstance(e.precision, WeightsResult)]
    if rows := [[e.model, e.dataset, *row] for e, result in weights for row in _weights(result)]:
        written.append(_write(out / _WEIGHTS.label, _WEIGHT_HEADER, rows))
    return written


def _weights(result: WeightsResult) -> Rows:
    for w in result.weights:
        shape = "x".join(str(n) for n in w.shape)
        for fmt in result.formats:
            yield [w.name, shape, w.dtype, w.numel, w.largest, fmt, w.errors.get(fmt), w.refused.get(fmt)]


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, ["model", "dataset", *header], rows)
    return path
