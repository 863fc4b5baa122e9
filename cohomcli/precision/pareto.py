"""The trade between accuracy and cost: one problem solved for a grid of tolerances, monotone by construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from cohomcli.precision.assignment import solve
from cohomcli.precision.spec import Problem, Solution


@dataclass(frozen=True)
class ParetoPoint:
    """The cheapest plan found for tolerance `epsilon` (in the units of the error norm) and what is proved about it.

    `predicted_error` is the square root of the plan's summed scores, `cost` its objective, `lower_bound` what no plan
    within the tolerance can undercut in the model. All three are None where no plan meets the tolerance.
    """

    epsilon: float
    predicted_error: float | None
    cost: float | None
    lower_bound: Fraction | None
    solution: Solution


def pareto(
    problem: Problem,
    epsilons: Iterable[float],
    time_limit: float = 30.0,
    rel_gap: float = 1e-3,
    known: Sequence[Sequence[int]] = (),
) -> tuple[ParetoPoint, ...]:
    """Solve with budget epsilon**2 for every tolerance, largest last, each in at most `time_limit` seconds.

    A plan for a smaller tolerance meets a larger one, so each solution starts from the one before and costs never rise;
    a bound for a larger tolerance holds for a smaller one, so bounds are carried back and never rise either. `known`
    are assignments found elsewhere, (n,) each, from which searches start too.

    Raises:
        ValueError: the problem is malformed, or a tolerance is negative or NaN.
    """
    grid = sorted(set(epsilons))
    if any(not epsilon >= 0 for epsilon in grid):
        raise ValueError("a tolerance is negative or NaN")
    solutions: list[Solution] = []
    for epsilon in grid:
        previous = solutions[-1].choice if solutions else None
        starts = [*known] if previous is None else [previous.tolist(), *known]
        solutions.append(solve(replace(problem, budget=epsilon * epsilon), time_limit, rel_gap, starts))
    return _points(grid, solutions)


def _points(grid: Sequence[float], solutions: Sequence[Solution]) -> tuple[ParetoPoint, ...]:
    points: list[ParetoPoint] = []
    bound: Fraction | None = None
    for epsilon, solution in zip(reversed(grid), reversed(solutions), strict=True):
        if solution.lower_bound is not None:
            bound = solution.lower_bound if bound is None else max(bound, solution.lower_bound)
        error = None if solution.error is None else solution.error**0.5
        here = None if solution.infeasible else bound
        points.append(ParetoPoint(epsilon, error, solution.objective, here, solution))
    return tuple(reversed(points))
