"""Lower bounds hold whatever the multipliers, and the checker accepts true proofs and no others."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smallproblems import optimum, problems, simple

import cohomcli.precision as package
from cohomcli.precision.assignment import solve
from cohomcli.precision.certificate import Certificate, Multipliers, check, lower_bound
from cohomcli.precision.contraction import contract
from cohomcli.precision.spec import Problem


@settings(max_examples=60)
@given(problems(most=5), st.data())
def test_any_multipliers_bound_every_assignment_from_below(problem: Problem, data: st.DataObject) -> None:
    contraction = contract(problem)
    best = optimum(problem)
    if best is None:
        return
    numbers = st.integers(-300, 300)
    potentials = tuple(
        tuple(tuple(data.draw(numbers) for _ in range(contraction.n_formats)) for _ in hub.consumers)
        for hub in contraction.hubs
    )
    price = data.draw(st.fractions(min_value=0, max_value=100)) if math.isfinite(problem.budget) else Fraction(0)
    assert lower_bound(problem, Multipliers(price, potentials, bits=data.draw(st.integers(0, 6)))) <= best


@given(
    st.lists(st.tuples(*[st.integers(0, 200)] * 4), min_size=1, max_size=4),
    st.fractions(min_value=0, max_value=20, max_denominator=12),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_without_casts_the_bound_is_the_textbook_one(
    rows: list[tuple[int, int, int, int]], price: Fraction, cost_bits: int, error_bits: int
) -> None:
    """sum of min (cost + price error) - price budget, whichever of costs and errors has the finer unit."""
    costs = np.array([row[:2] for row in rows]) / 2.0**cost_bits
    errors = np.array([row[2:] for row in rows]) / 2.0**error_bits
    allowed = np.ones(costs.shape, dtype=bool)
    none = np.zeros((0, 2), dtype=np.int64)
    problem = Problem(costs + 2.0**-10, errors, allowed, none, np.zeros(0), 1000.0)  # more than any error
    wanted = sum(
        min(Fraction(float(c)) + price * Fraction(float(e)) for c, e in zip(*pair, strict=True))
        for pair in zip(problem.cost, errors, strict=True)
    )
    assert lower_bound(problem, Multipliers(price, ())) == wanted - 1000 * price


def test_multipliers_that_prove_nothing_are_refused() -> None:
    for price, budget in ((Fraction(-1), 3.0), (Fraction(1), math.inf)):
        with pytest.raises(ValueError, match="price"):
            lower_bound(simple(budget=budget), Multipliers(price, ((), ())))
    with pytest.raises(ValueError, match="zip"):
        lower_bound(simple(), Multipliers(Fraction(0), ()))
    with pytest.raises(ValueError, match="no format"):
        lower_bound(simple(allowed=np.zeros((3, 2), dtype=bool)), Multipliers(Fraction(0), ((), ())))


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
        {"bits": 10**12},
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
    folder = Path(package.__file__).parent
    for name in ("certificate", "contraction", "spec"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        modules += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert not [m for m in modules if m.split(".")[0] in ("scipy", "torch")]
