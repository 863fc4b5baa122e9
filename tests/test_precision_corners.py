"""Where the precision engine's cases meet: infinities beside numbers, errors of nothing, limits met exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cohomcli.errors import UsageError
from cohomcli.precision.closedforms import Arguments, find_form
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.output_norm import budget, from_scores
from cohomcli.precision.rounding import choose_scale
from cohomcli.precision.unseen import unseen_bound


@given(
    st.lists(st.floats(-(2.0**-10), 2.0**-10, width=32), min_size=1, max_size=6),
    st.sampled_from(["int8", "e4m3", "e5m2"]),
)
def test_only_finite_numbers_choose_the_scale(values: list[float], fmt: str) -> None:
    finite = torch.tensor(values)
    for other in ([math.inf], [-math.inf], [math.nan], [math.inf, -math.inf, math.nan]):
        assert choose_scale(torch.cat([finite, torch.tensor(other)]), fmt) == choose_scale(finite, fmt)
    assert choose_scale(torch.tensor([math.inf, math.nan]), fmt) == 1.0


@pytest.mark.parametrize("norm", ["rel-l2", "max-abs", "kl"])
def test_an_error_of_nothing_counts_as_a_thousandth_of_the_largest(norm: str) -> None:
    assert unseen_bound([2.0, 0.0], norm) == unseen_bound([2.0, 2e-3], norm) == unseen_bound([2.0, 1e-5], norm)
    assert unseen_bound([2.0, 0.0], norm) != unseen_bound([2.0, 2e-2], norm)
    assert unseen_bound([0.0, 0.0], norm) == 0.0
    assert unseen_bound([1.0, math.inf], norm) == math.inf
    with pytest.raises(ValueError, match="none of them negative"):
        unseen_bound([1.0, -1e-9], norm)
    with pytest.raises(ValueError, match="at least one"):
        unseen_bound([], norm)


# --- closed forms of curvature, by automatic differentiation on a grid ------------------------------------------------

WIDE, POSITIVE = torch.linspace(-8.0, 8.0, 64001, dtype=torch.float64), torch.linspace(0.3, 2.0, 4001).double()
ELEMENTWISE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = {
    "gelu": (F.gelu, WIDE), "silu": (F.silu, WIDE), "tanh": (torch.tanh, WIDE), "sigmoid": (torch.sigmoid, WIDE),
    "softplus": (F.softplus, WIDE), "erf": (torch.erf, WIDE), "sin": (torch.sin, WIDE), "cos": (torch.cos, WIDE),
    "exp": (torch.exp, WIDE), "square": (torch.square, WIDE), "relu": (F.relu, WIDE), "log": (torch.log, POSITIVE),
    "sqrt": (torch.sqrt, POSITIVE), "rsqrt": (torch.rsqrt, POSITIVE), "reciprocal": (torch.reciprocal, POSITIVE),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_closed_form_is_the_largest_second_derivative(name: str) -> None:
    function, points = ELEMENTWISE[name]
    x = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    curvature = torch.autograd.grad(slope.sum(), x)[0].abs().max() if slope.requires_grad else torch.tensor(0.0)
    form = find_form(f"aten.{name}.default")
    assert form is not None
    assert form.value(Arguments((points,), (True,))) == pytest.approx(float(curvature), rel=1e-5)


@pytest.mark.parametrize("exponent", [3.0, 0.5, -1.0, 1.0])
def test_the_closed_form_of_a_power(exponent: float) -> None:
    x = POSITIVE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(x.pow(exponent).sum(), x, create_graph=True)
    curvature = torch.autograd.grad(slope.sum(), x)[0].abs().max()
    form = find_form("aten.pow.Tensor_Scalar")
    assert form is not None
    assert form.value(Arguments((POSITIVE, exponent), (True, False))) == pytest.approx(float(curvature), rel=1e-9)
    assert form.value(Arguments((POSITIVE, POSITIVE), (True, True))) is None


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("gamma", [1.0, -3.0])
def test_the_closed_form_of_a_norm_is_attained(op: str, gamma: float) -> None:
    """Along h at the angle c^2 = 1/3 to x (less its mean), and nowhere exceeded in random directions."""
    n, generator = 6, torch.Generator().manual_seed(0)
    x, side, *others = torch.randn(12, n, generator=generator, dtype=torch.float64)
    if op == "layer_norm":
        x, side, others = x - x.mean(), side - side.mean(), [h - h.mean() for h in others]
    weight = torch.full((n,), gamma, dtype=torch.float64)
    if op == "rms_norm":
        given, function = (x, [n], weight, 0.0), lambda v: F.rms_norm(v, [n], weight, 0.0)
    else:
        given, function = (x, [n], weight, None, 0.0), lambda v: F.layer_norm(v, [n], weight, None, 0.0)
    along = x / x.norm()
    across = side - (side @ along) * along
    steepest = math.sqrt(1 / 3) * along + math.sqrt(2 / 3) * across / across.norm()

    def second(h: torch.Tensor) -> float:
        step = 1e-4 * h / h.norm()
        return float((function(x + step) - 2 * function(x) + function(x - step)).norm() / 1e-8)

    form = find_form(f"aten.{op}.default")
    assert form is not None
    bound = form.value(Arguments(given, (True,)))
    assert bound is not None
    assert second(steepest) == pytest.approx(bound, rel=1e-4)
    assert all(second(h) <= bound * (1 + 1e-4) for h in others)


@pytest.mark.parametrize("name", ["_native_batch_norm_legit_no_training", "batch_norm", "add", "conv2d", "avg_pool2d"])
def test_affine_ops_have_no_curvature(name: str) -> None:
    form = find_form(f"aten.{name}.default")
    assert form is not None
    assert form.value(Arguments((WIDE, WIDE), (True, False))) == 0.0


@pytest.mark.parametrize("shape", ["", "1x0x3", "0", "2x-1", (), (3, 0), (2, -1)])
def test_a_shape_without_a_number_in_it_is_refused(shape: str | tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="1x3x224x224"):
        shape_inputs(shape)
    assert shape_inputs("2x1", n=3)[2].args[0].shape == (2, 1)


@pytest.mark.parametrize("norm", ["rel-l2", "max-abs", "kl"])
@pytest.mark.parametrize("epsilon", [1e-4, 0.3, 2.0])
def test_a_budget_of_scores_is_the_error_it_stands_for(norm: str, epsilon: float) -> None:
    """Scores add up as squares of relative and absolute errors, and as the divergence itself."""
    assert from_scores(norm, budget(norm, epsilon)) == pytest.approx(epsilon, rel=1e-12)
