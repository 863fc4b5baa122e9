"""CSV files of full precision whose names no spreadsheet can run as formulas."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

Cell = str | int | float | bool | None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Writes one table; None is an empty cell, text is guarded.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([guard(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)


_SIGNS = "=+-@"
_FORMULA_STARTS = {*_SIGNS, *(chr(ord(sign) + 0xFEE0) for sign in _SIGNS), "\t", "\r", "\n"}


def guard(text: str) -> str:
    """`text` so that no spreadsheet takes it for a formula: a leading =, +, -, @, tab or return gets an apostrophe.

    See OWASP, "CSV Injection". Full-width forms count too, and so does a sign behind spaces.
    """
    return f"'{text}" if text.lstrip(" ")[:1] in _FORMULA_STARTS and text.strip() else text
