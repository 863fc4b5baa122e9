"""Exact rounding to a storage format, and how far numbers are from it, in whole units of the smallest double.

Sums of integers in a common unit need no greatest common divisors, which are what takes the time with fractions.
"""

from __future__ import annotations

import math
from fractions import Fraction

from cohomcli.precision.formats import Format, get_format

UNIT = 1074  # the smallest subnormal double is 2**-1074
STORABLE = ("fp64", "fp32", "bf16", "fp16", "e4m3", "e5m2")  # unscaled; int8 has scales of its own


def storage_format(name: str) -> Format:
    """A float format by name.

    Raises:
        ValueError: it is none of ours, or not a float format.
    """
    if name not in STORABLE:
        raise ValueError(f"no float format {name!r}")
    return get_format(name)


def units(x: float) -> int:
    """A finite double in units of 2**-1074, of which every double is a whole number.

    Raises:
        ValueError: x is not a number.
        OverflowError: x is infinite.
    """
    numerator, denominator = x.as_integer_ratio()  # a power of two
    return numerator << (UNIT - denominator.bit_length() + 1)


def number(n: int) -> Fraction:
    """n units as a rational number."""
    return Fraction(n, 1 << UNIT)


def _spacing(x: float, target: Format) -> int:
    """log2 of the distance, in units, of neighbouring numbers of the format in the binade of x."""
    exponent = max(math.frexp(x)[1] - 1, target.emin) if x else target.emin
    return exponent - target.significand_bits + 1 + UNIT


def below(x: float, target: Format) -> int | None:
    """The largest finite number of the format that is at most x, in units; None when there is none."""
    if x < -target.max:
        return None
    bits = _spacing(x, target)
    return min(units(x) >> bits << bits, units(target.max))


def above(x: float, target: Format) -> int | None:
    """The smallest finite number of the format that is at least x, in units; None when there is none."""
    found = below(-x, target)
    return None if found is None else -found


def distance(low: float, high: float, target: Format) -> int:
    """A lower bound of |x - y| in units, for any x in [low, high] and any finite number y of the format; exact for
    low = high.
    """
    inside = below(high, target)
    if inside is not None and inside >= units(low):
        return 0
    down, up = below(low, target), above(high, target)
    gaps = [*([] if down is None else [units(low) - down]), *([] if up is None else [up - units(high)])]
    return min(gaps)


def nearest_even(x: float, target: Format) -> int | None:
    """x after one rounding to nearest, ties to even, in units; None for what overflows."""
    bits = _spacing(x, target)
    exact = units(x)
    whole, half = exact >> bits, 1 << bits >> 1
    rest = exact - (whole << bits)
    if rest > half or (rest == half and half and whole % 2):
        whole += 1
    rounded = whole << bits
    return rounded if abs(rounded) <= units(target.max) else None


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
