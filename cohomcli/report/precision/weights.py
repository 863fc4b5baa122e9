"""Weights without a program: what can be said of storage alone, and why nothing is said of outputs."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.precision.result import WeightRow, WeightsResult
from cohomcli.report.document import Column, Fact, Part, Table
from cohomcli.report.names import DASH, clean, count, listing, number, percent, size
from cohomcli.report.picture import Picture
from cohomcli.report.precision.look import in_order
from cohomcli.report.precision.tables import MOST_ROWS, mebibytes


def weights_part(result: WeightsResult, model: str, pictures: Sequence[Picture]) -> Part:
    """The section of a weight-only analysis."""
    return Part(
        title="Precision of the weights",
        headline=tuple(_headline(result)),
        seen=tuple(_seen(result, model)),
        overview=tuple(pictures),
        limits=tuple(_limits(result)),
        notes=tuple(clean(note, 400) for note in result.notes),
        blocks=(_format_table(result), _weight_table(result)),
    )


def worst(result: WeightsResult, fmt: str) -> WeightRow | None:
    """The tensor with the largest relative rounding error in a format."""
    known = [row for row in result.weights if fmt in row.errors]
    return max(known, key=lambda row: row.errors[fmt], default=None)


def refused(result: WeightsResult, fmt: str) -> list[WeightRow]:
    """The tensors that cannot be stored in a format."""
    return [row for row in result.weights if fmt in row.refused]


def _headline(result: WeightsResult) -> list[Fact]:
    facts = [
        Fact("claims about outputs", "withheld", clean(result.why, 300)),
        Fact("parameters", f"{result.n_parameters:,}", f"in {count(len(result.weights), 'tensor')}"),
        Fact("stored bytes", size(result.bytes_stored), "as they are in the file"),
    ]
    for fmt in in_order(result.bytes_by_format):
        n = result.bytes_by_format[fmt]
        share = f"{percent(n / result.bytes_stored)} of what is stored" if result.bytes_stored else ""
        facts.append(Fact(f"in {clean(fmt, 12)}", size(n), share))
    return facts


def _seen(result: WeightsResult, model: str) -> list[str]:
    sentences = [
        f"Only the weights of {clean(model, 60)} were analysed: {clean(result.why, 300).rstrip('.')}. So it is not "
        "known which operations read them, and nothing is claimed about any output.",
    ]
    for fmt in in_order(result.formats):
        row, out = worst(result, fmt), refused(result, fmt)
        name = clean(fmt, 12)
        if row is not None:
            sentences.append(
                f"{name}: rounding changes a tensor by at most {number(row.errors[fmt], 3)} of its norm "
                f"({clean(row.name, 60)})."
            )
        if out:
            names = listing((clean(r.name, 50) for r in out), most=4)
            sentences.append(f"{name}: {count(len(out), 'tensor')} cannot be stored in it: {names}.")
    return sentences


def _limits(result: WeightsResult) -> list[str]:
    return [
        "A rounding error of a weight is no error of an output: the network may amplify it, or not see it at all. "
        "There is no predicted error, no plan and no statement about epsilon here.",
        "Activations are unknown. A model whose weights all fit into fp16 can still overflow in fp16.",
        "To analyse the program as well, give a model with its code: a Hugging Face folder, an exported .pt2, or "
        "--model-code file.py:factory.",
    ]


def _format_table(result: WeightsResult) -> Table:
    cells = []
    for fmt in in_order(result.formats):
        row = worst(result, fmt)
        n = result.bytes_by_format.get(fmt)
        cells.append(
            (
                clean(fmt, 12),
                DASH if n is None else mebibytes(n),
                DASH if n is None or not result.bytes_stored else percent(n / result.bytes_stored, zeros=True),
                DASH if row is None else number(row.errors[fmt], 3),
                DASH if row is None else clean(row.name, 60),
                f"{len(refused(result, fmt)):,}",
            )
        )
    columns = (
        Column("format", numeric=False),
        Column("MiB", "all weights, each that can be in this format"),
        Column("of stored"),
        Column("largest error", "||round(w) - w|| / ||w||"),
        Column("of tensor", numeric=False),
        Column("refused", "tensors that cannot be stored in it"),
    )
    return Table("Weights by format", columns, tuple(cells))


def _weight_table(result: WeightsResult) -> Table:
    formats = in_order(result.formats)
    rows = sorted(result.weights, key=lambda row: (-len(row.refused), -max(row.errors.values(), default=0.0)))
    cells = [
        (
            clean(row.name, 60),
            "x".join(str(n) for n in row.shape) or "scalar",
            clean(row.dtype, 20),
            number(row.largest, 3),
            *(number(row.errors.get(fmt), 3, zeros=True) for fmt in formats),
            clean("; ".join(dict.fromkeys(row.refused.values())), 240),
        )
        for row in rows[:MOST_ROWS]
    ]
    columns = (
        Column("tensor", numeric=False),
        Column("shape", numeric=False),
        Column("stored", numeric=False),
        Column("largest", "magnitude"),
        *(Column(clean(fmt, 12), "relative rounding error") for fmt in formats),
        Column("refused because", numeric=False, prose=True),
    )
    more = f"{MOST_ROWS} of {len(rows):,} rows; all are in tables/weights.csv. " if len(rows) > MOST_ROWS else ""
    return Table("Weights", columns, tuple(cells), f"{more}Refused tensors first, then the largest errors.")
