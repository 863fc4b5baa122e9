"""The closed loop and the whole analysis: what is promised is measured, and the search cannot fool itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.precision.analysis import Analysis, analyse
from cohomcli.precision.execute import run, uniform
from cohomcli.precision.granularity import Keep
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.loop import Setting, closed_loop, most_accurate, problem_for, widest
from cohomcli.precision.optimizer import SheafPrecisionOptimizer
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import bind
from cohomcli.precision.sensitivity import predict
from cohomcli.precision.spec import ErrorNorm, Plan
from cohomcli.precision.summary import Inputs
from cohomcli.precision.weights_only import analyse_weights

FAST = PrecisionOptions(n_pareto=0, n_curvature=0, baselines=False, time_limit=5.0)


class Net(nn.Module):
    """A residual net with a softmax in the middle and one huge channel, which fp16 cannot hold."""

    def __init__(self, huge: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)
        self.huge = huge
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.up(x)) * self.huge
        x = x + self.down(h / self.huge)
        return self.head(torch.softmax(x, -1) * x)


def _inputs(n: int = 3) -> Inputs:
    calls = shape_inputs("5x16", 2 * n)
    return Inputs(calls[:n], calls[n:], "noise", n_scored=n)


@pytest.fixture(scope="module")
def found() -> Analysis:
    return analyse(Net(1e6), _inputs(), replace(FAST, epsilon=1e-3, n_pareto=5, n_curvature=4, baselines=True))


def _error(analysis: Analysis, plan: Plan, inputs: Inputs) -> float:
    """Relative L2 error over the held-out inputs, by definition."""
    from cohomcli.precision.execute import Emulator

    emulate = Emulator(analysis.captured)
    got = torch.cat([emulate(plan, x).outputs[0].double() for x in inputs.heldout])
    want = torch.cat([run(analysis.captured, x, torch.float64)[0] for x in inputs.heldout])
    return float((got - want).norm() / want.norm())


def test_the_measured_error_is_that_of_the_plan_on_held_out_inputs(found: Analysis) -> None:
    result = found.result
    assert result.met
    assert result.measured_error == pytest.approx(_error(found, found.plan, _inputs()), rel=1e-9)
    assert result.measured_error <= result.epsilon
    assert result.fp32_error == pytest.approx(_error(found, uniform(found.captured, "fp32"), _inputs()), rel=1e-9)
    assert len(result.rounds) <= 3
    assert result.bytes_plan is not None
    assert result.bytes_plan.total < result.bytes_fp32.total


def test_rows_are_the_plan_and_shares_add_up(found: Analysis) -> None:
    chosen = [f for f in found.plan.formats if f]
    assert [row.format for row in found.result.plan] == chosen
    assert sum(row.share for row in found.result.plan) == pytest.approx(1.0)
    assert all(row.reason for row in found.result.plan)


def test_the_huge_channel_is_named_kept_out_of_fp16_and_explained(found: Analysis) -> None:
    (fp16,) = [o for o in found.result.obstructions if o.format == "fp16"]
    assert [op.target for op in fp16.ops] == ["aten.mul.Tensor"]
    assert "beyond fp16's largest number 65504" in fp16.ops[0].reason
    rows = {row.op: row for row in found.result.plan}
    assert rows[fp16.ops[0].op].format in ("bf16", "fp32")
    bad = next(b for b in found.result.baselines if b.name == "uniform-fp16")
    assert not bad.finite
    assert bad.error is None
    assert bad.n_overflows == 1


def test_the_sheaf_of_the_analysis_obeys_euler_and_relative_cohomology(found: Analysis) -> None:
    sheaf = found.result.sheaf
    assert sheaf.euler == sheaf.h0 - sheaf.h1
    assert sheaf.euler == sum(f.n_admissible for f in sheaf.formats) - sheaf.n_edges * len(sheaf.formats)
    (fp16,) = [f for f in sheaf.formats if f.format == "fp16"]
    assert (fp16.h0, fp16.n_inadmissible) == (0, 1)
    assert fp16.h1 == sheaf.betti1  # one obstruction in a connected graph adds nothing to the loops


def test_the_trade_off_costs_less_for_more_error_and_bounds_hold(found: Analysis) -> None:
    points = [p for p in found.result.pareto if p.objective is not None]
    assert len(points) >= 4
    assert all(b.objective <= a.objective for a, b in pairwise(points))
    assert all(p.lower_bound <= p.objective * (1 + 1e-12) for p in points)
    assert all(p.predicted_error <= p.epsilon * (1 + 1e-9) for p in points)


@pytest.mark.parametrize("norm", ["rel-l2", "max-abs", "kl"])
@pytest.mark.parametrize("factor", [3.0, 100.0])
def test_whatever_fp32_meets_is_met(norm: ErrorNorm, factor: float) -> None:
    model, inputs = Net(), _inputs(4)
    base = analyse(model, inputs, replace(FAST, norm=norm, epsilon=1e-1)).result.fp32_error
    assert base is not None
    result = analyse(model, inputs, replace(FAST, norm=norm, epsilon=max(base, 1e-12) * factor)).result
    assert result.met, (result.measured_error, result.rounds)


def test_what_no_format_meets_is_said_to_be_infeasible_with_a_proof() -> None:
    from cohomcli.precision.certificate import check

    analysis = analyse(Net(), _inputs(), replace(FAST, epsilon=1e-9))
    result = analysis.result
    assert not result.met
    assert result.infeasible
    assert "fp32 everywhere already errs" in result.reason
    assert analysis.looped.solution.certificate is not None
    assert check(analysis.looped.problem, analysis.looped.solution.certificate)
    assert set(analysis.plan.formats) <= {"fp32", ""}


def test_fp64_meets_what_fp32_cannot() -> None:
    result = analyse(Net(), _inputs(), replace(FAST, epsilon=1e-9, formats=("fp64", "fp32", "fp16"))).result
    assert result.met
    assert {row.format for row in result.plan} >= {"fp64"}


def test_a_bad_prediction_is_corrected_by_measuring() -> None:
    """A sensitivity that is ten times too small, which a single solve would believe."""
    from cohomcli.precision.capture import capture
    from cohomcli.precision.execute import Emulator
    from cohomcli.precision.ranges import admissibility, ranges
    from cohomcli.precision.sensitivity import SensitivityOptions, sensitivity

    inputs = _inputs()
    captured = capture(Net(), inputs.calibration[0])
    allowed = admissibility(captured.graph, ranges(captured, inputs.calibration), FAST.formats)
    honest = sensitivity(captured, inputs.calibration, SensitivityOptions(FAST.formats), allowed)
    wrong = replace(honest, scores=honest.scores / 100.0)
    norm = bind(captured, inputs.calibration, "rel-l2")
    setting = Setting(
        captured.graph, wrong, allowed, norm, Emulator(captured), inputs.calibration, lambda p: predict(wrong, p)
    )
    looped = closed_loop(setting, replace(FAST, epsilon=1e-3), lambda _: None)
    first, last = looped.rounds[0], looped.rounds[looped.chosen]
    assert first.measured is not None
    assert first.measured > 1e-3
    assert looped.good
    assert last.worst is not None
    assert last.bound is not None
    assert last.worst < last.bound <= 1e-3
    for plan in (most_accurate(setting, problem_for(setting, FAST, 1.0)), widest(setting, looped.problem)):
        assert set(plan.formats) == {"fp32", ""}


def test_when_no_round_is_good_the_widest_format_is_the_answer() -> None:
    """Scores that see no error at all: solving again changes nothing, however small the target."""
    from cohomcli.precision.analysis import prepare
    from cohomcli.precision.capture import capture

    inputs = _inputs()
    options = replace(FAST, epsilon=1e-6)
    setting, _ = prepare(capture(Net(), inputs.calibration[0]), inputs, options)
    blind = replace(setting, scores=np.zeros_like(setting.sensitivity.scores))
    looped = closed_loop(blind, options, lambda _: None)
    assert set(looped.plan.formats) == {"fp32", ""}
    assert [r.solved for r in looped.rounds] == [True, True, True, False]
    assert not looped.solved
    assert looped.good


def test_held_out_inputs_steer_nothing() -> None:
    calls = shape_inputs("5x16", 9)
    far = [(1e3 * call.args[0],) for call in calls[3:6]]
    first, second = (
        analyse(Net(), Inputs(calls[:3], heldout), replace(FAST, epsilon=1e-3)) for heldout in (calls[6:], far)
    )
    assert first.plan == second.plan
    assert first.result.rounds == second.result.rounds
    assert first.result.measured_error != second.result.measured_error


def test_further_calibration_inputs_are_run_and_count() -> None:
    calls = shape_inputs("5x16", 12)
    result = analyse(Net(), Inputs(calls[:3], calls[8:], surveyed=calls[3:8]), replace(FAST, epsilon=1e-2)).result
    assert [r.n_inputs for r in result.rounds] == [8] * len(result.rounds)
    assert result.met


def test_groups_and_wishes_are_kept() -> None:
    options = replace(FAST, epsilon=1e-3, level="module", keep=(Keep("head", ("fp32",)),))
    result = analyse(Net(), _inputs(), options).result
    for module in ("up", "down", "head"):
        assert len({row.format for row in result.plan if row.module == module}) == 1
    assert {row.format for row in result.plan if row.module == "head"} == {"fp32"}
    assert any("keep rule" in row.reason for row in result.plan if row.module == "head")


def test_inputs_are_needed() -> None:
    with pytest.raises(UsageError, match="held-out"):
        analyse(Net(), Inputs(shape_inputs("5x16", 1), []), FAST)


def test_analysing_twice_gives_the_same_and_leaves_the_model_alone() -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (analyse(model, _inputs(), replace(FAST, epsilon=1e-3)) for _ in range(2))
    assert first.result == second.result
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- the source system's names ----------------------------------------------------------------------------------------


def test_the_optimizer_speaks_the_source_systems_names() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(dim=1))
    optimizer = SheafPrecisionOptimizer(model, target_accuracy=1e-3)
    result = optimizer.analyze(torch.randn(8, 64))
    assert result.met
    assert result.h0_dim == 4  # every format is admissible on the one component
    assert result.impossibility_proof == ""
    assert result.precision_map["0"].dtype == torch.float16
    assert result.precision_map["0"].precision_bits == 16
    softmax = result.precision_map["3"]
    assert softmax.curvature is not None
    assert softmax.curvature <= np.sqrt(6) / 9 + 1e-9  # not 362.5
    again = optimizer.compare_with_amp(torch.randn(8, 64))
    assert again["sheaf_memory_mb"] < again["amp_memory_mb"]
    assert again["sheaf_vs_amp_improvement"] == pytest.approx(1 - again["sheaf_memory_mb"] / again["amp_memory_mb"])


def test_a_model_without_parameters_divides_by_no_zero() -> None:
    class DoubleExp(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(torch.exp(x))

    optimizer = SheafPrecisionOptimizer(DoubleExp(), target_accuracy=1e-6)
    result = optimizer.analyze(torch.linspace(0.0, 3.0, 32).reshape(1, 32))
    assert result.met
    assert "fp16" in result.impossibility_proof  # exp(exp(3)) is 5e8
    assert optimizer.compare_with_amp(torch.linspace(0.0, 1.0, 32).reshape(1, 32))["amp_memory_mb"] > 0


# --- weights alone ----------------------------------------------------------------------------------------------------


def test_weights_alone_are_rounded_and_counted() -> None:
    torch.manual_seed(2)
    w, big = torch.randn(8, 16), torch.full((4,), 1e5)
    tensors = {"w": w, "tied": w, "big": big, "steps": torch.tensor(3)}
    found = analyse_weights(tensors, ("fp32", "bf16", "fp16", "int8"), "no program")
    assert [row.name for row in found.weights] == ["w", "big"]
    assert found.n_parameters == 8 * 16 + 4
    assert found.bytes_stored == 4 * (8 * 16 + 4)
    expected = float((w.half().double() - w.double()).norm() / w.double().norm())
    assert found.weights[0].errors["fp16"] == pytest.approx(expected, rel=1e-12)
    assert "beyond fp16" in found.weights[1].refused["fp16"]
    assert found.bytes_by_format["fp16"] == 2 * 8 * 16 + 4 * 4
    assert found.bytes_by_format["int8"] == 8 * 16 + 8 * 4 + 4 * 4
    assert any("share their memory" in note for note in found.notes)


def test_a_thrifty_survey_is_cut_to_what_the_size_affords(monkeypatch: pytest.MonkeyPatch) -> None:
    from cohomcli.precision import analysis
    from cohomcli.precision.capture import capture

    calls = shape_inputs("5x16", 60)
    captured = capture(Net(), calls[0])
    numbers = sum(v.numel for v in captured.graph.vertices)
    inputs = Inputs(calls[:4], calls[4:8], surveyed=calls[8:], thrifty=True)
    assert len(analysis.afforded(captured, inputs).surveyed) == analysis.MOST_SURVEYED
    monkeypatch.setattr(analysis, "WORK", 12 * numbers)  # 24 calibration inputs, 4 of which plans are made on
    assert len(analysis.afforded(captured, inputs).surveyed) == 20
    monkeypatch.setattr(analysis, "WORK", 1)
    assert list(analysis.afforded(captured, inputs).surveyed) == calls[8 : 8 + analysis.N_SURVEYED]
    assert analysis.afforded(captured, replace(inputs, thrifty=False)).surveyed is inputs.surveyed
    result = analyse(Net(), inputs, FAST).result
    assert result.n_surveyed == analysis.N_SURVEYED


def test_without_held_out_inputs_nothing_is_called_held_out() -> None:
    calls = shape_inputs("5x16", 2)
    result = analyse(Net(), Inputs(calls, calls), FAST).result
    assert (result.n_heldout, result.measured_on) == (0, "2 calibration inputs")
    assert any("no held-out inputs" in note for note in result.notes)
