"""What accuracy costs: the cheapest plan over a range of tolerances, from the finest to the coarsest."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from cohomcli.precision.loop import Looped, Setting, choice_of, errors_of, most_accurate, problem_for
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import budget, from_scores
from cohomcli.precision.pareto import pareto
from cohomcli.precision.problem import plan_of
from cohomcli.precision.result import TradeOff
from cohomcli.precision.spec import Plan, Problem, Solution

DYNAMIC_RANGE = 1e3  # of the tolerances; below it plans of 16-bit formats are nearly all fp32
N_MEASURED = 3  # points that are run


def trade_offs(setting: Setting, looped: Looped, options: PrecisionOptions) -> tuple[TradeOff, ...]:
    """`options.n_pareto` points, spaced evenly in log epsilon up to the cheapest plan's error.

    Predictions of the assignment problem itself, by the plain scores (proved-in-model as far as bounds go); N_MEASURED
    of them are run on the first calibration inputs too.
    """
    if options.n_pareto < 1:
        return ()
    problem = problem_for(replace(setting, scores=None), options, options.epsilon)
    ends = most_accurate(setting, problem), _cheapest(setting, problem)
    least = max(setting.predict(ends[0]), np.finfo(np.float64).tiny)
    most = max(setting.predict(ends[1]), least)
    known = [choice_of(setting, plan) for plan in (*looped.tried, *ends)]
    grid = np.geomspace(max(least, most / DYNAMIC_RANGE) * 1.02, most * 1.02, options.n_pareto)
    norm = options.norm
    points = pareto(problem, [math.sqrt(budget(norm, float(e))) for e in grid], options.time_limit, 5e-3, known)
    solved = [n for n, p in enumerate(points) if p.solution.choice is not None]
    run = set(solved[:: max(1, math.ceil(len(solved) / N_MEASURED))])
    return tuple(
        TradeOff(
            epsilon=float(epsilon),
            predicted_error=None if p.predicted_error is None else from_scores(norm, p.predicted_error**2),
            objective=p.cost,
            lower_bound=None if p.lower_bound is None else float(p.lower_bound),
            measured_error=_measured(setting, p.solution) if n in run else None,
        )
        for n, (epsilon, p) in enumerate(zip(grid, points, strict=True))
    )


def _measured(setting: Setting, solution: Solution) -> float | None:
    """The error of a solution's plan over the first calibration inputs."""
    plan = plan_of(setting.graph, setting.sensitivity.formats, solution)
    first = setting.inputs[: setting.n_first]
    error = errors_of(setting.norm, [setting.emulate(plan, x).outputs for x in first])[0]
    return error if math.isfinite(error) else None


def _cheapest(setting: Setting, problem: Problem) -> Plan:
    """Every vertex in its allowed format of least own cost, the least accurate of those that cost the same."""
    cost = np.where(problem.allowed, problem.cost, np.inf)
    ties = cost <= cost.min(axis=1, keepdims=True)
    choice = np.where(ties, problem.error, -np.inf).argmax(axis=1)
    formats = setting.sensitivity.formats
    return Plan(tuple("" if v.fixed else formats[f] for v, f in zip(setting.graph.vertices, choice, strict=True)))
