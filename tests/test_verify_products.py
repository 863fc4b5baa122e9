"""Sliced products against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

flint = pytest.importorskip("flint")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from cohomcli.verify.arrays import balls, float_down, float_up  # noqa: E402
from cohomcli.verify.products import dense, product  # noqa: E402


def rational(ball: object) -> Fraction:
    """The exact midpoint."""
    mantissa, exponent = (int(part) for part in ball.mid().man_exp())  # type: ignore[attr-defined]
    return Fraction(mantissa) * Fraction(2) ** exponent


def contains(ball: object, value: Fraction) -> bool:
    return abs(rational(ball) - value) <= rational(ball.rad())  # type: ignore[attr-defined]


def exact(x: np.ndarray, w: np.ndarray) -> list[list[Fraction]]:
    def dot(row: list[float], column: list[float]) -> Fraction:
        return sum((Fraction(a) * Fraction(b) for a, b in zip(row, column, strict=True)), Fraction(0))

    return [[dot(row, column) for column in w.T.tolist()] for row in x.tolist()]


reals = st.floats(min_value=-1e30, max_value=1e30, allow_nan=False).map(lambda x: float(np.float32(x)))


@settings(max_examples=60)
@given(st.lists(reals, min_size=12, max_size=12), st.lists(reals, min_size=12, max_size=12), st.sampled_from([64, 400]))
def test_a_product_contains_the_exact_one(left: list[float], right: list[float], bits: int) -> None:
    x, w = np.array(left).reshape(3, 4), np.array(right).reshape(4, 3)
    with flint.ctx.workprec(bits):
        found = product(balls(x), w)
    assert all(
        contains(b, e) for row, want in zip(found, exact(x, w), strict=True) for b, e in zip(row, want, strict=True)
    )


@settings(max_examples=30)
@given(st.lists(reals, min_size=8, max_size=8), st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_radii_cover_every_corner(middle: list[float], radii: list[float]) -> None:
    w = np.array([[1.5, -2.0], [0.25, 3.0], [-1e-20, 1e20], [7.0, -0.125]])
    x = np.empty((2, 4), dtype=object)
    with flint.ctx.workprec(96):
        x[:] = np.array([flint.arb(m, r) for m, r in zip(middle, radii, strict=True)], dtype=object).reshape(2, 4)
        found = product(x, w)
    m, r = np.array(middle).reshape(2, 4), np.array(radii).reshape(2, 4)
    for i in range(2):
        for j in range(2):
            for sign in (1, -1):
                corner = [Fraction(m[i, k]) + sign * (1 if w[k, j] > 0 else -1) * Fraction(r[i, k]) for k in range(4)]
                assert contains(found[i, j], sum(c * Fraction(w[k, j]) for k, c in enumerate(corner)))


def test_a_wide_range_of_exponents_and_random_sizes_stay_tight() -> None:
    rng = np.random.default_rng(0)
    for terms in (1, 7, 129):
        with flint.ctx.workprec(300):
            x = balls(rng.standard_normal((3, terms))) / 3
            w = rng.standard_normal((terms, 5)) * 10.0 ** rng.integers(-20, 20, (terms, 5))
            sliced, plain = product(x, w), dense(x, balls(w))
        for a, b in zip(sliced.ravel(), plain.ravel(), strict=True):
            assert a.overlaps(b)
            # The row's digits reach 2^-316 of its largest entry, so the radius is at most a few dozen times arb's own.
            assert a.rad() <= 64 * b.rad() + abs(b) * flint.arb(2) ** -290


def test_infinities_and_zeros() -> None:
    with flint.ctx.workprec(64):
        zero = product(balls(np.zeros((2, 3))), np.zeros((3, 2)))[0, 0]
        assert zero.contains(flint.arb(0))
        assert zero.rad() < 1e-250
        assert product(balls(np.ones((1, 2))), np.array([[5e-324], [0.0]]))[0, 0].contains(flint.arb(5e-324))
        assert not product(balls(np.array([[np.inf, 1.0]])), np.ones((2, 1)))[0, 0].is_finite()
        assert product(balls(np.ones((1, 0))), np.ones((0, 1)))[0, 0] == 0


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_directed_rounding_of_balls_to_doubles(value: float) -> None:
    with flint.ctx.workprec(200):
        x = flint.arb(value)
        assert float_down(x) == value == float_up(x)
        third = x / 3
    low, high = float_down(third), float_up(third)
    assert Fraction(low) <= Fraction(value) / 3 <= Fraction(high)
    assert high <= np.nextafter(low, np.inf)
