"""The balance class in a report: marked experimental, with the edges that waste most."""

from __future__ import annotations

from cohomcli.precision.result import PrecisionResult
from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean, count, number


def balance_tables(result: PrecisionResult) -> list[Table]:
    """Where branches that meet again ask different bits of their source; no table without an unbalanced loop."""
    found = result.balance
    if found is None or not found.edges:
        return []
    cells = [
        (
            clean(edge.op, 60),
            clean(edge.module, 60) or DASH,
            clean(edge.reader, 60),
            clean(edge.reader_module, 60) or DASH,
            number(edge.waste, 3),
        )
        for edge in found.edges
    ]
    columns = (
        Column("tensor", numeric=False),
        Column("module", numeric=False),
        Column("read by", numeric=False),
        Column("its module", numeric=False),
        Column("bits", "carried beyond what this reader asks; negative: fewer"),
    )
    note = (
        "Experimental: local relative amplifications on one input, and nothing in the plan depends on them. "
        f"{found.n_unbalanced:,} of {count(found.n_loops, 'independent loop')} do not balance; any assignment of bits "
        f"wastes at least {number(found.certified, 3)} bits over all edges, and one wastes {number(found.waste, 3)}."
    )
    return [Table("Balance class (experimental)", columns, tuple(cells), note)]
