"""H^0, H^1 and the Euler characteristic of the label sheaf, by exact rank and by formula, which must agree.

The sheaf splits over the formats, and its summand of format f computes the cohomology of the graph relative to S_f, the
vertices where f is inadmissible. So with b1 the first Betti number, for every component C and format f
    h0 = #{(C, f) : S_f misses C},    h1 = sum over (C, f) of b1(C) + max(|S_f in C| - 1, 0),    chi = h0 - h1,
and in the meet variant h0 is the number of islands and h1 the sum of their b1 (Hatcher, Algebraic Topology, 2.1).
H^1 != 0 is neither necessary nor sufficient for a uniform format to be impossible: that is decided by S_f alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cohomcli.precision.sheaf import LabelSheaf, coboundary, components, inner, islands, meet_coboundary


@dataclass(frozen=True)
class FormatCohomology:
    """The summand of one format: its dimensions, |S_f| (`n_inadmissible`), and whether S_f is empty (`uniform`)."""

    format: str
    h0: int
    h1: int
    n_inadmissible: int
    uniform: bool


@dataclass(frozen=True)
class Cohomology:
    """Dimensions over the rationals. `euler` is dim C^0 - dim C^1 = h0 - h1; `betti1` is that of the graph itself."""

    h0: int
    h1: int
    euler: int
    by_format: tuple[FormatCohomology, ...]
    n_vertices: int
    n_edges: int
    n_components: int
    betti1: int


def label_cohomology(sheaf: LabelSheaf) -> Cohomology:
    """The cohomology of the label sheaf, by rank and by formula.

    Raises:
        ArithmeticError: the two disagree, which would be a mistake in our code.
    """
    n_formats = len(sheaf.formats)
    count, label = components(sheaf.n_vertices, sheaf.edges)
    ranks = _ranks(coboundary(sheaf), np.tile(np.arange(n_formats), sheaf.n_edges), n_formats)
    found = [
        (int(sheaf.allowed[:, j].sum()) - ranks[j], sheaf.n_edges - ranks[j])  # dim ker and dim coker of delta
        for j in range(n_formats)
    ]
    return _agreed(sheaf, count, found, [_by_formula(sheaf, count, label, j) for j in range(n_formats)])


def meet_cohomology(sheaf: LabelSheaf) -> Cohomology:
    """The cohomology of the meet variant: h0 counts islands, h1 the independent cycles inside them.

    Raises:
        ArithmeticError: rank and formula disagree, which would be a mistake in our code.
    """
    n_formats = len(sheaf.formats)
    shared = inner(sheaf)
    ranks = _ranks(meet_coboundary(sheaf), np.nonzero(shared)[1], n_formats)
    n0, n1 = sheaf.allowed.sum(axis=0).tolist(), shared.sum(axis=0).tolist()
    found = [(n0[j] - ranks[j], n1[j] - ranks[j]) for j in range(n_formats)]
    formula = [(i.count, n1[j] - n0[j] + i.count) for j, i in enumerate(islands(sheaf))]
    return _agreed(sheaf, components(sheaf.n_vertices, sheaf.edges)[0], found, formula)


def exact_rank(matrix: sp.csr_array) -> int:
    """The rank over the rationals of a matrix with at most two non-zero entries per row, each +1 or -1.

    Such are incidence matrices, the coboundaries above, and coboundaries of rank-one sheaves with signs.

    Raises:
        ValueError: an entry other than 0, +1, -1, or a row with more than two.
    """
    return int(_pivot_rows(matrix).sum())


def _pivot_rows(matrix: sp.csr_array) -> NDArray[np.bool_]:
    """Which rows (in order) are independent of the rows before them, by exact Gaussian elimination over Q.

    Exactness: rows with at most two entries +-1 are closed under elimination. A pivot row +-x_i +-x_j is the rule
    x_i = s x_j with s = +-1, and a row c x_i is the rule x_i = 0 (s = 0). Substituting a rule into a row replaces one
    entry +-1 by one entry +-1 or 0; when both entries meet in one column they add up to 0 (the row is dependent) or to
    +-2, and then the row says x_i = 0, since 2 is invertible in Q. No number ever exceeds 2: nothing rounds or
    overflows. Rules are replaced by their compositions on the way (row operations again), so that chains stay short.
    """
    indptr, columns, data = matrix.indptr.tolist(), matrix.indices.tolist(), matrix.data.tolist()
    if (np.diff(matrix.indptr) > 2).any() or not np.isin(matrix.data, (-1, 1)).all():
        raise ValueError("exact_rank needs rows of at most two entries, each +1 or -1")
    rules = _Rules(matrix.shape[1])
    independent = np.zeros(matrix.shape[0], dtype=np.bool_)
    for row in range(matrix.shape[0]):
        terms = range(indptr[row], indptr[row + 1])
        independent[row] = rules.add([(columns[t], data[t]) for t in terms])
    return independent


class _Rules:
    """The pivot rows so far as rules x_i = sign[i] * x_target[i]; a free column is its own target, with sign 1.

    A column known to be zero is its own target with sign 0.
    """

    def __init__(self, n: int) -> None:
        self.target = list(range(n))
        self.sign = [1] * n

    def add(self, row: list[tuple[int, int]]) -> bool:
        """Eliminate a row of (column, entry) pairs; keep what is left of it as a rule, and say if anything is."""
        rest: dict[int, int] = {}
        for column, entry in row:
            free, sign = self._reduce(column)
            rest[free] = rest.get(free, 0) + entry * sign
        left = [(column, entry) for column, entry in rest.items() if entry]
        if not left:
            return False
        column, entry = left[0]
        if len(left) == 1:
            self.sign[column] = 0
        else:
            other, other_entry = left[1]
            self.target[column], self.sign[column] = other, -entry * other_entry
        return True

    def _reduce(self, column: int) -> tuple[int, int]:
        """Follow the rules from `column` to a free or zero column, composing them on the way back."""
        chain = []
        while self.target[column] != column:
            chain.append(column)
            column = self.target[column]
        sign = self.sign[column]
        for step in reversed(chain):
            sign *= self.sign[step]
            self.target[step], self.sign[step] = column, sign
        return column, sign


def _ranks(matrix: sp.csr_array, format_of_row: NDArray[np.int64], n_formats: int) -> list[int]:
    """The rank of every format's block; the blocks share no column, so pivots are counted format by format."""
    return [int(k) for k in np.bincount(format_of_row[_pivot_rows(matrix)], minlength=n_formats)]


def _by_formula(sheaf: LabelSheaf, count: int, label: NDArray[np.int64], column: int) -> tuple[int, int]:
    """(h0, h1) of one format from |S_f| in every component; the b1 of the components sum to m - n + count."""
    outside = np.bincount(label[~sheaf.allowed[:, column]], minlength=count)
    betti1 = sheaf.n_edges - sheaf.n_vertices + count
    return int((outside == 0).sum()), betti1 + int(np.maximum(outside - 1, 0).sum())


def _agreed(sheaf: LabelSheaf, count: int, found: list[tuple[int, int]], formula: list[tuple[int, int]]) -> Cohomology:
    if found != formula:
        raise ArithmeticError(f"cohomology by rank {found} and by formula {formula} disagree")
    outside = (~sheaf.allowed).sum(axis=0).tolist()
    parts = tuple(
        FormatCohomology(fmt, h0, h1, out, out == 0)
        for fmt, (h0, h1), out in zip(sheaf.formats, found, outside, strict=True)
    )
    h0, h1 = sum(p.h0 for p in parts), sum(p.h1 for p in parts)
    betti1 = sheaf.n_edges - sheaf.n_vertices + count
    return Cohomology(h0, h1, h0 - h1, parts, sheaf.n_vertices, sheaf.n_edges, count, betti1)
