"""The part of an entry that is about a circuit: what it is, what it keeps, how far the scores can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.circuits.results import CircuitResult
from cohomcli.report.document import Column, Fact, Part, Table
from cohomcli.report.names import clean, number, percent
from cohomcli.report.picture import Picture, in_groups

_SHOWN = 40  # rows of the table of components; circuit.json has the whole circuit
_REPLACED = {
    "pair": "what they are on the pair's own corrupt prompt",
    "resample": "what they are on another pair's corrupt prompt",
    "mean": "their mean over corrupt prompts, token by token",
}


def circuits_part(result: CircuitResult, pictures: Sequence[Picture]) -> Part:
    """The section on the circuit; `pictures` may hold others as well."""
    return Part(
        title="Circuit",
        headline=tuple(_headline(result)),
        seen=tuple(_seen(result)),
        overview=in_groups(pictures, "circuits"),
        limits=tuple(_limits(result)),
        notes=(),
        blocks=(_components(result), _curve(result)),
    )


def _headline(result: CircuitResult) -> list[Fact]:
    options = result.options
    facts = [
        Fact("task", clean(result.task), f"{result.n_search} pairs to search, {result.n_heldout} held out"),
        Fact("circuit", f"{len(result.circuit):,} {options.level}", f"of {result.n_components:,}"),
        Fact(
            "faithfulness",
            percent(result.faithfulness),
            f"95% limits {percent(result.low)} to {percent(result.high)}, held-out pairs; "
            f"{percent(result.searched)} on the pairs it was found with",
        ),
        Fact(f"{options.metric} difference", number(result.clean), f"{number(result.corrupt)} on corrupt prompts"),
        Fact("right answers", percent(result.accuracy), "held-out pairs where the metric is above 0"),
        Fact("stability", number(result.stability, 2), "overlap of the largest components between resampled pairs"),
    ]
    if result.agreement is not None:
        checked = result.agreement
        note = f"on {checked.n_components} {options.level}; equal signs in {percent(checked.same_sign)} of the largest"
        facts.append(Fact("against exact patching", f"r = {number(checked.pearson, 2)}", note))
    return facts


def _seen(result: CircuitResult) -> list[str]:
    largest = max(result.components, key=lambda one: abs(one.effect))
    sentences = [
        f"With all but {len(result.circuit)} of {result.n_components:,} {result.options.level} replaced by "
        f"{_REPLACED[result.options.ablation]}, {percent(result.faithfulness)} of the difference between clean and "
        "corrupt prompts is left.",
        f"The largest single effect is that of {clean(largest.name)}: exchanging it changes the "
        f"{result.options.metric} difference by {number(largest.effect)}.",
    ]
    if result.minimal:
        sentences.append("No component of the circuit can be left out alone without leaving the tolerance.")
    return sentences


def _limits(result: CircuitResult) -> list[str]:
    limits = [
        f"The circuit is for these prompts: {result.n_search + result.n_heldout} pairs of one kind. Other wordings can "
        "use other parts.",
        "Small circuits that are faithful are not unique: another set of equal size may do as well.",
    ]
    if result.options.method != "exact":
        limits.append(
            "Effects are first-order estimates; where attention is saturated they can miss a part that matters. The "
            "faithfulness is measured, not estimated."
        )
    if not 1 - result.options.tolerance <= result.faithfulness <= 1 + result.options.tolerance:
        limits.append("On the held-out pairs the circuit is outside the tolerance: give more pairs.")
    return limits


def _components(result: CircuitResult) -> Table:
    columns = (
        Column(result.options.level, numeric=False),
        Column("effect", "change of the metric when it is exchanged"),
        Column("exact", "the same by exact patching, where it was measured"),
        Column("in circuit", numeric=False),
    )
    ranked = sorted(result.components, key=lambda one: (not one.in_circuit, -abs(one.effect)))
    rows = tuple(
        (clean(one.name, 60), number(one.effect, 3), number(one.exact, 3), "yes" if one.in_circuit else "")
        for one in ranked[:_SHOWN]
    )
    return Table("Components of largest effect", columns, rows)


def _curve(result: CircuitResult) -> Table:
    columns = (Column("kept"), Column("share"), Column("faithfulness"), Column("from"), Column("to"))
    rows = tuple(
        (f"{p.kept:,}", percent(p.share), number(p.faithfulness, 3), number(p.low, 3), number(p.high, 3))
        for p in result.curve
    )
    note = "The components of largest effect are kept; held-out pairs, 95% limits over pairs and corruptions."
    return Table("Faithfulness by size", columns, rows, note)
