"""What accuracy costs: the cheapest plan over a range of tolerances, from the finest to the coarsest."""

from __future__ import annotations

import math

import numpy as np

from cohomcli.precision.loop import Looped, Setting, choice_of, most_accurate
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import budget, from_scores
from cohomcli.precision.pareto import pareto
from cohomcli.precision.result import TradeOff
from cohomcli.precision.spec import Plan, Problem

DYNAMIC_RANGE = 1e3  # of the tolerances; below it plans of 16-bit formats are nearly all fp32


def trade_offs(setting: Setting, looped: Looped, options: PrecisionOptions) -> tuple[TradeOff, ...]:
    """`options.n_pareto` points, spaced evenly in log epsilon up to the cheapest plan's error.

    Predictions of the assignment problem itself (proved-in-model as far as bounds go), not measured.
    """
    if options.n_pareto < 1:
        return ()
    problem = looped.problem
    ends = most_accurate(setting, problem), _cheapest(setting, problem)
    least = max(setting.predict(ends[0]), np.finfo(np.float64).tiny)
    most = max(setting.predict(ends[1]), least)
    known = [choice_of(setting, plan) for plan in (*looped.tried, *ends)]
    grid = np.geomspace(max(least, most / DYNAMIC_RANGE) * 1.02, most * 1.02, options.n_pareto)
    norm = options.norm
    points = pareto(problem, [math.sqrt(budget(norm, float(e))) for e in grid], options.time_limit, 5e-3, known)
    return tuple(
        TradeOff(
            epsilon=float(epsilon),
            predicted_error=None if p.predicted_error is None else from_scores(norm, p.predicted_error**2),
            objective=p.cost,
            lower_bound=None if p.lower_bound is None else float(p.lower_bound),
        )
        for epsilon, p in zip(grid, points, strict=True)
    )


def _cheapest(setting: Setting, problem: Problem) -> Plan:
    """Every vertex in its allowed format of least own cost, the least accurate of those that cost the same."""
    cost = np.where(problem.allowed, problem.cost, np.inf)
    ties = cost <= cost.min(axis=1, keepdims=True)
    choice = np.where(ties, problem.error, -np.inf).argmax(axis=1)
    formats = setting.sensitivity.formats
    return Plan(tuple("" if v.fixed else formats[f] for v, f in zip(setting.graph.vertices, choice, strict=True)))
