"""p-values and confidence limits in sentences, tables and facts; nothing is said where they were not computed."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.report.document import Column, Fact, Table
from cohomcli.report.layers import dimensions_of, summary_of
from cohomcli.report.names import DASH, clean, count, listing, number
from cohomcli.topology.results import DimensionSummary, LayerEvidence, LayerTopology

SIGNIFICANT = 0.05
LISTED = 4
_STRUCTURE = {0: "a gap between pieces", 1: "a loop", 2: "a void"}
_MEASURE = {0: "the longest lifetime over the scale", 1: "the largest death / birth"}
_CLOUDS = {
    "rotation": "Gaussian clouds with the same mean and covariance",
    "gaussian": "samples of a Gaussian with the layer's mean and covariance",
    "column": "clouds with every coordinate permuted on its own",
}


def evidence_of(layers: Sequence[LayerTopology]) -> LayerEvidence | None:
    """How the first tested layer was tested; None when none was."""
    found = (layer.evidence for layer in layers if layer.evidence is not None and layer.evidence.null is not None)
    return next(found, None)


def has_limits(layers: Sequence[LayerTopology]) -> bool:
    """Whether any figure of the layers has confidence limits."""
    return any(summary.intervals for layer in layers for summary in layer.summaries)


def corrected_p(summary: DimensionSummary) -> float | None:
    """The p-value corrected for all layers and dimensions: by the joint test where there is one, else Holm's."""
    return summary.p_holm if summary.p_joint is None else summary.p_joint


def p_text(p: float | None) -> str:
    """A p-value as in `p = 0.005`, without the name."""
    return number(p, 2)


def significance_sentence(layers: Sequence[LayerTopology], dimension: int) -> str:
    """Which layers have more than chance in `dimension`, each with its p-values; empty without a test."""
    evidence = evidence_of(layers)
    tested = [
        (layer, s) for layer in layers if (s := summary_of(layer, dimension)) is not None and s.p_value is not None
    ]
    if evidence is None or evidence.null is None or not tested:
        return ""
    found = [(layer, s) for layer, s in tested if (corrected_p(s) or 1.0) <= SIGNIFICANT]
    what, against = _STRUCTURE.get(dimension, f"H{dimension}"), _CLOUDS.get(evidence.null, evidence.null)
    start = f"Tested against {evidence.replicates} {against}, by {_MEASURE.get(dimension, _MEASURE[1])}"
    if not found:
        best, s = min(tested, key=lambda pair: pair[1].p_value or 1.0)
        return (
            f"{start}: no layer is shown to have {what} beyond chance; the smallest p-value is {p_text(s.p_value)} "
            f"({clean(best.name, 40)}), corrected for all tests {p_text(corrected_p(s))}."
        )
    named = [
        f"{clean(layer.name, 40)} (p = {p_text(s.p_value)}, corrected {p_text(corrected_p(s))})"
        for layer, s in found[:LISTED]
    ]
    if len(found) > LISTED:
        worst = max(corrected_p(s) or 0.0 for _, s in found)
        named.append(f"{len(found) - LISTED} more (corrected p at most {p_text(worst)})")
    has = "has" if len(found) == 1 else "have"
    return (
        f"{start}: {len(found)} of {count(len(tested), 'layer')} {has} {what} beyond chance at 5% after correction for "
        f"all tests: {listing(named)}."
    )


def count_is_no_evidence(layers: Sequence[LayerTopology]) -> str:
    """What a number of H1 bars says, and what a small p-value says."""
    bare = (
        "A number of H1 bars is no evidence of loops. Points without any structure have them too: 75 points drawn from "
        "a Gaussian in 50 dimensions give 64."
    )
    evidence = evidence_of(layers)
    if evidence is None:
        return (
            f"{bare} Only a comparison with a null model (random clouds of the same size and spread) turns a count "
            "into evidence, and this run made none: no bar here carries a p-value."
        )
    only = "" if evidence.null == "rotation" else f" Under the null model {evidence.null!r} p-values are approximate."
    return (
        f"{bare} The p-values say how often structureless clouds show a bar as pronounced as the layer's most "
        "pronounced one. A small one says that the cloud is not such a cloud, and by what; it does not say how many "
        f"loops there are or what they mean.{only}"
    )


def sample_sentence(these: str, layers: Sequence[LayerTopology]) -> str:
    """What other texts would change."""
    if not has_limits(layers):
        return f"All figures are of {these} and come without error bars: other texts give other figures."
    return (
        f"All figures are of {these}; other texts give other figures. The 95% limits are for the expected figure over "
        "samples of as many texts from the same source, one figure of one layer at a time, by subsampling without "
        "replacement."
    )


def p_columns(layers: Sequence[LayerTopology]) -> tuple[list[Column], list[tuple[str, ...]]]:
    """Two columns per tested dimension for the table of layers, and the cells of every layer; empty without tests."""
    tested = [
        k for k in dimensions_of(layers) if any((s := summary_of(x, k)) and s.p_value is not None for x in layers)
    ]
    columns = []
    for k in tested:
        columns += [
            Column(f"H{k} p", f"p-value of {_STRUCTURE.get(k, 'structure')} in this layer alone"),
            Column(f"H{k} p corr.", "the same, corrected for all layers and dimensions"),
        ]
    return columns, [tuple(c for k in tested for c in _p_cells(summary_of(layer, k))) for layer in layers]


def _p_cells(summary: DimensionSummary | None) -> tuple[str, str]:
    if summary is None or summary.p_value is None:
        return DASH, DASH
    return p_text(summary.p_value), p_text(corrected_p(summary))


def limits_tables(layers: Sequence[LayerTopology]) -> list[Table]:
    """The 95% limits of every layer's scale-free totals, counts and entropies; no table without limits."""
    if not has_limits(layers):
        return []
    shown = (("count", "bars"), ("total_over_scale", "/ scale"), ("entropy", "entropy"))
    present = [
        (k, name, label)
        for k in dimensions_of(layers)
        for name, label in shown
        if any((s := summary_of(layer, k)) and s.intervals and name in s.intervals for layer in layers)
    ]
    columns = (Column("layer", numeric=False), *(Column(f"H{k} {label}") for k, _, label in present))
    rows = tuple(
        (clean(layer.name, 60), *(_limits(summary_of(layer, k), name) for k, name, _ in present)) for layer in layers
    )
    note = (
        "95% confidence limits of the expected figure over samples of as many texts, from subsamples without "
        "replacement; the principal axes are held fixed. Longest bars and the entropy of H1 have none: no limits for "
        "them kept their level in simulations. Those shown held the truth in 93 to 97% of simulations of 100 points "
        "(circle, clusters, Gaussian, layer of a small language model)."
    )
    return [Table("Confidence limits", columns, rows, note)]


def _limits(summary: DimensionSummary | None, name: str) -> str:
    if summary is None or not summary.intervals or name not in summary.intervals:
        return DASH
    low, high = summary.intervals[name]
    return f"{number(low, 3)} to {number(high, 3)}"


def evidence_facts(layers: Sequence[LayerTopology]) -> list[Fact]:
    """How p-values and limits were got."""
    facts, evidence = [], evidence_of(layers)
    if evidence is not None:
        sample = f" on {evidence.n_tested:,} of the points" if evidence.n_tested < layers[0].n_points else ""
        facts.append(Fact("null model", f"{evidence.null}, {evidence.replicates} replicates per layer{sample}",
                          "corrected p-values: largest statistic over layers and dimensions (Westfall, Young 1993)"
                          if evidence.null == "rotation" else "corrected p-values: Holm 1979"))  # fmt: skip
    subsamples = max((layer.evidence.subsamples for layer in layers if layer.evidence), default=0)
    if subsamples:
        facts.append(Fact("confidence limits", f"95%, {subsamples} halves and {subsamples // 2} larger subsamples",
                          "without replacement"))  # fmt: skip
    return facts


def longest_loop_note(name: str, summary: DimensionSummary) -> str:
    """What stands beside the longest bar at the top of an entry."""
    if summary.p_value is None:
        return f"{name}; not tested for significance"
    return f"{name}; p = {p_text(summary.p_value)}, corrected {p_text(corrected_p(summary))}"
