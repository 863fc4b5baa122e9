"""Closed forms of the curvature sup_{|h|=1} ||D^2 f(x)[h, h]||_2 of ATen operations, each with its derivation.

Elementwise f: D^2 f[h, h]_i = f''(x_i) h_i^2, so the supremum is max_i |f''(x_i)|, at most sup |f''|.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Arguments:
    """A call's positional arguments, which of them vary, and which vertex each is (None for numbers and lists)."""

    values: tuple[Any, ...]
    moving: tuple[bool, ...]
    roots: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class ClosedForm:
    """`value` is an upper bound at the given arguments, attained unless `formula` says otherwise; None: no bound."""

    formula: str
    reference: str
    value: Callable[[Arguments], float | None]


def find_form(target: str) -> ClosedForm | None:
    """The closed form of an ATen op ("aten.softmax.int"), or None."""
    name = target.removeprefix("aten.").partition(".")[0]
    return next((form for pattern, form in _FORMS.items() if re.fullmatch(pattern, name)), None)


def _constant(value: float) -> Callable[[Arguments], float | None]:
    return lambda _: value


def _bilinear(call: Arguments) -> float | None:
    """0 with one varying factor, 1 with two (2 |h_A| |h_B| <= |h|^2), 2 when both factors are the same."""
    moving = [root for root, moves in zip(call.roots, call.moving, strict=True) if moves]
    if len(moving) < 2:
        return 0.0
    return 1.0 if len(set(moving)) > 1 else 2.0


def _one_factor(call: Arguments) -> float | None:
    """0 where only one factor varies; a convolution with a varying kernel has no simple bound."""
    return 0.0 if sum(call.moving) < 2 else None


def _added_product(call: Arguments) -> float | None:
    """The bilinear bound of b + A B: what is added is linear."""
    return _bilinear(Arguments(call.values[1:], call.moving[1:], call.roots[1:]))


def _division(call: Arguments) -> float | None:
    """0 where the denominator is constant."""
    return None if len(call.moving) > 1 and call.moving[1] else 0.0


def _normalisation(eps_at: int, default_eps: float, centred: bool, gamma_at: int) -> Callable[[Arguments], float]:
    """(2 / sqrt 3) max|gamma| / (sqrt(n) s^2), the largest over rows, s^2 the row's variance (mean square) plus eps.

    With z = x - mean (or x), s^2 = |z|^2 / n + eps and unit h at angle c = cos(z, h): ||D^2[h, h]||^2 s^4 n <=
    1 + 2 c^2 - 3 c^4 <= 4/3 (equality for eps = 0 and c^2 = 1/3).
    """

    def value(call: Arguments) -> float:
        given = call.values
        n = math.prod(given[1])
        eps = given[eps_at] if len(given) > eps_at and given[eps_at] is not None else default_eps
        rows = given[0].double().reshape(-1, n)
        spread = rows.var(dim=1, unbiased=False) if centred else rows.square().mean(dim=1)
        gamma = given[gamma_at] if len(given) > gamma_at else None
        largest = float(gamma.abs().max()) if isinstance(gamma, torch.Tensor) else 1.0
        return 2.0 / math.sqrt(3.0) * largest / (math.sqrt(n) * (float(spread.min()) + eps))

    return value


def _power(call: Arguments) -> float | None:
    """max |p (p - 1) x^(p - 2)| of x^p for a constant exponent p."""
    x, p = call.values[:2]
    if not isinstance(x, torch.Tensor) or not isinstance(p, (int, float)):
        return None
    return float((p * (p - 1.0) * x.double().pow(p - 2.0)).abs().max())


def _falling(power: float, factor: float) -> Callable[[Arguments], float]:
    """factor * min|x|^power: |f''| of a function whose curvature falls with |x|."""

    def value(call: Arguments) -> float:
        smallest = float(call.values[0].double().abs().min())
        return factor * smallest**power if smallest > 0.0 else math.inf

    return value


def _exponential(call: Arguments) -> float:
    return float(call.values[0].double().max().exp())


def _log_softmax(call: Arguments) -> float:
    """sqrt(n) / 2: D^2[h, h]_i = -Var_p h for every i, and Var_p h <= 1/2 for a unit h (half of p at +-1/sqrt 2)."""
    return math.sqrt(call.values[0].shape[call.values[1]]) / 2.0


_CALCULUS = "elementwise: sup |f''|"
_FORMS: dict[str, ClosedForm] = {
    r"embedding|add|sub|rsub|neg|mean|sum|cumsum|cat|stack|index|index_select|gather|where|masked_fill|pad|constant_pad_nd"
    r"|avg_pool\w*|adaptive_avg_pool\w*|repeat|to|_to_copy|dropout": ClosedForm(
        "0: affine", "definition", _constant(0.0)
    ),
    r"(_native_|native_)?batch_norm\w*": ClosedForm("0: affine with frozen statistics", "definition", _constant(0.0)),
    r"relu|leaky_relu|abs|clamp\w*|hardtanh|threshold|max|min|amax|amin|maximum|minimum|max_pool\w*": ClosedForm(
        "0 off the kinks", "piecewise linear", _constant(0.0)
    ),
    r"linear|mul|matmul|bmm|mm": ClosedForm(
        "0 with one varying factor, 1 with two, 2 for a square", "2 |h_A| |h_B| <= |h|^2", _bilinear
    ),
    r"addmm|baddbmm": ClosedForm(
        "0 with one varying factor, 1 with two, 2 for a square", "2 |h_A| |h_B| <= |h|^2", _added_product
    ),
    r"_?conv\w*": ClosedForm("0: affine in the activations", "definition", _one_factor),
    r"div": ClosedForm("0: the denominator is constant", "definition", _division),
    r"pow": ClosedForm("max |p (p - 1) x^(p - 2)|", _CALCULUS, _power),
    r"square": ClosedForm("2", _CALCULUS, _constant(2.0)),
    r"_?softmax": ClosedForm(
        "sqrt(6)/9, over all operands",
        "D^2[h, h]_i = p_i ((h_i - E_p h)^2 - Var_p h), largest for two classes at p = (1 +- 1/sqrt 3) / 2",
        _constant(math.sqrt(6) / 9),
    ),
    r"_?log_softmax": ClosedForm(
        "sqrt(n)/2, over all operands", "D^2[h, h]_i = -Var_p h, and Var_p h <= 1/2", _log_softmax
    ),
    r"(native_)?layer_norm": ClosedForm(
        "2/sqrt(3) max|gamma| / (sqrt(n) (sigma^2 + eps))",
        "maximum of 1 + 2 c^2 - 3 c^4 over the angle to x - mean",
        _normalisation(eps_at=4, default_eps=1e-5, centred=True, gamma_at=2),
    ),
    r"rms_norm": ClosedForm(
        "2/sqrt(3) max|gamma| / (sqrt(n) (mean x^2 + eps))",
        "maximum of 1 + 2 c^2 - 3 c^4 over the angle to x",
        _normalisation(eps_at=3, default_eps=torch.finfo(torch.float32).eps, centred=False, gamma_at=2),
    ),
    r"gelu": ClosedForm(
        "2 / sqrt(2 pi), at 0", _CALCULUS + " = phi(x) |2 - x^2|", _constant(2.0 / math.sqrt(2.0 * math.pi))
    ),
    r"silu": ClosedForm("1/2, at 0", _CALCULUS, _constant(0.5)),
    r"tanh": ClosedForm("4 / (3 sqrt 3)", _CALCULUS, _constant(4.0 / (3.0 * math.sqrt(3.0)))),
    r"sigmoid": ClosedForm("1 / (6 sqrt 3)", _CALCULUS, _constant(1.0 / (6.0 * math.sqrt(3.0)))),
    r"softplus": ClosedForm("1/4, at 0", _CALCULUS, _constant(0.25)),
    r"erf": ClosedForm(
        "2 sqrt(2 / (pi e)), at 1/sqrt 2", _CALCULUS, _constant(2.0 * math.sqrt(2.0 / (math.pi * math.e)))
    ),
    r"exp": ClosedForm("exp(max x)", _CALCULUS, _exponential),
    r"log": ClosedForm("min(x)^(-2)", _CALCULUS, _falling(-2.0, 1.0)),
    r"reciprocal": ClosedForm("2 min|x|^(-3)", _CALCULUS, _falling(-3.0, 2.0)),
    r"rsqrt": ClosedForm("3/4 min(x)^(-5/2)", _CALCULUS, _falling(-2.5, 0.75)),
    r"sqrt": ClosedForm("1/4 min(x)^(-3/2)", _CALCULUS, _falling(-1.5, 0.25)),
    r"sin|cos": ClosedForm("1", _CALCULUS, _constant(1.0)),
}
