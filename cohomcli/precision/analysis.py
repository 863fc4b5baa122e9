"""The whole precision analysis of one model on given inputs: capture, score, sheaf, plan, closed loop, measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.precision.amplification import balance_of
from cohomcli.precision.baselines import baselines
from cohomcli.precision.capture import Captured, capture
from cohomcli.precision.curvature import OpCurvature, curvatures
from cohomcli.precision.execute import Emulator, uniform
from cohomcli.precision.forecast import MOST_SURVEYED, REFERENCE_BYTES
from cohomcli.precision.loop import Looped, Setting, closed_loop, errors_of
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import OutputNorm, bind, joined
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.result import Baseline, PrecisionResult
from cohomcli.precision.sensitivity import SensitivityOptions, contributions, predict, sensitivity
from cohomcli.precision.spec import Admissibility, Plan, Ranges, Sensitivity
from cohomcli.precision.summary import Findings, HeldOut, Inputs, summarise
from cohomcli.precision.tradeoff import trade_offs
from cohomcli.precision.validity import curvature_ratios
from cohomcli.precision.variation import relative_sensitivities, unseen_factors
from cohomcli.progress import Progress, silent

# Inputs whose sensitivities are compared: the more, the likelier that a near tie is among them. What one costs grows
# with the numbers it reads and writes, so large models are compared, and surveyed, on fewer.
MOST_VARIED, N_VARIED, FEWEST_VARIED = 32, 8, 4
N_SURVEYED = 12
WORK = 1 << 30  # numbers of weights and results, over all varied inputs; twice that over all calibration inputs


@dataclass(frozen=True)
class Analysis:
    """The result for people and reports, and what it was computed from: enough to run, apply or change the plan."""

    result: PrecisionResult
    plan: Plan
    captured: Captured
    sensitivity: Sensitivity
    admissibility: Admissibility
    ranges: Ranges
    looped: Looped


def analyse(
    model: nn.Module,
    inputs: Inputs,
    options: PrecisionOptions,
    outputs: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Analysis:
    """Capture `model`, plan its formats under `options`, and measure the plan on held-out inputs.

    `outputs` names the results that count (default: all floating-point ones). The model is not changed.

    Raises:
        UsageError: no inputs, unknown formats or outputs, or wishes that leave an op without a format.
        AnalysisIncomplete: the model cannot be captured, or is not finite itself.
    """
    if not inputs.calibration or not inputs.heldout:
        raise UsageError("calibration and held-out inputs are needed", "give at least one of each")
    progress("capture", 0, 1)
    captured = capture(model, inputs.calibration[0], outputs)
    progress("capture", 1, 1)
    inputs = afforded(captured, inputs)
    setting, found = prepare(captured, inputs, options, progress)
    progress("plan", 0, options.max_rounds)
    looped = closed_loop(setting, options, lambda done: progress("plan", done, options.max_rounds))
    progress("plan", options.max_rounds, options.max_rounds)
    heldout = bind(captured, inputs.heldout, options.norm)
    progress("measure", 0, 3)
    ours = measure(heldout, setting.emulate, looped.plan, inputs.heldout)
    progress("measure", 1, 3)
    others = baselines(model, captured, inputs.heldout, heldout, setting.emulate) if options.baselines else ()
    progress("measure", 2, 3)
    findings = Findings(
        looped=looped,
        ranges=found,
        heldout=ours,
        fp32_error=_fp32_error(others, captured, heldout, setting.emulate, inputs.heldout),
        validity=_validity(captured, inputs, options, setting.admissibility),
        trade_offs=trade_offs(setting, looped, options),
        baselines=others,
        curvature=_curvature(captured, inputs, setting, looped.plan, options.n_curvature),
        balance=balance_of(captured, inputs.calibration[0], options.seed),
    )
    progress("measure", 3, 3)
    result = summarise(captured, inputs, setting, options, findings)
    return Analysis(result, looped.plan, captured, setting.sensitivity, setting.admissibility, found, looped)


def afforded(captured: Captured, inputs: Inputs) -> Inputs:
    """`inputs`, if they are `thrifty` with at most N_SURVEYED to MOST_SURVEYED further ones, by the model's size."""
    if not inputs.thrifty:
        return inputs
    n = 2 * WORK // _numbers(captured) - len(inputs.calibration)
    return replace(inputs, surveyed=inputs.surveyed[: min(max(n, N_SURVEYED), MOST_SURVEYED)], thrifty=False)


def _numbers(captured: Captured) -> int:
    """How many numbers one call reads and writes: every weight and every result once."""
    return max(1, sum(v.numel for v in captured.graph.vertices))


def prepare(
    captured: Captured, inputs: Inputs, options: PrecisionOptions, progress: Progress = silent
) -> tuple[Setting, Ranges]:
    """What every plan for `captured` is made from, whatever its epsilon: ranges, scores, reference outputs.

    Raises:
        UsageError: unknown formats, or a norm that does not fit the outputs.
        AnalysisIncomplete: the model is not finite, or an op has no derivative.
    """
    found = ranges(captured, [*inputs.calibration, *inputs.surveyed], progress)
    allowed = admissibility(captured.graph, found, options.formats, options.headroom)
    wanted = SensitivityOptions(options.formats, options.norm, options.n_probes, options.seed)
    scored = sensitivity(captured, inputs.calibration[: inputs.n_scored], wanted, allowed, progress)
    norm = bind(captured, inputs.calibration, options.norm)
    further = inputs.surveyed[: _n_affordable(norm)]
    calls = [*inputs.calibration, *further]
    if further:
        norm = joined(norm, bind(captured, further, options.norm))
    factors = _factors(captured, inputs, norm, options, progress)
    setting = Setting(
        graph=captured.graph,
        sensitivity=scored,
        admissibility=allowed,
        norm=norm,
        emulate=Emulator(captured),
        inputs=calls,
        predict=lambda plan: predict(scored, plan),
        n_first=len(inputs.calibration),
        scores=scored.scores if factors is None else scored.scores * factors[:, None],
        unseen=inputs.heldout is not inputs.calibration,
    )
    return setting, found


def _factors(
    captured: Captured, inputs: Inputs, norm: OutputNorm, options: PrecisionOptions, progress: Progress
) -> NDArray[np.float64] | None:
    """From the scored inputs to an unseen one, per vertex; None when there is none, or too few to see a difference."""
    n_varied = min(max(WORK // _numbers(captured), N_VARIED), MOST_VARIED, len(norm.references))
    varied = [*inputs.calibration, *inputs.surveyed][:n_varied]
    if inputs.heldout is inputs.calibration or len(varied) < FEWEST_VARIED:
        return None
    relative = relative_sensitivities(captured, varied, norm, options.seed, progress)
    return unseen_factors(relative, inputs.n_scored, options.norm)


def _n_affordable(norm: OutputNorm) -> int:
    """How many further inputs' reference outputs fit into the memory set aside for them."""
    n_bytes = sum(reference.nbytes for row in norm.references for reference in row)
    return REFERENCE_BYTES * len(norm.references) // max(n_bytes, 1)


def measure(norm: OutputNorm, emulate: Emulator, plan: Plan, inputs: Sequence[Any]) -> HeldOut:
    """The error of `plan` over `inputs`, which `norm` is bound to, and what overflowed there."""
    runs = [emulate(plan, x) for x in inputs]
    overflow: dict[int, float] = {}
    for one in runs:
        for vertex, magnitude in one.overflow.items():
            overflow[vertex] = max(magnitude, overflow.get(vertex, 0.0))
    return HeldOut(errors_of(norm, [one.outputs for one in runs])[0], overflow)


def _fp32_error(
    others: Sequence[Baseline], captured: Captured, norm: OutputNorm, emulate: Emulator, inputs: Sequence[Any]
) -> float:
    """The error of fp32 everywhere; a baseline has it already, when there are any."""
    for baseline in others:
        if baseline.name == "uniform-fp32":
            return math.inf if baseline.error is None else baseline.error
    return measure(norm, emulate, uniform(captured, "fp32"), inputs).error


def _validity(
    captured: Captured, inputs: Inputs, options: PrecisionOptions, allowed: Admissibility
) -> dict[str, float]:
    formats = [f for f in options.formats if f not in ("fp64", "fp32", "int8")]
    found = curvature_ratios(captured, inputs.calibration[:1], formats, allowed)
    return {fmt: ratio for fmt, ratio in found.items() if math.isfinite(ratio)}


def _curvature(captured: Captured, inputs: Inputs, setting: Setting, plan: Plan, count: int) -> list[OpCurvature]:
    """Curvature of the ops that contribute most to the predicted error."""
    share = contributions(setting.sensitivity, plan)
    ops = [v.index for v in captured.graph.vertices if v.kind == "op" and not v.fixed]
    largest = sorted(ops, key=lambda v: -share[v])[:count]
    return curvatures(captured, inputs.calibration[0], largest) if largest else []
