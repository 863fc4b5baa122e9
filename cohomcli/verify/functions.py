"""Real functions of one ball, or of a truncated power series of balls, each with its formula.

A series x(t) = x_0 + x_1 t + x_2 t^2 stands for the value and derivatives along a segment (`verify.segment`). Where
flint has no series version, the function is put together from exp, log, erf and arithmetic, which it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cohomcli.verify.arrays import Undecided, flint

Ball = Any
Function = Callable[[Ball], Ball]


def is_series(x: Ball) -> bool:
    """Whether `x` is a power series and no single ball."""
    return not isinstance(x, flint().arb)


def constant_term(x: Ball) -> Ball:
    """The value: the ball itself, or a series' constant term."""
    return x[0] if is_series(x) else x


def half() -> Ball:
    """1/2, exactly."""
    return flint().arb((1, -1))


def tanh(x: Ball) -> Ball:
    """tanh(x) = 1 - 2 / (exp(2x) + 1)."""
    return 1 - 2 / ((2 * x).exp() + 1) if is_series(x) else x.tanh()


def sigmoid(x: Ball) -> Ball:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + (-x).exp())


def silu(x: Ball) -> Ball:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def gelu(x: Ball) -> Ball:
    """x Phi(x) = x erfc(-x / sqrt 2) / 2, without cancellation on the left."""
    scaled = x * half().sqrt()
    tail = (1 + scaled.erf()) if is_series(x) else (-scaled).erfc()
    return x * tail * half()


def gelu_tanh(x: Ball) -> Ball:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, with the double nearest 0.044715."""
    arb = flint().arb
    inner = (2 / arb.pi()).sqrt() * (x + arb(0.044715) * x * x * x)
    return x * (1 + tanh(inner)) * half()


def softplus(x: Ball) -> Ball:
    """log(1 + exp(x))."""
    return (1 + x.exp()).log()


def mish(x: Ball) -> Ball:
    """x tanh(softplus(x))."""
    return x * tanh(softplus(x))


def reciprocal(x: Ball) -> Ball:
    """1 / x."""
    return 1 / x


def rsqrt(x: Ball) -> Ball:
    """1 / sqrt(x)."""
    return x.rsqrt()


def log1p(x: Ball) -> Ball:
    """log(1 + x)."""
    return (1 + x).log()


def expm1(x: Ball) -> Ball:
    """exp(x) - 1."""
    return x.exp() - 1


def log2(x: Ball) -> Ball:
    """log(x) / log 2."""
    return x.log() / flint().arb.log(flint().arb(2))


def log10(x: Ball) -> Ball:
    """log(x) / log 10."""
    return x.log() / flint().arb.log(flint().arb(10))


def exp2(x: Ball) -> Ball:
    """2^x = exp(x log 2)."""
    return (x * flint().arb(2).log()).exp()


def absolute(x: Ball) -> Ball:
    """|x|; smooth only away from zero."""
    return piecewise(x, 0, lambda y: -y, lambda y: y)


def relu(x: Ball) -> Ball:
    """max(x, 0)."""
    return piecewise(x, 0, lambda y: y * 0, lambda y: y)


def sign(x: Ball) -> Ball:
    """-1, 0 or 1; refused where the sign is not decided."""
    value, arb = constant_term(x), flint().arb
    if value > 0 or value < 0:
        return arb(1) if value > 0 else arb(-1)
    if value.is_zero():
        return arb(0)
    raise Undecided(f"the sign of {value}")


def floor(x: Ball) -> Ball:
    """The largest integer at most x; refused where it is not decided."""
    return _step(x, lambda y: y.floor())


def ceil(x: Ball) -> Ball:
    """The smallest integer at least x; refused where it is not decided."""
    return _step(x, lambda y: y.ceil())


def trunc(x: Ball) -> Ball:
    """x without its fraction; refused where it is not decided."""
    return _step(x, lambda y: y.floor() if y > 0 else y.ceil())


def round_even(x: Ball) -> Ball:
    """The nearest integer, ties to even as in torch; refused where it is not decided."""
    value, arb = constant_term(x), flint().arb
    if value.is_exact() and (value * 2).is_integer() and not value.is_integer():
        low = value.floor()
        return low if (low / 2).is_integer() else low + 1
    return _step(value + arb((1, -1)), lambda y: y.floor())


def _step(x: Ball, function: Function) -> Ball:
    result = function(constant_term(x))
    if not result.is_exact():
        raise Undecided(f"a step function at {constant_term(x)}")
    return result


def piecewise(x: Ball, at: Any, below: Function, above: Function) -> Ball:
    """`below` for x <= at, `above` for x >= at, which agree at `at`.

    A ball that holds `at` gets the union of both pieces; a series is refused there, because it may have no derivative.
    """
    value, place = constant_term(x), flint().arb(at)
    if value >= place:
        return above(x)
    if value <= place:
        return below(x)
    if is_series(x):
        raise Undecided(f"a kink at {place} in {value}")
    return below(value.min(place)).union(above(value.max(place)))
