"""What generation gives back: grids as text, with what was given and when each cell was filled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeneratedGrid:
    """`rows` hold one symbol a cell; `filled_at` the pass that filled it, 0 where it was given.

    `label` is the class that was asked for, "" for none; `source` the place of the grid that was completed.
    `confidence` is the mean probability that the filled cells' values had when they were kept.
    """

    rows: tuple[str, ...]
    filled_at: tuple[tuple[int, ...], ...]
    label: str
    confidence: float
    source: str = ""

    @property
    def n_given(self) -> int:
        """Cells that were given."""
        return sum(at == 0 for row in self.filled_at for at in row)

    def after(self, step: int, unknown: str) -> tuple[str, ...]:
        """The rows as they were after pass `step`, `unknown` for cells that were filled later."""
        pairs = zip(self.rows, self.filled_at, strict=True)
        return tuple("".join(c if at <= step else unknown for c, at in zip(*pair, strict=True)) for pair in pairs)


@dataclass(frozen=True)
class GenerationResult:
    """Grids in the order they were asked for, and how they were decoded. `palette` is "grey" or "colours"."""

    grids: tuple[GeneratedGrid, ...]
    symbols: str
    palette: str
    steps: int
    temperature: float
    guidance: float
    noise: float
    seed: int
    seconds: float = 0.0
