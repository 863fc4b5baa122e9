"""The closed loop: solve, emulate on calibration inputs, rescale the budget by what was measured, solve again.

The solver's error model is first order and additive. What it leaves out (correlated roundings, curvature) shows in the
measurement, and errors scale with the square root of the budget: after a plan solved for t measured m, the next one is
solved for t * goal / m. A plan counts as good when its worst calibration input errs by at most `goal` = epsilon times
a margin, which is what held-out inputs are allowed to be worse by. When no round gives a good plan, the one with the
least predicted error (every vertex in its most accurate format) is the last candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cohomcli.precision.assignment import solve
from cohomcli.precision.costs import bytes_of
from cohomcli.precision.execute import Emulator
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import OutputNorm, budget
from cohomcli.precision.problem import Wishes, build_problem, plan_of
from cohomcli.precision.result import Round
from cohomcli.precision.spec import Admissibility, ComputationGraph, ErrorNorm, Plan, Problem, Sensitivity, Solution

# How much of epsilon the worst calibration input may use. The largest entry of unseen outputs and a divergence vary
# more from input to input than a relative L2 norm does.
MARGIN: dict[ErrorNorm, float] = {"rel-l2": 0.65, "max-abs": 0.5, "kl": 0.5}
WASTE = 0.8  # a good plan whose worst input errs by less than this share of the goal is worth another round
WORTH = 0.01  # a further round should be able to save this share of the cost
LARGEST_STEP = 16.0  # per round, in error

Predict = Callable[[Plan], float]


@dataclass(frozen=True)
class Setting:
    """What stays the same from round to round. `norm` is bound to the calibration `inputs`."""

    graph: ComputationGraph
    sensitivity: Sensitivity
    admissibility: Admissibility
    norm: OutputNorm
    emulate: Emulator
    inputs: Sequence[Any]
    predict: Predict


@dataclass(frozen=True)
class Looped:
    """The loop's answer: the cheapest good plan, else the most accurate one tried.

    `solution` and `problem` are those of the plan's round; of the first round, when the plan is the most accurate there
    is and came from none (`solved` False). `chosen` is its place in `rounds`, `tried` are the plans of all rounds.
    `good` says whether it kept the goal on every calibration input.
    """

    plan: Plan
    solution: Solution
    problem: Problem
    rounds: tuple[Round, ...]
    chosen: int
    good: bool
    solved: bool
    tried: tuple[Plan, ...]


@dataclass(frozen=True, eq=False)
class _Try:
    plan: Plan
    solution: Solution
    problem: Problem
    round: Round
    good: bool
    solved: bool = True


def closed_loop(setting: Setting, options: PrecisionOptions, progress: Callable[[int], None]) -> Looped:
    """At most `options.max_rounds` rounds of solve and measure; `progress` is told the rounds done.

    Raises:
        UsageError: the wishes leave an op without a format.
    """
    goal = options.epsilon * MARGIN[options.norm]
    target = goal
    tries: list[_Try] = []
    for number in range(options.max_rounds):
        problem = problem_for(setting, options, target)
        solution = solve(problem, options.time_limit, starts=[choice_of(setting, t.plan) for t in tries])
        if solution.choice is None:
            break
        plan = plan_of(setting.graph, setting.sensitivity.formats, solution)
        tries.append(_measure(setting, target, plan, solution, problem, goal))
        progress(number + 1)
        if (step := _step(tries, goal)) is None:
            break
        target *= step
    if not any(t.good for t in tries):
        last = tries[0] if tries else None
        plan = most_accurate(setting, problem)
        fallback = _measure(setting, target, plan, last.solution if last else solution, problem, goal)
        tries.append(replace(fallback, solved=False))
    return _best(tries)


def choice_of(setting: Setting, plan: Plan) -> list[int]:
    """The columns of a plan's formats, 0 for fixed vertices."""
    column = {fmt: n for n, fmt in enumerate(setting.sensitivity.formats)}
    return [column.get(fmt, 0) for fmt in plan.formats]


def most_accurate(setting: Setting, problem: Problem) -> Plan:
    """Every vertex, or group of them, in the allowed format with the least score."""
    error = np.where(problem.allowed, problem.error, np.inf)
    choice = error.argmin(axis=1)
    for group in _merged(problem.groups):
        choice[group] = error[group].sum(axis=0).argmin()
    formats = setting.sensitivity.formats
    return Plan(tuple("" if v.fixed else formats[f] for v, f in zip(setting.graph.vertices, choice, strict=True)))


def _merged(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Overlapping groups made one."""
    merged: list[set[int]] = []
    for group in map(set, groups):
        apart = [other for other in merged if not other & group]
        merged = [*apart, group.union(*(other for other in merged if other & group))]
    return [sorted(group) for group in merged]


def problem_for(setting: Setting, options: PrecisionOptions, epsilon: float) -> Problem:
    """The assignment problem for a predicted error of at most `epsilon`, in the units of the norm."""
    wishes = Wishes(options.objective, options.level, options.keep, options.target)
    allowed = math.sqrt(budget(options.norm, epsilon))
    return build_problem(setting.graph, setting.sensitivity, setting.admissibility, allowed, wishes)


def errors_of(norm: OutputNorm, outputs: Sequence[tuple[Any, ...]]) -> tuple[float, float]:
    """The error over all inputs together, and that of the worst single input; inf where an output is not finite."""
    singles = [
        replace(norm, references=(reference,), weights=(weight,)).error([output])
        for reference, weight, output in zip(norm.references, norm.weights, outputs, strict=True)
    ]
    total = norm.error(outputs)
    finite = all(map(math.isfinite, [total, *singles]))
    return (total, max(singles)) if finite else (math.inf, math.inf)


def _measure(setting: Setting, target: float, plan: Plan, solution: Solution, problem: Problem, goal: float) -> _Try:
    total, worst = errors_of(setting.norm, [setting.emulate(plan, x).outputs for x in setting.inputs])
    done = Round(
        target=target,
        predicted=setting.predict(plan),
        measured=total if math.isfinite(total) else None,
        worst=worst if math.isfinite(worst) else None,
        bytes=bytes_of(setting.graph, plan).total,
    )
    return _Try(plan, solution, problem, done, worst <= goal)


def _step(tries: Sequence[_Try], goal: float) -> float | None:
    """The factor to change the target by, None when the last plan is good and no other is worth it."""
    last = tries[-1]
    worst = last.round.worst
    if worst is None:
        return 1.0 / LARGEST_STEP
    if worst == 0.0 or (last.good and (worst >= WASTE * goal or _cheap_enough(tries))):
        return None
    return min(max(goal / worst * (0.97 if not last.good else 0.95), 1.0 / LARGEST_STEP), LARGEST_STEP)


def _cheap_enough(tries: Sequence[_Try]) -> bool:
    """Whether a larger budget is known to save little: this one was not used up, or a proved bound says so."""
    solution, problem = tries[-1].solution, tries[-1].problem
    if solution.objective is None or solution.error is None or solution.error < WASTE * problem.budget:
        return True
    bounds = [t.solution.lower_bound for t in tries[:-1] if t.problem.budget > problem.budget]
    known = max((float(bound) for bound in bounds if bound is not None), default=-math.inf)
    return known >= (1.0 - WORTH) * solution.objective


def _best(tries: Sequence[_Try]) -> Looped:
    def cost(t: _Try) -> float:
        return t.round.bytes if t.solution.objective is None or not t.solved else t.solution.objective

    def error(t: _Try) -> float:
        return math.inf if t.round.worst is None else t.round.worst

    good = [t for t in tries if t.good]
    best = min(good, key=cost) if good else min(tries, key=error)
    rounds = tuple(t.round for t in tries)
    plans = tuple(t.plan for t in tries)
    return Looped(best.plan, best.solution, best.problem, rounds, tries.index(best), best.good, best.solved, plans)
