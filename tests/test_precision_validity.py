"""The antithetic test against algebra by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cohomcli.precision.capture import capture
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.validity import curvature_ratios


class Square(nn.Module):
    """y = (x + 1/3)^2: two stores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1.0 / 3.0) ** 2


class Root(nn.Module):
    """sqrt(1 / 3 - 0.3333): a perturbation of 1/3 makes it the root of a negative number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((0.0 * x + 1.0 / 3.0) - 0.3333).sqrt()


def rounding(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.float().to(dtype).double() - x.float().double()


@pytest.mark.parametrize(("fmt", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_square_by_hand(fmt: str, dtype: torch.dtype) -> None:
    """h + d and y + e: f(+-) - f(0) = +-(2 h d + e) + d^2, over two inputs together."""
    examples = shape_inputs((50, 7), n=2)
    x = torch.cat([e.args[0] for e in examples])
    h = x + 1.0 / 3.0
    d, e = rounding(h, dtype), rounding(h**2, dtype)
    wanted = float(d.square().norm() / (2 * h.double() * d + e).norm())
    captured = capture(Square().eval(), examples[0])
    found = curvature_ratios(captured, examples, [fmt, "fp32"])
    assert found[fmt] == pytest.approx(wanted, rel=1e-3)
    assert found["fp32"] == 0.0  # a float32 value is not rounded


def test_what_is_not_admissible_stays_exact() -> None:
    """With the sum kept in fp32 only the result is rounded, to which the output is linear."""
    examples = shape_inputs((50, 7))
    captured = capture(Square().eval(), examples[0])
    allowed = admissibility(captured.graph, ranges(captured, examples), ("fp32", "bf16"))
    add = next(v.index for v in captured.graph.vertices if v.target.startswith("aten.add"))
    allowed.allowed[add, 1] = False
    assert curvature_ratios(captured, examples, ["bf16"], allowed)["bf16"] < 1e-10
    assert curvature_ratios(captured, examples, ["bf16"])["bf16"] > 1e-4


def test_linear_maps_have_no_even_part() -> None:
    """But for weights: (W + d)(x + e) has the product d e."""
    torch.manual_seed(0)
    model, examples = nn.Linear(16, 16).eval(), shape_inputs((4, 16))
    captured = capture(model, examples[0])
    assert curvature_ratios(captured, examples, ["bf16"])["bf16"] < 1e-10
    chain = capture(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval(), examples[0])
    assert 1e-6 < curvature_ratios(chain, examples, ["bf16"])["bf16"] < 1e-2


def test_a_perturbed_run_that_fails_is_infinitely_curved() -> None:
    examples = shape_inputs((2, 2))
    captured = capture(Root().eval(), examples[0])
    assert curvature_ratios(captured, examples, ["bf16"])["bf16"] == float("inf")


def test_finer_formats_are_closer_to_first_order() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)).eval()
    examples = shape_inputs((8, 16), n=2)
    found = curvature_ratios(capture(model, examples[0]), examples, ["e4m3", "bf16", "fp16"])
    assert found["fp16"] < found["bf16"] < found["e4m3"] < 1.0
    assert found["e4m3"] / found["fp16"] == pytest.approx(2.0**7, rel=0.7)  # seven bits apart
