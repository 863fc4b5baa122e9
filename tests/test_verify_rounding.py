"""Exact rounding in rationals against every number of the small formats, and against the emulator."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cohomcli.precision.rounding import round_to
from cohomcli.verify.rounding import above, below, distance, nearest_even, number, sqrt_down, storage_format

FORMATS = ("fp32", "bf16", "fp16", "e4m3", "e5m2")


def exact(units: int | None) -> Fraction | None:
    return None if units is None else number(units)


def numbers(fmt: str) -> np.ndarray:
    """Every finite number of an 8- or 16-bit format."""
    dtype = storage_format(fmt).torch_dtype
    bits = torch.arange(256, dtype=torch.uint8) if dtype.itemsize == 1 else torch.arange(65536).to(torch.uint16)
    values = bits.view(dtype).double().numpy()
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "e4m3", "e5m2"])
def test_neighbours_and_distance_against_the_whole_format(fmt: str) -> None:
    every, target = numbers(fmt), storage_format(fmt)
    rng = np.random.default_rng(0)
    points = [*rng.choice(every, 100), *(rng.standard_normal(200) * 2.0 ** rng.integers(-24, 16, 200)), 1e300, -1e300]
    for x in map(float, points):
        lower, upper = every[every <= x], every[every >= x]
        assert exact(below(x, target)) == (Fraction(float(lower[-1])) if len(lower) else None)
        assert exact(above(x, target)) == (Fraction(float(upper[0])) if len(upper) else None)
        assert number(distance(x, x, target)) == min(
            abs(Fraction(float(y)) - Fraction(x)) for y in (*lower[-1:], *upper[:1])
        )


def test_an_interval_that_holds_a_number_has_distance_zero() -> None:
    fp16 = storage_format("fp16")
    assert number(distance(0.9, 1.1, fp16)) == 0
    assert number(distance(1.0001, 1.0002, fp16)) == Fraction(1.0001) - 1
    assert number(distance(70000.0, 80000.0, fp16)) == 70000 - 65504


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.sampled_from(FORMATS))
def test_one_rounding_is_the_emulators(x: float, fmt: str) -> None:
    stored = float(round_to(torch.tensor([x], dtype=torch.float64), fmt)[0])
    found = exact(nearest_even(x, storage_format(fmt)))
    assert (found is None and not np.isfinite(stored)) or found == Fraction(stored)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(FORMATS))
def test_one_rounding_of_doubles_too(x: float, fmt: str) -> None:
    stored = float(round_to(torch.tensor([x], dtype=torch.float64), fmt)[0])
    found = exact(nearest_even(x, storage_format(fmt)))
    assert (found is None and not np.isfinite(stored)) or found == Fraction(stored)


@given(st.fractions(min_value=0, max_value=10**9))
def test_square_roots_are_rounded_down(x: Fraction) -> None:
    root = Fraction(sqrt_down(x))
    assert root * root <= x
    assert x == 0 or Fraction(np.nextafter(float(root), np.inf)) ** 2 > x
