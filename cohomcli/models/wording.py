"""Foreign text in our one-line errors: short, and without characters a terminal would act on."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """The first line of an error's own text (with the next where it only announces it), at most 200 characters."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def some(names: Sequence[str], count: int = 3) -> str:
    """The first few of `names`, quoted so that nothing inside them can act."""
    return ", ".join(repr(name) for name in names[:count]) + (", ..." if names[count:] else "")
