"""Arithmetic, elementwise functions and reductions of real numbers; of integers where ATen keeps them integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cohomcli.verify import functions as fn
from cohomcli.verify.arrays import Array, Undecided, Unsupported, apply, balls, boxed, exact, flint, is_object, is_real
from cohomcli.verify.ops_shape import cast
from cohomcli.verify.table import operation


def _integers(*operands: Any) -> bool:
    return not any(is_real(x) for x in operands)


def arithmetic(a: Any, b: Any, whole: Callable[[Any, Any], Any], real: Callable[[Any, Any], Any]) -> Array:
    """Integer arithmetic for two integers, ball arithmetic otherwise."""
    if _integers(a, b):
        x, y = (exact(np.asarray(v)) for v in (a, b))
        return np.asarray(whole(x.astype(np.int64), y.astype(np.int64)))
    return boxed(real(balls(a), balls(b)))


@operation("add")
def add(self: Any, other: Any, *, alpha: Any = 1) -> Array:
    """x + alpha y."""
    scaled = other if alpha == 1 else mul(other, alpha)
    return arithmetic(self, scaled, np.add, lambda a, b: a + b)


@operation("sub", "subtract")
def sub(self: Any, other: Any, *, alpha: Any = 1) -> Array:
    """x - alpha y."""
    scaled = other if alpha == 1 else mul(other, alpha)
    return arithmetic(self, scaled, np.subtract, lambda a, b: a - b)


@operation("rsub")
def rsub(self: Any, other: Any, alpha: Any = 1) -> Array:
    """y - alpha x."""
    return sub(other, self, alpha=alpha)


@operation("mul", "multiply")
def mul(self: Any, other: Any) -> Array:
    """x y."""
    return arithmetic(self, other, np.multiply, lambda a, b: a * b)


@operation("div", "true_divide")
def div(self: Any, other: Any, *, rounding_mode: str | None = None) -> Array:
    """x / y, a real number; with a rounding mode the integer below it or towards zero."""
    if rounding_mode is None:
        return boxed(balls(self) / balls(other))
    if rounding_mode == "floor" and _integers(self, other):
        return np.asarray(np.floor_divide(self, other))
    quotient = boxed(balls(self) / balls(other))
    rounded = apply(fn.floor if rounding_mode == "floor" else fn.trunc, quotient)
    return rounded if not _integers(self, other) else apply(float, rounded).astype(np.int64)


@operation("floor_divide")
def floor_divide(self: Any, other: Any) -> Array:
    """floor(x / y)."""
    return div(self, other, rounding_mode="floor")


@operation("remainder")
def remainder(self: Any, other: Any) -> Array:
    """x - y floor(x / y)."""
    return sub(self, mul(other, floor_divide(self, other)))


@operation("addcmul")
def addcmul(self: Array, tensor1: Array, tensor2: Array, *, value: Any = 1) -> Array:
    """x + value y z."""
    return add(self, mul(mul(tensor1, tensor2), value))


@operation("addcdiv")
def addcdiv(self: Array, tensor1: Array, tensor2: Array, *, value: Any = 1) -> Array:
    """x + value y / z."""
    return add(self, mul(div(tensor1, tensor2), value))


@operation("lerp")
def lerp(self: Array, end: Array, weight: Any) -> Array:
    """x + weight (end - x)."""
    return add(self, mul(weight, sub(end, self)))


@operation("pow")
def power(self: Any, exponent: Any) -> Array:
    """x^y: by multiplication for whole constants, exp(y log x) otherwise, for x > 0."""
    scalar = exponent.item() if isinstance(exponent, np.ndarray) and exponent.size == 1 else exponent
    if isinstance(scalar, np.ndarray) or not isinstance(scalar, int | float):
        return apply(lambda x, y: (y * x.log()).exp(), self, exponent)
    if _integers(self, scalar) and scalar >= 0:
        return np.asarray(exact(np.asarray(self)) ** scalar)
    if float(scalar) == int(scalar):
        return apply(lambda x: _whole_power(x, int(scalar)), self)
    if scalar == 0.5:
        return apply(lambda x: x.sqrt(), self)
    if scalar == -0.5:
        return apply(fn.rsqrt, self)
    return apply(lambda x: (x.log() * flint().arb(float(scalar))).exp(), self)


def _whole_power(x: Any, n: int) -> Any:
    if n < 0:
        return 1 / _whole_power(x, -n)
    if n == 0:
        return flint().arb(1)
    if not fn.is_series(x):
        return x**n
    root = _whole_power(x, n // 2) if n > 1 else None
    return x if root is None else (root * root * x if n % 2 else root * root)


_ELEMENTWISE: dict[str, Callable[[Any], Any]] = {
    "neg": lambda x: -x,
    "exp": lambda x: x.exp(),
    "exp2": fn.exp2,
    "expm1": fn.expm1,
    "log": lambda x: x.log(),
    "log1p": fn.log1p,
    "log2": fn.log2,
    "log10": fn.log10,
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": fn.rsqrt,
    "reciprocal": fn.reciprocal,
    "square": lambda x: x * x,
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "tan": lambda x: x.tan(),
    "atan": lambda x: x.atan(),
    "sinh": lambda x: (x.exp() - (-x).exp()) * fn.half(),
    "cosh": lambda x: (x.exp() + (-x).exp()) * fn.half(),
    "tanh": fn.tanh,
    "sigmoid": fn.sigmoid,
    "erf": lambda x: x.erf(),
    "erfc": lambda x: x.erfc(),
    "silu": fn.silu,
    "mish": fn.mish,
    "floor": fn.floor,
    "ceil": fn.ceil,
    "trunc": fn.trunc,
    "round": fn.round_even,
    "log_sigmoid": lambda x: -fn.softplus(-x),
}


def _elementwise(name: str, function: Callable[[Any], Any]) -> None:
    def applied(self: Array) -> Array:
        return np.negative(self) if name == "neg" and self.dtype.kind == "i" else apply(function, self)

    applied.__doc__ = f"{name}, entry by entry."
    operation(name)(applied)


for _name, _function in _ELEMENTWISE.items():
    _elementwise(_name, _function)


@operation("abs")
def absolute(self: Array) -> Array:
    """|x|."""
    return np.abs(self) if self.dtype.kind in "bi" else apply(fn.absolute, self)


@operation("relu")
def relu(self: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(self, 0) if self.dtype.kind == "i" else apply(fn.relu, self)


@operation("sign", "sgn")
def sign(self: Array) -> Array:
    """-1, 0 or 1."""
    return np.sign(self) if self.dtype.kind in "if" else apply(fn.sign, self)


@operation("relu6")
def relu6(self: Array) -> Array:
    """min(max(x, 0), 6)."""
    return clamp(self, 0.0, 6.0)


@operation("gelu")
def gelu(self: Array, *, approximate: str = "none") -> Array:
    """x Phi(x), or its approximation by tanh."""
    return apply(fn.gelu_tanh if approximate == "tanh" else fn.gelu, self)


@operation("elu")
def elu(self: Array, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Array:
    """scale (x for x > 0, alpha (exp(input_scale x) - 1) below)."""
    arb = flint().arb
    a, s, i = (arb(float(v)) for v in (alpha, scale, input_scale))
    return apply(lambda x: fn.piecewise(x, 0, lambda y: s * a * ((i * y).exp() - 1), lambda y: s * y), self)


@operation("leaky_relu")
def leaky_relu(self: Array, negative_slope: Any = 0.01) -> Array:
    """x for x > 0, slope x below."""
    slope = flint().arb(float(negative_slope))
    return apply(lambda x: fn.piecewise(x, 0, lambda y: slope * y, lambda y: y), self)


@operation("softplus")
def softplus(self: Array, beta: Any = 1, threshold: Any = 20) -> Array:
    """log(1 + exp(beta x)) / beta up to beta x = threshold, x beyond: torch's definition has that jump."""
    b, limit = flint().arb(float(beta)), flint().arb(float(threshold))

    def one(x: Any) -> Any:
        value = fn.constant_term(x) * b
        if value > limit:
            return x
        if value <= limit:
            return fn.softplus(b * x) / b
        raise Undecided("softplus at its threshold")

    return apply(one, self)


@operation("hardtanh")
def hardtanh(self: Array, min_val: Any = -1, max_val: Any = 1) -> Array:
    """min(max(x, low), high)."""
    return clamp(self, float(min_val), float(max_val))


@operation("hardsigmoid")
def hardsigmoid(self: Array) -> Array:
    """min(max(x + 3, 0), 6) / 6."""
    return div(clamp(add(self, 3.0), 0.0, 6.0), 6.0)


@operation("hardswish")
def hardswish(self: Array) -> Array:
    """x min(max(x + 3, 0), 6) / 6."""
    return mul(self, hardsigmoid(self))


@operation("clamp", "clip")
def clamp(self: Array, min: Any = None, max: Any = None) -> Array:
    """min(max(x, low), high)."""
    result = self if min is None else maximum(self, min)
    return result if max is None else minimum(result, max)


@operation("clamp_min")
def clamp_min(self: Array, min: Any) -> Array:
    """max(x, low)."""
    return maximum(self, min)


@operation("clamp_max")
def clamp_max(self: Array, max: Any) -> Array:
    """min(x, high)."""
    return minimum(self, max)


def larger(x: Any, y: Any) -> Any:
    """max(x, y) of balls; of series where it is decided."""
    return x.max(y) if not (fn.is_series(x) or fn.is_series(y)) else _pick(x, y, 1)


def smaller(x: Any, y: Any) -> Any:
    """min(x, y) of balls; of series where it is decided."""
    return x.min(y) if not (fn.is_series(x) or fn.is_series(y)) else _pick(x, y, -1)


def _pick(x: Any, y: Any, sign: int) -> Any:
    difference = (fn.constant_term(x) - fn.constant_term(y)) * sign
    if difference >= 0:
        return x
    if difference <= 0:
        return y
    raise Undecided("a maximum of two equal numbers")


@operation("maximum", "max.other")
def maximum(self: Any, other: Any) -> Array:
    """The larger of two."""
    return np.maximum(self, other) if _integers(self, other) else apply(larger, self, other)


@operation("minimum", "min.other")
def minimum(self: Any, other: Any) -> Array:
    """The smaller of two."""
    return np.minimum(self, other) if _integers(self, other) else apply(smaller, self, other)


# --- reductions -------------------------------------------------------------------------------------------------------


def axes(dim: Any, ndim: int) -> tuple[int, ...]:
    """The axes that `dim` (None, an int, or a list; an empty list is all) names."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(ndim))
    wanted = [dim] if isinstance(dim, int) else dim
    return tuple(d % ndim for d in wanted) if ndim else ()


def total(x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    """Sums of balls over axes."""
    return boxed(balls(x).sum(axis=axes(dim, x.ndim), keepdims=keepdim, initial=flint().arb(0)))


@operation("sum")
def sum_(self: Array, dim: Any = None, keepdim: bool = False, *, dtype: str | None = None) -> Array:
    """Sums: exact for integers, balls otherwise."""
    x = cast(self, dtype)
    if x.dtype.kind in "bi":
        return np.asarray(x.astype(np.int64).sum(axis=axes(dim, x.ndim), keepdims=keepdim))
    return total(x, dim, keepdim)


@operation("mean")
def mean(self: Array, dim: Any = None, keepdim: bool = False, *, dtype: str | None = None) -> Array:
    """Sums over counts."""
    count = math.prod(self.shape[d] for d in axes(dim, self.ndim))
    return total(self, dim, keepdim) / flint().arb(count)


@operation("var.correction")
def variance(self: Array, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Array:
    """sum (x - mean)^2 / (n - correction)."""
    where = axes(dim, self.ndim)
    count = math.prod(self.shape[d] for d in where)
    centred = balls(self) - mean(self, where, True)
    return total(centred * centred, where, keepdim) / flint().arb(count - (1 if correction is None else correction))


@operation("amax")
def amax(self: Array, dim: Any = (), keepdim: bool = False) -> Array:
    """The largest entry over axes."""
    if not is_object(self):
        return np.asarray(self.max(axis=axes(dim, self.ndim), keepdims=keepdim))
    result = self
    for axis in sorted(axes(dim, self.ndim), reverse=True):
        reduce: Any = np.frompyfunc(larger, 2, 1).reduce
        result = boxed(reduce(result, axis=axis, keepdims=keepdim))
    return result


@operation("amin")
def amin(self: Array, dim: Any = (), keepdim: bool = False) -> Array:
    """The smallest entry over axes."""
    if not is_object(self):
        return np.asarray(self.min(axis=axes(dim, self.ndim), keepdims=keepdim))
    return apply(lambda x: -x, amax(apply(lambda x: -x, self), dim, keepdim))


@operation("max.default")
def max_(self: Array) -> Array:
    """The largest entry."""
    return amax(self)


@operation("min.default")
def min_(self: Array) -> Array:
    """The smallest entry."""
    return amin(self)


@operation("prod")
def prod(self: Array, dim: int | None = None, keepdim: bool = False, *, dtype: str | None = None) -> Array:
    """Products."""
    if self.dtype.kind in "bi" and dtype is None:
        return np.asarray(self.astype(np.int64).prod(axis=dim, keepdims=keepdim))
    reduce: Any = np.multiply.reduce
    return boxed(reduce(balls(self), axis=dim, keepdims=keepdim))


@operation("linalg_vector_norm", "norm.ScalarOpt_dim")
def vector_norm(
    self: Array, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: str | None = None
) -> Array:
    """sqrt(sum x^2); other norms are refused."""
    if ord not in (2, 2.0, None):
        raise Unsupported(f"the vector norm of order {ord}")
    x = balls(self)
    return apply(lambda s: s.sqrt(), total(x * x, dim, keepdim))
