"""The table of what was tried to be proved about formats, and what became of it."""

from __future__ import annotations

from cohomcli.precision.result import PrecisionResult, Refutation
from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean, number


def refutation_table(result: PrecisionResult) -> Table:
    """One row per attempt, with its certificate; no rows where proofs were not asked for."""
    columns = (
        Column("format", numeric=False),
        Column("obstruction", numeric=False),
        Column("status", numeric=False),
        Column("error", "proved bound, in the row's norm"),
        Column("norm", numeric=False),
        Column("what it says", numeric=False, prose=True),
        Column("certificate", numeric=False),
    )
    note = (
        "Format: no algorithm that stores its output so; collision: none that goes on from what is stored; witness: "
        "this program; curvature: none with fewer bits of the input; box: an upper bound for every input of a box. Not "
        "found is no proof of the opposite. Check with `cohom verify`."
    )
    return Table("Proofs", columns, tuple(map(_row, result.refutations)), note)


def _row(row: Refutation) -> tuple[str, ...]:
    return (
        clean(row.format, 20),
        clean(row.kind, 20),
        clean(row.status, 12),
        number(row.error, 3),
        clean(row.norm, 10),
        clean(row.text, 600),
        clean(row.certificate, 200) if row.certificate else DASH,
    )
