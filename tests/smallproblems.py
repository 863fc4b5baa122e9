"""Assignment problems, and their optimum by enumeration with fractions, straight from the definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cohomcli.precision.spec import Problem


def exact_cost(problem: Problem, choice: tuple[int, ...]) -> Fraction:
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


def feasible(problem: Problem) -> Iterator[tuple[int, ...]]:
    n, n_formats = problem.cost.shape
    exact = [[Fraction(float(x)) for x in row] for row in problem.error]
    for choice in itertools.product(range(n_formats), repeat=n):
        if (
            all(problem.allowed[v, f] for v, f in enumerate(choice))
            and all(len({choice[v] for v in group}) <= 1 for group in problem.groups)
            and sum(exact[v][f] for v, f in enumerate(choice)) <= problem.budget
        ):
            yield choice


def optimum(problem: Problem) -> Fraction | None:
    return min((exact_cost(problem, choice) for choice in feasible(problem)), default=None)


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
