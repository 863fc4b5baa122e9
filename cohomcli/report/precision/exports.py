"""The table of what was written for other tools, and what each of them can and cannot say of the plan."""

from __future__ import annotations

from cohomcli.precision.result import Export, PrecisionResult
from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean


def export_table(result: PrecisionResult) -> Table:
    """One row per export that was asked for; no rows where none was."""
    columns = (
        Column("export", numeric=False),
        Column("files", numeric=False),
        Column("keeps", numeric=False, prose=True),
        Column("does not say", numeric=False, prose=True),
        Column("loaded back", numeric=False, prose=True),
    )
    note = "The error of the report is that of the plan under its own semantics; a tool that keeps less errs otherwise."
    return Table("Exports", columns, tuple(map(_row, result.exports)), note)


def _row(row: Export) -> tuple[str, ...]:
    return (
        clean(row.name, 20),
        clean(_files(row), 300) if row.files else "not written",
        clean(row.keeps, 300) if row.keeps else DASH,
        clean(row.omits, 400) if row.omits else DASH,
        clean(row.check, 300) if row.check else DASH,
    )


def _files(row: Export) -> str:
    """The one file, or the folder that holds several."""
    return row.files[0] if len(row.files) == 1 else f"{row.files[0].rpartition('/')[0]}/"
