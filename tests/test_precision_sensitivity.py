"""Sensitivities against finite differences, closed forms and measured errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision import sensitivity as module
from cohomcli.precision.adjoint import Sweep, record
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.execute import Emulator, run, uniform
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.output_norm import bind
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.sensitivity import SensitivityOptions, contributions, copies, predict, sensitivity
from cohomcli.precision.spec import Plan, Sensitivity
from tests.test_precision_capture import Net, call_of, pico

FORMATS = ("fp32", "bf16", "fp16")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def plan_with(captured: Captured, **formats: str) -> Plan:
    """Everything in fp32 but the vertices named ("__" for ".")."""
    wanted = {name.replace("__", "."): fmt for name, fmt in formats.items()}
    return Plan(tuple("" if v.fixed else wanted.get(v.name, "fp32") for v in captured.graph.vertices))


def index(captured: Captured, name: str) -> int:
    return next(v.index for v in captured.graph.vertices if v.name == name)


def score(found: Sensitivity, vertex: int, fmt: str, table: str = "scores") -> float:
    return float(getattr(found, table)[vertex, found.formats.index(fmt)])


class Smooth(nn.Module):
    """A convolution, frozen batch norm, max pooling without ties, and a reduction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.norm(self.conv(x)))
        return self.head(nn.functional.max_pool2d(y, 2).mean((2, 3)))


# --- adjoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smooth", "gpt2", "llama"])
def test_adjoints_are_derivatives_by_finite_differences(name: str) -> None:
    """<g, d> at every op vertex and weight against (f(v + t d) - f(v - t d)) / 2t along lambda, in float64."""
    if name == "smooth":
        model, example = Smooth().eval(), shape_inputs("2x3x8x8")[0]
    else:
        layers = {"n_layer": 1} if name == "gpt2" else {"num_hidden_layers": 1}
        model, example = pico(name, **layers), Example((), call_of(name))
    captured, generator = capture(model, example), torch.Generator().manual_seed(0)
    recording = record(captured, example, torch.float64)
    seeds = [torch.randn((1, *y.shape), generator=generator, dtype=torch.float64) for y in recording.outputs]
    found: dict[int, torch.Tensor] = {}
    weights = [v.index for v in captured.graph.vertices if v.kind == "weight" and not v.fixed]
    Sweep(recording, seeds).run(lambda v, g: found.setdefault(v, g[0]), weights)
    free = [v.index for v in captured.graph.vertices if not v.fixed]
    assert set(free) <= set(found)

    def along(vertex: int, direction: torch.Tensor, t: float) -> float:
        outputs = run(captured, example, torch.float64, lambda v, x: x + t * direction if v == vertex else x)
        return sum(float((s[0] * y).sum()) for s, y in zip(seeds, outputs, strict=True))

    for vertex in free:
        value = recording.values[vertex].double()
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        direction[value < -1e30] = 0.0  # masked
        t = 1e-6 * max(float(value.abs().clamp(max=1e3).max()), 1e-3)
        slope = (along(vertex, direction, t) - along(vertex, direction, -t)) / (2 * t)
        size = float(found[vertex].norm() * direction.norm())
        assert abs(slope - float((found[vertex] * direction).sum())) <= 1e-5 * size + 1e-9, captured.graph.vertices[
            vertex
        ]


def test_an_op_that_torch_cannot_batch_is_differentiated_one_probe_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = Net().eval(), shape_inputs("2x3x8x8")[0]
    captured = capture(model, example)
    options = SensitivityOptions(FORMATS, n_probes=3)
    wanted = sensitivity(captured, [example], options)
    original = torch.autograd.grad

    def unbatched(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("is_grads_batched"):
            raise RuntimeError("Batching rule not implemented")
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", unbatched)
    found = sensitivity(captured, [example], options)
    assert np.allclose(found.scores, wanted.scores, rtol=1e-3, atol=1e-20)


# --- closed forms -----------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """y = B (A x): the Jacobian at the hidden vector is B."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_both_estimators_and_weights_in_closed_form(fmt: str) -> None:
    model, examples = Two().eval(), shape_inputs((3, 6), n=2)
    captured = capture(model, examples[0])
    found = sensitivity(captured, examples, SensitivityOptions(FORMATS, n_probes=20_000))
    a, b = model.a.weight.detach(), model.b.weight.detach()
    x = torch.cat([e.args[0] for e in examples])
    hidden, size = x @ a.T, float((x @ a.T @ b.T).norm())

    def rounded(t: torch.Tensor) -> torch.Tensor:
        return t.to(HALVES[fmt]).float() - t

    d = rounded(hidden)
    linear = index(captured, "linear")
    assert score(found, linear, fmt, "coherent") == pytest.approx(float((d @ b.T).norm() / size) ** 2, rel=0.05)
    diagonal = float((d.square() @ b.square().sum(0)).sum()) / size**2
    assert score(found, linear, fmt, "diagonal") == pytest.approx(diagonal, rel=0.05)
    for name, change in (("a.weight", x @ rounded(a).T @ b.T), ("b.weight", hidden @ rounded(b).T)):
        wanted = float(change.norm() / size) ** 2
        assert score(found, index(captured, name), fmt) == pytest.approx(wanted, rel=0.05)
        plan = plan_with(captured, **{name.replace(".", "__"): fmt})
        assert predict(found, plan) == pytest.approx(wanted**0.5, rel=0.03)
    assert contributions(found, plan).argmax() == index(captured, "b.weight")


def test_large_weights_are_scored_where_they_are_read_as_small_ones_by_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tied embeddings (read twice), linear maps, convolutions: <c, change of the op> is <gradient, rounding>."""
    cases = [(pico("gpt2", n_layer=1), Example((), call_of("gpt2"))), (Net().eval(), shape_inputs("2x3x8x8")[0])]
    for model, example in cases:
        captured = capture(model, example)
        options = SensitivityOptions((*FORMATS, "int8"), n_probes=4, dtype=torch.float64)
        small = sensitivity(captured, [example], options)
        monkeypatch.setattr(module, "GRADIENT_LIMIT", 0)
        large = sensitivity(captured, [example], options)
        monkeypatch.undo()
        weights = [v.index for v in captured.graph.vertices if v.kind == "weight" and not v.fixed]
        linear = [v for v in weights if captured.graph.vertices[v].name.endswith("weight")]
        assert len(linear) > 2
        matrices = [v for v in linear if len(captured.graph.vertices[v].shape) > 1]
        assert np.allclose(large.scores[matrices], small.scores[matrices], rtol=1e-3, atol=1e-14)
        assert (small.scores[matrices, 1:] > 0).all()


def test_fp32_is_charged_with_what_the_kernels_err() -> None:
    model, examples = Two().eval(), shape_inputs((64, 6), n=1)
    captured = capture(model, examples[0])
    found = sensitivity(captured, examples, SensitivityOptions(FORMATS, n_probes=2000))
    plan = uniform(captured, "fp32")
    measured = bind(captured, examples, "rel-l2").error([Emulator(captured)(plan, x).outputs for x in examples])
    assert 1e-9 < measured < 1e-6
    assert predict(found, plan) == pytest.approx(measured, rel=0.3)


class Offsets(nn.Module):
    """y = x + a + b with constant a and b, whose roundings add up or cancel."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((16,), a)), nn.Parameter(torch.full((16,), b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.a + self.b


@pytest.mark.parametrize(("b", "factor"), [(1.003, 2.0), (-1.003, 0.0)])
def test_roundings_of_weights_add_up_or_cancel(b: float, factor: float) -> None:
    """They are no random variables: two equal ones err twice as much as one, two opposite ones not at all."""
    examples = shape_inputs((4, 16), n=3)
    captured = capture(Offsets(1.003, b).eval(), examples[0])
    found = sensitivity(captured, examples, SensitivityOptions(FORMATS, n_probes=16))
    norm, emulate = bind(captured, examples, "rel-l2"), Emulator(captured)
    one, both = plan_with(captured, a="bf16"), plan_with(captured, a="bf16", b="bf16")
    errors = [norm.error([emulate(plan, x).outputs for x in examples]) for plan in (one, both)]
    assert errors[1] == pytest.approx(factor * errors[0], rel=1e-3, abs=1e-6)
    assert predict(found, both) == pytest.approx(factor * predict(found, one), rel=1e-3, abs=1e-6)
    assert predict(found, one) == pytest.approx(errors[0], rel=0.25)  # the noise of 48 directions is 0.1
    shares = contributions(found, both)
    assert shares[index(captured, "a")] == pytest.approx(shares[index(captured, "b")], abs=1e-12)


# --- grids ------------------------------------------------------------------------------------------------------------


class Grids(nn.Module):
    """Copies, a sum and a doubling of values that may lie on a grid already."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.left, self.right = nn.Linear(8, 16), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, g = self.left(x), self.right(x)
        return torch.cat([torch.relu(h), h + g, 2.0 * g, h * g], dim=-1)


def test_stores_on_the_grid_of_their_operands() -> None:
    model, example = Grids().eval(), shape_inputs((256, 8))[0]
    captured = capture(model, example)
    found = sensitivity(captured, [example], SensitivityOptions(FORMATS, n_probes=64))
    names = {v.target.split(".")[1]: v.index for v in captured.graph.vertices if v.kind == "op"}
    kinds = [v.name for v in captured.graph.vertices if v.kind == "op"]
    h, g, relu, add, double, product, cat = kinds
    norm, emulate = bind(captured, [example], "rel-l2"), Emulator(captured)

    def compare(**formats: str) -> tuple[float, float]:
        plan = plan_with(captured, **formats)
        return predict(found, plan), norm.error([emulate(plan, example).outputs])

    alone, _ = compare(**{relu: "bf16"})
    both, measured = compare(**{h: "bf16", relu: "bf16"})
    only, _ = compare(**{h: "bf16"})
    assert both == pytest.approx(only)  # a copy rounds nothing more
    assert both == pytest.approx(measured, rel=0.1)
    assert alone > 0.3 * only
    for formats in (
        {h: "fp16", relu: "bf16"},  # fp16 values are not on the grid of bf16
        {add: "bf16"},
        {h: "bf16", g: "bf16", add: "bf16"},
        {h: "bf16", g: "bf16", add: "fp16"},
        {g: "fp16", double: "fp16"},
        {g: "bf16", double: "fp16"},
        {h: "bf16", g: "bf16", product: "bf16"},
        {h: "bf16", g: "bf16", relu: "bf16", add: "bf16", double: "bf16", product: "bf16", cat: "bf16"},
    ):
        predicted, measured = compare(**formats)
        assert predicted == pytest.approx(measured, rel=0.12), formats
    assert names["relu"] in copies(found)
    assert copies(found)[names["relu"]] == index(captured, h)
    assert copies(found)[index(captured, double)] == index(captured, g)
    assert names["add"] not in copies(found)
    assert names["linear"] not in copies(found)


# --- norms and formats ------------------------------------------------------------------------------------------------


def classifier() -> tuple[Captured, list[Example]]:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)).eval()
    examples = shape_inputs((32, 16), n=4)
    return capture(model, examples[0]), examples


@pytest.mark.parametrize("kind", ["rel-l2", "max-abs", "kl"])
def test_predictions_in_every_norm(kind: Any) -> None:
    captured, examples = classifier()
    formats = (*FORMATS, "e4m3", "e5m2", "int8")
    allowed = admissibility(captured.graph, ranges(captured, examples), formats)
    found = sensitivity(captured, examples, SensitivityOptions(formats, norm=kind, n_probes=16), allowed)
    norm, emulate, rng = bind(captured, examples, kind), Emulator(captured), np.random.default_rng(0)
    ratios = []
    for _ in range(12):
        shares = rng.dirichlet(np.ones(len(formats)))
        chosen = []
        for v in captured.graph.vertices:
            weights = shares * allowed.allowed[v.index]
            chosen.append("" if v.fixed else str(rng.choice(formats, p=weights / weights.sum())))
        plan = Plan(tuple(chosen))
        ratios.append(predict(found, plan) / norm.error([emulate(plan, x).outputs for x in examples]))
    low, high = {"rel-l2": (0.8, 1.25), "max-abs": (0.6, 1.67), "kl": (0.64, 1.56)}[kind]  # kl: a square
    assert all(low <= r <= high for r in ratios), ratios


def test_what_is_not_admissible_costs_infinitely_much() -> None:
    captured, examples = classifier()
    allowed = admissibility(captured.graph, ranges(captured, examples), FORMATS, keep={"0": ["fp32"]})
    found = sensitivity(captured, examples[:1], SensitivityOptions(FORMATS, n_probes=2), allowed)
    assert np.isinf(score(found, index(captured, "0.weight"), "bf16"))
    assert predict(found, uniform(captured, "bf16")) == np.inf
    assert np.isfinite(predict(found, uniform(captured, "fp32")))
    assert not found.scores[[v.index for v in captured.graph.vertices if v.fixed]].any()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_usage_errors() -> None:
    captured, examples = classifier()
    with pytest.raises(UsageError, match="at least one format and one probe"):
        sensitivity(captured, examples, SensitivityOptions(()))
    with pytest.raises(UsageError, match="at least one format and one probe"):
        sensitivity(captured, examples, SensitivityOptions(FORMATS, n_probes=0))
    with pytest.raises(UsageError, match="unknown format 'fp12'"):
        sensitivity(captured, examples, SensitivityOptions(("fp12",)))
    with pytest.raises(UsageError, match="no inputs"):
        sensitivity(captured, [], SensitivityOptions(FORMATS))
    allowed = admissibility(captured.graph, ranges(captured, examples), ("fp32",))
    with pytest.raises(UsageError, match="admissibility says nothing about 'bf16'"):
        sensitivity(captured, examples[:1], SensitivityOptions(("fp32", "bf16"), n_probes=1), allowed)
    found = sensitivity(captured, examples[:1], SensitivityOptions(("fp32",), n_probes=1))
    with pytest.raises(UsageError, match="the plan has 1 formats"):
        predict(found, Plan(("fp32",)))
    with pytest.raises(UsageError, match="format 'bf16' has no scores"):
        predict(found, uniform(captured, "bf16"))


class Bad(nn.Module):
    """Something wrong after a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.layer = kind, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if self.kind == "no derivative":
            return torch.igamma(y.abs() + 1.0, y.abs() + 0.5)
        if self.kind == "singular":
            return (y - y.detach().clone()).sqrt() + y
        if self.kind == "beyond float32":
            return y * 1e30 * 1e30 * 1e-30 * 1e-30
        return y.argmax(dim=-1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no derivative", "no derivative of aten.igamma.default 'igamma': the derivative for 'igamma: input' is not"),
        ("singular", "the outputs have no finite derivative with respect to aten.sub"),
        ("beyond float32", "the float32 model itself is not finite at aten.mul.Tensor 'mul_1'"),
        ("integers", "the model returns no floating-point tensor"),
    ],
)
def test_what_cannot_be_analysed_says_why(kind: str, message: str) -> None:
    example = shape_inputs((2, 4))[0]
    with pytest.raises(AnalysisIncomplete, match=message):
        sensitivity(capture(Bad(kind).eval(), example), [example], SensitivityOptions(FORMATS, n_probes=2))


def test_integer_outputs_beside_real_ones_and_scalars_are_no_obstacle() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.tensor(0.3))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.layer(x) * self.scale
            values, order = y.topk(2, dim=-1)
            return {"best": values, "order": order, "norm": y.norm()}

    example = shape_inputs((64, 4))[0]
    captured = capture(Mixed().eval(), example)
    found = sensitivity(captured, [example], SensitivityOptions(FORMATS, n_probes=64))
    plan = plan_with(captured, scale="bf16")
    measured = bind(captured, [example], "rel-l2").error([Emulator(captured)(plan, example).outputs])
    assert measured > 1e-4
    assert predict(found, plan) == pytest.approx(measured, rel=0.2)
