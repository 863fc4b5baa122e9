"""The label sheaf of formats on a computation graph: stalks, restriction maps, coboundary, islands and obstructions.

On a graph G with admissible formats A_v at every vertex, the stalk of v is k^{A_v}, the stalk of an edge is k^F on all
formats F, and the restriction maps are the inclusions k^{A_v} -> k^F: a cellular sheaf (Curry 2014; Hansen and Ghrist,
"Toward a spectral theory of cellular sheaves", 2019). A global section that picks one format per vertex is a uniform
assignment, because neighbours must agree. In the meet variant the edge stalk is k^{A_u & A_v} and the restriction maps
are the projections: its sections live on islands, the connected regions that can run in one format without a cast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from cohomcli.errors import UsageError
from cohomcli.precision.spec import Admissibility, ComputationGraph
from cohomcli.registry import did_you_mean


@dataclass(frozen=True)
class LabelSheaf:
    """The sheaf: `allowed[v, f]` (n, F) bool and `edges` (m, 2) int64, pairs (tail, head) of rows of `allowed`.

    `vertices` (n,) int64 are the rows' indices in the computation graph they come from.

    Raises:
        ValueError: the arrays do not fit together.
    """

    formats: tuple[str, ...]
    allowed: NDArray[np.bool_]
    edges: NDArray[np.int64]
    vertices: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.vertices)
        if self.allowed.shape != (n, len(self.formats)) or self.edges.shape != (len(self.edges), 2):
            raise ValueError(f"allowed {self.allowed.shape}, edges {self.edges.shape} and {n} vertices do not fit")
        if ((self.edges < 0) | (self.edges >= n)).any():
            raise ValueError(f"an edge names a vertex outside 0..{n - 1}")

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return len(self.vertices)

    @property
    def n_edges(self) -> int:
        """Number of edges, parallel ones counted."""
        return len(self.edges)

    def column(self, fmt: str) -> int:
        """The column of `fmt` in `allowed`.

        Raises:
            UsageError: the sheaf has no such format.
        """
        if fmt not in self.formats:
            raise UsageError(f"format {fmt!r} is not in this analysis", did_you_mean(fmt, self.formats))
        return self.formats.index(fmt)


@dataclass(frozen=True)
class Islands:
    """The connected regions where `format` is admissible throughout: `label` (n,) int64, -1 where it is not."""

    format: str
    count: int
    label: NDArray[np.int64]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Vertices per island, in the order of their labels."""
        return tuple(int(size) for size in np.bincount(self.label[self.label >= 0], minlength=self.count))


@dataclass(frozen=True)
class Obstruction:
    """S_f, the vertices (indices in the computation graph) where `format` is inadmissible, each with its reason.

    Uniform `format` is impossible, relative to the admissible sets, exactly when this is not empty. Whether the
    admissible sets are measured or proved decides what that statement is worth.
    """

    format: str
    vertices: tuple[int, ...]
    reasons: tuple[str, ...]


def label_sheaf(graph: ComputationGraph, admissibility: Admissibility) -> LabelSheaf:
    """The label sheaf of `graph`, on the vertices whose format can be chosen and the edges between them.

    A fixed vertex (integer indices, a mask constant) has no stalk: it takes part in no agreement.
    """
    free = np.array([v.index for v in graph.vertices if not v.fixed], dtype=np.int64)
    row = np.full(len(graph.vertices), -1, dtype=np.int64)
    row[free] = np.arange(len(free))
    edges = row[np.array(graph.edges, dtype=np.int64).reshape(-1, 2)]
    return LabelSheaf(admissibility.formats, admissibility.allowed[free], edges[(edges >= 0).all(axis=1)], free)


def coboundary(sheaf: LabelSheaf) -> sp.csr_array:
    """delta: C^0 -> C^1, (delta x)_(u,v) = x_v - x_u, exact int8 entries 0, +1, -1.

    Shape (m F, sum_v |A_v|): rows (edge, format), columns (vertex, admissible format), both in lexicographic order.
    """
    n_formats = len(sheaf.formats)
    return _incidence(sheaf, np.ones((sheaf.n_edges, n_formats), dtype=np.bool_))


def meet_coboundary(sheaf: LabelSheaf) -> sp.csr_array:
    """The coboundary of the meet variant: only the rows (edge, format) with the format admissible at both ends."""
    return _incidence(sheaf, inner(sheaf))


def inner(sheaf: LabelSheaf) -> NDArray[np.bool_]:
    """(m, F): whether a format is admissible at both ends of an edge."""
    return sheaf.allowed[sheaf.edges[:, 0]] & sheaf.allowed[sheaf.edges[:, 1]]


def restriction(sheaf: LabelSheaf, vertex: int) -> sp.csr_array:
    """The restriction map from row `vertex` to any edge at it: the inclusion k^{A_v} -> k^F, shape (F, |A_v|)."""
    columns = np.flatnonzero(sheaf.allowed[vertex])
    ones = np.ones(len(columns), dtype=np.int8)
    return sp.csr_array((ones, (columns, np.arange(len(columns)))), shape=(len(sheaf.formats), len(columns)))


def _incidence(sheaf: LabelSheaf, rows: NDArray[np.bool_]) -> sp.csr_array:
    """Signed incidence of the (edge, format) pairs of `rows` (m, F) with the admissible (vertex, format) pairs."""
    column = np.cumsum(sheaf.allowed.ravel()).reshape(sheaf.allowed.shape) - 1
    edge, fmt = np.nonzero(rows)
    data, at, where = [], [], []
    for end, sign in ((1, 1), (0, -1)):
        vertex = sheaf.edges[edge, end]
        present = np.flatnonzero(sheaf.allowed[vertex, fmt])
        data.append(np.full(len(present), sign, dtype=np.int8))
        at.append(present)
        where.append(column[vertex[present], fmt[present]])
    shape = (len(edge), int(sheaf.allowed.sum()))
    matrix = sp.coo_array((np.concatenate(data), (np.concatenate(at), np.concatenate(where))), shape=shape).tocsr()
    matrix.eliminate_zeros()  # a self-loop's +1 and -1
    return matrix


def components(n: int, edges: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """The number of connected components of a graph on n vertices, and the component (n,) of each."""
    ones = np.ones(len(edges), dtype=np.bool_)  # booleans: parallel edges add up without overflow
    adjacency = sp.coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(n, n))
    count, label = connected_components(adjacency, directed=False)
    return int(count), label.astype(np.int64)


def islands(sheaf: LabelSheaf) -> tuple[Islands, ...]:
    """The islands of every format, in the order of `formats`."""
    return tuple(_islands_of(sheaf, j, fmt) for j, fmt in enumerate(sheaf.formats))


def _islands_of(sheaf: LabelSheaf, column: int, fmt: str) -> Islands:
    inside = sheaf.allowed[:, column]
    row = np.cumsum(inside) - 1
    edges = row[sheaf.edges[inside[sheaf.edges].all(axis=1)]]
    label = np.full(sheaf.n_vertices, -1, dtype=np.int64)
    count, label[inside] = components(int(inside.sum()), edges)
    return Islands(fmt, count, label)


def obstructions(sheaf: LabelSheaf, admissibility: Admissibility) -> tuple[Obstruction, ...]:
    """S_f for every format f of the sheaf, with the reason of every op in it."""
    return tuple(_obstruction_of(sheaf, admissibility, fmt) for fmt in sheaf.formats)


def _obstruction_of(sheaf: LabelSheaf, admissibility: Admissibility, fmt: str) -> Obstruction:
    outside = sheaf.vertices[~sheaf.allowed[:, sheaf.column(fmt)]].tolist()
    return Obstruction(fmt, tuple(outside), tuple(admissibility.reasons[v, fmt] for v in outside))


def uniform_possible(sheaf: LabelSheaf, fmt: str) -> bool:
    """Whether every vertex admits `fmt`: the constant labelling is a global section, S_f is empty."""
    return bool(sheaf.allowed[:, sheaf.column(fmt)].all())


def sections(sheaf: LabelSheaf) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """A basis of H^0: (format, the vertices of a connected component on which it is admissible everywhere).

    Each is the indicator of one format on one component; that they span follows from the splitting of the sheaf over
    the formats: a section of one format's summand is constant on every component and vanishes where it meets S_f.
    """
    count, label = components(sheaf.n_vertices, sheaf.edges)
    for j, fmt in enumerate(sheaf.formats):
        spoilt = np.bincount(label[~sheaf.allowed[:, j]], minlength=count)
        for component in np.flatnonzero(spoilt == 0):
            yield fmt, np.flatnonzero(label == component)
