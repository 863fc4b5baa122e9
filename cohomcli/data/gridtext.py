"""Grids as text: rows of symbols, one character a cell; a blank line ends a grid, a line `label: NAME` may head it.

    label: 3
    0120
    0?10

`?` stands for a cell that is not known. Cells may be parted by spaces. JSON lines hold the same under "grid" (lists of
numbers, -1 or null for unknown, or a list of rows as strings) or "text", and "label".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.data.textfile import read_lines
from cohomcli.errors import InputRefused
from cohomcli.names import printable

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"  # how numbers are written as one character
UNKNOWN = "?"
LABEL = "label:"
LARGEST = 256  # rows or columns: attention to all cells of a larger grid fits no memory
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class TextGrid:
    """One grid: `rows` are strings of equal length, `label` the name of its class or "", `where` its place."""

    rows: tuple[str, ...]
    label: str = ""
    where: str = ""

    @property
    def text(self) -> str:
        """The rows joined by line breaks."""
        return "\n".join(self.rows)

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.rows), len(self.rows[0])


def read_grids(path: Path) -> Iterator[TextGrid]:
    """Yield the grids of a text file, or of JSON lines by the suffix.

    Raises:
        InputRefused: unreadable, rows of unequal length, a grid that is too large, or a line that holds none.
    """
    lines = read_lines(path)
    yield from _from_json(lines, path) if path.suffix.lower() in JSON_LINES else _from_text(lines, path)


def write_grid(rows: Iterable[str], label: str = "") -> str:
    """A grid as `read_grids` reads it, with the blank line after it."""
    head = f"{LABEL} {label}\n" if label else ""
    return head + "".join(f"{row}\n" for row in rows) + "\n"


def _from_text(lines: Iterable[str], path: Path) -> Iterator[TextGrid]:
    label, first = "", 1
    rows: list[str] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line:
            if rows:
                yield _grid(rows, label, f"{printable(path)}, line {first}")
                label, rows = "", []
            continue
        if line.startswith(LABEL):
            label = line.removeprefix(LABEL).strip()
            continue
        first = first if rows else number
        rows.append(_row(line))
    if rows:
        yield _grid(rows, label, f"{printable(path)}, line {first}")


def _row(line: str) -> str:
    cells = line.split()
    return "".join(cells) if all(len(cell) == 1 for cell in cells) else line


def _from_json(lines: Iterable[str], path: Path) -> Iterator[TextGrid]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputRefused(f"{where}: not valid JSON", "one object with grid or text a line") from error
        content = record.get("grid", record.get("text")) if isinstance(record, dict) else record
        rows = content.splitlines() if isinstance(content, str) else content
        if not isinstance(rows, list):
            raise InputRefused(f"{where}: no grid", 'expected {"grid": [[0, 1], [1, 0]], "label": "a"}')
        label = record.get("label") if isinstance(record, dict) else None
        yield _grid([_json_row(row, where) for row in rows], "" if label is None else str(label), where)


def _json_row(row: Any, where: str) -> str:
    if isinstance(row, str):
        return _row(row.strip())
    if not isinstance(row, list):
        raise InputRefused(f"{where}: a row is a {type(row).__name__}", "rows are lists of numbers, or strings")
    return "".join(_symbol(cell, where) for cell in row)


def _symbol(cell: Any, where: str) -> str:
    if cell is None or cell == -1:
        return UNKNOWN
    if isinstance(cell, bool) or not isinstance(cell, int) or not 0 <= cell < len(ALPHABET):
        raise InputRefused(f"{where}: cell {printable(repr(cell)[:40])}", f"cells are 0 to {len(ALPHABET) - 1}, or -1")
    return ALPHABET[cell]


def _grid(rows: list[str], label: str, where: str) -> TextGrid:
    width = len(rows[0]) if rows else 0
    if not width:
        raise InputRefused(f"{where}: a grid without cells")
    for row in rows:
        if len(row) != width:
            raise InputRefused(f"{where}: rows of {width} and {len(row)} cells", "a blank line ends a grid")
        if any(cell.isspace() or not cell.isprintable() for cell in row):
            raise InputRefused(f"{where}: {printable(repr(row[:40]))} is no row of cells", "a cell is one character")
    if max(len(rows), width) > LARGEST:
        raise InputRefused(f"{where}: {len(rows)} x {width} cells", f"at most {LARGEST} rows and columns are read")
    return TextGrid(tuple(rows), printable(label)[:80], where)
