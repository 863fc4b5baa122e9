"""The computation graph laid out as a grid: a row per block, a column per position in it, equal positions aligned.

Blocks are numbered modules ("model.layers.3"); those that differ in numbers alone form a panel and share its columns.
Everything outside of repeated blocks is in panels of its own, a row per module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cohomcli.precision.result import PlanRow
from cohomcli.report.precision.digest import TOP, what

_BLOCK = re.compile(r"(?:[^.]*[^.0-9][^.]*\.)*?[0-9]+(?=\.|$)")  # up to the first component that is a number
WRAP = 60  # columns of a row outside of blocks
LEAST_OPS = 3  # tensors per block, on average, below which a numbered module is no block
MOST_COLUMNS = 240  # of a panel; wider blocks continue in a further panel
MOST_MODULES = 16  # more modules outside of blocks share rows
Key = tuple[bool, str, str, int]  # weight?, module within the block, operation or weight, which of several


@dataclass(frozen=True)
class Column:
    """A position in a block: `module` within the block, `op` the operation or the weight's name, `weight` if it is one.

    Both are empty where the rows of a panel have nothing in common.
    """

    module: str
    op: str
    weight: bool


@dataclass(frozen=True)
class Cell:
    """A tensor's place: its index in the plan, its row and column in a panel."""

    index: int
    row: int
    column: int


@dataclass(frozen=True)
class Panel:
    """Blocks of one shape, or what lies outside of blocks (`title` is empty then)."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: tuple[Cell, ...]

    @property
    def n_ops(self) -> int:
        """Columns of operations; those of the weights come after them."""
        return sum(not column.weight for column in self.columns)


@dataclass(frozen=True)
class Skip:
    """A value that is read again some columns later, in `share` of the rows; `start` -1 is the block before."""

    start: int
    end: int
    share: float


def block_of(module: str) -> str:
    """The numbered block that a module is in, "" when it is in none."""
    match = _BLOCK.match(module)
    return match.group() if match else ""


def family(block: str) -> str:
    """A block's name with every number in it taken out: the blocks of one family are drawn together."""
    return re.sub(r"[0-9]+", "*", block)


def layout(plan: Sequence[PlanRow]) -> list[Panel]:
    """The panels of a plan in forward order; every row of the plan has exactly one cell."""
    order = sorted(range(len(plan)), key=lambda index: plan[index].kind == "weight")  # operations first
    rank = {index: at for at, index in enumerate(order)}
    blocks: dict[str, list[int]] = {}
    for index in order:
        blocks.setdefault(block_of(plan[index].module), []).append(index)
    repeated = _repeated(blocks)
    inside: dict[str, dict[str, list[int]]] = {}
    outside: list[int] = []
    for block, members in blocks.items():
        if family(block) in repeated:
            inside.setdefault(family(block), {})[block] = members
        else:
            outside += members
    panels = [(rank[next(iter(found.values()))[0]], _aligned(plan, name, found)) for name, found in inside.items()]
    if outside:
        loose = sorted(outside, key=lambda index: rank[index])
        panels.append((rank[loose[0]], [_loose(plan, loose)]))
    return [panel for _, group in sorted(panels, key=lambda p: p[0]) for panel in group]


def _repeated(blocks: dict[str, list[int]]) -> set[str]:
    """The families with several blocks that hold more than an operation and its weights."""
    members: dict[str, list[int]] = {}
    for block, found in blocks.items():
        if block:
            members.setdefault(family(block), []).append(len(found))
    return {name for name, sizes in members.items() if len(sizes) > 1 and sum(sizes) > LEAST_OPS * len(sizes)}


def _aligned(plan: Sequence[PlanRow], title: str, blocks: dict[str, list[int]]) -> list[Panel]:
    """Blocks of one family under common columns, in as many panels as they need."""
    keys = {block: _keys(plan, block, members) for block, members in blocks.items()}
    order = _merged(keys.values())
    at = {key: column for column, key in enumerate(order)}
    columns = tuple(Column(module, op, weight) for weight, module, op, _ in order)
    cells = [
        Cell(index, row, at[key])
        for row, (block, members) in enumerate(blocks.items())
        for index, key in zip(members, keys[block], strict=True)
    ]
    panels = []
    for start in range(0, len(columns), MOST_COLUMNS):
        part = [c for c in cells if start <= c.column < start + MOST_COLUMNS]
        moved = tuple(Cell(c.index, c.row, c.column - start) for c in part)
        name = title if start == 0 else f"{title}, continued"
        panels.append(Panel(name, tuple(blocks), columns[start : start + MOST_COLUMNS], moved))
    return panels


def _keys(plan: Sequence[PlanRow], block: str, members: Sequence[int]) -> list[Key]:
    """What each tensor of a block is, so that the same one of another block has the same key."""
    seen: Counter[tuple[bool, str, str]] = Counter()
    keys = []
    for index in members:
        row = plan[index]
        inner = row.module[len(block) :].removeprefix(".")
        place = (row.kind == "weight", inner, what(row))
        keys.append((*place, seen[place]))
        seen[place] += 1
    return keys


def _merged(sequences: Iterable[Sequence[Key]]) -> list[Key]:
    """One order in which every sequence's keys appear, a new key right after the one before it; weights at the end.

    New keys at the start of a sequence come before the first one that is known already, or last if none is.
    """
    order: list[Key] = []
    for sequence in sequences:
        place = {key: position for position, key in enumerate(order)}
        at = min((place[key] for key in sequence if key in place), default=len(order)) - 1
        for key in sequence:
            if key not in place:
                order.insert(at + 1, key)
                place = {known: position for position, known in enumerate(order)}
            at = place[key]
    return sorted(order, key=lambda key: key[0])


def _loose(plan: Sequence[PlanRow], members: Sequence[int]) -> Panel:
    """What lies outside of repeated blocks: one row if it fits, a row per module, or wrapped rows if there are many."""
    if len(members) <= WRAP:
        columns = tuple(Column(plan[i].module, what(plan[i]), plan[i].kind == "weight") for i in members)
        return Panel("", ("",), columns, tuple(Cell(index, 0, column) for column, index in enumerate(members)))
    modules = list(dict.fromkeys(plan[index].module for index in members))
    groups = [[index for index in members if plan[index].module == module] for module in modules]
    rows: list[str] = []
    cells: list[Cell] = []
    for group in groups if len(groups) <= MOST_MODULES else [list(members)]:
        for start in range(0, len(group), WRAP):
            chunk = group[start : start + WRAP]
            cells += [Cell(index, len(rows), column) for column, index in enumerate(chunk)]
            rows.append(plan[chunk[0]].module or TOP)
    width = max(cell.column for cell in cells) + 1
    return Panel("", tuple(rows), (Column("", "", False),) * width, tuple(cells))


def skips(panel: Panel, edges: Sequence[tuple[int, int]], most: int = 14) -> list[Skip]:
    """The longest connections between operations, within a block or from the one before, that half of the blocks have.

    Only those over four columns or more, and over a sixth of the block, count; at most `most` are returned, longest
    first.
    """
    least = max(4, panel.n_ops // 6)
    place = {cell.index: cell for cell in panel.cells if not panel.columns[cell.column].weight}
    counts: Counter[tuple[int, int]] = Counter()
    for producer, consumer in edges:
        a, b = place.get(producer), place.get(consumer)
        if a is None or b is None or not 0 <= b.row - a.row <= 1:
            continue
        start = a.column if a.row == b.row else -1
        if b.column - start >= least:
            counts[start, b.column] += 1
    rows = len(panel.rows)
    common = [Skip(start, end, n / rows) for (start, end), n in counts.items() if 2 * n >= rows]
    return sorted(common, key=lambda s: (s.start - s.end, s.start))[:most]
