"""The geometry of an entry's layers, and what its representation part found, on stdout."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLUMNS = {
    "twonn": "TwoNN",
    "mle": "MLE",
    "ph_dimension": "PH dim",
    "hubness": "hubness",
    "mean_cosine": "cosine",
    "participation_ratio": "particip.",
    "effective_rank": "eff. rank",
}


def show_geometry(console: Console, entry: Any) -> None:
    """The table of geometry and one line per similarity, tracking and attention result; nothing where none was made."""
    if any(layer.geometry for layer in entry.topology.layers):
        console.print(_table(entry.topology.layers))
    if entry.representation is not None:
        for line in _lines(entry.representation):
            console.print(line)


def _table(layers: Any) -> Table:
    table = Table(title="geometry (intrinsic dimension by TwoNN, MLE and PH)", title_justify="left")
    table.add_column("layer")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for layer in layers:
        cells = [_number(getattr(layer.geometry, key, None)) for key in _COLUMNS]
        table.add_row(escape(layer.name), *cells)
    return table


def _lines(representation: Any) -> list[str]:
    lines = []
    for matrix in representation.similarity:
        steps = [_number(matrix.values[at][at + 1]) for at in range(len(matrix.layers) - 1)]
        lines.append(f"{matrix.title}, from layer to layer: {', '.join(steps)}")
    if representation.tracking is not None:
        kept = ", ".join(f"{share:.0%}" for share in representation.tracking.kept)
        lines.append(f"neighbours kept from layer to layer: {kept}")
    if representation.attention is not None:
        heads = representation.attention.heads
        most = max(heads, key=lambda head: head.h1.total)
        lines.append(
            f"attention graphs of {len(heads)} heads on {representation.attention.n_texts} texts: "
            f"most H1 persistence in head {most.head} of {escape(most.layer)} ({_number(most.h1.total)})"
        )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
