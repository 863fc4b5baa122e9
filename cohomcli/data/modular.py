"""Addition modulo p from a part of its table, on which networks were seen to generalise late (Power et al. 2022,
arXiv:2201.02177).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cohomcli.data.answers import AnsweredSplits, in_halves
from cohomcli.errors import UsageError


@dataclass(frozen=True)
class ModularOptions:
    """All sums modulo `modulus`, of which `train_share` are trained on and the rest judged on."""

    modulus: int = 31
    train_share: float = 0.5

    def __post_init__(self) -> None:
        if self.modulus < 2 or not 0 < self.train_share < 1:
            raise UsageError("ablation.options: modular needs modulus >= 2 and 0 < train_share < 1")


def modular(options: ModularOptions, seed: int) -> AnsweredSplits:
    """The table a + b = c modulo p in three parts, drawn with `seed`; validation and test are equally large.

    Raises:
        UsageError: nothing is left for a part.
    """
    p = options.modulus
    table = [((f"{a}", "+", f"{b}"), (f"{(a + b) % p}",)) for a in range(p) for b in range(p)]
    random.Random(seed).shuffle(table)
    size = max(1, round(options.train_share * len(table)))
    validation, test = in_halves(table[size:], seed + 1)
    about = f"{size} of the {p * p} sums modulo {p} are trained on, the others judged on"
    return AnsweredSplits("modular", about, tuple(table[:size]), validation, test)
