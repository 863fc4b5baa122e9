"""The part of an entry that is about generated grids: the grids, how they were filled, how sure the model was."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.report.document import Column, Fact, Part, Table
from cohomcli.report.names import DASH, clean, count, number
from cohomcli.report.picture import Picture, in_groups
from cohomcli.training.generated import GeneratedGrid, GenerationResult

_SHOWN = 40  # grids in the table; grids.txt has them all


def generation_part(result: GenerationResult, pictures: Sequence[Picture]) -> Part:
    """The section on generated grids; `pictures` may hold others as well."""
    return Part(
        title="Generated grids",
        headline=tuple(_headline(result)),
        seen=tuple(_seen(result)),
        overview=in_groups(pictures, "generation"),
        limits=(
            "The confidence is the model's own probability of the values it kept. It says nothing about whether a grid "
            "is a good one.",
            "A grid may be close to one that the model was trained on; nothing here measures that.",
        ),
        notes=(),
        blocks=(_table(result.grids),),
    )


def _headline(result: GenerationResult) -> list[Fact]:
    grids = result.grids
    guided = f"guidance {number(result.guidance)}" if result.guidance else "no guidance"
    sure = sum(grid.confidence for grid in grids) / len(grids)
    filled = sum(len(grid.rows) * len(grid.rows[0]) - grid.n_given for grid in grids)
    return [
        Fact("grids", f"{len(grids):,}", f"{count(filled, 'cell')} filled"),
        Fact("passes", str(result.steps), "each fills the cells that the model is surest of, wherever they lie"),
        Fact("temperature", number(result.temperature), guided),
        Fact("mean confidence", number(sure), "probability of a filled cell's value when it was kept"),
    ]


def _seen(result: GenerationResult) -> list[str]:
    given = sum(grid.n_given for grid in result.grids)
    sentences = [f"The given cells, {given:,} in all, are as they were."] if given else []
    labels = dict.fromkeys(grid.label for grid in result.grids if grid.label)
    if labels:
        sentences.append(f"Classes asked for: {clean(', '.join(labels), 200)}.")
    return sentences or ["Every cell was filled by the model."]


def _table(grids: Sequence[GeneratedGrid]) -> Table:
    columns = (
        Column("grid"),
        Column("class", numeric=False),
        Column("completes", numeric=False),
        Column("size", numeric=False),
        Column("given cells"),
        Column("confidence"),
    )
    note = f"The first {_SHOWN} of {len(grids)}." if len(grids) > _SHOWN else ""
    return Table("Grids", columns, tuple(_row(at, grid) for at, grid in enumerate(grids[:_SHOWN])), note)


def _row(at: int, grid: GeneratedGrid) -> tuple[str, ...]:
    size = f"{len(grid.rows)} x {len(grid.rows[0])}"
    source = clean(grid.source, 60) or DASH
    return str(at), clean(grid.label, 40) or DASH, source, size, f"{grid.n_given:,}", number(grid.confidence)
