"""Names and paths from outside made safe: for file names, and for one line on a terminal."""

from __future__ import annotations

import re


def safe_name(text: str, fallback: str = "unnamed", limit: int = 60) -> str:
    """`text` as a plain file name: ASCII letters, digits, `.`, `_`, `-`; never empty, never hidden, never an option.

    >>> safe_name("org/some data[red]")
    'org-some-data-red'
    """
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return kept.strip("-._")[:limit].rstrip("-._") or fallback


def printable(text: object) -> str:
    """`text` on one line, control characters and undecodable bytes escaped, so that no name drives a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
