"""Tensors of the ball interpreter: exact numbers as they are, enclosures as arrays of `flint.arb` objects.

A value is a numpy array of one of four kinds: bool and int64 (exact), float32 or float64 (exact doubles: weights,
inputs and constants stand for themselves), and object (one ball, or one truncated power series of balls, per entry).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cohomcli.errors import AnalysisIncomplete

Array = Any  # a numpy array; numpy's type stubs know no arithmetic on arrays of balls


class Undecided(Exception):
    """A comparison that the enclosures at hand do not decide; more precision may."""


class Unsupported(AnalysisIncomplete):
    """The graph has an operation, or a use of one, whose mathematics is not in the table."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no rigorous enclosure: {what}", "only the operations of docs/proofs.md can be enclosed")


def flint() -> Any:
    """The python-flint module.

    Raises:
        AnalysisIncomplete: it is not installed.
    """
    try:
        import flint as module
    except ImportError as error:
        raise AnalysisIncomplete("proofs need python-flint", "install cohom[prove]") from error
    return module


def is_real(x: Any) -> bool:
    """Whether `x` is a real tensor (exact or ball) or a Python float; integers and booleans are not."""
    return x.dtype.kind in "fO" if isinstance(x, np.ndarray) else isinstance(x, float)


def balls(x: Any) -> Array:
    """`x` as an object array of exact balls; an object array is returned as it is."""
    x = np.asarray(x)
    if x.dtype == object:
        return x
    arb = flint().arb
    numbers: list[Any] = (x.astype(np.float64) if x.dtype.kind == "f" else x.astype(np.int64)).ravel().tolist()
    out = np.empty(len(numbers), dtype=object)
    out[:] = [arb(value) for value in numbers]
    return out.reshape(x.shape)


def apply(function: Callable[..., Any], *operands: Any) -> Array:
    """`function` of balls, entry by entry with broadcasting; always an object array."""
    result = np.frompyfunc(function, len(operands), 1)(*(balls(x) for x in operands))
    if isinstance(result, np.ndarray):
        return result
    out = np.empty((), dtype=object)
    out[()] = result
    return out


def boxed(x: Any) -> Array:
    """A numpy reduction's result as an array, also where numpy hands back the bare object."""
    if isinstance(x, np.ndarray):
        return x
    out = np.empty((), dtype=object)
    out[()] = x
    return out


def exact(x: Array) -> Array:
    """A value that must be known exactly (an index, a mask) as a plain numpy array.

    Raises:
        Unsupported: it holds balls.
    """
    if x.dtype == object:
        raise Unsupported("an index or mask that depends on computed real numbers")
    return x


def compare(relation: str, a: Any, b: Any) -> Array:
    """Bool array of `a relation b` with relation one of lt, le, gt, ge, eq, ne.

    Raises:
        Undecided: some pair of balls overlaps.
    """
    if not (is_object(a) or is_object(b)):
        table = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}
        result: Array = np.not_equal(a, b) if relation == "ne" else table[relation](a, b)
        return np.asarray(result)
    return apply(lambda x, y: _decide(relation, x, y), a, b).astype(bool)


def is_object(x: Any) -> bool:
    """Whether `x` is an array of balls."""
    return isinstance(x, np.ndarray) and x.dtype == object


def _decide(relation: str, x: Any, y: Any) -> bool:
    if x < y:
        return relation in ("lt", "le", "ne")
    if x > y:
        return relation in ("gt", "ge", "ne")
    if x.is_exact() and y.is_exact() and x == y:
        return relation in ("le", "ge", "eq")
    if (relation == "le" and x <= y) or (relation == "ge" and x >= y):
        return True
    raise Undecided(f"{x} {relation} {y}")


def float_down(x: Any) -> float:
    """The largest double that is at most the ball's lower end (-inf below the range of doubles, nan for no number)."""
    return _directed(x.lower(), -1)


def float_up(x: Any) -> float:
    """The smallest double that is at least the ball's upper end (inf beyond the range of doubles)."""
    return _directed(x.upper(), 1)


def _directed(end: Any, sign: int) -> float:
    """An exact ball (zero radius) as a double, rounded towards `sign` infinity."""
    if not end.is_finite():
        return math.nan if end.is_nan() else sign * math.inf
    mantissa, exponent = (int(part) for part in end.mid().man_exp())
    if mantissa == 0:
        return 0.0
    shift = max(abs(mantissa).bit_length() - 53, -1074 - exponent, 0)
    scaled = -((-mantissa) >> shift) if sign > 0 else mantissa >> shift
    try:
        return math.ldexp(float(scaled), exponent + shift)
    except OverflowError:
        beyond = math.inf if scaled > 0 else -math.inf
        return beyond if (beyond > 0) == (sign > 0) else math.copysign(np.finfo(np.float64).max, beyond)


def alike_pair(a: Any, b: Any) -> tuple[Array, Array]:
    """Both as balls when one of them is, else both as exact arrays of a common kind."""
    if is_object(a) or is_object(b):
        return balls(a), balls(b)
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype.kind in "f" or y.dtype.kind in "f":
        return x.astype(np.float64), y.astype(np.float64)
    return x, y
