"""Distances between persistence diagrams: bottleneck, Wasserstein and sliced Wasserstein, all of them exact.

A diagram's points are matched to one another or to the diagonal. Classes that never die in the computed filtration
(essential ones, and those alive at its threshold) are points at infinity: they match only each other, by sorted births,
and when two diagrams have different numbers of them no matching exists and the distance is infinite.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from cohomcli.errors import AnalysisIncomplete
from cohomcli.registry import Registry
from cohomcli.topology.results import Array, Diagram

DIAGRAM_DISTANCES = Registry("diagram distance")
DIRECTIONS = 50
LARGEST_ASSIGNMENT = 12_000  # points; the cost matrix then takes 1.2 GB


def bottleneck(a: Diagram, b: Diagram) -> float:
    """The smallest t for which a matching moves no point by more than t in the maximum norm (inf: no matching).

    Cohen-Steiner, Edelsbrunner, Harer 2007. The answer is the distance of a pair or half a lifetime, so these are
    searched, first the half lifetimes, then the pairs between the two that enclose the answer. Whether t suffices is
    decided by two one-sided matchings: points with half a lifetime above t must find a partner, on either side, and
    by the theorem of Mendelsohn and Dulmage (1958) one matching serves both sides as soon as each can be served.
    """
    at_infinity = _infinite(a, b, np.inf)
    if np.isinf(at_infinity):
        return np.inf
    return max(at_infinity, _finite_bottleneck(a.pairs, b.pairs))


def wasserstein(a: Diagram, b: Diagram, order: float = 1.0, ground: float = 2.0) -> float:
    """(min over matchings of the sum of ||p - q||^order)^(1/order), in the `ground` norm of the plane; inf: none.

    Matching two points never costs more than sending both to the diagonal once the cheaper of the two is allowed as
    the cost of the pair, so max(n, m) rows suffice instead of n + m.

    Raises:
        AnalysisIncomplete: more points than an assignment can hold in memory.
    """
    at_infinity = _infinite(a, b, order)
    if np.isinf(at_infinity):
        return np.inf
    n = max(len(a.pairs), len(b.pairs))
    if n > LARGEST_ASSIGNMENT:
        raise AnalysisIncomplete(
            f"a Wasserstein distance of {n:,} points needs an assignment of {n:,} x {n:,}",
            "use the sliced-wasserstein or the bottleneck distance",
        )
    to_diagonal = [_diagonal(pairs, ground) ** order for pairs in (a.pairs, b.pairs)]
    cost = np.zeros((n, n))
    cost[: len(a.pairs)] += to_diagonal[0][:, None]
    cost[:, : len(b.pairs)] += to_diagonal[1]
    if len(a.pairs) and len(b.pairs):
        apart = _apart(a.pairs, b.pairs, ground)
        corner = cost[: len(a.pairs), : len(b.pairs)]
        np.minimum(corner, apart**order, out=corner)
    rows, columns = linear_sum_assignment(cost)
    return float((cost[rows, columns].sum() + at_infinity) ** (1 / order))


def sliced_wasserstein(a: Diagram, b: Diagram, directions: int = DIRECTIONS) -> float:
    """The mean over `directions` angles in [-pi/2, pi/2) of W1 between the projections, each diagram padded with the
    other's points on the diagonal (Carriere, Cuturi, Oudot, ICML 2017, definition 3.1); inf as for the others.
    """
    at_infinity = _infinite(a, b, 1.0)
    if np.isinf(at_infinity):
        return np.inf
    angles = np.linspace(-np.pi / 2, np.pi / 2, directions, endpoint=False)
    axes = np.stack([np.cos(angles), np.sin(angles)])
    flat = [np.repeat(pairs.mean(axis=1, keepdims=True), 2, axis=1) for pairs in (a.pairs, b.pairs)]
    first = np.sort(np.concatenate([a.pairs, flat[1]]) @ axes, axis=0)
    second = np.sort(np.concatenate([b.pairs, flat[0]]) @ axes, axis=0)
    return float(np.abs(first - second).sum() / directions + at_infinity)


DIAGRAM_DISTANCES.add("bottleneck", bottleneck)
DIAGRAM_DISTANCES.add("wasserstein", wasserstein)
DIAGRAM_DISTANCES.add("sliced-wasserstein", sliced_wasserstein)


def _infinite(a: Diagram, b: Diagram, order: float) -> float:
    """What the points at infinity add: sum |birth - birth'|^order over sorted births (order inf: the largest)."""
    births = [np.sort(np.concatenate([diagram.essential, diagram.censored])) for diagram in (a, b)]
    if len(births[0]) != len(births[1]):
        return np.inf
    moved = np.abs(births[0] - births[1])
    return float(moved.max(initial=0.0)) if np.isinf(order) else float((moved**order).sum())


def _apart(a: Array, b: Array, ground: float) -> Array:
    apart: Array = cdist(a, b, "chebyshev") if np.isinf(ground) else cdist(a, b, "minkowski", p=ground)
    return apart


def _diagonal(pairs: Array, ground: float) -> Array:
    """Distance of each point to the diagonal in the `ground` norm: 2^(1/q) times half its lifetime."""
    factor: float = 2.0 ** ((0.0 if np.isinf(ground) else 1 / ground) - 1)
    return factor * (pairs[:, 1] - pairs[:, 0])


def _finite_bottleneck(a: Array, b: Array) -> float:
    halves = [_diagonal(pairs, np.inf) for pairs in (a, b)]
    levels = np.unique(np.concatenate([np.zeros(1), *halves]))
    enough = _first(levels, lambda t: _suffices(t, a, b, halves))
    if enough == 0:
        return 0.0
    upper, lower = float(levels[enough]), float(levels[enough - 1])
    # strictly between two half lifetimes the points that must be matched are the same: those that reach the upper one
    pairs = np.concatenate(
        [
            _within(a[halves[0] >= upper], b, upper)[2],
            _within(b[halves[1] >= upper], a, upper)[2],
        ]
    )
    between = np.unique(pairs[(pairs > lower) & (pairs < upper)])
    candidates = np.append(between, upper)
    return float(candidates[_first(candidates, lambda t: _suffices(t, a, b, halves))])


def _first(levels: Array, holds: Callable[[float], bool]) -> int:
    """The first position at which a monotone condition holds; it is known to hold at the last."""
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if holds(float(levels[middle])):
            high = middle
        else:
            low = middle + 1
    return low


def _suffices(t: float, a: Array, b: Array, halves: list[Array]) -> bool:
    """Whether every point that cannot reach the diagonal within t finds a partner within t."""
    return _served(a[halves[0] > t], b, t) and _served(b[halves[1] > t], a, t)


def _served(needy: Array, others: Array, t: float) -> bool:
    """Whether a matching within distance t (maximum norm) covers all of `needy`."""
    if len(needy) == 0:
        return True
    rows, columns, _ = _within(needy, others, t)
    if len(np.unique(rows)) < len(needy):
        return False
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(len(needy), len(others))).tocsr()
    return bool((maximum_bipartite_matching(graph, perm_type="column") >= 0).all())


def _within(a: Array, b: Array, t: float) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Positions and maximum-norm distances of all pairs at most t apart."""
    if len(a) == 0 or len(b) == 0:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0)
    found = cKDTree(a).sparse_distance_matrix(cKDTree(b), t, p=np.inf, output_type="ndarray")
    return found["i"], found["j"], found["v"]
