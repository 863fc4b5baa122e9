"""An assignment problem contracted to its groups, in exact integers.

Every float is a dyadic rational, so costs and errors become integers over a common power of two and no sum is ever
rounded. Nothing here uses scipy: the solver and the checker of its certificates both stand on this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cohomcli.precision.spec import Problem

Domains = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Hub:
    """A producer and those who read it: storing it in g and asking for f costs size * table[g][f], once per format f.

    `owner` is the group of the producer, `consumers` the other groups that read it, each once. Producers of one group
    with the same readers are one hub, their sizes added, because their copies always appear together.
    """

    owner: int
    consumers: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Contraction:
    """A problem over groups instead of vertices.

    `members[i]` are the vertices of group i, `domains[i]` the formats all of them allow. `cost[i][f]` and `size *
    table[g][f]` of a hub are in units of 2**-cost_bits, `error[i][f]` and `budget` in units of 2**-error_bits;
    entries outside the domains are 0. `budget` is None when it is infinite. `integral` says that every cost is an
    integer, so that a lower bound may be rounded up.
    """

    members: tuple[tuple[int, ...], ...]
    domains: Domains
    cost: tuple[tuple[int, ...], ...]
    error: tuple[tuple[int, ...], ...]
    budget: int | None
    hubs: tuple[Hub, ...]
    table: tuple[tuple[int, ...], ...]
    cost_bits: int
    error_bits: int
    integral: bool

    @property
    def n_formats(self) -> int:
        """Number of formats."""
        return len(self.table)

    def objective(self, choice: Sequence[int]) -> Fraction:
        """Exact cost of one format per group, casts included."""
        total = sum(self.cost[i][f] for i, f in enumerate(choice))
        for hub in self.hubs:
            row = self.table[choice[hub.owner]]
            total += hub.size * sum(row[f] for f in {choice[c] for c in hub.consumers})
        return Fraction(total, 1 << self.cost_bits)

    def error_of(self, choice: Sequence[int]) -> int:
        """Exact summed error of one format per group, in units of 2**-error_bits."""
        return sum(self.error[i][f] for i, f in enumerate(choice))

    def within_budget(self, choice: Sequence[int]) -> bool:
        """Whether the exact summed error is at most the exact budget."""
        return self.budget is None or self.error_of(choice) <= self.budget

    def contract(self, choice: Sequence[int]) -> tuple[int, ...]:
        """The formats of the groups from those of the vertices.

        Raises:
            ValueError: the vertices of a group differ.
        """
        groups = tuple(int(choice[vertices[0]]) for vertices in self.members)
        if any(choice[v] != f for vertices, f in zip(self.members, groups, strict=True) for v in vertices):
            raise ValueError("vertices of one group have different formats")
        return groups

    def expand(self, choice: Sequence[int]) -> list[int]:
        """The formats of the vertices from those of the groups."""
        formats = [0] * sum(map(len, self.members))
        for vertices, f in zip(self.members, choice, strict=True):
            for v in vertices:
                formats[v] = f
        return formats


def contract(problem: Problem) -> Contraction:
    """The problem over its groups; a pair is in no domain when it is not allowed or its cost or error is infinite.

    Raises:
        ValueError: shapes do not fit, an index is out of range, a cost or error of an allowed pair is NaN or an error
            or cast cost negative, or the casts of one producer differ although they are shared.
    """
    validate(problem)
    members = _groups(len(problem.cost), problem.groups)
    cost, cost_bits = _numerators(problem.cost.tolist())
    error, error_bits = _numerators([*problem.error.tolist(), [problem.budget]])
    budget = None if math.isinf(problem.budget) and problem.budget > 0 else error.pop()[0]
    table, table_bits = _numerators(cast_table(problem))
    hubs, size_bits = _hubs(problem, members)
    shift = cost_bits - table_bits - size_bits
    if shift > 0:
        hubs = tuple(Hub(h.owner, h.consumers, h.size << shift) for h in hubs)
    else:
        cost, cost_bits = [[c << -shift for c in row] for row in cost], cost_bits - shift
    domains = _domains(problem, members)
    return Contraction(
        members=members,
        domains=domains,
        cost=_summed(cost, members, domains),
        error=_summed(error, members, domains),
        budget=budget,
        hubs=hubs,
        table=tuple(map(tuple, table)),
        cost_bits=cost_bits,
        error_bits=error_bits,
        integral=_integral(problem),
    )


def cast_table(problem: Problem) -> list[list[float]]:
    """The (F, F) cast table of the problem; 1 off the diagonal when it has none."""
    if problem.cast_table is not None:
        return [[float(x) for x in row] for row in problem.cast_table.tolist()]
    formats = range(problem.cost.shape[1])
    return [[float(f != g) for f in formats] for g in formats]


def validate(problem: Problem) -> None:
    """Refuse a malformed problem; see `contract`."""
    n, n_formats = problem.cost.shape
    m = len(problem.edges)
    if problem.error.shape != (n, n_formats) or problem.allowed.shape != (n, n_formats):
        raise ValueError(f"cost {problem.cost.shape}, error {problem.error.shape}, allowed {problem.allowed.shape}")
    if problem.edges.shape != (m, 2) or problem.cast_cost.shape != (m,):
        raise ValueError(f"edges {problem.edges.shape} and cast_cost {problem.cast_cost.shape} do not fit")
    named = [v for edge in problem.edges.tolist() for v in edge] + [v for group in problem.groups for v in group]
    if any(not 0 <= v < n for v in named):
        raise ValueError(f"an edge or group names a vertex outside 0..{n - 1}")
    rows = zip(problem.allowed.tolist(), problem.cost.tolist(), problem.error.tolist(), strict=True)
    used = [(c, e) for row in rows for ok, c, e in zip(*row, strict=True) if ok]
    if any(math.isnan(c) or c == -math.inf or not e >= 0 for c, e in used):
        raise ValueError("a cost is NaN or -inf, or an error NaN or negative, where the format is allowed")
    table = cast_table(problem)
    if len(table) != n_formats or any(len(row) != n_formats or row[i] != 0 for i, row in enumerate(table)):
        raise ValueError("the cast table is not square with a zero diagonal")
    if not all(0 <= x < math.inf for row in [*table, problem.cast_cost.tolist()] for x in row):
        raise ValueError("a cast cost is negative or not finite")
    if not problem.budget > -math.inf:
        raise ValueError(f"the budget is {problem.budget}")


def _groups(n: int, groups: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Vertices of overlapping groups united (union-find), in the order of their first vertex."""
    root = list(range(n))

    def find(v: int) -> int:
        while root[v] != v:
            root[v] = v = root[root[v]]
        return v

    for group in groups:
        for v in group:
            a, b = find(group[0]), find(v)
            root[max(a, b)] = min(a, b)
    found: dict[int, list[int]] = {}
    for v in range(n):
        found.setdefault(find(v), []).append(v)
    return tuple(map(tuple, found.values()))


def _numerators(rows: Sequence[Sequence[float]]) -> tuple[list[list[int]], int]:
    """Integers k and a number of bits b with value = k / 2**b; non-finite values become 0 (no domain has them)."""
    ratios = [[x.as_integer_ratio() if math.isfinite(x) else (0, 1) for x in row] for row in rows]
    bits = max((d.bit_length() - 1 for row in ratios for _, d in row), default=0)
    return [[n << (bits + 1 - d.bit_length()) for n, d in row] for row in ratios], bits


def _domains(problem: Problem, members: Iterable[Sequence[int]]) -> Domains:
    usable = [
        {f for f, ok in enumerate(row) if ok and math.isfinite(costs[f]) and math.isfinite(errors[f])}
        for row, costs, errors in zip(
            problem.allowed.tolist(), problem.cost.tolist(), problem.error.tolist(), strict=True
        )
    ]
    return tuple(tuple(sorted(set.intersection(*(usable[v] for v in vertices)))) for vertices in members)


def _summed(
    rows: Sequence[Sequence[int]], members: Iterable[Sequence[int]], domains: Domains
) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(sum(rows[v][f] for v in vertices) if f in domain else 0 for f in range(len(rows[0])))
        for vertices, domain in zip(members, domains, strict=True)
    )


def _hubs(problem: Problem, members: Sequence[Sequence[int]]) -> tuple[tuple[Hub, ...], int]:
    """One hub per producer when its casts are shared, else one per edge; sizes in units of 2**-bits."""
    group_of = {v: i for i, vertices in enumerate(members) for v in vertices}
    (sizes,), bits = _numerators([problem.cast_cost.tolist()])
    readers: dict[tuple[int, int], dict[int, None]] = {}
    size_of: dict[tuple[int, int], int] = {}
    for e, ((u, v), size) in enumerate(zip(problem.edges.tolist(), sizes, strict=True)):
        key = (u, -1) if problem.shared_casts else (u, e)
        if not size:
            continue
        if size_of.setdefault(key, size) != size:
            raise ValueError(f"the shared casts of vertex {u} have different costs")
        if group_of[u] != group_of[v]:
            readers.setdefault(key, {})[group_of[v]] = None
    merged: dict[tuple[int, tuple[int, ...]], int] = {}
    for key, consumers in readers.items():
        place = (group_of[key[0]], tuple(sorted(consumers)))
        merged[place] = merged.get(place, 0) + size_of[key]
    return tuple(Hub(owner, consumers, size) for (owner, consumers), size in merged.items()), bits


def _integral(problem: Problem) -> bool:
    """Whether every finite cost and every cast is an integer."""
    numbers = [x for row in problem.cost.tolist() for x in row if math.isfinite(x)] + problem.cast_cost.tolist()
    return all(float(x).is_integer() for row in [numbers, *cast_table(problem)] for x in row)
