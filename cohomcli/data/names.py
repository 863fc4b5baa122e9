"""Names and paths from outside made safe: for file names, and for one line on a terminal."""

from __future__ import annotations

import re

MAX_NAME = 48


def safe_name(text: str) -> str:
    """`text` as a short file name: letters, digits, `.`, `_` and `-`, not starting with a dot or dash.

    >>> safe_name("org/some data[red]")
    'org-some-data-red'
    """
    kept = re.sub(r"[^\w.-]+", "-", text)
    return kept.strip("-.")[:MAX_NAME].rstrip("-.") or "dataset"


def printable(text: object) -> str:
    """`text` on one line, control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
