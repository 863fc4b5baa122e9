"""Lower bounds on output errors from enclosures: how far given, or all storable, outputs are from the true ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.verify.arrays import Array, apply, balls, flint, float_down, float_up
from cohomcli.verify.ops_norm import log_softmax
from cohomcli.verify.rounding import fraction_down, number, sqrt_down, units

NORMS = ("rel-l2", "max-abs", "kl")
Ends = list[tuple[float, float]]


@dataclass(frozen=True)
class Truth:
    """One output: enclosures of the entries that count, as balls and as the nearest doubles outwards."""

    name: str
    balls: Array
    counted: NDArray[np.bool_]

    @cached_property
    def ends(self) -> Ends:
        """Lower and upper ends of the entries that count, in order; canonical once the balls are narrow."""
        return [(float_down(b), float_up(b)) for b in self.balls[self.counted].tolist()]


def truths(values: Mapping[str, Array], counted: Mapping[str, NDArray[np.bool_]]) -> list[Truth]:
    """One `Truth` per output; without a mask every entry counts."""
    return [Truth(name, balls(v), counted.get(name, np.ones(v.shape, dtype=bool))) for name, v in values.items()]


def gaps_to(outputs: NDArray[Any], truth: Truth) -> list[int]:
    """Lower bounds of |y - f|, in units, for the counted entries of `outputs`; an output that is not finite has none.

    Raises:
        ValueError: an entry is not finite.
    """
    return [
        apart((y, y), ends) for y, ends in zip(map(_finite, outputs[truth.counted].tolist()), truth.ends, strict=True)
    ]


def _finite(y: float) -> float:
    if not math.isfinite(y):
        raise ValueError("an output that is not finite")
    return float(y)


def apart(one: tuple[float, float], other: tuple[float, float]) -> int:
    """A lower bound of |x - y| in units, for x and y in two intervals."""
    return max(units(one[0]) - units(other[1]), units(other[0]) - units(one[1]), 0)


def square_sum(ends: Ends) -> int:
    """An upper bound of the sum of x**2 over numbers in these intervals, in squared units."""
    return sum(max(abs(units(a)), abs(units(b))) ** 2 for a, b in ends)


def relative_l2(truth: Truth, gaps: Sequence[int]) -> Fraction:
    """A lower bound of ||y - f||^2 / ||f||^2 from lower bounds of |y - f|."""
    size = square_sum(truth.ends)
    return Fraction(sum(g * g for g in gaps), size) if size else Fraction(0)


def error_below(norm: str, found: Sequence[Truth], gaps: Callable[[Truth], list[int]]) -> float:
    """A lower bound of the error in `rel-l2` (outputs add in squares) or `max-abs`, rounded down to a double.

    Raises:
        ValueError: another norm.
    """
    if norm == "max-abs":
        return fraction_down(number(max((g for truth in found for g in gaps(truth)), default=0)))
    if norm == "rel-l2":
        return sqrt_down(sum((relative_l2(truth, gaps(truth)) for truth in found), Fraction(0)))
    raise ValueError(f"no lower bound in the norm {norm!r}")


def divergence_below(truth: Truth, outputs: NDArray[Any], bits: int) -> float:
    """A lower bound of the mean over counted rows of KL(softmax(f) || softmax(y)) in nats, rounded down."""
    arb = flint().arb
    with flint().ctx.workprec(bits):
        log_p, log_q = log_softmax(truth.balls, -1), log_softmax(balls(outputs), -1)
        rows = (apply(lambda b: b.exp(), log_p) * (log_p - log_q)).sum(axis=-1)
        chosen = rows[truth.counted.any(axis=-1)].tolist()
        return max(float_down(sum(chosen, arb(0)) / arb(max(len(chosen), 1))), 0.0)
