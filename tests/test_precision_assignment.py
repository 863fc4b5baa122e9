"""The assignment of formats: optimal on all that is small enough to enumerate, proved, and only true proofs pass."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from scipy.sparse.csgraph import maximum_flow
from smallproblems import exact_cost, feasible, large, optimum, problems, simple

from cohomcli.precision.assignment import solve
from cohomcli.precision.certificate import Certificate, check
from cohomcli.precision.contraction import contract
from cohomcli.precision.pareto import pareto
from cohomcli.precision.spec import Problem, Solution

# --- optimality -------------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(problems())
def test_solution_is_the_optimum_and_its_certificate_holds(problem: Problem) -> None:
    best = optimum(problem)
    solution = solve(problem, rel_gap=0.0)
    assert solution.certificate is not None
    assert check(problem, solution.certificate)
    assert check(problem, Certificate(**json.loads(json.dumps(asdict(solution.certificate), allow_nan=False))))
    assert solution.infeasible == (best is None)
    if best is None:
        assert solution.choice is None
        return
    assert solution.choice is not None
    assert solution.lower_bound is not None
    choice = tuple(solution.choice.tolist())
    assert choice in set(feasible(problem))
    assert exact_cost(problem, choice) == best
    assert solution.objective == float(best)
    assert solution.lower_bound <= best
    assert solution.gap is not None
    assert best - solution.lower_bound <= Fraction(solution.gap) * abs(best) + Fraction(1, 10**9)


@settings(max_examples=4)
@given(problems(least=8, most=8))
def test_eight_vertices(problem: Problem) -> None:
    best = optimum(problem)
    assert solve(problem, rel_gap=0.0).objective == (None if best is None else float(best))


def test_gap_is_small_on_a_graph_too_large_to_enumerate() -> None:
    problem = large()
    solution = solve(problem, time_limit=30.0)
    assert solution.choice is not None
    assert solution.certificate is not None
    assert solution.gap is not None
    assert 0 <= solution.gap <= 0.01
    assert check(problem, solution.certificate)
    assert solution.objective == float(exact_cost(problem, tuple(solution.choice.tolist())))
    assert solution.error == pytest.approx(sum(problem.error[v, f] for v, f in enumerate(solution.choice)), rel=1e-12)
    assert sum(Fraction(problem.error[v, f]) for v, f in enumerate(solution.choice.tolist())) <= problem.budget


@pytest.mark.parametrize("seed", range(5))
def test_two_formats_without_budget_are_a_minimum_cut(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, source, sink = 30, 30, 31
    cost = random.integers(0, 50, (n, 2)).astype(float)
    edges = np.array([(u, v) for v in range(n) for u in range(v) if random.random() < 0.15], dtype=np.int64)
    weight = random.integers(1, 20, len(edges))
    capacity = np.zeros((n + 2, n + 2), dtype=np.int32)
    capacity[source, :n] = cost[:, 1]  # cut when the vertex is on the sink's side: format 1
    capacity[:n, sink] = cost[:, 0]
    for (u, v), w in zip(edges.tolist(), weight.tolist(), strict=True):
        capacity[u, v] = capacity[v, u] = w
    flow = maximum_flow(sp.csr_array(capacity), source, sink).flow_value
    allowed = np.ones((n, 2), dtype=bool)
    problem = Problem(cost, np.zeros((n, 2)), allowed, edges, weight.astype(float), math.inf)
    solution = solve(problem, rel_gap=0.0)
    assert solution.objective == flow
    assert solution.lower_bound == flow
    assert solution.price == 0.0
    assert solution.certificate is not None
    assert "children" not in solution.certificate.tree  # duality alone proves it: the potentials are a maximum flow


def test_without_casts_it_is_a_knapsack() -> None:
    random = np.random.default_rng(3)
    value, weight = random.integers(1, 40, 18), random.integers(1, 25, 18)
    capacity = 90
    best = np.zeros(capacity + 1)
    for item in range(18):
        for room in range(capacity, weight[item] - 1, -1):
            best[room] = max(best[room], best[room - weight[item]] + value[item])
    zero = np.zeros(18)
    problem = Problem(
        cost=np.stack([value, zero], axis=1).astype(float),
        error=np.stack([zero, weight], axis=1).astype(float),
        allowed=np.ones((18, 2), dtype=bool),
        edges=np.zeros((0, 2), dtype=np.int64),
        cast_cost=np.zeros(0),
        budget=float(capacity),
    )
    assert solve(problem, rel_gap=0.0).objective == value.sum() - best[capacity]


# --- casts and groups -------------------------------------------------------------------------------------------------


def test_shared_casts_are_charged_once_per_format() -> None:
    formats = np.eye(3, dtype=bool)
    star = Problem(
        cost=np.zeros((5, 3)),
        error=np.zeros((5, 3)),
        allowed=formats[[0, 1, 1, 2, 0]],  # a producer in format 0, readers in 1, 1, 2 and 0
        edges=np.array([(0, v) for v in range(1, 5)]),
        cast_cost=np.full(4, 10.0),
        budget=math.inf,
        cast_table=np.array([[0.0, 6.0, 5.0], [6.0, 0.0, 3.0], [5.0, 3.0, 0.0]]),
    )
    assert solve(replace(star, shared_casts=True)).objective == 10 * (6 + 5)
    assert solve(star).objective == 10 * (6 + 6 + 5)


def test_a_dear_cast_pulls_neighbours_together() -> None:
    pinned = np.array([[True, False], [True, True], [False, True]])
    cheap = solve(simple(allowed=pinned, cast_cost=np.array([1.0, 1.0])))
    assert cheap.choice is not None
    assert cheap.choice.tolist() == [0, 1, 1]
    dear = solve(simple(allowed=pinned, cast_cost=np.array([9.0, 1.0])))
    assert dear.choice is not None
    assert dear.choice.tolist() == [0, 0, 1]


def test_groups_take_one_format_and_overlapping_groups_are_one() -> None:
    problem = simple(6, budget=36.0, groups=((0, 1), (4, 1)), cast_cost=np.zeros(5))
    solution = solve(problem, rel_gap=0.0)
    assert solution.choice is not None
    assert len({int(solution.choice[v]) for v in (0, 1, 4)}) == 1
    assert solution.objective == float(optimum(problem) or -1)
    assert contract(problem).members == ((0, 1, 4), (2,), (3,), (5,))


def test_a_group_allows_what_all_its_members_allow() -> None:
    allowed = np.array([[True, True, False], [False, True, True], [True, True, True]])
    problem = simple(3, 3, allowed=allowed, groups=((0, 1),))
    assert contract(problem).domains == ((1,), (0, 1, 2))
    nothing = replace(problem, allowed=np.array([[True, False, False], [False, True, True], [True, True, True]]))
    solution = solve(nothing)
    assert solution.infeasible
    assert solution.certificate is not None
    assert check(nothing, solution.certificate)


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_the_budget_is_compared_exactly() -> None:
    tenth = np.full((3, 2), 0.1)  # three times the double 0.1 is more than the double 0.3
    problem = simple(3, error=tenth, budget=0.3)
    assert solve(problem).infeasible
    assert not solve(replace(problem, budget=float(np.nextafter(0.3, 1.0)))).infeasible
    assert np.nextafter(0.3, 1.0) == 0.1 + 0.1 + 0.1


def test_a_budget_that_is_used_up_exactly_is_used() -> None:
    problem = Problem(
        cost=np.array([[4.0, 2.0], [4.0, 2.0], [8.0, 4.0]]),
        error=np.array([[0.0, 1.0], [0.0, 3.0], [0.5, 1.0]]),
        allowed=np.ones((3, 2), dtype=bool),
        edges=np.array([[0, 2], [1, 2]]),
        cast_cost=np.array([0.5, 0.5]),
        budget=2.0,
        groups=(),
    )
    solution = solve(problem)
    assert solution.objective == 10.5 == float(solution.lower_bound or 0)
    assert solution.error == 2.0


def test_infeasibility_is_proved_and_only_where_true() -> None:
    problem = simple(3, budget=2.9)
    solution = solve(problem)
    assert solution.infeasible
    assert solution.choice is None
    assert solution.lower_bound is None
    assert solution.certificate == Certificate(bound=None, tree={})
    assert check(problem, solution.certificate)
    assert not check(replace(problem, budget=3.0), solution.certificate)
    assert solve(replace(problem, budget=3.0)).objective == 12.0
    assert solve(replace(problem, budget=-1.0)).infeasible


@pytest.mark.parametrize("exponents", [(-300, 5), (-30, -10), (-3, 280)])
def test_errors_over_a_huge_range(exponents: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    error = 10.0 ** random.uniform(*exponents, (6, 3))
    problem = simple(6, 3, error=error, cost=random.integers(1, 30, (6, 3)).astype(float))
    assert solve(replace(problem, cost=problem.cost * 1e200, budget=float(error[:, 0].sum()))).choice is not None
    for budget in (float(error.min(axis=1).sum() * 1.5), float(np.sort(error.ravel())[9]), float(error.max() * 2)):
        bounded = replace(problem, budget=budget)
        best = optimum(bounded)
        solution = solve(bounded, rel_gap=0.0)
        assert solution.objective == (None if best is None else float(best))
        assert solution.certificate is not None
        assert check(bounded, solution.certificate)


def test_inadmissible_scores_are_not_taken() -> None:
    error = np.array([[1.0, math.inf], [1.0, math.nan], [1.0, 2.0]])
    problem = simple(3, error=error, allowed=np.array([[True, True], [True, False], [True, True]]))
    solution = solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist()[:2] == [0, 0]


# --- time and starting points -----------------------------------------------------------------------------------------


def test_without_time_the_answer_is_still_feasible_and_bounded() -> None:
    problem = large(2)
    solution = solve(problem, time_limit=0.0)
    assert solution.choice is not None
    assert solution.certificate is not None
    assert solution.lower_bound is not None
    assert solution.objective is not None
    assert sum(Fraction(problem.error[v, f]) for v, f in enumerate(solution.choice.tolist())) <= problem.budget
    assert check(problem, solution.certificate)
    assert 0 < solution.lower_bound <= solution.objective
    # the best price alone is a bound, and a better one than each vertex in its cheapest format
    cheapest = np.where(problem.allowed, problem.cost, np.inf).min(axis=1).sum()
    assert float(solution.lower_bound) > 1.05 * cheapest


def test_an_incumbent_is_never_lost() -> None:
    problem = large(4)
    good = solve(problem)
    assert good.choice is not None
    again = solve(problem, time_limit=0.0, starts=[good.choice.tolist()])
    assert again.objective == good.objective
    with pytest.raises(ValueError, match="different formats"):
        solve(replace(problem, groups=((0, 1),)), starts=[[0, 1, *good.choice.tolist()[2:]]])


def test_an_illegal_incumbent_is_never_taken() -> None:
    over_budget = simple(3, budget=20.0, cast_cost=np.zeros(2))  # one vertex may err by 10, not all three
    assert solve(over_budget, time_limit=0.0, starts=[[1, 1, 1]]).objective == 3.0 + 4.0 + 4.0
    inadmissible = simple(3, allowed=np.array([[True, False]] * 3))
    assert solve(inadmissible, time_limit=0.0, starts=[[1, 1, 1]]).objective == 12.0


# --- malformed problems -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": np.ones((3, 3))}, "error"),
        ({"edges": np.array([[0, 3], [1, 2]])}, "outside"),
        ({"groups": ((0, 7),)}, "outside"),
        ({"cast_cost": np.array([1.0, -1.0])}, "negative"),
        ({"cast_cost": np.array([1.0, math.inf])}, "finite"),
        ({"cast_cost": np.ones(3)}, "do not fit"),
        ({"cost": np.full((3, 2), math.nan)}, "NaN"),
        ({"error": np.full((3, 2), -1.0)}, "negative"),
        ({"budget": math.nan}, "budget"),
        ({"budget": -math.inf}, "budget"),
        ({"cast_table": np.ones((2, 2))}, "zero diagonal"),
        ({"cast_table": np.zeros((3, 3))}, "square"),
        ({"shared_casts": True, "edges": np.array([[0, 1], [0, 2]]), "cast_cost": np.array([1.0, 2.0])}, "differ"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_problems_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(simple(**change))


# --- the Pareto curve -------------------------------------------------------------------------------------------------


def test_pareto_curve_is_monotone_and_sound() -> None:
    problem = large(7, n=60)
    least = math.sqrt(np.where(problem.allowed, problem.error, np.inf).min(axis=1).sum())
    grid = [least * scale for scale in (0.5, 1.0001, 30.0, 1e2, 1e3, 1e4, 1e5)]
    points = pareto(problem, [*grid, grid[2]], time_limit=20.0)
    assert [p.epsilon for p in points] == grid
    assert points[0].cost is None
    assert points[0].lower_bound is None
    assert points[0].solution.infeasible
    costs = [p.cost for p in points[1:] if p.cost is not None]
    bounds = [p.lower_bound for p in points[1:] if p.lower_bound is not None]
    assert len(costs) == len(bounds) == 6
    assert costs == sorted(costs, reverse=True)
    assert bounds == sorted(bounds, reverse=True)
    assert costs[0] > 1.5 * costs[-1]
    for point in points[1:]:
        assert point.predicted_error is not None
        assert point.cost is not None
        assert point.lower_bound is not None
        assert point.predicted_error <= point.epsilon * (1 + 1e-12)
        assert point.lower_bound <= point.cost
    with pytest.raises(ValueError, match="tolerance"):
        pareto(problem, [-1.0])


def test_pareto_carries_plans_forward_and_bounds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Any] = []
    answers = iter(
        [(9.0, 3), (7.0, 5), (6.0, 4)]
    )  # (objective, bound): the bound of the second point beats the first's

    def canned(problem: Problem, time_limit: float, rel_gap: float, given: Any) -> Solution:
        starts.append(given)
        objective, bound = next(answers)
        choice = np.full(3, len(starts))
        return Solution(choice, objective, 0.0, Fraction(bound), 0.0, 0.0, False, time_limit)

    monkeypatch.setattr("cohomcli.precision.pareto.solve", canned)
    points = pareto(simple(), [3.0, 1.0, 2.0], time_limit=6.0)
    assert starts == [[], [[1, 1, 1]], [[2, 2, 2]]]
    assert [p.epsilon for p in points] == [1.0, 2.0, 3.0]
    assert [p.lower_bound for p in points] == [5, 5, 4]
    assert [p.solution.seconds for p in points] == [6.0, 6.0, 6.0]  # each may use the whole limit
