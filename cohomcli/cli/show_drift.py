"""Drift and distances of a comparison as tables on stdout."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_drift(console: Console, comparison: Any) -> None:
    """One row per analysis and baseline, then one per checkpoint step; nothing when no drift was asked for or found."""
    drift = comparison.drift
    if drift is None or not (drift.named or drift.steps or any(model.layers for model in drift.models)):
        return
    names = [row.model for row in comparison.rows]
    title = f"drift by {drift.measure} between {drift.measured_on} (0 equal, 1 unrelated)"
    table = Table(title=escape(title), title_justify="left")
    for name in ("analysis", "from", "largest", "in layer", "mean", "remark"):
        table.add_column(name, justify="right" if name in ("largest", "mean") else "left")
    for one in (*drift.models, *(drift.steps if len(drift.steps) > 1 else ())):
        start = names[one.against] if one.against is not None else "-"
        cells = (_number(one.max_drift), escape(one.worst_layer or "-"), _number(one.mean_drift), escape(one.reason))
        table.add_row(escape(names[one.row]), escape(start), *cells)
    console.print(table)


def show_permutations(console: Console, comparison: Any) -> None:
    """One row per permutation test; nothing without any."""
    found = comparison.permutations
    if found is None or not (found.texts or found.population):
        return
    names = [row.model for row in comparison.rows]
    table = Table(title="permutation tests (p corrected for layers, then for all tests)", title_justify="left")
    for name in ("analysis", "against", "p", "p corr.", "layer", "remark"):
        table.add_column(name, justify="right" if name in ("p", "p corr.") else "left")
    for one in (*found.texts, *found.population):
        least = min(one.layers, key=lambda layer: (layer.p_joint, layer.p_value), default=None)
        other = "population" if one.against is None else names[one.against]
        cells = (_number(one.p_value), _number(one.p_holm), escape(least.layer) if least else "-", escape(one.reason))
        table.add_row(escape(names[one.row]), escape(other), *cells)
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
