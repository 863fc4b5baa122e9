"""scikit-learn's handwritten digits as short sequences: the class, then 64 grey levels row by row."""

from __future__ import annotations

import random
from dataclasses import dataclass

from cohomcli.errors import UsageError

CLASSES, CELLS, DARKEST = 10, 64, 16


@dataclass(frozen=True)
class DigitOptions:
    """`levels` of grey, and the share of the 1,797 images that is trained on; the rest is judged on."""

    levels: int = 4
    train_share: float = 0.7

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= DARKEST + 1 or not 0 < self.train_share < 1:
            raise UsageError("ablation.options: digits needs 2 to 17 levels and 0 < train_share < 1")


@dataclass(frozen=True)
class DigitRows:
    """Rows of 65 ids in three parts. Ids 0 to levels - 1 are grey levels, then ten classes, then the mask."""

    about: str
    levels: int
    train: tuple[tuple[int, ...], ...]
    validation: tuple[tuple[int, ...], ...]
    test: tuple[tuple[int, ...], ...]

    @property
    def mask_id(self) -> int:
        """The id of a hidden cell."""
        return self.levels + CLASSES

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self.mask_id + 1


def digit_rows(options: DigitOptions, seed: int) -> DigitRows:
    """All images, in an order drawn with `seed`; validation and test are equally large."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = (data.data * options.levels / (DARKEST + 1)).astype(int)
    rows = [(options.levels + int(c), *map(int, cells)) for c, cells in zip(data.target, grey, strict=True)]
    random.Random(seed).shuffle(rows)
    size = round(options.train_share * len(rows))
    middle = size + (len(rows) - size) // 2
    about = f"8 x 8 digits in {options.levels} grey levels; hidden cells are completed from the others and the class"
    return DigitRows(about, options.levels, tuple(rows[:size]), tuple(rows[size:middle]), tuple(rows[middle:]))
