"""The assignment of formats: optimal on all that is small enough to enumerate, proved, and only true proofs pass."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import maximum_flow

from cohomcli.precision.assignment import solve
from cohomcli.precision.certificate import Certificate, Multipliers, check, lower_bound
from cohomcli.precision.contraction import contract
from cohomcli.precision.pareto import pareto
from cohomcli.precision.spec import Problem, Solution

# --- an independent truth: enumeration with fractions, straight from the definition of a problem ----------------------


def _cost(problem: Problem, choice: tuple[int, ...]) -> Fraction:
    n_formats = problem.cost.shape[1]
    table = 1.0 - np.eye(n_formats) if problem.cast_table is None else problem.cast_table
    total = sum((Fraction(float(problem.cost[v, f])) for v, f in enumerate(choice)), Fraction(0))
    paid = set()
    for e, (u, v) in enumerate(problem.edges.tolist()):
        key = (u, choice[v]) if problem.shared_casts else e
        if problem.cast_cost[e] > 0 and key not in paid:
            paid.add(key)
            total += Fraction(float(problem.cast_cost[e])) * Fraction(float(table[choice[u], choice[v]]))
    return total


def _feasible(problem: Problem) -> Iterator[tuple[int, ...]]:
    n, n_formats = problem.cost.shape
    exact = [[Fraction(float(x)) for x in row] for row in problem.error]
    for choice in itertools.product(range(n_formats), repeat=n):
        if (
            all(problem.allowed[v, f] for v, f in enumerate(choice))
            and all(len({choice[v] for v in group}) <= 1 for group in problem.groups)
            and sum(exact[v][f] for v, f in enumerate(choice)) <= problem.budget
        ):
            yield choice


def _optimum(problem: Problem) -> Fraction | None:
    return min((_cost(problem, choice) for choice in _feasible(problem)), default=None)


@st.composite
def problems(draw: st.DrawFn, least: int = 3, most: int = 6, formats: int = 3) -> Problem:
    n = draw(st.integers(least, most))
    n_formats = draw(st.integers(2, formats))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.2, 0.6, 1.0]))
    pairs = [(u, v) for v in range(n) for u in range(v) if random.random() < density]
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    shared = draw(st.booleans())
    per_edge = random.integers(0, 6, len(edges)).astype(float)
    cast_cost = random.integers(0, 6, n).astype(float)[edges[:, 0]] if shared else per_edge
    width = random.integers(1, 5, n_formats).astype(float)
    tables = {
        "potts": None,
        "read and write": (width[:, None] + width) * (1 - np.eye(n_formats)),
        "any": random.integers(0, 6, (n_formats, n_formats)) * (1.0 - np.eye(n_formats)),
    }
    cost = random.integers(0, 20, (n, n_formats)).astype(float)
    if draw(st.booleans()):
        cost += random.random((n, n_formats))
    error = 10.0 ** random.uniform(draw(st.sampled_from([-18, -1])), 1, (n, n_formats))
    # a budget near the error of some assignment, so that it decides something
    budget = float(error[np.arange(n), random.integers(0, n_formats, n)].sum() * random.uniform(0.7, 1.1))
    return Problem(
        cost=cost,
        error=error,
        allowed=random.random((n, n_formats)) < draw(st.sampled_from([0.8, 1.0])),
        edges=edges,
        cast_cost=cast_cost,
        budget=draw(st.sampled_from([budget, budget, budget, math.inf])),
        groups=((0, n - 1), (n - 1, n // 2)) if draw(st.booleans()) else (),
        cast_table=tables[draw(st.sampled_from(sorted(tables)))],
        shared_casts=shared,
    )


def simple(n: int = 3, n_formats: int = 2, **changes: Any) -> Problem:
    """A path of n vertices; format f costs 4 - f and errs 10**f."""
    problem = Problem(
        cost=np.tile(4.0 - np.arange(n_formats), (n, 1)),
        error=np.tile(10.0 ** np.arange(n_formats), (n, 1)),
        allowed=np.ones((n, n_formats), dtype=bool),
        edges=np.array([(v, v + 1) for v in range(n - 1)], dtype=np.int64).reshape(-1, 2),
        cast_cost=np.ones(n - 1),
        budget=math.inf,
    )
    return replace(problem, **changes)


def large(seed: int = 0, n: int = 400) -> Problem:
    """A chain with residual connections, four formats and errors over ten orders of magnitude."""
    random = np.random.default_rng(seed)
    width = np.array([4.0, 2.0, 2.0, 1.0])
    size = random.choice([64.0, 256.0, 4096.0], n)
    edges = [(v - 1, v) for v in range(1, n)] + [(v - 5, v) for v in range(5, n, 5)]
    error = 10.0 ** random.normal(0, 1.5, (n, 1)) * np.array([2.0**-48, 2.0**-16, 2.0**-22, 2.0**-8])
    allowed = random.random((n, 4)) < [1.0, 1.0, 0.9, 0.7]
    array = np.array(edges, dtype=np.int64)
    table = (width[:, None] + width) * (1 - np.eye(4))
    budget = float(error[:, 2].sum() * 0.3)
    return Problem(size[:, None] * width, error, allowed, array, size[array[:, 0]], budget, (), table, True)


# --- optimality -------------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(problems())
def test_solution_is_the_optimum_and_its_certificate_holds(problem: Problem) -> None:
    best = _optimum(problem)
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
    assert choice in set(_feasible(problem))
    assert _cost(problem, choice) == best
    assert solution.objective == float(best)
    assert solution.lower_bound <= best
    assert solution.gap is not None
    assert best - solution.lower_bound <= Fraction(solution.gap) * abs(best) + Fraction(1, 10**9)


@settings(max_examples=4)
@given(problems(least=8, most=8))
def test_eight_vertices(problem: Problem) -> None:
    best = _optimum(problem)
    assert solve(problem, rel_gap=0.0).objective == (None if best is None else float(best))


@settings(max_examples=60)
@given(problems(most=5), st.data())
def test_any_multipliers_bound_every_assignment_from_below(problem: Problem, data: st.DataObject) -> None:
    contraction = contract(problem)
    best = _optimum(problem)
    if best is None:
        return
    numbers = st.integers(-300, 300)
    potentials = tuple(
        tuple(tuple(data.draw(numbers) for _ in range(contraction.n_formats)) for _ in hub.consumers)
        for hub in contraction.hubs
    )
    price = data.draw(st.fractions(min_value=0, max_value=100)) if math.isfinite(problem.budget) else Fraction(0)
    assert lower_bound(problem, Multipliers(price, potentials, bits=data.draw(st.integers(0, 6)))) <= best


def test_multipliers_that_prove_nothing_are_refused() -> None:
    for price, budget in ((Fraction(-1), 3.0), (Fraction(1), math.inf)):
        with pytest.raises(ValueError, match="price"):
            lower_bound(simple(budget=budget), Multipliers(price, ((), ())))
    with pytest.raises(ValueError, match="zip"):
        lower_bound(simple(), Multipliers(Fraction(0), ()))
    with pytest.raises(ValueError, match="no format"):
        lower_bound(simple(allowed=np.zeros((3, 2), dtype=bool)), Multipliers(Fraction(0), ((), ())))


def test_gap_is_small_on_a_graph_too_large_to_enumerate() -> None:
    problem = large()
    solution = solve(problem, time_limit=30.0)
    assert solution.choice is not None
    assert solution.certificate is not None
    assert solution.gap is not None
    assert 0 <= solution.gap <= 0.01
    assert check(problem, solution.certificate)
    assert solution.objective == float(_cost(problem, tuple(solution.choice.tolist())))
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
    assert solution.objective == float(_optimum(problem) or -1)
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
    for budget in (float(error.min(axis=1).sum() * 1.5), float(np.sort(error.ravel())[9]), float(error.max() * 2)):
        bounded = replace(problem, budget=budget)
        best = _optimum(bounded)
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
    again = solve(problem, time_limit=0.0, incumbent=good.choice.tolist())
    assert again.objective == good.objective
    with pytest.raises(ValueError, match="different formats"):
        solve(replace(problem, groups=((0, 1),)), incumbent=[0, 1, *good.choice.tolist()[2:]])


def test_an_illegal_incumbent_is_never_taken() -> None:
    over_budget = simple(3, budget=20.0, cast_cost=np.zeros(2))  # one vertex may err by 10, not all three
    assert solve(over_budget, time_limit=0.0, incumbent=[1, 1, 1]).objective == 3.0 + 4.0 + 4.0
    inadmissible = simple(3, allowed=np.array([[True, False]] * 3))
    assert solve(inadmissible, time_limit=0.0, incumbent=[1, 1, 1]).objective == 12.0


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proved() -> tuple[Problem, Certificate]:
    """A problem that duality alone does not close, and its branched certificate."""
    random = np.random.default_rng(5)
    cost = random.integers(1, 40, (12, 3)).astype(float)
    edges = np.array([(v, v + 1) for v in range(11)] + [(v, v + 3) for v in range(9)], dtype=np.int64)
    error = 10.0 ** random.uniform(-3, 0, (12, 3))
    allowed = np.ones((12, 3), dtype=bool)
    problem = Problem(cost, error, allowed, edges, random.integers(1, 9, 20).astype(float), 1.0)
    solution = solve(problem, rel_gap=0.0)
    assert solution.certificate is not None
    assert solution.gap == 0.0
    assert "children" in solution.certificate.tree
    assert check(problem, solution.certificate)
    return problem, solution.certificate


def _leaves(node: Any) -> Iterator[Any]:
    if "children" in node:
        for child in node["children"].values():
            yield from _leaves(child)
    else:
        yield node


def test_a_raised_bound_is_rejected_and_a_lowered_one_is_still_true(proved: tuple[Problem, Certificate]) -> None:
    problem, certificate = proved
    assert certificate.bound is not None
    assert not check(problem, replace(certificate, bound=str(int(certificate.bound) + 1)))
    assert check(problem, replace(certificate, bound=str(int(certificate.bound) - 1)))
    assert not check(problem, replace(certificate, bound=None))


def test_a_missing_branch_is_rejected(proved: tuple[Problem, Certificate]) -> None:
    problem, certificate = proved
    for fmt in certificate.tree["children"]:
        tree = deepcopy(certificate.tree)
        del tree["children"][fmt]
        assert not check(problem, replace(certificate, tree=tree))


def test_shifted_potentials_of_every_leaf_are_rejected(proved: tuple[Problem, Certificate]) -> None:
    problem, certificate = proved
    tree = deepcopy(certificate.tree)
    for leaf in _leaves(tree):
        for hub in leaf.get("potentials", []):
            for reader in hub:
                reader[0] += 50 << leaf["bits"]
    assert not check(problem, replace(certificate, tree=tree))


@pytest.mark.parametrize(
    "change",
    [
        {"price": "-1"},
        {"price": "1e9"},
        {"price": 3},
        {"bits": -1},
        {"bits": 0.0},
        {"bits": True},
        {"potentials": []},
        {"potentials": [[["1", "2", "3"]]]},
        {"potentials": None},
    ],
    ids=str,
)
def test_a_malformed_leaf_is_rejected(proved: tuple[Problem, Certificate], change: dict[str, Any]) -> None:
    problem, certificate = proved
    tree = deepcopy(certificate.tree)
    next(leaf for leaf in _leaves(tree) if leaf).update(change)
    assert not check(problem, replace(certificate, tree=tree))


@pytest.mark.parametrize("bound", ["", "nan", "inf", "1/0", "0x10", "12.5", "1" * 5000], ids=lambda b: b[:9])
def test_a_malformed_bound_is_rejected(proved: tuple[Problem, Certificate], bound: str) -> None:
    problem, certificate = proved
    assert not check(problem, replace(certificate, bound=bound))


def test_a_proof_is_about_its_own_problem(proved: tuple[Problem, Certificate]) -> None:
    problem, certificate = proved
    assert not check(replace(problem, cost=problem.cost - 1.0), certificate)
    assert not check(replace(problem, budget=2.0), certificate)
    assert not check(replace(problem, cast_cost=problem.cast_cost * 0.5), certificate)
    assert check(replace(problem, budget=0.9), certificate)  # fewer assignments: the bound still holds


def test_the_checker_needs_no_solver() -> None:
    """The modules it stands on import neither scipy nor torch."""
    import ast
    from pathlib import Path

    import cohomcli.precision as package

    folder = Path(package.__file__).parent
    for name in ("certificate", "contraction", "spec"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        modules += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert not [m for m in modules if m.split(".")[0] in ("scipy", "torch")]


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

    def canned(problem: Problem, time_limit: float, rel_gap: float, incumbent: Any) -> Solution:
        starts.append(incumbent)
        objective, bound = next(answers)
        choice = np.full(3, len(starts))
        return Solution(choice, objective, 0.0, Fraction(bound), 0.0, 0.0, False, time_limit)

    monkeypatch.setattr("cohomcli.precision.pareto.solve", canned)
    points = pareto(simple(), [3.0, 1.0, 2.0], time_limit=6.0)
    assert starts == [None, [1, 1, 1], [2, 2, 2]]
    assert [p.epsilon for p in points] == [1.0, 2.0, 3.0]
    assert [p.lower_bound for p in points] == [5, 5, 4]
    assert [p.solution.seconds for p in points] == [2.0, 2.0, 2.0]
