"""A precision result on stdout: the verdict, the plan beside its baselines, and what refuses which format."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MOST_REASONS = 5


def show_precision(console: Console, entry: Any) -> None:
    """The result of one entry, in a dozen lines."""
    result = entry.precision
    name = escape(entry.model + (f" on {entry.dataset}" if entry.dataset else ""))
    if result.kind == "weights":
        _show_weights(console, name, result)
        return
    verdict = "[bold]met[/bold]" if result.met else "[bold]not met[/bold]"
    console.print(
        f"{name}: eps {result.epsilon:g} ({result.norm}) {verdict}: measured {_number(result.measured_error)} on "
        f"{result.measured_on}, predicted {_number(result.predicted_error)}, {_rounds(len(result.rounds))}"
    )
    if result.reason:
        console.print(f"  {escape(result.reason)}")
    console.print(_baselines(result))
    for kind, what in (("op", "ops"), ("weight", "weights")):
        counts = Counter(row.format for row in result.plan if row.kind == kind)
        total = sum(counts.values())
        shares = ", ".join(f"{fmt} {n} ({n / total:.0%})" for fmt, n in counts.most_common())
        console.print(f"{what}:    {shares}" if total else f"{what}:    none")
    gap = "" if result.gap is None else f"; no plan within this budget is more than {result.gap:.2%} cheaper"
    console.print(
        f"sheaf:  h0 {result.sheaf.h0}, h1 {result.sheaf.h1}, chi {result.sheaf.euler} on {result.sheaf.n_vertices} "
        f"vertices and {result.sheaf.n_edges} edges{gap}"
    )
    for found in result.obstructions:
        if found.ops:
            _show_obstruction(console, found)
    for proof in result.refutations:
        if proof.status == "proved":
            console.print(f"proved: {escape(proof.text)}", highlight=False)
    for done in result.exports:
        what = done.check or "written, not loaded back here" if done.files else done.omits
        console.print(f"export {escape(done.name)}: {escape(what)}", highlight=False)


def _rounds(n: int) -> str:
    return "1 round" if n == 1 else f"{n} rounds"


def _baselines(result: Any) -> Table:
    table = Table(title_justify="left")
    table.add_column("way to run it")
    for column in ("error", "MiB moved", "of fp32", "casts", "overflows"):
        table.add_column(column, justify="right")
    whole = result.bytes_fp32.total
    rows = [("this plan", result.measured_error, result.bytes_plan, result.n_overflows)]
    rows += [(b.label, b.error, b.bytes, b.n_overflows) for b in result.baselines]
    for label, error, size, overflows in rows:
        table.add_row(
            escape(label),
            "not finite" if error is None else _number(error),
            f"{size.total / 2**20:,.2f}" if size else "-",
            f"{size.total / whole:.0%}" if size and whole else "-",
            f"{size.casts / 2**20:,.2f}" if size else "-",
            "-" if overflows is None else str(overflows),
        )
    return table


def _show_obstruction(console: Console, found: Any) -> None:
    console.print(
        f"uniform {found.format} is impossible for the ranges seen: {len(found.ops)} ops and weights refuse it"
    )
    for entry in found.ops[:MOST_REASONS]:
        console.print(f"  {escape(entry.reason)}", highlight=False)
    if len(found.ops) > MOST_REASONS:
        console.print(f"  ... and {len(found.ops) - MOST_REASONS} more in the report")


def _show_weights(console: Console, name: str, result: Any) -> None:
    console.print(f"{name}: weights alone, no claim about any output: {escape(result.why)}")
    table = Table(title_justify="left")
    table.add_column("format")
    for column in ("MiB", "of stored", "refused by"):
        table.add_column(column, justify="right")
    for fmt in result.formats:
        size = result.bytes_by_format[fmt]
        refused = sum(fmt in row.refused for row in result.weights)
        share = f"{size / result.bytes_stored:.0%}" if result.bytes_stored else "-"
        table.add_row(fmt, f"{size / 2**20:,.2f}", share, str(refused))
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
