"""Precision analyses of several models side by side: tolerance, error and bytes of every plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cohomcli.precision.result import PrecisionResult, WeightsResult
from cohomcli.report.document import Column, ComparisonSection, Table
from cohomcli.report.names import DASH, clean, count, listing, number, percent, ratio
from cohomcli.report.precision.digest import formats_of, of_kind
from cohomcli.report.precision.look import counted, norm_name
from cohomcli.report.precision.tables import mebibytes
from cohomcli.results import Entry


def precision_comparison(entries: Sequence[Entry]) -> ComparisonSection:
    """The section for `entries`, each of which has a precision analysis."""
    labels = _labels(entries)
    results = [entry.precision for entry in entries]
    plans = [(label, r) for label, r in zip(labels, results, strict=True) if isinstance(r, PrecisionResult)]
    weights = [label for label, r in zip(labels, results, strict=True) if isinstance(r, WeightsResult)]
    return ComparisonSection(
        seen=tuple(_seen(plans, weights)),
        limits=tuple(_limits(plans)),
        tables=(_table(plans),) if plans else (),
        pictures=(),
    )


def _labels(entries: Sequence[Entry]) -> list[str]:
    several = len({entry.dataset for entry in entries}) > 1
    names = [clean(f"{e.model} on {e.dataset}" if several and e.dataset else e.model, 60) for e in entries]
    seen = Counter(names)
    return [f"{name} #{at + 1}" if seen[name] > 1 else name for at, name in enumerate(names)]


def _seen(plans: Sequence[tuple[str, PrecisionResult]], weights: Sequence[str]) -> list[str]:
    sentences = []
    if plans:
        met = [label for label, result in plans if result.met]
        missed = [label for label, result in plans if not result.met]
        text = f"{count(len(plans), 'precision analysis', 'precision analyses')}: {len(met)} met the tolerance"
        sentences.append(f"{text}; not met: {listing(missed)}." if missed else f"{text}.")
    if weights:
        sentences.append(f"Of {listing(weights)} only the weights were analysed: nothing to compare.")
    return sentences


def _limits(plans: Sequence[tuple[str, PrecisionResult]]) -> list[str]:
    if len({(r.norm, r.semantics) for _, r in plans}) > 1:
        return ["Errors in different norms, or under different execution semantics, cannot be compared."]
    return (
        ["Errors are relative to each model's own outputs: a smaller one does not make a model better."]
        if plans
        else []
    )


def _table(plans: Sequence[tuple[str, PrecisionResult]]) -> Table:
    columns = (
        Column("analysis", numeric=False),
        Column("tolerance", numeric=False),
        Column("epsilon"),
        Column("norm", numeric=False),
        Column("error", "measured on held-out inputs"),
        Column("predicted / measured", "on the calibration inputs"),
        Column("MiB", "one forward pass under the plan"),
        Column("of fp32", "bytes"),
        Column("of autocast fp16", "bytes"),
        Column("operations", "by format", numeric=False),
        Column("rounds"),
    )
    rows = tuple(_row(label, result) for label, result in plans)
    return Table("Precision", columns, rows, "Errors are against each model's own float64 outputs.")


def _row(label: str, result: PrecisionResult) -> tuple[str, ...]:
    plan = result.bytes_plan
    factor = None
    if result.predicted_error is not None and result.calibration_error:
        factor = result.predicted_error / result.calibration_error
    none = "not finite" if result.plan else DASH
    return (
        label,
        "met" if result.met else "not met (proved in the model)" if result.infeasible else "not met",
        number(result.epsilon, 3),
        norm_name(result.norm),
        none if result.measured_error is None else number(result.measured_error, 3),
        ratio(factor),
        DASH if plan is None else mebibytes(plan.total),
        *(
            DASH if plan is None or not other.total else percent(plan.total / other.total, zeros=True)
            for other in (result.bytes_fp32, result.bytes_autocast)
        ),
        counted(formats_of(of_kind(result.plan, "op"))) or DASH,
        str(len(result.rounds)),
    )
