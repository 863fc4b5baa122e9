"""The part of an entry that is about precision: its sentences, tables and figures in reading order."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.precision.result import PrecisionResult, WeightsResult
from cohomcli.report.document import Block, Gallery, Part, Table
from cohomcli.report.names import clean
from cohomcli.report.picture import Picture, PrecisionGroup, in_groups
from cohomcli.report.precision import tables
from cohomcli.report.precision.balancing import balance_tables
from cohomcli.report.precision.exports import export_table
from cohomcli.report.precision.facts import precision_headline
from cohomcli.report.precision.limits import limits
from cohomcli.report.precision.refutations import refutation_table
from cohomcli.report.precision.weights import weights_part
from cohomcli.report.precision.words import seen


def precision_part(result: PrecisionResult | WeightsResult, model: str, pictures: Sequence[Picture]) -> Part:
    """The section on precision; `pictures` may hold others as well."""
    overview = in_groups(pictures, "precision")
    if isinstance(result, WeightsResult):
        return weights_part(result, model, overview)
    return Part(
        title="Precision",
        headline=tuple(precision_headline(result)),
        seen=tuple(seen(result, model)),
        overview=overview,
        limits=tuple(limits(result)),
        notes=tuple(clean(note, 400) for note in result.notes),
        blocks=tuple(block for block in _blocks(result, pictures) if isinstance(block, Gallery) or block.rows),
    )


def _blocks(result: PrecisionResult, pictures: Sequence[Picture]) -> list[Block]:
    def figure(group: PrecisionGroup, title: str) -> list[Block]:
        found = in_groups(pictures, group)
        return [Gallery(title, found)] if found else []

    plan: list[Table] = [tables.place_table(result), tables.op_table(result)] if result.plan else []
    return [
        *figure("formats", "The graph by format"),
        *plan,
        *tables.obstruction_tables(result),
        *figure("contributors", "Where the error comes from"),
        *([tables.contributor_table(result)] if result.plan else []),
        *figure("bytes", "Bytes of one forward pass"),
        tables.ways_table(result),
        *figure("pareto", "What a tolerance costs"),
        tables.pareto_table(result),
        tables.round_table(result),
        tables.sheaf_table(result),
        tables.curvature_table(result),
        *balance_tables(result),
        refutation_table(result),
        export_table(result),
    ]
