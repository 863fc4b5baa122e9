"""An ablation as a table on stdout."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table


def show_ablation(console: Any, entry: Any) -> None:
    """A row per arm: its metric on the test split, the difference from the plain arm, and the verdict."""
    result = entry.ablation
    console.print(_table(entry, result))
    for one in result.comparisons:
        if one.against != "none":
            low, high = one.interval
            console.print(
                f"{one.arm} against {one.against}: {one.difference:+.4g} ({low:+.4g} to {high:+.4g}): {one.verdict}"
            )


def _table(entry: Any, result: Any) -> Table:
    seeds = f"{len(result.seeds)} seeds, {result.metric} on {result.sizes[2]:,} test rows"
    table = Table(title=f"{escape(entry.model)} on {escape(entry.dataset)}: {seeds}", title_justify="left")
    for name in ("arm", "weight", "steps", result.metric, "difference", "interval", "p corr.", "verdict"):
        table.add_column(name, justify="left" if name in ("arm", "verdict") else "right")
    for arm in result.arms:
        compared = arm.difference is not None
        table.add_row(
            escape(arm.arm),
            "-" if arm.weight is None else f"{arm.weight:g}",
            str(arm.steps),
            "-" if arm.mean is None else f"{arm.mean:.4f}",
            f"{arm.difference:+.4f}" if compared else "-",
            f"{arm.interval[0]:+.4f} to {arm.interval[1]:+.4f}" if compared else "-",
            f"{arm.p_value:.2g}" if compared else "-",
            f"{arm.verdict} (diverged)" if arm.diverged else arm.verdict,
        )
    return table
