"""Experimental: the balance class of a residual network, the precision that parallel branches must waste.

If the relative error of operand u is amplified by 2^l_e on its way e = (u, v) to op v, then v's accuracy asks l_e more
bits of u: p_u - p_v = l_e. A precision potential p that wastes nothing exists iff the cochain l is exact, iff its class
in H^1(G; R) = R^b1 vanishes, iff the signed sums of l around all cycles are zero. Otherwise the least total waste is,
by linear programming duality,
    min_p sum_e w_e |p_u - p_v - l_e|  =  max { <l, z> : z a circulation (in Z_1(G)), |z_e| <= w_e },
and the optimal z names the loops that cause it (Krishnan, Flow-cut dualities for sheaves on graphs, 2014).

The identity is a theorem; that local amplification factors describe what a network needs is only a picture. Nothing
here is a bound on any error: results are marked experimental, and no assignment is derived from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import linprog

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.sheaf import components

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Balance:
    """The balance of edge log-gains l (bits). `experimental` is always True: a diagnosis, not a guarantee.

    `class_coordinates` (b1,): the sums of l around the fundamental cycles `cycles` (b1, m), entries -1, 0, 1; the class
    vanishes iff all are zero. `potential` (n,): optimal p, 0 at each component's least vertex. `waste` (m,): signed
    bits p_u - p_v - l_e, positive where u carries more than v asks of it. `total`: sum of w |waste|.
    `circulation` (m,): the dual certificate z. `certified`: <l, z>, a lower bound of every potential's total.
    """

    class_coordinates: Array
    cycles: NDArray[np.int8]
    potential: Array
    waste: Array
    total: float
    circulation: Array
    certified: float
    experimental: bool = True


def balance(n: int, edges: NDArray[np.int64], gains: Array, weights: Array | None = None) -> Balance:
    """The balance class and the least waste of log2-gains on the edges (m, 2) of a graph on n vertices (experimental).

    `gains` (m,) in bits, `weights` (m,) positive, 1 by default (bytes on the edge make the waste a traffic).

    Raises:
        ValueError: gains or weights of another shape, not finite, or weights that are not positive.
        AnalysisIncomplete: HiGHS did not solve the linear programme.
    """
    w = np.ones(len(edges)) if weights is None else weights
    if gains.shape != (len(edges),) or w.shape != gains.shape or not np.isfinite(gains).all():
        raise ValueError("gains and weights are finite vectors with one entry per edge")
    if not (np.isfinite(w).all() and (w > 0).all()):
        raise ValueError("weights are finite and positive")
    d, forest = _difference(n, edges), spanning_forest(n, edges)
    cycles = fundamental_cycles(edges, forest)
    potential, multipliers = _solve(d, gains, w)
    potential = potential - potential[_roots(n, edges)]
    z = _circulation(cycles, multipliers[list(forest.chords)], w)
    waste = d @ potential - gains
    return Balance(cycles @ gains, cycles, potential, waste, float(w @ abs(waste)), z, float(gains @ z))


@dataclass(frozen=True)
class Forest:
    """A breadth-first spanning forest: `parent`, `edge` to it and `depth` per vertex (-1, -1 and 0 at a root).

    `chords` are the edges outside it, b1 of them.
    """

    parent: tuple[int, ...]
    edge: tuple[int, ...]
    depth: tuple[int, ...]
    chords: tuple[int, ...]


def spanning_forest(n: int, edges: NDArray[np.int64]) -> Forest:
    """Grow a tree from the least vertex of every component."""
    near: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for e, (u, v) in enumerate(edges.tolist()):
        near[u].append((v, e))
        near[v].append((u, e))
    parent, via, depth, seen = [-1] * n, [-1] * n, [0] * n, [False] * n
    for root in range(n):
        queue = [] if seen[root] else [root]
        seen[root] = True
        for u in queue:  # grows while it is walked
            for v, e in near[u]:
                if not seen[v]:
                    seen[v], parent[v], via[v], depth[v] = True, u, e, depth[u] + 1
                    queue.append(v)
    tree = set(via)
    return Forest(tuple(parent), tuple(via), tuple(depth), tuple(e for e in range(len(edges)) if e not in tree))


def fundamental_cycles(edges: NDArray[np.int64], forest: Forest) -> NDArray[np.int8]:
    """A basis of Z_1(G), (b1, m) with entries -1, 0, 1: row i runs along chord i and back through the forest."""
    cycles = np.zeros((len(forest.chords), len(edges)), dtype=np.int8)
    for row, chord in zip(cycles, forest.chords, strict=True):
        row[chord] = 1
        tail, head = edges[chord].tolist()
        while tail != head:  # climb from the deeper end until both meet
            if forest.depth[head] >= forest.depth[tail]:
                e = forest.edge[head]
                row[e] = 1 if edges[e, 0] == head else -1
                head = forest.parent[head]
            else:
                e = forest.edge[tail]
                row[e] = -1 if edges[e, 0] == tail else 1
                tail = forest.parent[tail]
    return cycles


def _difference(n: int, edges: NDArray[np.int64]) -> sp.csr_array:
    """(m, n) matrix of p -> p_u - p_v, minus the coboundary of the constant sheaf."""
    m = len(edges)
    rows = np.concatenate([np.arange(m), np.arange(m)])
    data = np.concatenate([np.ones(m), -np.ones(m)])
    return sp.coo_array((data, (rows, edges.T.ravel())), shape=(m, n)).tocsr()


def _solve(d: sp.csr_array, gains: Array, w: Array) -> tuple[Array, Array]:
    """min w.(t) s.t. -t <= d p - l <= t, and the multipliers as a circulation z with <l, z> the optimum."""
    m, n = d.shape
    if m == 0:
        return np.zeros(n), np.zeros(0)
    eye = sp.eye_array(m, format="csr")
    upper = sp.block_array([[d, -eye], [-d, -eye]], format="csr")
    free = [(None, None)] * n + [(0, None)] * m
    cost = np.concatenate([np.zeros(n), w])
    result = linprog(cost, A_ub=upper, b_ub=np.concatenate([gains, -gains]), bounds=free, method="highs")
    if result.status != 0:
        raise AnalysisIncomplete(f"the balance programme was not solved: {result.message}")
    y = np.asarray(result.ineqlin.marginals)
    return np.asarray(result.x[:n]), y[:m] - y[m:]


def _circulation(cycles: NDArray[np.int8], on_chords: Array, w: Array) -> Array:
    """Repair the solver's multipliers: the circulation with their values on the chords, scaled into |z| <= w.

    Any circulation within the weights gives a valid lower bound, so the certificate does not rest on the solver.
    """
    z = on_chords @ cycles
    return np.asarray(z / float((abs(z) / w).max(initial=1.0)))


def _roots(n: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The least vertex of every vertex's component (n,)."""
    count, label = components(n, edges)
    first = np.full(count, n, dtype=np.int64)
    np.minimum.at(first, label, np.arange(n))
    return first[label]
