"""The comparison's words and tables: what several analyses show side by side, and what that does not mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cohomcli.report.comparing_permutations import (
    cross_sentences,
    permutation_limits,
    permutation_sentences,
    permutation_tables,
)
from cohomcli.report.document import Column, ComparisonSection, Table
from cohomcli.report.drifting import drift_limits, drift_sentences, drift_tables
from cohomcli.report.names import DASH, clean, count, listing, number, ratio
from cohomcli.report.picture import Picture
from cohomcli.report.precision.comparing import precision_comparison
from cohomcli.results import Entry

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison, ComparisonRow, CorrelationGroup, DatasetContrast

_FIGURES = {
    "perplexity": "perplexity",
    "expansion_raw": "raw H0 expansion",
    "expansion_scale_free": "scale-free H0 expansion",
    "mean_h0_total": "mean H0 total persistence",
    "mean_h0_over_scale": "mean H0 / scale",
    "mean_h1_over_scale": "mean H1 / scale",
    "total_h1": "H1 total persistence, all blocks",
}


def labels_of(rows: Sequence[ComparisonRow]) -> list[str]:
    """A name per row: the model's, with the data set where one model or several data sets ask for it."""
    several = len({row.dataset for row in rows}) > 1
    labels = [clean(f"{row.model} on {row.dataset}" if several else row.model, 60) for row in rows]
    seen = Counter(labels)
    return [f"{label} #{at + 1}" if seen[label] > 1 else label for at, label in enumerate(labels)]


def comparison_section(
    comparison: Comparison | None, pictures: Sequence[Picture], entries: Sequence[Entry] = ()
) -> ComparisonSection | None:
    """The section of the report that holds the comparison of topologies, of precision analyses, or of both.

    None when there are not several analyses of either kind.
    """
    analysed = [entry for entry in entries if entry.precision is not None]
    beside = precision_comparison(analysed) if len(analysed) > 1 else None
    if comparison is None or (beside is not None and not comparison.rows):
        return beside
    labels = labels_of(comparison.rows)
    return ComparisonSection(
        seen=(*(beside.seen if beside else ()), *_seen(comparison, labels)),
        limits=(*(beside.limits if beside else ()), *_limits(comparison)),
        tables=(*(beside.tables if beside else ()), *_tables(comparison, labels)),
        pictures=tuple(pictures),
    )


def _seen(comparison: Comparison, labels: Sequence[str]) -> list[str]:
    rows = comparison.rows
    if not rows:
        return ["Nothing to compare: no analysis has a topology."]
    if len(rows) == 1:
        beside = permutation_sentences(comparison, labels)
        none = f"Only one analysis has a topology: {labels[0]}. There is nothing to compare it with."
        return [f"{labels[0]} beside a population of models.", *beside] if beside else [none]
    sentences = [f"{count(len(rows), 'analysis', 'analyses')} side by side: {listing(labels)}."]
    raw = _span(rows, labels, lambda row: row.expansion_raw, ratio)
    free = _span(rows, labels, lambda row: row.expansion_scale_free, ratio)
    if raw:
        sentences.append(f"Raw H0 expansion: {raw}. It includes the growth of the activations.")
    if free:
        sentences.append(f"Scale-free H0 expansion: {free}.")
    loops = _span(rows, labels, lambda row: row.mean_h1_over_scale, lambda value: number(value, 3))
    if loops:
        sentences.append(f"H1 total persistence over scale, mean of the blocks: {loops}.")
    sentences += drift_sentences(comparison, labels)
    sentences += [*permutation_sentences(comparison, labels), *cross_sentences(comparison, labels)]
    return [*sentences, *(_contrast(item, labels) for item in comparison.contrasts), *_correlations(comparison)]


def _span(
    rows: Sequence[ComparisonRow],
    labels: Sequence[str],
    value: Callable[[ComparisonRow], float | None],
    show: Callable[[float], str],
) -> str:
    """`from 1.1x (a) to 3x (b)`, the one value there is, or nothing."""
    known = [(figure, label) for row, label in zip(rows, labels, strict=True) if (figure := value(row)) is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    if len(known) == 1:
        return f"{show(low[0])} ({low[1]}), the only one that has it"
    return f"from {show(low[0])} ({low[1]}) to {show(high[0])} ({high[1]})"


def _contrast(contrast: DatasetContrast, labels: Sequence[str]) -> str:
    pair = f"{labels[contrast.first]} against {labels[contrast.second]}"
    if contrast.largest_layer is None or contrast.largest_difference is None:
        return f"{pair}: no layer is common to both."
    if contrast.largest_difference == 0:
        return f"{pair}: H0 over scale is the same in every common layer."
    change = number(contrast.largest_difference, 3)
    return f"{pair}: H0 over scale differs most at {clean(contrast.largest_layer, 40)}, by {change}."


def _correlations(comparison: Comparison) -> list[str]:
    found = [c for group in comparison.groups for c in group.correlations if c.p_holm is not None]
    if found:
        least = min(found, key=lambda c: (c.p_holm if c.p_holm is not None else 1.0, c.figure))
        return [
            f"Of {count(len(found), 'rank correlation')} between topology and loss the smallest corrected p-value is "
            f"{number(least.p_holm, 2)} ({_FIGURES.get(least.figure, clean(least.figure))}, rho "
            f"{number(least.rho, 2)}, {least.n} models)."
        ]
    if comparison.no_groups:
        return [f"No correlation with loss is given: {clean(comparison.no_groups)}."]
    reasons = dict.fromkeys(clean(c.reason) for group in comparison.groups for c in group.correlations if c.reason)
    return [f"No correlation with loss is given: {listing(reasons)}."] if reasons else []


def _limits(comparison: Comparison) -> list[str]:
    sentences = [
        "Relative depth lines up first and last blocks; it does not say that blocks at equal depth do equal work.",
        "Raw figures depend on the size of a model's activations: rank models by the scale-free ones.",
    ]
    if any(row.perplexity is not None for row in comparison.rows):
        sentences.append(
            "Perplexities are comparable only between models with the same texts and tokenizer, "
            "and pseudo-perplexities only with each other."
        )
    if any(group.correlations for group in comparison.groups):
        sentences.append(
            "Each model counts once in a correlation, however many layers it has. With few models even a perfect "
            "correlation is weak evidence; the p-values are corrected for all of them together (Holm 1979)."
        )
    sentences += [*drift_limits(comparison), *permutation_limits(comparison)]
    return [*sentences, *(clean(note, 400) for note in comparison.notes)]


def _tables(comparison: Comparison, labels: Sequence[str]) -> list[Table]:
    tables = [_figures_table(comparison.rows, labels), *drift_tables(comparison, labels)]
    tables += permutation_tables(comparison, labels)
    tables += [_ranking_table(comparison, labels)]
    tables += [_contrast_table(contrast, labels) for contrast in comparison.contrasts]
    tables += [
        _correlation_table(group, labels)
        for group in comparison.groups
        if any(correlation.rho is not None for correlation in group.correlations)
    ]
    return [table for table in tables if table.rows]


def _figures_table(rows: Sequence[ComparisonRow], labels: Sequence[str]) -> Table:
    columns = (
        Column("analysis", numeric=False),
        Column("points", "texts analysed"),
        Column("blocks"),
        Column("perplexity", "per token"),
        Column("kind", numeric=False),
        Column("raw expansion", "H0"),
        Column("scale-free", "H0 expansion"),
        Column("H0 / scale", "mean over the blocks"),
        Column("H1 / scale", "mean over the blocks"),
    )
    cells = tuple(
        (
            label,
            f"{row.n_points:,}",
            f"{row.n_blocks:,}",
            number(row.perplexity),
            row.metric_kind or (clean(row.metrics_reason, 60) or DASH),
            ratio(row.expansion_raw),
            ratio(row.expansion_scale_free),
            number(row.mean_h0_over_scale, zeros=True),
            number(row.mean_h1_over_scale, zeros=True),
        )
        for row, label in zip(rows, labels, strict=True)
    )
    return Table("Figures", columns, cells, "Means are over the blocks; embedding and final norm are left out.")


def _ranking_table(comparison: Comparison, labels: Sequence[str]) -> Table:
    """Orders; perplexity only where all losses are comparable, because any other order would say nothing."""
    comparable = len(comparison.groups) == 1
    shown = [
        ranking
        for ranking in comparison.rankings
        if len(ranking.rows) > 1 and (ranking.figure != "perplexity" or comparable)
    ]
    rows = tuple(
        (_FIGURES.get(ranking.figure, clean(ranking.figure)), ", ".join(labels[row] for row in ranking.rows))
        for ranking in shown
    )
    columns = (Column("figure", numeric=False), Column("order", numeric=False))
    return Table("Rankings", columns, rows, "Largest first; perplexity smallest first.")


def _contrast_table(contrast: DatasetContrast, labels: Sequence[str]) -> Table:
    columns = (
        Column("figure", numeric=False),
        Column(labels[contrast.first]),
        Column(labels[contrast.second]),
        Column("ratio", "second / first"),
    )
    rows = tuple(
        (_FIGURES.get(figure, clean(figure)), number(first), number(second), ratio(factor))
        for figure, (first, second, factor) in contrast.figures.items()
        if first is not None or second is not None
    )
    return Table(f"{clean(contrast.model, 60)} on two data sets", columns, rows)


def _correlation_table(group: CorrelationGroup, labels: Sequence[str]) -> Table:
    columns = (
        Column("figure", numeric=False),
        Column("models"),
        Column("rho", "Spearman's rank correlation with loss"),
        Column("p", "by permutation"),
        Column("p, corrected", "Holm 1979"),
        Column("remark", numeric=False),
    )
    rows = tuple(
        (
            _FIGURES.get(c.figure, clean(c.figure)),
            str(c.n),
            number(c.rho, 3),
            number(c.p_value, 2),
            number(c.p_holm, 2),
            clean(c.reason) or c.method,
        )
        for c in group.correlations
    )
    of = listing(labels[row] for row in group.rows)
    return Table(f"Correlation with loss on {clean(group.dataset, 40)}", columns, rows, f"Models: {of}.")
