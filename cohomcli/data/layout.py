"""What one text of a plain text file is: a line, a paragraph or the whole file.

`auto` looks at the first 5,000 lines of the file and decides:

1. *WikiText layout* gives lines: at least one heading (` = Title = `, ` = = Section = = `) between blank lines. Each
   line is a paragraph there; the headings are dropped, and counted.
2. *Hard-wrapped prose or verse* gives paragraphs: blank lines part the file into blocks of 1.5 to 40 lines on average,
   and at least 95 % of the lines are at most 120 characters long. A paragraph keeps its inner line breaks.
3. Everything else gives lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

HEAD_LINES = 5_000
WRAP_WIDTH = 120
WRAPPED_SHARE = 0.95
BLOCK_LINES = (1.5, 40.0)
HEADING = re.compile(r"(?P<open>(?:= )+)\S.*?(?P<close>(?: =)+)")


@dataclass(frozen=True)
class Layout:
    """What `auto` decided: the unit, and whether the file has headings of WikiText."""

    unit: Literal["line", "paragraph", "file"]
    headings: bool = False


def is_heading(text: str) -> bool:
    """Whether a stripped line is a WikiText heading: as many `=` before the title as after it, all spaced.

    >>> is_heading("= = Career = ="), is_heading("x = y"), is_heading("= = Career =")
    (True, False, False)
    """
    match = HEADING.fullmatch(text)
    return match is not None and match["open"].count("=") == match["close"].count("=")


def detect(head: Sequence[str]) -> Layout:
    """The layout of a file from its first lines, by the rule stated on top."""
    lines = [line.strip() for line in head]
    if _has_headings(lines):
        return Layout("line", headings=True)
    return Layout("paragraph" if _is_wrapped(lines) else "line")


def _has_headings(lines: Sequence[str]) -> bool:
    padded = ["", *lines, ""]
    return any(
        is_heading(line) and not before and not after
        for before, line, after in zip(padded, padded[1:], padded[2:], strict=False)
    )


def _is_wrapped(lines: Sequence[str]) -> bool:
    blocks = [len(list(block)) for filled, block in groupby(lines, key=bool) if filled]
    if len(blocks) < 2:
        return False
    n_lines = sum(blocks)
    short = sum(0 < len(line) <= WRAP_WIDTH for line in lines)
    low, high = BLOCK_LINES
    return low <= n_lines / len(blocks) <= high and short >= WRAPPED_SHARE * n_lines
