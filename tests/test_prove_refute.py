"""Refutations: closed forms of exp(exp(x)), small networks, the built-in model, and what is honestly not found."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from provemodels import ExpExp, built
from torch import nn

flint = pytest.importorskip("flint")

from cohomcli.errors import AnalysisIncomplete, UsageError  # noqa: E402
from cohomcli.models.load import load  # noqa: E402
from cohomcli.models.resolve import resolve  # noqa: E402
from cohomcli.models.spec import LoadOptions  # noqa: E402
from cohomcli.precision.assignment import solve  # noqa: E402
from cohomcli.precision.capture import Captured, Example, capture  # noqa: E402
from cohomcli.precision.execute import Emulator, uniform  # noqa: E402
from cohomcli.precision.output_norm import bind  # noqa: E402
from cohomcli.precision.prove.box import certify_box  # noqa: E402
from cohomcli.precision.prove.collision import cell  # noqa: E402
from cohomcli.precision.prove.curvature import curvature  # noqa: E402
from cohomcli.precision.prove.optimality import write_optimality  # noqa: E402
from cohomcli.precision.prove.package import Package  # noqa: E402
from cohomcli.precision.prove.refute import RefuteOptions, refute  # noqa: E402
from cohomcli.precision.prove.witness import worst  # noqa: E402
from cohomcli.precision.result import Refutation  # noqa: E402
from cohomcli.precision.rounding import round_to  # noqa: E402
from cohomcli.precision.spec import Problem  # noqa: E402
from cohomcli.verify.arrays import Unsupported  # noqa: E402
from cohomcli.verify.checker import verify  # noqa: E402
from cohomcli.verify.document import digest  # noqa: E402
from cohomcli.verify.kinds.curvature import bits_of  # noqa: E402
from cohomcli.verify.rounding import distance, number, storage_format  # noqa: E402


def tried(
    model: nn.Module, inputs: list[Any], options: RefuteOptions, folder: Path
) -> dict[tuple[str, str], Refutation]:
    captured = capture(model.eval(), inputs[0])
    found = refute(captured, inputs, options, Package(folder, "model", captured, {}))
    for refutation in found:
        if refutation.certificate:
            assert verify(folder / refutation.certificate).state == "verified"
    return {(r.kind, r.format): r for r in found}


def point(x: float) -> Example:
    return Example((torch.tensor([x]),))


# ---- exp(exp(x)) ----


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
def test_no_16_bit_number_is_within_1_of_exp_exp_at_exactly_2_3(fmt: str, tmp_path: Path) -> None:
    """exp(exp(2.3)) = 21465.07...: between 21456 and 21472 in fp16, between 21376 and 21504 in bf16."""
    with mpmath.workdps(60):
        truth = mpmath.exp(mpmath.exp(mpmath.mpf(2.3)))
        double = float(truth)
    captured = capture(ExpExp().eval(), point(2.3))
    nearest = float(torch.tensor([double], dtype=torch.float64).to(storage_format(fmt).torch_dtype)[0])
    assert abs(nearest - float(truth)) > 1
    package = Package(tmp_path, "exp-exp", captured, {})
    low = double if mpmath.mpf(double) <= truth else float(np.nextafter(double, 0))
    exact = number(distance(low, float(np.nextafter(low, math.inf)), storage_format(fmt)))
    assert float(exact) == pytest.approx(abs(nearest - float(truth)), rel=1e-9)
    claim = {"format": fmt, "norm": "max-abs", "epsilon": 1.0, "error": float(exact), "outputs": ["output"], "entry": 0}
    written = package.write("format", "x", claim, {"input:x": np.array([2.3])}, 128)
    assert written is not None
    assert verify(written.path).state == "verified"
    assert package.write("format", "y", claim | {"epsilon": 40.0}, {"input:x": np.array([2.3])}, 128) is None
    assert not (tmp_path / "y.json").exists()


def test_exp_exp_at_2_3_is_refuted_in_all_ways_and_fp32_is_not(tmp_path: Path) -> None:
    found = tried(ExpExp(), [point(2.3)], RefuteOptions(1.0, "max-abs", ("fp16", "bf16", "fp32")), tmp_path)
    for fmt in ("fp16", "bf16"):
        for kind in ("format", "witness", "collision"):
            assert found[kind, fmt].status == "proved"
            assert found[kind, fmt].error > 1.0
    assert {found[kind, "fp32"].status for kind in ("format", "witness", "collision")} == {"not found"}
    with mpmath.workdps(60):
        truth = mpmath.exp(mpmath.exp(mpmath.mpf(float(np.float32(2.3)))))
        nearest = mpmath.mpf(float(torch.tensor([float(truth)], dtype=torch.float64).half()[0]))
        assert found["format", "fp16"].error == pytest.approx(float(abs(truth - nearest)), rel=1e-9)


def test_inputs_near_2_collide_in_bf16(tmp_path: Path) -> None:
    """Two inputs of one bf16 cell around 2: no algorithm that reads them in bf16 is within 31 at both."""
    found = tried(ExpExp(), [point(2.0)], RefuteOptions(31.0, "max-abs", ("bf16",)), tmp_path)["collision", "bf16"]
    assert found.status == "proved"
    document = json.loads((tmp_path / str(found.certificate)).read_text())
    first, second = (float.fromhex(document["tensors"][f"{k}:x"]["values"][0]) for k in ("first", "second"))
    assert first < second
    assert float(torch.tensor(first).double().bfloat16()) == float(torch.tensor(second).double().bfloat16())
    with mpmath.workdps(40):
        apart = mpmath.exp(mpmath.exp(mpmath.mpf(second))) - mpmath.exp(mpmath.exp(mpmath.mpf(first)))
    assert found.error == pytest.approx(float(apart) / 2, rel=1e-9)


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "fp32", "e4m3"])
def test_a_rounding_cell_is_a_cell(fmt: str) -> None:
    x = torch.tensor([1.0, 1.999, 2.0, 3.1, -4.0, 0.0, 1e-3, -0.0157, 200.0], dtype=torch.float64)
    centre, reach = cell(x, fmt)
    assert bool((reach > 0).all())
    for sign in (-1, 1):
        assert torch.equal(round_to(centre + sign * reach * (1 - 2.0**-20), fmt), centre)


# ---- networks ----


def test_a_small_network_is_refuted_in_relative_l2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2))
    inputs = [Example((torch.randn(1, 3),)) for _ in range(3)]
    found = tried(model, inputs, RefuteOptions(2e-4, "rel-l2", ("bf16",)), tmp_path)
    assert [found[kind, "bf16"].status for kind in ("format", "witness", "collision")] == ["proved"] * 3
    assert tried(model, inputs, RefuteOptions(0.5, "rel-l2", ("bf16",)), tmp_path)["witness", "bf16"].error is None


def test_the_climb_finds_a_worse_input_than_the_calibration_has() -> None:
    model, example = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).eval(), None
    torch.manual_seed(3)
    inputs = [Example((torch.randn(1, 3),)) for _ in range(2)]
    captured = capture(model, inputs[0], example)
    emulate = Emulator(captured)
    given = max(bind(captured, [x], "rel-l2").error([emulate(uniform(captured, "bf16"), x).outputs]) for x in inputs)
    found = worst(captured, "bf16", inputs, "rel-l2", emulate)
    assert found.error > given
    low, high = (f([x.args[0] for x in inputs]) for f in (lambda t: torch.cat(t).min(), lambda t: torch.cat(t).max()))
    assert bool((found.inputs.args[0] >= low).all())
    assert bool((found.inputs.args[0] <= high).all())


def test_tiny_gpt_is_refuted_just_under_its_measured_error(tmp_path: Path) -> None:
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    loaded.model.set_attn_implementation("eager")
    mask = torch.ones(1, 3, dtype=torch.long)
    call = {"input_ids": torch.tensor([[5, 77, 9]]), "attention_mask": mask, "use_cache": False}
    captured = capture(loaded.model, call)
    cases: list[tuple[str, Any]] = [("bf16", "rel-l2"), ("fp16", "kl")]
    for fmt, norm in cases:
        outputs = Emulator(captured)(uniform(captured, fmt), call).outputs
        measured = bind(captured, [call], norm).error([outputs])
        package = Package(tmp_path / fmt, "tiny-gpt", captured, {})
        found = refute(captured, [call], RefuteOptions(measured * 0.999, norm, (fmt,)), package)
        witness = next(r for r in found if r.kind == "witness")
        assert witness.status == "proved"
        assert witness.error == pytest.approx(measured, rel=1e-6)
        assert next(r for r in found if r.kind == "collision").status == "not found"


def test_outputs_that_overflow_are_refuted_without_a_number(tmp_path: Path) -> None:
    found = tried(ExpExp(), [point(2.6)], RefuteOptions(1.0, "max-abs", ("fp16",)), tmp_path)["witness", "fp16"]
    assert found.status == "proved"
    assert found.error is None
    assert "not finite" in found.text


def test_masked_positions_do_not_count(tmp_path: Path) -> None:
    model, example = built("bert")
    found = tried(model, [example], RefuteOptions(1e-3, "rel-l2", ("bf16",)), tmp_path)["witness", "bf16"]
    document = json.loads((tmp_path / str(found.certificate)).read_text())
    assert "counted:logits" in document["tensors"]
    captured = capture(model, example)
    measured = bind(captured, [example], "rel-l2").error(
        [Emulator(captured)(uniform(captured, "bf16"), example).outputs]
    )
    assert found.error == pytest.approx(measured, rel=1e-9)


def test_an_operation_without_mathematics_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(Unsupported, match="bessel"):
        tried(Odd(), [point(1.0)], RefuteOptions(1.0, "max-abs"), tmp_path)


# ---- the curvature bound ----


def test_the_curvature_bound_on_a_parabola_is_its_closed_form(tmp_path: Path) -> None:
    class Parabola(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x * x

    captured = capture(Parabola().eval(), point(1.0))
    options = RefuteOptions(1e-3, "max-abs", ())
    found = curvature(captured, point(1.0), options, Package(tmp_path, "parabola", captured, {}))
    assert found.status == "proved"
    claim = json.loads((tmp_path / str(found.certificate)).read_text())["claim"]
    assert claim["kappa"] == pytest.approx(6.0, rel=1e-12)
    assert claim["bits"] == pytest.approx(math.log2(6 * claim["length"] ** 2 / 8e-3), rel=1e-12)
    # on [1/2, 3/2] the last eighth has slopes of at least 6 * 11/8
    assert claim["slope"] == pytest.approx(6 * (1.5 - claim["length"] / 8), rel=1e-8)


def test_the_curvature_bound_is_silent_where_it_says_nothing() -> None:
    from cohomcli.verify.document import Rejected

    with pytest.raises(Rejected):
        bits_of(1.0, 1.0, 1.0, 1.0, 8)
    assert bits_of(6.0, 8.0, 1.0, 0.01, 8)[1] == pytest.approx(math.log2(8 / 0.02), rel=1e-12)
    assert bits_of(6.0, 0.0, 1.0, 0.01, 8)[1] is None


# ---- upper bounds on a box ----


def random_net(seed: int, act: type[nn.Module]) -> tuple[Captured, tuple[torch.Tensor]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 12), act(), nn.Linear(12, 12), act(), nn.Linear(12, 3)).eval()
    x = (torch.randn(1, 4),)
    return capture(model, x), x


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid])
@pytest.mark.parametrize("fmt", ["bf16", "fp16"])
def test_box_bounds_hold_and_are_not_far_from_what_sampling_finds(act: Any, fmt: str, tmp_path: Path) -> None:
    captured, x = random_net(0, act)
    found = certify_box(captured, x, 0.05, uniform(captured, fmt), Package(tmp_path, "net", captured, {}))
    assert found.certificate is not None
    assert verify(found.certificate.path).state == "verified"
    assert found.sampled <= found.certified <= 40 * found.sampled


def test_splitting_the_box_tightens_the_bound(tmp_path: Path) -> None:
    captured, x = random_net(1, nn.ReLU)
    plan, package = uniform(captured, "bf16"), Package(tmp_path, "net", captured, {})
    whole, split = (certify_box(captured, x, 0.5, plan, package, n).certified for n in (0, 2))
    assert split < whole


def test_a_box_is_split_no_more_often_than_a_checker_follows(tmp_path: Path) -> None:
    captured, x = random_net(1, nn.ReLU)
    plan, package = uniform(captured, "bf16"), Package(tmp_path, "net", captured, {})
    with pytest.raises(UsageError, match="at most 7"):
        certify_box(captured, x, 0.5, plan, package, 8)
    found = certify_box(captured, x, 0.5, plan, package, 1).certificate
    assert found is not None
    document = json.loads(found.path.read_text())
    document["claim"]["splits"] = 8  # 256 boxes: a stranger's certificate must not take a machine for long
    document["digest"] = digest(document)
    found.path.write_text(json.dumps(document))
    checked = verify(found.path)
    assert checked.state == "rejected"
    assert "no sensible number of splits" in checked.reason


def test_the_box_bound_of_one_layer_is_its_closed_form(tmp_path: Path) -> None:
    """y = 3 x with the weight exact in fp16: float32 error gamma_2 |3x| and one rounding u |3x|, on |x| <= 1/2."""
    model = nn.Linear(1, 1, bias=False).eval()
    nn.init.constant_(model.weight, 3.0)
    captured = capture(model, (torch.zeros(1, 1),))
    package = Package(tmp_path, "line", captured, {})
    found = certify_box(captured, (torch.zeros(1, 1),), 0.5, uniform(captured, "fp16"), package)
    u32 = 2.0**-24
    computed = 2 * u32 / (1 - 2 * u32) * 1.5 + 2 * 2.0**-149
    assert found.certified == pytest.approx(computed + 2.0**-11 * (1.5 + computed) + 2.0**-25, rel=1e-7)


def test_a_plan_of_several_formats_and_a_sum_with_views_is_bounded(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)) + x).reshape(2, 3).transpose(0, 1)

    torch.manual_seed(2)
    x = (torch.randn(1, 6),)
    captured = capture(Residual().eval(), x)
    mixed = tuple(f and ("fp32" if i % 2 else "bf16") for i, f in enumerate(uniform(captured, "bf16").formats))
    for formats in (mixed, uniform(captured, "fp16").formats):
        plan = type(uniform(captured, "bf16"))(formats)
        found = certify_box(captured, x, 0.1, plan, Package(tmp_path, "residual", captured, {}))
        assert found.sampled <= found.certified <= 60 * found.sampled


def test_constants_beside_moved_entries_are_not_taken_for_them(tmp_path: Path) -> None:
    """cat([x, c]) with a constant c: its entries have no Jacobian, and the bound is that of the layer behind."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.cat([torch.relu(x), torch.tensor([[2.0, 3.0]])], 1))

    torch.manual_seed(0)
    x = (torch.randn(1, 2),)
    captured = capture(Joined().eval(), x)
    found = certify_box(captured, x, 0.1, uniform(captured, "bf16"), Package(tmp_path, "joined", captured, {}))
    assert found.sampled <= found.certified <= 40 * found.sampled

    class Padded(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(x, (1, 1))

    captured = capture(Padded().eval(), x)
    with pytest.raises(Unsupported, match="pad"):
        certify_box(captured, x, 0.1, uniform(captured, "bf16"), Package(tmp_path, "padded", captured, {}))


def test_boxes_where_a_value_may_overflow_and_other_models_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(1, 1).eval()
    nn.init.constant_(model.weight, 3e4)
    captured = capture(model, (torch.zeros(1, 1),))
    package = Package(tmp_path, "line", captured, {})
    with pytest.raises(Unsupported, match="range of fp16"):
        certify_box(captured, (torch.zeros(1, 1),), 4.0, uniform(captured, "fp16"), package)
    gpt, call = built("gpt2")
    captured = capture(gpt, call)
    with pytest.raises(UsageError, match="real inputs"):
        certify_box(captured, call, 1.0, uniform(captured, "fp16"), Package(tmp_path, "gpt2", captured, {}))


# ---- optimality ----


def problem(budget: float) -> Problem:
    return Problem(
        cost=np.array([[4.0, 2.0], [4.0, 2.0], [8.0, 4.0]]),
        error=np.array([[0.0, 1.0], [0.0, 3.0], [0.5, 1.0]]),
        allowed=np.ones((3, 2), dtype=bool),
        edges=np.array([[0, 2], [1, 2]]),
        cast_cost=np.array([0.5, 0.5]),
        budget=budget,
    )


@pytest.mark.parametrize(("budget", "best"), [(2.1, Fraction(21, 2)), (5.1, Fraction(8)), (0.25, None)])
def test_optimality_and_infeasibility_are_certified(budget: float, best: Fraction | None, tmp_path: Path) -> None:
    """By hand: under 2.1 ops 0 and 2 take the narrow format and pay one cast; under 5.1 all; under 0.25 none can."""
    posed = problem(budget)
    solution = solve(posed, 5.0)
    written = write_optimality(Package(tmp_path, "three", None, {}), posed, solution, ("wide", "narrow"), 0.1)
    assert written is not None
    assert written.status == "proved-in-model"
    claim = json.loads(written.path.read_text())["claim"]
    if best is None:
        assert claim["bound"] is None
        assert "no assignment" in written.statement
    else:
        assert Fraction(claim["bound"]) <= best
        assert Fraction(solution.objective) == best


# ---- eight bits ----


def test_eight_bits_are_refuted_with_their_scales_named_and_int8_is_not_tried(tmp_path: Path) -> None:
    """e4m3 ends at 448: without a scale it is far from exp(exp(2.3)); with one the run errs by its own rounding."""
    options = RefuteOptions(1.0, "max-abs", ("e4m3", "e5m2", "int8"))
    found = tried(ExpExp(), [point(2.3)], options, tmp_path)
    low = found["format", "e4m3"]
    assert low.status == "proved"
    assert "stored in e4m3 without a scale" in low.text
    assert low.error == pytest.approx(math.exp(math.exp(float(np.float32(2.3)))) - 448, rel=1e-6)
    run = Emulator(capture(ExpExp().eval(), point(2.3)))(
        uniform(capture(ExpExp().eval(), point(2.3)), "e4m3"), point(2.3)
    )
    witness = found["witness", "e4m3"]
    assert witness.status == "proved"
    assert "those of eight bits with a power-of-two scale" in witness.text
    assert float(run.outputs[0]) > 448
    assert found["witness", "int8"].status == "not found"
    assert "int8 is for weights" in found["witness", "int8"].text


def test_an_encoder_decoder_is_refused_by_the_name_of_its_operation(tmp_path: Path) -> None:
    """T5's position buckets take the logarithm of zero: one line that says so, and no certificate."""
    import tinymodels

    model = tinymodels.build("t5")
    model.set_attn_implementation("eager")
    ids = torch.tensor([[5, 6, 7]])
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    captured = capture(model, call)
    with pytest.raises(AnalysisIncomplete) as caught:
        refute(captured, [call], RefuteOptions(1e-6), Package(tmp_path, "t5", captured, {}))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("witness*.json"))
