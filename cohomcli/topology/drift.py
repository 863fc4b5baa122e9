"""Drift: how far each layer of a model has moved from the same layer of a baseline, on the same texts.

The drift of a layer is a number in [0, 1] that does not change when the activations are rescaled or rotated: 0 for
equal representations, near 1 for unrelated ones. It is 1 - s for a similarity s such as CKA, cut at 1 where s is
negative, and the value itself for a bounded divergence; measures without an upper bound are refused, because a
threshold on them would mean another thing for every sample size. Where only persistence diagrams are at hand there is
`DIAGRAMS`, which see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.progress import Progress, silent
from cohomcli.registry import did_you_mean
from cohomcli.topology.diagramdrift import diagram_drift
from cohomcli.topology.measure import Measure, representation
from cohomcli.topology.measures import MEASURES
from cohomcli.topology.results import LayerTopology

DIAGRAMS = "diagrams"
DEFAULT = "cka-debiased"
STEP = "drift"
ROUNDING = 1e-12


class Representations(Protocol):
    """The pooled activations of an analysed model, read layer by layer."""

    def layer(self, name: str) -> NDArray[np.float32]:
        """One layer, (n_texts, width)."""


@dataclass(frozen=True)
class Subject:
    """What is compared: one row of the comparison.

    `texts` identifies the texts and how a text became a point, `sample` the texts alone, `weights` the model's weights
    ("": not known). `activations` is None where they were not kept.
    """

    row: int
    texts: str
    layers: tuple[LayerTopology, ...]
    activations: Representations | None = None
    sample: str = ""
    weights: str = ""


@dataclass(frozen=True)
class LayerDrift:
    """The drift of one layer, in [0, 1]."""

    layer: str
    drift: float


@dataclass(frozen=True)
class ModelDrift:
    """The drift of every layer of `row` from the same layer of row `against` (None: no row to compare with).

    The figures are None, and `reason` says why, when a single layer of either side cannot be compared: a largest drift
    over the layers that happened to be comparable would let a gate pass on what it has not seen.
    """

    row: int
    against: int | None
    layers: tuple[LayerDrift, ...] = ()
    max_drift: float | None = None
    mean_drift: float | None = None
    worst_layer: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class DriftReport:
    """Drift of the other rows from their baselines, and, for checkpoints, of each from the one before (`steps`).

    `measured_on` says whether `measure` was taken between activations or between diagrams. `named` says whether the
    baseline was chosen by the user; else it is the first row. The figures are over all `models`, None unless every
    one of them has its own.
    """

    baselines: tuple[int, ...]
    named: bool
    measure: str
    measured_on: Literal["activations", "diagrams"]
    models: tuple[ModelDrift, ...]
    steps: tuple[ModelDrift, ...]
    max_drift: float | None
    mean_drift: float | None
    max_step: float | None
    reason: str = ""


def bounded_measures() -> list[str]:
    """The measures that drift can be stated in."""
    return [*(name for name in MEASURES if MEASURES.get(name).bounded), DIAGRAMS]


def choose_measure(name: str, complete: bool) -> str:
    """The measure that `name` stands for: "auto" is `DEFAULT`, or `DIAGRAMS` unless all activations are there.

    Raises:
        UsageError: unknown or unbounded, or activations are missing for a measure that was named.
    """
    if name == "auto":
        return DEFAULT if complete else DIAGRAMS
    if name == DIAGRAMS:
        return name
    if name not in MEASURES:
        raise UsageError(f"unknown measure {name!r}", did_you_mean(name, bounded_measures()))
    if not MEASURES.get(name).bounded:
        raise UsageError(
            f"measure {name!r} has no upper bound, so no drift can be stated in it",
            f"use one of {', '.join(bounded_measures())}",
        )
    if not complete:
        raise UsageError(
            f"measure {name!r} needs activations, and a run holds none", f"analyse it again, or use {DIAGRAMS}"
        )
    return name


def drift_report(
    subjects: Sequence[Subject],
    baselines: Sequence[int],
    pairs: Sequence[tuple[int, int | None]],
    measure: str,
    progress: Progress = silent,
) -> DriftReport:
    """The drift of subject i from subject j for every (i, j) of `pairs`; `measure` is one that `choose_measure` gave.

    Where j is None there is nothing to compare with, and the report's figures are None. `baselines` are the rows
    measured from; without them every row is measured from the first, and the report says that no baseline was named.

    Raises:
        AnalysisIncomplete: stored activations are not finite.
    """
    chosen = list(pairs) or [(at, 0) for at in range(1, len(subjects))]
    models = []
    for done, (one, other) in enumerate(chosen):
        progress(STEP, done, len(chosen))
        models.append(model_drift(subjects[one], None if other is None else subjects[other], measure))
    progress(STEP, len(chosen), len(chosen))
    largest = _whole([model.max_drift for model in models])
    mean = _whole([model.mean_drift for model in models])
    return DriftReport(
        baselines=tuple(baselines) or (0,),
        named=bool(baselines),
        measure=measure,
        measured_on="diagrams" if measure == DIAGRAMS else "activations",
        models=tuple(models),
        steps=(),
        max_drift=max(largest) if largest else None,
        mean_drift=float(np.mean(mean)) if mean else None,
        max_step=None,
        reason=next((model.reason for model in models if model.reason), ""),
    )


def with_steps(report: DriftReport, checkpoints: Sequence[Subject]) -> DriftReport:
    """The report with the drift of every checkpoint from the one before it."""
    steps = tuple(model_drift(one, other, report.measure) for other, one in pairwise(checkpoints))
    largest = _whole([step.max_drift for step in steps])
    return replace(report, steps=steps, max_step=max(largest) if largest else None)


def check_memory(subjects: Sequence[Subject], measure: str, available: int) -> None:
    """Refuse to compare more points than memory holds.

    Nearly every measure works on (n, n) float64 matrices, at most five at a time for one pair of layers; a map prepares
    one for every subject.

    Raises:
        AnalysisIncomplete: it would take more than `available` bytes.
    """
    if measure == DIAGRAMS:
        return
    n = max((layer.n_points for subject in subjects for layer in subject.layers), default=0)
    needed = 8 * n * n * (5 + len(subjects))
    if needed > available:
        raise AnalysisIncomplete(
            f"comparing {len(subjects)} analyses of {n:,} points takes about {needed / 2**30:.1f} GiB, and "
            f"{available / 2**30:.1f} GiB are free",
            "compare fewer at a time, or fewer texts",
        )


def _whole(values: Sequence[float | None]) -> list[float]:
    """The values when all are there, else none of them."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def model_drift(one: Subject, other: Subject | None, measure: str) -> ModelDrift:
    """The drift of every layer of `one` from `other`, in forward order."""
    if other is None:
        return ModelDrift(one.row, None, reason="the baseline does not hold this model and data set")
    if one.texts != other.texts:
        return ModelDrift(one.row, other.row, reason="not the same texts, pooled alike")
    names, others = ([layer.name for layer in subject.layers] for subject in (one, other))
    if names != others:
        return ModelDrift(one.row, other.row, reason=_unlike(names, others))
    layers = tuple(_layers(one, other, measure))
    known = tuple(layer for layer in layers if math.isfinite(layer.drift))
    if len(known) < len(layers) or not layers:
        missing = [layer.layer for layer in layers if not math.isfinite(layer.drift)]
        what = f"{measure} is not defined in {', '.join(missing[:3])}" if missing else "no layer was analysed"
        return ModelDrift(one.row, other.row, known, reason=what)
    worst = max(layers, key=lambda layer: layer.drift)
    mean = float(np.mean([layer.drift for layer in layers]))
    return ModelDrift(one.row, other.row, layers, worst.drift, mean, worst.layer)


def _unlike(names: Sequence[str], others: Sequence[str]) -> str:
    odd = [name for name in names if name not in others] or [name for name in others if name not in names]
    return f"the layers differ ({odd[0]})" if odd else "the layers differ in order"


def _layers(one: Subject, other: Subject, measure: str) -> Iterator[LayerDrift]:
    if measure == DIAGRAMS:
        for first, second in zip(one.layers, other.layers, strict=True):
            yield LayerDrift(first.name, diagram_drift(first, second))
        return
    assert one.activations is not None
    assert other.activations is not None
    for layer in one.layers:
        x, y = one.activations.layer(layer.name), other.activations.layer(layer.name)
        yield LayerDrift(layer.name, representation_drift(x, y, MEASURES.get(measure)))


def representation_drift(x: NDArray[Any], y: NDArray[Any], measure: Measure) -> float:
    """The drift between `x` (n, d) and `y` (n, d') under a bounded `measure`; exactly 0 for equal arrays.

    NaN where the measure is not defined, as when all points of one side coincide, and for unequal numbers of rows.

    Raises:
        AnalysisIncomplete: an array that is no finite (n, d) with n >= 2.
    """
    first, second = representation(x), representation(y)
    if len(first) != len(second):
        return math.nan
    if first.shape == second.shape and np.array_equal(first, second):
        return 0.0
    return bounded_distance(measure.compare(measure.prepare(first), measure.prepare(second)), measure)


def bounded_distance(value: float, measure: Measure) -> float:
    """The value of a bounded measure as a distance in [0, 1], 0 up to rounding; NaN stays NaN."""
    if math.isnan(value):
        return math.nan
    gap = 1.0 - value / measure.high if measure.kind == "similarity" else value / measure.high
    return float(min(gap, 1.0)) if gap > ROUNDING else 0.0
