"""Zigzag persistence of a sequence of complexes joined by their intersections, over Z/2.

Complexes K_0, ..., K_m are read as K_0 > K_0 n K_1 < K_1 > ... < K_m, so that a class can be followed from one complex
into the next although neither contains the other (Carlsson, de Silva 2010). Computed by FastZigZag (Dey, Hou, ESA 2022,
arXiv:2204.11080): every addition of a simplex makes a new cell, all additions come first and all deletions last, the
deletions become cones over one apex added in reverse order, and the pairs of this ordinary filtration are read back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

Simplex = tuple[int, ...]


@dataclass(frozen=True)
class ZigzagBar:
    """A class of dimension `dimension` that lives in the complexes `birth` .. `death`, both included."""

    dimension: int
    birth: int
    death: int


@dataclass(frozen=True)
class _Cell:
    """One stay of a simplex: its faces (cell numbers) and the steps at which it was added and deleted."""

    dimension: int
    faces: tuple[int, ...]
    added: int
    deleted: int


def zigzag_bars(complexes: Sequence[set[Simplex]], highest: int = 1) -> list[ZigzagBar]:
    """Bars up to dimension `highest` of the zigzag of `complexes`, sets of sorted vertex tuples with all their faces.

    H_k needs the simplices of dimension k + 1. Classes that live between two complexes only are left out.
    """
    cells, whole = _stays(complexes)
    bars = []
    for dimension, created, destroyed in _lives(cells):
        first, last = bisect_left(whole, created), bisect_right(whole, destroyed) - 1
        if dimension <= highest and first <= last:
            bars.append(ZigzagBar(dimension, first, last))
    return sorted(bars, key=lambda bar: (bar.dimension, bar.birth, bar.death))


def _stays(complexes: Sequence[set[Simplex]]) -> tuple[list[_Cell], list[int]]:
    """All cells in the order of their additions, and for each complex the number of steps after which it is whole."""
    faces: list[tuple[int, ...]] = []
    simplices: list[Simplex] = []
    added: list[int] = []
    deleted: dict[int, int] = {}
    present: dict[Simplex, int] = {}
    whole, step = [], 0
    for target in (*complexes, set[Simplex]()):
        for simplex in sorted(present.keys() - target, key=lambda s: (-len(s), s)):
            deleted[present.pop(simplex)] = step
            step += 1
        for simplex in sorted(target - present.keys(), key=lambda s: (len(s), s)):
            present[simplex] = len(simplices)
            faces.append(
                tuple(present[face] for face in combinations(simplex, len(simplex) - 1)) if simplex[1:] else ()
            )
            simplices.append(simplex)
            added.append(step)
            step += 1
        whole.append(step - 1)  # the last step of making it whole; a class created by that step is in it
    cells = [_Cell(len(s) - 1, faces[at], added[at], deleted[at]) for at, s in enumerate(simplices)]
    return cells, whole[:-1]


def _lives(cells: Sequence[_Cell]) -> Iterator[tuple[int, int, int]]:
    """Dimension, creating step and the step before the destroying one of every class of the simplex-wise zigzag.

    A pair of the coned filtration (cells in order of addition, then cones in reverse order of deletion) means, by Dey
    and Hou: two cells, a class created and destroyed by additions; two cones, by deletions; a cell and a cone, created
    by the addition and destroyed by the deletion, or one dimension lower the other way round if the deletion was first.
    """
    n = len(cells)
    order = sorted(range(n), key=lambda at: -cells[at].deleted)
    for creator, destroyer in _pairs(cells, order):
        first = cells[creator if creator < n else order[creator - n]]
        second = cells[destroyer if destroyer < n else order[destroyer - n]]
        if destroyer < n:
            yield first.dimension, first.added, second.added - 1
        elif creator >= n:
            yield first.dimension, second.deleted, first.deleted - 1
        elif first.added < second.deleted:
            yield first.dimension, first.added, second.deleted - 1
        else:
            yield first.dimension - 1, second.deleted, first.added - 1


def _pairs(cells: Sequence[_Cell], order: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Persistence pairs (creator, destroyer) of the coned filtration; number n + k is the cone over cell `order[k]`.

    Columns are integers whose bits are the rows of one dimension; those whose row is known to be a creator are cleared
    (Chen, Kerber 2011), so dimensions go downwards.
    """
    numbers, boundaries = _coned(cells, order)
    created: set[int] = set()
    for dimension in range(max(numbers), 0, -1):
        rows = numbers[dimension - 1]
        position = {number: at for at, number in enumerate(rows)}
        reduced: dict[int, int] = {}
        for number, faces in zip(numbers[dimension], boundaries[dimension], strict=True):
            if number in created:
                continue
            column = sum(1 << position[face] for face in faces)
            while column and (pivot := column.bit_length() - 1) in reduced:
                column ^= reduced[pivot]
            if column:
                reduced[pivot] = column
                created.add(rows[pivot])
                yield rows[pivot], number


def _coned(cells: Sequence[_Cell], order: Sequence[int]) -> tuple[dict[int, list[int]], dict[int, list[list[int]]]]:
    """Numbers and faces of all cells and cones by dimension, in the order of the filtration.

    The apex (-1) comes first: being the oldest vertex it is paired with nothing.
    """
    apex, n = -1, len(cells)
    cone = {cell: n + at for at, cell in enumerate(order)}
    numbers: dict[int, list[int]] = {0: [apex]}
    boundaries: dict[int, list[list[int]]] = {0: [[]]}
    for at, cell in enumerate(cells):
        numbers.setdefault(cell.dimension, []).append(at)
        boundaries.setdefault(cell.dimension, []).append(list(cell.faces))
    for at in order:
        sides = [cone[face] for face in cells[at].faces] or [apex]
        numbers.setdefault(cells[at].dimension + 1, []).append(cone[at])
        boundaries.setdefault(cells[at].dimension + 1, []).append([at, *sides])
    return numbers, boundaries
