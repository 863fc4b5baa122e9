"""Baselines: each is what PyTorch does when one does it by hand; the emulated ones follow their stated semantics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cohomcli.models.weights import fingerprint
from cohomcli.precision.assignment import solve
from cohomcli.precision.autocast import autocast_flow, autocast_plan
from cohomcli.precision.baselines import _as_called, baselines, converted_copy
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.conversions import run_flow
from cohomcli.precision.costs import autocast_bytes, bytes_of
from cohomcli.precision.execute import Emulator, run, uniform
from cohomcli.precision.explicit import apply
from cohomcli.precision.output_norm import bind
from cohomcli.precision.problem import build_problem, plan_of
from cohomcli.precision.program import without_dead_code
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.recording import record
from cohomcli.precision.result import Baseline
from cohomcli.precision.sensitivity import SensitivityOptions, sensitivity
from cohomcli.precision.traffic import Flow, own_format
from cohomcli.precision.vertices import build_graph
from tests import tinymodels
from tests.massive import call as massive_call
from tests.massive import massive_llama

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = [
    *("uniform-fp32", "uniform-bf16", "uniform-fp16"),
    *("half", "autocast-fp16", "autocast-cuda-fp16", "bfloat16", "autocast-bf16", "autocast-cuda-bf16"),
]


def pico(name: str) -> Any:
    model = tinymodels.build(name)
    model.set_attn_implementation("eager")
    return model


def calls(name: str, n: int = 2) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(n):
        call: dict[str, Any] = {"input_ids": torch.randint(4, tinymodels.VOCAB, (1, 9), generator=generator)}
        call["attention_mask"] = torch.ones_like(call["input_ids"])
        if name in tinymodels.SEQ2SEQ:
            call["decoder_input_ids"] = torch.randint(4, tinymodels.VOCAB, (1, 7), generator=generator)
        found.append(call if name in tinymodels.MASKED else {**call, "use_cache": False})
    return found


def recorded(model: Any, x: dict[str, Any]) -> Captured:
    """The capture of last resort, of the logits alone."""
    program = record(model, (), dict(x))
    logits = tuple((name, slot) for name, slot in program.outputs if name == "logits")
    program = without_dead_code(type(program)(program.instructions, program.held, program.arguments, logits))
    graph, layout = build_graph(program)
    return Captured(graph, program, layout, Example((), x), "for the test")


def measured(model: Any, captured: Captured, inputs: list[Any]) -> dict[str, Baseline]:
    found = baselines(model, captured, inputs, bind(captured, inputs, "rel-l2"), Emulator(captured))
    assert [b.name for b in found] == NAMES
    return {b.name: b for b in found}


def by_hand(model: Any, inputs: list[dict[str, Any]], outputs: list[torch.Tensor]) -> float:
    """||y' - y|| / ||y|| over all inputs, y from the module itself in float64."""
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        exact = torch.cat([double(**x).logits.flatten() for x in inputs])
    return float((torch.cat([y.double().flatten() for y in outputs]) - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_what_is_run_is_what_one_gets_by_hand(name: str) -> None:
    model, inputs = pico(name), calls(name)
    before = fingerprint(model)
    captured = capture(model, inputs[0], ["logits"])
    found = measured(model, captured, inputs)
    for fmt, dtype in HALVES.items():
        with torch.no_grad():
            narrow = copy.deepcopy(model).to(dtype)
            direct = by_hand(model, inputs, [narrow(**x).logits for x in inputs])
            with torch.autocast("cpu", dtype=dtype):
                mixed = by_hand(model, inputs, [model(**x).logits for x in inputs])
        assert found["half" if fmt == "fp16" else "bfloat16"].error == pytest.approx(direct, rel=1e-3)
        assert found[f"autocast-{fmt}"].error == pytest.approx(mixed, rel=1e-3)
    assert fingerprint(model) == before  # names, dtypes and bits


def test_bytes_semantics_and_overflows_are_told() -> None:
    model, inputs = pico("gpt2"), calls("gpt2")
    captured = capture(model, inputs[0])
    found, graph = measured(model, captured, inputs), captured.graph
    for name, baseline in found.items():
        assert baseline.semantics.startswith(("emulated: ", "run: "))
        assert baseline.bytes is not None
        assert baseline.bytes.total == baseline.bytes.weights + baseline.bytes.activations + baseline.bytes.casts
        assert (baseline.n_overflows is None) == baseline.semantics.startswith("run: "), name
    for fmt in HALVES:
        for device, prefix in (("cpu", "autocast"), ("cuda", "autocast-cuda")):
            counted = found[f"{prefix}-{fmt}"].bytes
            assert counted is not None
            assert counted.total == autocast_bytes(graph, fmt, device).total
        uniform_bytes = found[f"uniform-{fmt}"].bytes
        assert uniform_bytes is not None
        assert uniform_bytes.total == bytes_of(graph, uniform(captured, fmt)).total
    errors = {name: baseline.error or 0.0 for name, baseline in found.items()}
    assert 0 < errors["uniform-fp32"] < 1e-5 < errors["uniform-fp16"] < errors["uniform-bf16"] < 0.1
    # emulated float32-inside stores are what PyTorch's own narrow kernels do
    assert errors["uniform-fp16"] == pytest.approx(errors["half"], rel=0.1)
    assert errors["uniform-bf16"] == pytest.approx(errors["bfloat16"], rel=0.1)


def test_several_outputs_are_compared_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            h = self.body(x).tanh()
            return {"ignored": x > 0, "hidden": h, "logits": self.head(h)}

    model, inputs = Two().eval(), [(torch.linspace(-1, 1, 12).view(2, 6),)]
    for wanted in (["logits"], ["hidden"], ["hidden", "logits"]):
        error = measured(model, capture(model, inputs[0], wanted), inputs)["half"].error
        with torch.no_grad():
            exact, got = (
                copy.deepcopy(model).double()(inputs[0][0].double()),
                copy.deepcopy(model).half()(inputs[0][0].half()),
            )
        parts = [float((got[n].double() - exact[n]).norm() / exact[n].norm()) for n in wanted]
        assert error == pytest.approx(sum(p**2 for p in parts) ** 0.5, rel=1e-6)


def test_float_inputs_are_cast_and_missing_kernels_are_told() -> None:
    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.matrix = nn.Parameter(torch.eye(4) + 0.1 * torch.randn(4, 4))
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.linalg.solve(self.matrix, x.T).T)

    model, inputs = Solver().eval(), [(torch.ones(2, 4),), (torch.full((2, 4), 0.3),)]
    found = measured(model, capture(model, inputs[0]), inputs)
    for name in ("half", "bfloat16"):
        assert found[name].error is None
        assert not found[name].finite
        assert not found[name].ran
        assert found[name].note.startswith("cannot be run here: NotImplementedError: ")
    assert found["uniform-fp16"].error is not None  # emulated, so it needs no kernel
    plain = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    assert 0 < (measured(plain, capture(plain, inputs[0]), inputs)["half"].error or 0) < 1e-2


# --- emulated autocast ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exported", "recorded"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_emulated_autocast_is_real_autocast_where_that_can_run(name: str, how: str) -> None:
    """With the CPU's op lists, against torch.autocast("cpu"), whose kernels differ in the last bit now and then.

    Unrounded reads of weights would put both 0.9 to 1.5 errors apart and the error 10 to 30% too low.
    """
    model, inputs = pico(name), calls(name, 4)
    captured = capture(model, inputs[0], ["logits"]) if how == "exported" else recorded(model, inputs[0])
    exact = torch.cat([run(captured, x, torch.float64)[0] for x in inputs])
    for fmt, dtype in HALVES.items():
        flow = autocast_flow(_as_called(captured), fmt, "cpu")
        got = torch.cat([run_flow(captured, x, flow).outputs[0] for x in inputs])
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            real = torch.cat([model(**x).logits.float() for x in inputs])
        error = float((real - exact).norm())
        assert float((got - real).norm()) < 0.8 * error
        assert float((got - exact).norm()) == pytest.approx(error, rel=0.05)


def test_a_recording_knows_the_ops_that_autocast_keeps_in_float32() -> None:
    model, x = pico("bert"), calls("bert")[0]
    captured = recorded(model, x)
    plan = autocast_plan(_as_called(captured), "fp16", "cuda")
    softmax = [v.index for v in captured.graph.vertices if v.target == "aten._softmax.default"]
    assert len(softmax) == 3
    assert {plan.formats[v] for v in softmax} == {"fp32"}


def test_a_flow_without_conversions_is_the_module() -> None:
    model, x = pico("llama"), calls("llama")[0]
    captured = capture(model, x)
    vertices = captured.graph.vertices
    flow = Flow(tuple(own_format(v) for v in vertices), tuple(("",) * len(v.operands) for v in vertices))
    assert torch.equal(run_flow(captured, x, flow).outputs[0], run(captured, x)[0])


def test_a_converted_copy_keeps_ties_and_shares_nothing() -> None:
    model = pico("gpt2")
    copied: Any = converted_copy(model, torch.float16)
    assert {p.dtype for p in copied.parameters()} == {torch.float16}
    assert copied.lm_head.weight is copied.transformer.wte.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    copied.lm_head.weight.zero_()
    assert float(model.lm_head.weight.detach().abs().max()) > 0


# --- a massive activation ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def massive() -> tuple[Any, Captured, list[dict[str, Any]]]:
    model, inputs = massive_llama(), [massive_call(0), massive_call(1)]
    return model, capture(model, inputs[0]), inputs


def test_a_massive_activation_breaks_half_precision_baselines(massive: tuple[Any, Captured, list[Any]]) -> None:
    model, captured, inputs = massive
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert bool(torch.isnan(model(**inputs[0]).logits).any())
    found = measured(model, captured, inputs)
    for name in ("uniform-fp16", "half", "autocast-fp16", "autocast-cuda-fp16"):
        assert found[name].error is None, name
        assert not found[name].finite
        assert found[name].ran
    assert (found["uniform-fp16"].n_overflows or 0) > 0
    assert found["autocast-bf16"].finite
    assert found["uniform-bf16"].n_overflows == 0


@pytest.mark.parametrize(("formats", "epsilon"), [(("fp32", "bf16", "fp16"), 5e-3), (("fp32", "fp16"), 1e-2)])
def test_a_massive_activation_does_not_break_the_plan(
    massive: tuple[Any, Captured, list[Any]], formats: tuple[str, ...], epsilon: float
) -> None:
    """No NaN with at least 80% of the ops in 16 bits, on calls that were not calibrated on."""
    model, captured, inputs = massive
    allowed = admissibility(captured.graph, ranges(captured, inputs), formats)
    scored = sensitivity(captured, inputs, SensitivityOptions(formats), allowed)
    solution = solve(build_problem(captured.graph, scored, allowed, epsilon), time_limit=10.0)
    plan = plan_of(captured.graph, formats, solution)
    ops = [plan.formats[v.index] for v in captured.graph.vertices if v.kind == "op" and not v.fixed]
    assert sum(fmt != "fp32" for fmt in ops) >= 0.8 * len(ops)
    applied = apply(model, plan, captured)
    for seed in range(2, 6):
        x = massive_call(seed)
        logits = applied(**x).logits
        assert bool(torch.isfinite(logits).all())
        assert by_hand(model, [x], [logits]) <= epsilon
