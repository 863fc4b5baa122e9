"""A circuit on the terminal: its size, what it keeps, its largest components."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

_SHOWN = 12


def circuit_lines(entry: Any) -> list[str]:
    """A few lines of markup."""
    result = entry.circuits
    options = result.options
    head = (
        f"{escape(entry.model)}: {len(result.circuit)} of {result.n_components:,} {options.level} keep "
        f"{result.faithfulness:.1%} ({result.low:.1%} to {result.high:.1%}) of {escape(result.task)} on "
        f"{result.n_heldout} held-out pairs"
    )
    sides = f"{result.clean:.3f} on clean prompts, {result.corrupt:.3f} on corrupt ones"
    lines = [head, f"{options.metric} difference: {sides}"]
    if result.agreement is not None and result.agreement.pearson is not None:
        checked = result.agreement
        lines.append(
            f"{options.method} against exact patching on {checked.n_components} {options.level}: "
            f"Pearson {checked.pearson:.2f}, same sign {checked.same_sign:.0%} of the largest"
        )
    members = sorted((one for one in result.components if one.in_circuit), key=lambda one: -abs(one.effect))
    lines += [f"  {escape(one.name):32} {one.effect:+.4f}" for one in members[:_SHOWN]]
    rest = len(members) - _SHOWN
    return [*lines, f"  and {rest} more"] if rest > 0 else lines
