"""Where the precision engine's cases meet: infinities beside numbers, errors of nothing, limits met exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from smallproblems import simple
from torch import nn
from torch.nn import functional as F

from cohomcli.errors import UsageError
from cohomcli.precision.autocast import autocast_flow
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.closedforms import Arguments, find_form
from cohomcli.precision.contraction import contract
from cohomcli.precision.execute import Emulator, uniform
from cohomcli.precision.formats import get_format
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.optimizer import _error as _baseline_error
from cohomcli.precision.output_norm import budget, from_scores
from cohomcli.precision.ranges import ranges
from cohomcli.precision.relaxation import Relaxation
from cohomcli.precision.result import Baseline
from cohomcli.precision.rounding import choose_scale
from cohomcli.precision.sensitivity import SensitivityOptions, _trial
from cohomcli.precision.staging import staged_folder
from cohomcli.precision.unseen import unseen_bound
from cohomcli.precision.weights_only import _error


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


# --- several inputs, formats by name, and what a solver may be asked --------------------------------------------------


def _doubled() -> tuple[Captured, list[Example]]:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    examples = [Example((torch.full((2, 4), value),)) for value in (2.0, 8.0, 0.5)]
    return capture(model, examples[0]), examples


def test_ranges_are_those_of_all_inputs() -> None:
    captured, examples = _doubled()
    found = ranges(captured, examples)
    moving = [v.index for v in captured.graph.vertices if v.kind != "weight" and not v.fixed]
    weight = next(v.index for v in captured.graph.vertices if v.kind == "weight")
    assert set(found.max_abs[moving]) == {8.0}
    assert set(found.min_abs[moving]) == {0.5}
    assert found.peaks is not None
    assert found.peaks[:, moving].tolist() == [[value] * len(moving) for value in (2.0, 8.0, 0.5)]
    assert found.max_abs[weight] == 1.0


def test_a_trial_is_in_the_first_format_of_two_bytes() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(16, 8).eval(), Example((torch.randn(4, 16),))
    captured = capture(model, x)
    for formats, narrow in ((("fp32", "fp16"), "fp16"), (("fp32", "bf16", "fp16"), "bf16"), (("fp32", "int8"), "bf16")):
        (found,) = _trial(captured, [x], SensitivityOptions(formats), None)
        (wanted,) = [Emulator(captured)(uniform(captured, narrow), x).outputs]
        assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("target", ["bf16", "int8"])
def test_a_tensor_of_zeros_is_stored_without_error(target: str) -> None:
    assert _error(torch.zeros(3, 4), get_format(target)) == 0.0


def test_autocast_converts_a_weight_once() -> None:
    captured, _ = _doubled()
    assert autocast_flow(captured.graph, "bf16").weights_cached


def test_highs_pays_as_little_as_it_can() -> None:
    # Two formats and a cast between them cost 2.5, one format for both 6.
    contraction = contract(simple(2, cost=np.array([[5.0, 1.0], [1.0, 5.0]]), cast_cost=np.array([0.5])))
    assert Relaxation(contraction, contraction.domains).integer(5.0, 0.0, 100) == [1, 0]


@pytest.mark.parametrize("choice", [(1, 0, 0), (0, 1, 1)])
def test_vertices_of_a_group_have_one_format(choice: tuple[int, ...]) -> None:
    contraction = contract(simple(3, groups=((0, 2),)))
    with pytest.raises(ValueError, match="different formats"):
        contraction.contract(choice)
    assert contraction.expand(contraction.contract((choice[0], choice[1], choice[0]))) == [*choice[:2], choice[0]]


def test_an_error_that_was_not_measured_is_none() -> None:
    assert _baseline_error(None) is None
    assert _baseline_error(Baseline("half", "model.half()", "torch", 0.25, finite=True, bytes=None)) == 0.25


def test_a_folder_is_published_whole_or_not_at_all(tmp_path: Path) -> None:
    """Below folders that are not there yet, into an empty one, never over files, and without a trace of a failure."""
    out = tmp_path / "new" / "deeper" / "out"
    with staged_folder(out) as folder:
        (folder / "file").write_text("whole")
        assert not out.exists()
    assert [one.name for one in out.parent.iterdir()] == ["out"]
    with pytest.raises(UsageError, match="exists"), staged_folder(out):
        raise AssertionError("never entered")
    (tmp_path / "empty").mkdir()
    with staged_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "empty" / "file").read_text() == "whole"
    with pytest.raises(RuntimeError, match="half"), staged_folder(tmp_path / "broken") as folder:
        raise RuntimeError("half")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["empty", "new"]
