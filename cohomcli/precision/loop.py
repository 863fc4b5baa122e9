"""The closed loop: solve, emulate on calibration inputs, rescale the budget by what was measured, solve again.

The solver's error model is first order and additive, and was scored on few inputs. What it leaves out shows when the
plan runs on all calibration inputs: each errs by its own amount, and a plan is good when the bound that these errors
give for an unseen input (`precision.unseen`) is within epsilon. Otherwise errors scale with the square root of the
budget: after a plan that used t of it with bound m, the next one is solved for t * epsilon / m. When no round gives a
good plan, the widest format everywhere is the answer. Held-out inputs play no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.assignment import solve
from cohomcli.precision.costs import bytes_of
from cohomcli.precision.execute import Emulator
from cohomcli.precision.formats import get_format
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import OutputNorm, budget, from_scores
from cohomcli.precision.problem import Wishes, build_problem, plan_of
from cohomcli.precision.result import Round
from cohomcli.precision.spec import Admissibility, ComputationGraph, ErrorNorm, Plan, Problem, Sensitivity, Solution
from cohomcli.precision.unseen import unseen_bound

# The share of epsilon that the first round is solved for: about what proves right where inputs are much alike.
FIRST: dict[ErrorNorm, float] = {"rel-l2": 0.85, "max-abs": 0.7, "kl": 0.8}
WASTE = 0.8  # a good plan whose bound is below this share of epsilon is worth another round
WORTH = 0.01  # a further round should be able to save this share of the cost
LARGEST_STEP = 16.0  # per round, in error
CAUTION, LAST_CAUTION = 0.95, 0.6  # steps are shortened by it, the last one more, because nothing corrects it
GAP = 5e-3  # the certified gap that a round stops at

Predict = Callable[[Plan], float]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What stays the same from round to round. `norm` is bound to the calibration `inputs`.

    A plan runs on the first `n_first` of them, and on the others if it keeps epsilon there (None: all at once).
    Plans are solved for `scores` (n, F): the sensitivity's, or what they may be on an unseen input.
    `unseen` is False when the inputs are all there is, so that no other needs a margin.
    """

    graph: ComputationGraph
    sensitivity: Sensitivity
    admissibility: Admissibility
    norm: OutputNorm
    emulate: Emulator
    inputs: Sequence[Any]
    predict: Predict
    n_first: int | None = None
    scores: Scores | None = None
    unseen: bool = True


@dataclass(frozen=True)
class Looped:
    """The loop's answer: the cheapest good plan, else the widest format everywhere.

    `solution` and `problem` are those of the plan's round; of the first round, when the plan is the widest one and came
    from none (`solved` False). `chosen` is its place in `rounds`, `tried` are the plans of all rounds. `good` says
    whether the bound for unseen inputs is within epsilon.
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
    target = options.epsilon * (FIRST[options.norm] if setting.unseen else 1.0)
    tries: list[_Try] = []
    for number in range(options.max_rounds):
        problem = problem_for(setting, options, target)
        starts = [choice_of(setting, t.plan) for t in tries]
        solution = solve(problem, options.time_limit, GAP, starts)
        if solution.choice is None:
            break
        plan = plan_of(setting.graph, setting.sensitivity.formats, solution)
        tries.append(_measure(setting, options, target, plan, (problem, solution)))
        progress(number + 1)
        step = _step(tries, options.epsilon, LAST_CAUTION if number + 2 >= options.max_rounds else CAUTION)
        if step is None:
            break
        used = target if tries[-1].good else min(target, from_scores(options.norm, solution.error or 0.0) or target)
        target = used * step
    return _answer(setting, options, tries, (problem, solution))


def _answer(
    setting: Setting, options: PrecisionOptions, tries: Sequence[_Try], last: tuple[Problem, Solution]
) -> Looped:
    """The cheapest good plan; else the widest one, measured too."""
    good = [t for t in tries if t.good]
    if good:
        best = min(good, key=_cost)
    else:
        first = (tries[0].problem, tries[0].solution) if tries else last
        found = _measure(setting, options, options.epsilon, widest(setting, first[0]), first)
        best = replace(found, solved=False, round=replace(found.round, solved=False))
        tries = [*tries, best]
    return Looped(
        plan=best.plan,
        solution=best.solution,
        problem=best.problem,
        rounds=tuple(t.round for t in tries),
        chosen=tries.index(best),
        good=best.good,
        solved=best.solved,
        tried=tuple(t.plan for t in tries),
    )


def choice_of(setting: Setting, plan: Plan) -> list[int]:
    """The columns of a plan's formats, 0 for fixed vertices."""
    column = {fmt: n for n, fmt in enumerate(setting.sensitivity.formats)}
    return [column.get(fmt, 0) for fmt in plan.formats]


def widest(setting: Setting, problem: Problem) -> Plan:
    """Every vertex, or group of them, in the allowed format with the most significand bits, then the widest range."""
    formats = [get_format(name) for name in setting.sensitivity.formats]
    rank = np.argsort(np.argsort([f.significand_bits + 1e-3 * math.log2(f.max) for f in formats]))
    return _least(setting, problem, np.broadcast_to(-rank.astype(np.float64), problem.error.shape))


def most_accurate(setting: Setting, problem: Problem) -> Plan:
    """Every vertex, or group of them, in the allowed format with the least score."""
    return _least(setting, problem, problem.error)


def _least(setting: Setting, problem: Problem, value: NDArray[np.float64]) -> Plan:
    value = np.where(problem.allowed, value, np.inf)
    choice = value.argmin(axis=1)
    for group in _merged(problem.groups):
        choice[group] = value[group].sum(axis=0).argmin()
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
    known = setting.sensitivity if setting.scores is None else replace(setting.sensitivity, scores=setting.scores)
    return build_problem(setting.graph, known, setting.admissibility, allowed, wishes)


def errors_of(norm: OutputNorm, outputs: Sequence[tuple[Any, ...]]) -> tuple[float, list[float]]:
    """The error over all inputs together, and that of every single one; inf where an output is not finite.

    `outputs` may be those of the first inputs alone.
    """
    n = len(outputs)
    singles = [
        replace(norm, references=(reference,), weights=(weight,)).error([output])
        for reference, weight, output in zip(norm.references[:n], norm.weights[:n], outputs, strict=True)
    ]
    total = replace(norm, references=norm.references[:n], weights=norm.weights[:n]).error(outputs)
    finite = [error if math.isfinite(error) else math.inf for error in singles]
    return (total if math.isfinite(total) and math.inf not in finite else math.inf), finite


def _measure(
    setting: Setting, options: PrecisionOptions, target: float, plan: Plan, solved: tuple[Problem, Solution]
) -> _Try:
    """Run the plan on the first inputs, and on all when it keeps epsilon there."""
    first = setting.n_first or len(setting.inputs)
    outputs = [setting.emulate(plan, x).outputs for x in setting.inputs[:first]]
    total, errors = errors_of(setting.norm, outputs)
    if max(errors) <= options.epsilon and first < len(setting.inputs):
        outputs += [setting.emulate(plan, x).outputs for x in setting.inputs[first:]]
        total, errors = errors_of(setting.norm, outputs)
    worst = max(errors)
    bound = unseen_bound(errors, options.norm) if setting.unseen else worst
    done = Round(
        target=target,
        predicted=setting.predict(plan),
        measured=_finite(total),
        worst=_finite(worst),
        bytes=bytes_of(setting.graph, plan).total,
        bound=_finite(bound),
        n_inputs=len(errors),
    )
    return _Try(plan, solved[1], solved[0], done, bound <= options.epsilon)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _step(tries: Sequence[_Try], epsilon: float, caution: float) -> float | None:
    """The factor to change the target by, None when the last plan is good and no other is worth it."""
    last = tries[-1]
    bound = last.round.bound
    if bound is None:
        return 1.0 / LARGEST_STEP
    if last.good and (bound == 0.0 or bound >= WASTE * epsilon or _cheap_enough(tries)):
        return None
    return min(max(epsilon / bound * caution, 1.0 / LARGEST_STEP), LARGEST_STEP)


def _cheap_enough(tries: Sequence[_Try]) -> bool:
    """Whether a larger budget is known to save little: this one was not used up, or a proved bound says so."""
    solution, problem = tries[-1].solution, tries[-1].problem
    if solution.objective is None or solution.error is None or solution.error < WASTE * problem.budget:
        return True
    bounds = [t.solution.lower_bound for t in tries[:-1] if t.problem.budget > problem.budget]
    known = max((float(bound) for bound in bounds if bound is not None), default=-math.inf)
    return known >= (1.0 - WORTH) * solution.objective


def _cost(tried: _Try) -> float:
    return tried.round.bytes if tried.solution.objective is None else tried.solution.objective
