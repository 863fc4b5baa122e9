"""Exact rounding to a storage format, and how far numbers are from it: rational arithmetic on doubles."""

from __future__ import annotations

import math
from fractions import Fraction

from cohomcli.precision.formats import Format, get_format

STORABLE = ("fp64", "fp32", "bf16", "fp16", "e4m3", "e5m2")  # unscaled; int8 has scales of its own


def storage_format(name: str) -> Format:
    """A float format by name.

    Raises:
        ValueError: it is none of ours, or not a float format.
    """
    if name not in STORABLE:
        raise ValueError(f"no float format {name!r}")
    return get_format(name)


def spacing(x: float, target: Format) -> Fraction:
    """The distance of neighbouring numbers of the format in the binade of x, the subnormal spacing below it."""
    exponent = max(math.frexp(x)[1] - 1, target.emin) if x else target.emin
    return Fraction(2) ** (exponent - target.significand_bits + 1)


def below(x: float, target: Format) -> Fraction | None:
    """The largest finite number of the format that is at most x; None when there is none."""
    if x < -target.max:
        return None
    q = spacing(x, target)
    return min(math.floor(Fraction(x) / q) * q, Fraction(target.max))


def above(x: float, target: Format) -> Fraction | None:
    """The smallest finite number of the format that is at least x; None when there is none."""
    found = below(-x, target)
    return None if found is None else -found


def distance(low: float, high: float, target: Format) -> Fraction:
    """A lower bound of |x - y| for any x in [low, high] and any finite number y of the format; exact for low = high."""
    inside = below(high, target)
    if inside is not None and inside >= Fraction(low):
        return Fraction(0)
    down, up = below(low, target), above(high, target)
    gaps = [*([] if down is None else [Fraction(low) - down]), *([] if up is None else [up - Fraction(high)])]
    return min(gaps)


def nearest_even(x: float, target: Format) -> Fraction | None:
    """x after one rounding to nearest, ties to even; None for what overflows."""
    q = spacing(x, target)
    units = Fraction(x) / q
    whole = math.floor(units)
    rest = units - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2):
        whole += 1
    rounded = whole * q
    return rounded if abs(rounded) <= Fraction(target.max) else None


def sqrt_down(x: Fraction) -> float:
    """The largest double that is at most sqrt(x), for x >= 0 (0.0 below the normal doubles)."""
    if x <= 0:
        return 0.0
    # 2 k extra bits make the integer square root keep at least 53 significant ones.
    k = max(0, 64 + (x.denominator.bit_length() - x.numerator.bit_length()) // 2)
    return fraction_down(Fraction(math.isqrt((x.numerator << (2 * k)) // x.denominator), 1 << k))


def fraction_down(x: Fraction) -> float:
    """The largest double that is at most x >= 0."""
    nearest = float(x)  # correctly rounded
    return nearest if math.isfinite(nearest) and Fraction(nearest) <= x else math.nextafter(nearest, 0.0)
