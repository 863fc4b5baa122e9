"""Representative cycles of the longest H1 bars: which points of the cloud form a loop.

The lengths are replaced by their ranks, which makes the filtration generic: every bar then names one birth edge and
one death edge. The boundary of the triangle that kills the class is reduced until its youngest edge is the birth edge;
what is left is a cycle that appears with the bar and becomes a boundary when the bar dies (the column of the reduced
boundary matrix: Edelsbrunner, Letscher, Zomorodian 2002). An edge with an earlier detour over a third point is an
apparent pair and is replaced by the detour (Bauer 2021; Koyama, Memoli, Robins, Turner, arXiv:2307.16333), so only
columns of bars are ever stored, and only those that are needed are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial.distance import squareform

from cohomcli.errors import AnalysisIncomplete
from cohomcli.topology.engines import ENGINES, choose_engine
from cohomcli.topology.results import Array, Loop

# Engines compare float32, which tells ranks apart up to 2^24: n (n - 1) / 2 edges of 5,793 points.
MOST_POINTS = 5793


def longest_loops(distances: Array, count: int, engine: str = "auto", threshold: float = np.inf) -> tuple[Loop, ...]:
    """Representatives of the `count` longest finite bars of H1, longest first, from condensed float64 `distances`.

    Where it represents the class, the closed path of fewest edges through the birth edge at the time of birth is
    taken; else the reduced column, which may be several closed paths. Of bars equally long the first born comes first.

    Raises:
        AnalysisIncomplete: more than `MOST_POINTS` points.
    """
    n = round((1 + np.sqrt(1 + 8 * len(distances))) / 2)
    if n > MOST_POINTS:
        raise AnalysisIncomplete(
            f"representatives are computed for up to {MOST_POINTS} points, this cloud has {n}",
            f"--samples {MOST_POINTS}, or --landmarks {MOST_POINTS}",
        )
    if n < 4 or count < 1:
        return ()
    reduction = _Reduction.of(distances, choose_engine(engine, 1).name)
    lengths = reduction.lengths
    bars = [(lengths[b], lengths[d], b) for b, d in reduction.deaths.items() if lengths[d] <= threshold]
    longest = sorted((bar for bar in bars if bar[1] > bar[0]), key=lambda bar: (bar[0] - bar[1], bar[2]))[:count]
    return tuple(Loop(float(b), float(d), *reduction.representative(rank)) for b, d, rank in longest)


@dataclass
class _Reduction:
    """Boundary matrix reduction on demand. Edges are their ranks 0..E-1 in order of length.

    `rank` is the (n, n) table of ranks, `ends` (E, 2) the points of each edge, `lengths` (E,) ascending, `deaths`
    birth rank -> death rank of every class of H1, `columns` the reduced columns known so far by birth rank.
    """

    rank: NDArray[np.int32]
    ends: NDArray[np.int64]
    lengths: Array
    deaths: dict[int, int]
    columns: dict[int, frozenset[int]] = field(default_factory=dict)
    detours: dict[int, tuple[int, int] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, distances: Array, engine: str) -> _Reduction:
        order = np.argsort(distances, kind="stable")
        ranks = np.empty(len(order), dtype=np.int32)
        ranks[order] = np.arange(len(order), dtype=np.int32)
        bars = ENGINES.get(engine)(ranks + 1.0, 1, np.inf)[0] - 1.0
        bars = bars[bars[:, 1] > bars[:, 0]].astype(np.int64)
        rows, columns = np.triu_indices(round((1 + np.sqrt(1 + 8 * len(order))) / 2), 1)
        ends = np.column_stack([rows[order], columns[order]])
        return cls(squareform(ranks), ends, distances[order], dict(bars.tolist()))

    def representative(self, birth: int) -> tuple[tuple[int, ...], bool]:
        """The points of a representative of the bar born with edge `birth`, and whether it is one closed path."""
        path = self._shortest_through(birth)
        steps = zip(path, [*path[1:], path[0]], strict=True)
        cycle = {int(self.rank[u, v]) for u, v in steps}
        if self._is_boundary(cycle, self.deaths[birth]):
            return tuple(path), True
        paths = list(_closed_paths([tuple(self.ends[edge].tolist()) for edge in sorted(self._column(birth))]))
        return tuple(point for closed in paths for point in closed), len(paths) == 1

    def _shortest_through(self, birth: int) -> list[int]:
        """The closed path of fewest, then shortest, edges through edge `birth` and earlier ones."""
        start, end = map(int, self.ends[birth])
        rows, columns = self.ends[:birth].T
        weights = 1.0 + self.lengths[:birth] / (2.0 * len(self.rank) * self.lengths[-1])
        graph = csr_array((weights, (rows, columns)), shape=self.rank.shape)
        _, before = dijkstra(graph, directed=False, indices=start, return_predecessors=True)
        path = [end]
        while path[-1] != start:
            path.append(int(before[path[-1]]))
        return path

    def _is_boundary(self, cycle: set[int], time: int) -> bool:
        """Whether `cycle` is a boundary once edge `time` and its triangles are there."""
        rest = _Column(cycle)
        while (pivot := rest.youngest()) is not None:
            if (detour := self._detour(pivot)) is not None:
                rest.add((pivot, *detour))
            elif self.deaths.get(pivot, time + 1) <= time:
                rest.add(self._column(pivot))
            else:
                return False
        return True

    def _column(self, birth: int) -> frozenset[int]:
        """The reduced column whose youngest edge is `birth`, computed with all columns it needs."""
        waiting = [birth]
        while waiting:
            missing = self._reduce(waiting[-1])
            if missing is None:
                waiting.pop()
            else:
                waiting.append(missing)
        return self.columns[birth]

    def _reduce(self, birth: int) -> int | None:
        """Find the column of `birth`; or the birth of a column that is needed first."""
        if birth in self.columns:
            return None
        death = self.deaths[birth]
        for third in self._candidates(death):
            u, v = self.ends[death]
            column = _Column({death, int(self.rank[u, third]), int(self.rank[v, third])})
            while (pivot := column.youngest()) is not None and pivot != birth:
                if (detour := self._detour(pivot)) is not None:
                    column.add((pivot, *detour))
                elif self.deaths.get(pivot, death + 1) <= death:  # one edge may end several classes
                    if pivot not in self.columns:
                        return pivot
                    column.add(self.columns[pivot])
                else:
                    break
            if pivot == birth:
                self.columns[birth] = frozenset(column.edges)
                return None
        raise AssertionError(f"no triangle on edge {death} ends the class born with edge {birth}")

    def _candidates(self, edge: int) -> Iterator[int]:
        """Third points of triangles whose youngest edge is `edge`, one from every component of its lune."""
        u, v = self.ends[edge]
        lune = np.flatnonzero((self.rank[u] < edge) & (self.rank[v] < edge))
        lune = lune[(lune != u) & (lune != v)]  # the diagonal of the table is 0
        near = self.rank[np.ix_(lune, lune)] < edge
        _, labels = connected_components(csr_array(near), directed=False)
        _, firsts = np.unique(labels, return_index=True)
        yield from lune[firsts].tolist()

    def _detour(self, edge: int) -> tuple[int, int] | None:
        """Two earlier edges that go the way of `edge` over the third point reached first; None if there are none."""
        if edge not in self.detours:
            u, v = self.ends[edge]
            over = np.maximum(self.rank[u], self.rank[v])
            over[u] = over[v] = edge
            third = int(over.argmin())
            earlier = (int(self.rank[u, third]), int(self.rank[v, third]))
            self.detours[edge] = earlier if over[third] < edge else None
        return self.detours[edge]


class _Column:
    """A chain of edges over Z/2 that knows its youngest edge."""

    def __init__(self, edges: set[int]) -> None:
        self.edges = set(edges)
        self._heap = [-edge for edge in edges]
        heapify(self._heap)

    def youngest(self) -> int | None:
        while self._heap and -self._heap[0] not in self.edges:
            heappop(self._heap)
        return -self._heap[0] if self._heap else None

    def add(self, edges: frozenset[int] | tuple[int, ...]) -> None:
        for edge in edges:
            if edge in self.edges:
                self.edges.remove(edge)
            else:
                self.edges.add(edge)
                heappush(self._heap, -edge)


def _closed_paths(edges: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Walk a cycle over Z/2, in which every point has an even number of edges, as closed paths; the first end first."""
    neighbours: dict[int, list[int]] = {}
    for u, v in edges:
        neighbours.setdefault(u, []).append(v)
        neighbours.setdefault(v, []).append(u)
    for start in neighbours:
        while neighbours[start]:
            path, at = [start], start
            while neighbours[at]:
                following = neighbours[at].pop()
                neighbours[following].remove(at)
                at = following
                path.append(at)
            yield path[:-1]
