"""Curvature and conditioning of single ops against finite differences, brute force and calculus by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured, capture
from cohomcli.precision.closedforms import find_form
from cohomcli.precision.curvature import OpCurvature, curvatures

ELEMENTWISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "erf": torch.erf,
    "exp": torch.exp,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "pow": lambda x: x**3.0,
    "square": torch.square,
}
ATTAINED = ("exp", "log", "reciprocal", "rsqrt", "sqrt", "pow", "square")  # the rest bound all operands at once


class Zoo(nn.Module):
    """One op of each kind, all reading the input x > 0 (4, 6), and some a second one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv, self.batch = nn.Linear(6, 5), nn.Conv1d(4, 3, 3), nn.BatchNorm1d(4)
        self.layer, self.root = nn.LayerNorm(6), nn.RMSNorm(6)
        for norm in (self.layer, self.root):
            nn.init.normal_(norm.weight)
        self.batch.running_mean.normal_()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {name: f(x) for name, f in ELEMENTWISE.items()}
        found |= {"mul": x * y, "twice": x * x, "matmul": x @ y.T, "gram": x @ x.T, "add": x - y, "scaled": x * 3.0}
        found |= {"div": x / 3.0, "ratio": x / y, "row": x * y.mean(dim=1, keepdim=True), "affine": self.linear(x)}
        found |= {"conv": self.conv(x[None]), "batch": self.batch(x[None]), "relu": x.relu()}
        row = x[0]
        found |= {"layer": self.layer(row), "rms": self.root(row), "softmax": row.softmax(-1)}
        return found | {"logs": row.log_softmax(-1)}


def measured(captured: Captured, inputs: Any) -> dict[str, OpCurvature]:
    """By output name."""
    named = {n: captured.layout.root[slot] for n, slot in captured.program.outputs}
    found = {c.vertex: c for c in curvatures(captured, inputs, list(named.values()))}
    return {name: found[v] for name, v in named.items()}


@pytest.fixture(scope="module")
def point() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(4, 6, generator=generator) * 3 + 0.2 for _ in range(2)]


@pytest.fixture(scope="module")
def zoo(point: list[torch.Tensor]) -> tuple[Zoo, dict[str, OpCurvature]]:
    model = Zoo().eval()
    captured = capture(model, point)
    assert not captured.fallback
    return model, measured(captured, point)


def second_derivative(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, t: float = 1e-3) -> torch.Tensor:
    """f'' by fourth-order central differences in float64."""
    x = x.double()
    near, far = f(x + t) + f(x - t), f(x + 2 * t) + f(x - 2 * t)
    return (16 * near - far - 30 * f(x)) / (12 * t * t)


def brute_force(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """The largest |D^2 f[h, h]|, by second differences of f, over 400,000 random directions of a vector x."""
    h = F.normalize(torch.randn(400_000, len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    t, x = 1e-3, x.double()
    return float((f(x + t * h) - 2 * f(x) + f(x - t * h)).norm(dim=1).max()) / t**2


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_ops_have_their_largest_second_derivative(
    name: str, zoo: tuple[Zoo, dict[str, OpCurvature]], point: list[torch.Tensor]
) -> None:
    found = zoo[1][name]
    wanted = float(second_derivative(ELEMENTWISE[name], point[0]).abs().max())
    assert wanted * (1 - 1e-3) <= found.measured <= wanted * (1 + 1e-4)
    assert found.bound is not None
    assert found.bound >= wanted * (1 - 1e-6)
    if name in ATTAINED:
        assert found.bound == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n not in ATTAINED])
def test_bounds_over_all_operands_are_suprema(name: str) -> None:
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    form = find_form(f"aten.{name}.default")
    assert form is not None
    bound = form.value(None)  # type: ignore[arg-type]  # a constant
    assert bound == pytest.approx(float(second_derivative(ELEMENTWISE[name], grid, 1e-2).abs().max()), rel=1e-6)


def test_gelu_with_tanh_bends_most_at_zero_too() -> None:
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    bends = second_derivative(lambda x: F.gelu(x, approximate="tanh"), grid, 1e-2).abs()
    assert float(bends.max()) == pytest.approx(2 / math.sqrt(2 * math.pi), rel=1e-6)
    assert float(grid[bends.argmax()]) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("mul", 1.0), ("twice", 2.0), ("matmul", 1.0), ("gram", 2.0), ("row", 1.0)]
)
def test_products_of_two_have_curvature_one_and_squares_two(
    name: str, value: float, zoo: tuple[Zoo, dict[str, OpCurvature]]
) -> None:
    assert zoo[1][name].bound == value
    assert zoo[1][name].measured <= value * (1 + 1e-9)
    assert zoo[1][name].measured == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("name", ["add", "scaled", "div", "affine", "conv", "batch", "relu"])
def test_affine_ops_have_none(name: str, zoo: tuple[Zoo, dict[str, OpCurvature]]) -> None:
    assert zoo[1][name].bound == 0.0
    assert zoo[1][name].measured == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["layer", "rms", "softmax", "logs"])
def test_rowwise_ops_against_brute_force(
    name: str, zoo: tuple[Zoo, dict[str, OpCurvature]], point: list[torch.Tensor]
) -> None:
    model, found = zoo
    f: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "layer": lambda row: F.layer_norm(row, (6,), model.layer.weight.detach().double()),
        "rms": lambda row: F.rms_norm(row, (6,), model.root.weight.detach().double(), torch.finfo(torch.float32).eps),
        "softmax": lambda row: row.softmax(-1),
        "logs": lambda row: row.log_softmax(-1),
    }
    reached, bound = brute_force(f[name], point[0][0]), found[name].bound
    assert reached * 0.98 <= found[name].measured <= reached * 1.05
    assert bound is not None
    assert bound >= found[name].measured * (1 - 1e-9)


def test_a_ratio_has_no_closed_form(zoo: tuple[Zoo, dict[str, OpCurvature]], point: list[torch.Tensor]) -> None:
    found = zoo[1]["ratio"]
    assert found.bound is None
    assert found.formula == ""

    def largest(x: float, y: float) -> float:  # f'' = [[0, -1/y^2], [-1/y^2, 2x/y^3]]
        return float(np.abs(np.linalg.eigvalsh([[0.0, -1 / y**2], [-1 / y**2, 2 * x / y**3]])).max())

    pairs = zip(point[0].flatten().tolist(), point[1].flatten().tolist(), strict=True)
    assert found.measured == pytest.approx(max(largest(x, y) for x, y in pairs), rel=1e-3)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_softmax_bends_by_at_most_sqrt6_over_9(n: int) -> None:
    """The supremum over logits and directions together, found numerically, whatever the number of classes."""
    generator = torch.Generator().manual_seed(n)
    logits = torch.randn(64, n, generator=generator, dtype=torch.float64, requires_grad=True)
    h = torch.randn(64, n, generator=generator, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits, h], lr=0.1)

    def bends() -> torch.Tensor:
        p, unit = logits.softmax(-1), F.normalize(h)
        centred = unit - (p * unit).sum(-1, keepdim=True)
        variance = (p * centred**2).sum(-1, keepdim=True)
        return (p * (centred**2 - variance)).norm(dim=-1)

    for _ in range(400):
        optimiser.zero_grad()
        (-bends().sum()).backward()
        optimiser.step()
    form = find_form("aten.softmax.int")
    assert form is not None
    bound = form.value(None)  # type: ignore[arg-type]  # a constant
    assert bound == pytest.approx(math.sqrt(6) / 9)
    assert float(bends().max()) == pytest.approx(math.sqrt(6) / 9, rel=1e-3)
    assert float(bends().max()) <= math.sqrt(6) / 9 * (1 + 1e-9)


@pytest.mark.parametrize("name", ["layer_norm", "log_softmax"])
def test_their_bounds_are_attained(name: str) -> None:
    """At the direction of the proof: 1 + 2 c^2 - 3 c^4 = 4/3, and half of the probability at either end."""
    x = torch.tensor([3.0, -1.0, 0.5, 2.0, -2.5, -2.0], dtype=torch.float64)
    if name == "layer_norm":
        x = x - x.mean()
        ortho = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        ortho -= (ortho @ x) / (x @ x) * x
        h = x / x.norm() * math.sqrt(1 / 3) + ortho / ortho.norm() * math.sqrt(2 / 3)

        def f(v: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(v, (6,), eps=0.0)

        bound = 2 / math.sqrt(3) / (math.sqrt(6) * float(x.var(unbiased=False)))
    else:
        x = torch.tensor([40.0, 40.0, 0, 0, 0, 0], dtype=torch.float64)
        h = torch.tensor([1.0, -1.0, 0, 0, 0, 0], dtype=torch.float64) / math.sqrt(2)

        def f(v: torch.Tensor) -> torch.Tensor:
            return v.log_softmax(-1)

        bound = math.sqrt(6) / 2
    t = 1e-3
    assert float((f(x + t * h) - 2 * f(x) + f(x - t * h)).norm()) / t**2 == pytest.approx(bound, rel=1e-4)


# --- conditioning -----------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Ops whose conditioning is known, on vectors long enough for eight probes to average."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(64, 2048)

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"cube": x**3.0, "product": x * y, "difference": x - y, "linear": self.linear(z)}


def test_conditioning_is_what_relative_errors_grow_by() -> None:
    generator = torch.Generator().manual_seed(5)
    x, z = torch.rand(4096, generator=generator) + 0.5, torch.randn(64, generator=generator)
    y = x + 0.01 * torch.randn(4096, generator=generator)
    model = Wide().eval()
    found = measured(capture(model, [x, y, z]), [x, y, z])
    weight, out = model.linear.weight.detach(), model.linear(z).detach()
    assert found["cube"].condition == pytest.approx(3.0, rel=0.05)
    assert found["product"].condition == pytest.approx(math.sqrt(2.0), rel=0.05)
    cancelled = math.sqrt(float(x.square().sum() + y.square().sum())) / float((x - y).norm())
    assert cancelled > 100
    assert found["difference"].condition == pytest.approx(cancelled, rel=0.05)
    assert found["linear"].condition == pytest.approx(float((weight * z).norm() / out.norm()), rel=0.1)
    assert not any(c.note for c in found.values())


# --- what has none ----------------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """A derivative that torch lacks, one that is infinite, a table look-up and a discrete decision."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        picked = self.table(ids) + x.argmax(dim=-1, keepdim=True)
        return {"gamma": torch.igamma(x + 1.0, x), "root": x.sqrt(), "picked": picked * x[..., :3]}


def test_ops_without_a_derivative_say_so() -> None:
    x, ids = torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[1, 2]])
    captured = capture(Awkward().eval(), [x, ids])
    vertices = captured.graph.vertices
    by_op = {v.target.split(".")[1]: v.index for v in vertices if v.kind == "op"}
    found = {c.vertex: c for c in curvatures(captured, [x, ids], list(by_op.values()))}
    for op, why in (
        ("igamma", "torch cannot differentiate it: "),
        ("sqrt", "its derivatives are not finite"),
        ("argmax", "its result is int64"),
    ):
        row = found[by_op[op]]
        assert math.isnan(row.measured)
        assert math.isnan(row.condition)
        assert row.note.startswith(why)
        assert row.bound is None
    look_up = found[by_op["embedding"]]
    assert (look_up.measured, look_up.condition) == (0.0, 0.0)
    assert look_up.note == "it reads no real number that depends on the input"
    weight = next(v.index for v in vertices if v.kind == "weight")
    with pytest.raises(UsageError, match=r"'table.weight' is no operation"):
        curvatures(captured, [x, ids], [weight])


def test_every_op_of_a_model_has_an_answer() -> None:
    from tests.test_precision_capture import call_of, pico

    captured, call = capture(pico("llama", num_hidden_layers=1), call_of("llama")), call_of("llama")
    found = curvatures(captured, call, iterations=2)
    assert len(found) == sum(v.kind == "op" and not v.fixed for v in captured.graph.vertices)
    assert all(math.isfinite(c.measured) and math.isfinite(c.condition) for c in found)
    assert all(c.bound is None or c.measured <= c.bound * (1 + 1e-6) for c in found)
    assert {c.target.split(".")[1] for c in found if c.bound is None} <= {"to", "embedding"}
