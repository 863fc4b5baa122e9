"""How engines report progress: one callback, no output of their own."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as `progress("extract", 12, 200)`: the step's name, units done, units in all."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `step` are finished."""


def silent(step: str, done: int, total: int) -> None:
    """The callback that shows nothing."""
