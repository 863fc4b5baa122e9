"""From what an analysis computed to `PrecisionResult`: every op with its format and reason, the sheaf, the bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.baselines import bytes_row
from cohomcli.precision.capture import Captured
from cohomcli.precision.cohomology import label_cohomology, meet_cohomology
from cohomcli.precision.costs import autocast_bytes, bytes_of
from cohomcli.precision.curvature import OpCurvature
from cohomcli.precision.execute import uniform
from cohomcli.precision.formats import get_format
from cohomcli.precision.loop import Looped, Setting
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.ranges import describe
from cohomcli.precision.result import (
    BalanceSummary,
    Baseline,
    CurvatureRow,
    FormatSummary,
    ObstructedOp,
    ObstructionSet,
    PlanRow,
    PrecisionResult,
    SheafSummary,
    TradeOff,
)
from cohomcli.precision.sensitivity import contributions
from cohomcli.precision.sheaf import islands, label_sheaf, obstructions
from cohomcli.precision.spec import SEMANTICS, Admissibility, ComputationGraph, Ranges, Vertex
from cohomcli.precision.traffic import stored_bytes


@dataclass(frozen=True)
class Inputs:
    """Calls of the model, all of one shape; `description` names and hashes them for the report.

    Plans are made on `calibration`, of which the first `n_scored` are differentiated; errors are reported on `heldout`.
    `surveyed` are further calibration inputs, that show which magnitudes occur and how much errors vary; `thrifty` uses
    only as many of them as the model's size affords. If `heldout` is `calibration` itself, no margin is left for unseen
    inputs.
    """

    calibration: Sequence[Any]
    heldout: Sequence[Any]
    description: str = ""
    n_scored: int = 2
    surveyed: Sequence[Any] = ()
    thrifty: bool = False


@dataclass(frozen=True)
class HeldOut:
    """The plan on the held-out inputs: its error, and the vertices that left their format's range with magnitudes."""

    error: float
    overflow: Mapping[int, float]


@dataclass(frozen=True)
class Findings:
    """What the steps of an analysis found; errors are inf where an output was not finite."""

    looped: Looped
    ranges: Ranges
    heldout: HeldOut
    fp32_error: float
    validity: Mapping[str, float]
    trade_offs: tuple[TradeOff, ...]
    baselines: tuple[Baseline, ...]
    curvature: Sequence[OpCurvature]
    balance: BalanceSummary | None = None


def summarise(
    captured: Captured, inputs: Inputs, setting: Setting, options: PrecisionOptions, found: Findings
) -> PrecisionResult:
    """Put everything together; computes the label sheaf's cohomology on the way."""
    graph, looped = captured.graph, found.looped
    met = found.heldout.error <= options.epsilon
    share = contributions(setting.sensitivity, looped.plan)
    chosen = looped.rounds[looped.chosen]
    return PrecisionResult(
        epsilon=options.epsilon,
        norm=options.norm,
        formats=options.formats,
        objective=options.objective if isinstance(options.objective, str) else "cost table",
        level=options.level,
        semantics=SEMANTICS,
        inputs=inputs.description,
        n_calibration=len(inputs.calibration),
        n_heldout=0 if inputs.heldout is inputs.calibration else len(inputs.heldout),
        outputs=tuple(name for name, _ in captured.program.outputs),
        n_ops=sum(v.kind == "op" and not v.fixed for v in graph.vertices),
        n_weights=sum(v.kind == "weight" and not v.fixed for v in graph.vertices),
        n_fixed=sum(bool(v.fixed) for v in graph.vertices),
        n_edges=len(graph.edges),
        n_parameters=_parameters(graph),
        met=met,
        reason="" if met else _why_not(graph, options, found),
        infeasible=looped.solution.infeasible,
        predicted_error=chosen.predicted,
        calibration_error=chosen.measured,
        measured_error=_finite(found.heldout.error),
        fp32_error=_finite(found.fp32_error),
        rounds=looped.rounds,
        plan=plan_rows(graph, looped, setting, share, found.ranges),
        edges=_row_edges(graph),
        sheaf=sheaf_summary(graph, setting.admissibility, found.validity),
        obstructions=obstruction_sets(graph, setting.admissibility),
        bytes_plan=bytes_row(bytes_of(graph, looped.plan)),
        bytes_fp32=bytes_row(bytes_of(graph, uniform(captured, "fp32"))),
        bytes_fp16=bytes_row(bytes_of(graph, uniform(captured, "fp16"))),
        bytes_autocast=bytes_row(autocast_bytes(graph, "fp16")),
        lower_bound=float(looped.solution.lower_bound) if looped.solved and looped.solution.lower_bound else None,
        gap=looped.solution.gap if looped.solved else None,
        baselines=found.baselines,
        pareto=found.trade_offs,
        curvature=tuple(_curvature_row(graph, c) for c in found.curvature),
        n_probes=options.n_probes,
        notes=tuple(_notes(captured, inputs, options, found)),
        n_surveyed=len(inputs.surveyed),
        n_overflows=len(found.heldout.overflow),
        balance=found.balance,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _parameters(graph: ComputationGraph) -> int:
    """Elements of the weights, each storage once."""
    sizes = {v.storage or v.name: v.numel for v in graph.vertices if v.kind == "weight"}
    return sum(sizes.values())


def _why_not(graph: ComputationGraph, options: PrecisionOptions, found: Findings) -> str:
    """Why the held-out error is above epsilon, in one sentence."""
    epsilon = f"{options.epsilon:g}"
    if found.fp32_error > options.epsilon:
        return f"fp32 everywhere already errs by {found.fp32_error:.3g} on the held-out inputs, more than {epsilon}"
    if found.looped.solution.infeasible:
        return f"no assignment of these formats is predicted to err by at most {epsilon}: allow a wider format"
    if found.heldout.overflow:
        vertex, magnitude = max(found.heldout.overflow.items(), key=lambda item: item[1])
        fmt = found.looped.plan.formats[vertex]
        more = f" and {len(found.heldout.overflow) - 1} more" if len(found.heldout.overflow) > 1 else ""
        return (
            f"{describe(graph.vertices[vertex])}{more} left the range of {fmt} on a held-out input ({magnitude:.3g}, "
            f"{found.ranges.max_abs[vertex]:.3g} in calibration): survey more inputs or leave more headroom"
        )
    if not found.looped.good:
        return f"no round kept {epsilon} on the calibration inputs: allow a wider format or a finer granularity"
    return (
        f"the plan keeps {epsilon} on the calibration inputs but errs by {found.heldout.error:.3g} on the held-out "
        "ones: give more calibration inputs"
    )


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_rows(
    graph: ComputationGraph, looped: Looped, setting: Setting, share: NDArray[np.float64], found: Ranges
) -> tuple[PlanRow, ...]:
    """One row per vertex with a format to choose, in the graph's order."""
    total = float(share.sum())
    rows = []
    for v in graph.vertices:
        if v.fixed:
            continue
        fmt = looped.plan.formats[v.index]
        rows.append(
            PlanRow(
                op=v.name,
                target=v.target,
                module=v.module,
                kind=v.kind,
                shape=v.shape,
                format=fmt,
                reason=_reason(v, fmt, looped, setting),
                share=float(share[v.index]) / total if total > 0 else 0.0,
                largest=float(found.max_abs[v.index]),
                bytes=stored_bytes(graph, v.index, fmt),
            )
        )
    return tuple(rows)


def _reason(vertex: Vertex, fmt: str, looped: Looped, setting: Setting) -> str:
    """Why a vertex has its format: nothing narrower is allowed, or would cost accuracy, or its neighbours decide."""
    formats, problem = setting.sensitivity.formats, looped.problem
    sizes = {f: get_format(f).n_bytes for f in formats}
    narrower = [f for f in formats if sizes[f] < sizes[fmt]]
    possible = [f for f in narrower if problem.allowed[vertex.index, formats.index(f)]]
    if not narrower:
        return f"{fmt} is the narrowest of the formats"
    if not possible:
        reasons = [setting.admissibility.reasons.get((vertex.index, f), "") for f in narrower]
        # The narrowest refusal that a measurement made says most; weights refuse int8 by rule.
        why = next((reason for reason in reasons if reason), "")
        return f"narrower is not admissible: {why}" if why else "narrower formats are excluded by a keep rule or target"
    here = problem.error[vertex.index, formats.index(fmt)]
    least = min(possible, key=lambda f: problem.error[vertex.index, formats.index(f)])
    extra = float(problem.error[vertex.index, formats.index(least)] - here) / problem.budget if problem.budget else 0.0
    if extra >= 1e-3:
        return f"{least} would add {extra:.2g} of the error budget"
    if len(_group_of(vertex.index, problem.groups)) > 1:
        return f"shares {fmt} with its group, where something narrower does not fit"
    return f"{fmt} saves casts: its neighbours are stored in it"


def _group_of(vertex: int, groups: Sequence[Sequence[int]]) -> Sequence[int]:
    return next((group for group in groups if vertex in group), (vertex,))


def _row_edges(graph: ComputationGraph) -> tuple[tuple[int, int], ...]:
    """Edges between rows of the plan, by their places in it; vertices without a format to choose have no row."""
    row = {v.index: n for n, v in enumerate(v for v in graph.vertices if not v.fixed)}
    return tuple((row[u], row[v]) for u, v in graph.edges if u in row and v in row)


# --- the sheaf --------------------------------------------------------------------------------------------------------


def sheaf_summary(graph: ComputationGraph, admissible: Admissibility, validity: Mapping[str, float]) -> SheafSummary:
    """The label sheaf's dimensions by exact rank, format by format, and those of the meet variant."""
    sheaf = label_sheaf(graph, admissible)
    found, meet = label_cohomology(sheaf), meet_cohomology(sheaf)
    regions = {island.format: island for island in islands(sheaf)}
    return SheafSummary(
        h0=found.h0,
        h1=found.h1,
        euler=found.euler,
        n_vertices=found.n_vertices,
        n_edges=found.n_edges,
        n_components=found.n_components,
        betti1=found.betti1,
        meet_h0=meet.h0,
        meet_h1=meet.h1,
        formats=tuple(
            FormatSummary(
                format=f.format,
                h0=f.h0,
                h1=f.h1,
                n_admissible=found.n_vertices - f.n_inadmissible,
                n_inadmissible=f.n_inadmissible,
                n_islands=regions[f.format].count,
                largest_island=max(regions[f.format].sizes, default=0),
                curvature_ratio=validity.get(f.format),
            )
            for f in found.by_format
        ),
    )


def obstruction_sets(graph: ComputationGraph, admissible: Admissibility) -> tuple[ObstructionSet, ...]:
    """S_f for every format, op by op with its reason."""
    found = obstructions(label_sheaf(graph, admissible), admissible)
    return tuple(
        ObstructionSet(
            o.format,
            tuple(
                ObstructedOp(v.name, v.target, v.module, v.kind, reason)
                for v, reason in zip((graph.vertices[i] for i in o.vertices), o.reasons, strict=True)
            ),
        )
        for o in found
    )


# --- the rest ---------------------------------------------------------------------------------------------------------


def _curvature_row(graph: ComputationGraph, found: OpCurvature) -> CurvatureRow:
    vertex = graph.vertices[found.vertex]
    return CurvatureRow(
        op=vertex.name,
        target=found.target,
        module=vertex.module,
        bound=found.bound,
        formula=found.formula,
        reference=found.reference,
        measured=_finite(found.measured),
        condition=_finite(found.condition),
    )


def _notes(captured: Captured, inputs: Inputs, options: PrecisionOptions, found: Findings) -> list[str]:
    notes = [f"The graph was recorded from one run, because {captured.fallback}."] if captured.fallback else []
    if inputs.heldout is inputs.calibration:
        notes.append("There are no held-out inputs: the error is measured on the calibration inputs themselves.")
    masked = [v for v in captured.graph.vertices if v.mask_level]
    if masked:
        notes.append(
            f"{len(masked)} tensors carry an additive attention mask of {masked[0].mask_level:.3g}; a store saturates "
            "it at the format's lowest number, and it is not counted as overflow."
        )
    for fmt, ratio in found.validity.items():
        if ratio > 0.5:
            notes.append(
                f"Uniform {fmt}, where admissible, is not a small perturbation: even/odd is {ratio:.2g}, first order "
                "explains only part of the error there."
            )
    solution = found.looped.solution
    if solution.gap is not None and solution.gap > 1e-2:
        notes.append(f"The solver stopped at a gap of {solution.gap:.1%}: a cheaper plan may exist.")
    if solution.timed_out:
        notes.append(
            f"The solver ran out of its {options.time_limit:g} s: another machine, or this one when it is less busy, "
            "may find another plan."
        )
    return notes
