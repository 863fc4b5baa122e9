"""The comparison's words and tables on drift and distance: what moved, how far, and what that cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean, listing, number, percent

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.drift import DriftReport, ModelDrift
    from cohomcli.topology.maps import ModelMap

MOST_COLUMNS = 8
MOST_CELLS = 14


def shown_drift(comparison: Comparison) -> DriftReport | None:
    """The drift, unless nobody named a baseline and nothing could be measured from the first row."""
    drift = comparison.drift
    if drift is None or not (drift.named or drift.steps or any(model.layers for model in drift.models)):
        return None
    return drift


def drift_sentences(comparison: Comparison, labels: Sequence[str]) -> list[str]:
    """What the drift and the distances show."""
    drift, sentences = shown_drift(comparison), []
    if drift is not None:
        start = listing(labels[row] for row in drift.baselines)
        known = [model for model in drift.models if model.max_drift is not None]
        if known:
            worst = max(known, key=lambda model: model.max_drift or 0.0)
            sentences.append(
                f"Drift from {start} ({clean(drift.measure, 40)}, 0 is equal and 1 unrelated): the largest is "
                f"{number(worst.max_drift, 3)}, in {clean(worst.worst_layer or '', 40)} of {labels[worst.row]}; over "
                f"all layers it is {number(worst.mean_drift, 3)} there on average."
            )
        sentences += [_unknown(model, start, labels) for model in drift.models if model.max_drift is None]
        steps = [step for step in drift.steps if step.max_drift is not None]
        if steps:
            worst = max(steps, key=lambda step: step.max_drift or 0.0)
            sentences.append(
                f"From one checkpoint to the next the largest drift is {number(worst.max_drift, 3)}, in "
                f"{clean(worst.worst_layer or '', 40)}, between {_between(worst, labels)}."
            )
    if comparison.map is not None and comparison.map.stress is not None:
        sentences.append(
            f"The map is off by {percent(comparison.map.stress)} of the distances (Kruskal's stress-1): read distances "
            "from the table, neighbourhoods from the map."
        )
    return sentences


def _unknown(model: ModelDrift, start: str, labels: Sequence[str]) -> str:
    return f"No drift of {labels[model.row]} from {start}: {clean(model.reason, 200)}."


def _between(step: ModelDrift, labels: Sequence[str]) -> str:
    return f"{labels[step.against] if step.against is not None else DASH} and {labels[step.row]}"


def drift_limits(comparison: Comparison) -> list[str]:
    """What drift does not mean."""
    drift = shown_drift(comparison)
    if drift is None and comparison.map is None:
        return []
    sentences = [
        "Drift and distance do not see a rotation or a rescaling of a layer, which the next layer may undo, and say "
        "nothing about which of two models is better."
    ]
    measured_on = drift.measured_on if drift else ""
    if measured_on == "diagrams":
        sentences.append(
            "They were measured between diagrams, which forget which text is which: unrelated layers of alike shape "
            "are near, so a small value does not show that nothing changed."
        )
    return sentences


def drift_tables(comparison: Comparison, labels: Sequence[str]) -> list[Table]:
    """Drift by model, by layer and by checkpoint; then the distances."""
    drift, tables = shown_drift(comparison), []
    if drift is not None:
        start = listing(labels[row] for row in drift.baselines)
        tables += [_model_table(f"Drift from {start}", drift.models, labels), _layer_table(drift, labels)]
        tables += [_step_table(drift.steps, labels)] if drift.steps else []
    if comparison.map is not None:
        tables += [_distance_table(comparison.map, labels)]
    return [table for table in tables if table.rows]


_FIGURES = (
    Column("largest drift", "over the layers, 0 is equal and 1 unrelated"),
    Column("in layer", numeric=False),
    Column("mean drift", "over the layers"),
    Column("remark", numeric=False, prose=True),
)


def _cells(model: ModelDrift) -> tuple[str, ...]:
    return (
        number(model.max_drift, 3, zeros=True),
        clean(model.worst_layer, 40) if model.worst_layer else DASH,
        number(model.mean_drift, 3, zeros=True),
        clean(model.reason, 200),
    )


def _model_table(title: str, models: Sequence[ModelDrift], labels: Sequence[str]) -> Table:
    columns = (Column("analysis", numeric=False), *_FIGURES)
    rows = tuple((labels[model.row], *_cells(model)) for model in models)
    return Table(title, columns, rows)


def _layer_table(drift: DriftReport, labels: Sequence[str]) -> Table:
    """Layers down, models across; the first models when there are many."""
    shown = [model for model in drift.models if model.layers][:MOST_COLUMNS]
    names = list(dict.fromkeys(layer.layer for model in shown for layer in model.layers))
    values = [{layer.layer: layer.drift for layer in model.layers} for model in shown]
    columns = (Column("layer", "in forward order", numeric=False), *(Column(labels[model.row]) for model in shown))
    rows = tuple((clean(name, 60), *(number(value.get(name), 3, zeros=True) for value in values)) for name in names)
    rest = sum(bool(model.layers) for model in drift.models) - len(shown)
    note = f"The first {MOST_COLUMNS}; results.json has {rest} more." if rest > 0 else ""
    return Table("Drift of every layer", columns, rows, note)


def _step_table(steps: Sequence[ModelDrift], labels: Sequence[str]) -> Table:
    columns = (Column("from", numeric=False), Column("to", numeric=False), *_FIGURES)
    rows = tuple(
        (labels[step.against] if step.against is not None else DASH, labels[step.row], *_cells(step)) for step in steps
    )
    return Table("Drift from checkpoint to checkpoint", columns, rows)


def _distance_table(flat: ModelMap, labels: Sequence[str]) -> Table:
    shown = range(min(len(flat.values), MOST_CELLS))
    columns = (Column("analysis", numeric=False), *(Column(labels[at]) for at in shown))
    rows = tuple(
        (labels[i], *(number(flat.values[i][j], 3, zeros=i != j) for j in shown)) for i in range(len(flat.values))
    )
    note = (
        f"Mean over {flat.n_depths} relative depths of the drift ({clean(flat.measure, 40)}) between the layers "
        "nearest to each."
    )
    rest = len(flat.values) - len(shown)
    return Table("Distances", columns, rows, f"{note} {rest} columns more are in results.json." if rest else note)
