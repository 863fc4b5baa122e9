"""What is said of unseen inputs: quantiles against distributions that are known, and factors against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal
from torch import nn

from cohomcli.precision.capture import capture
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.output_norm import bind
from cohomcli.precision.ranges import admissibility, ranges, unseen_peaks
from cohomcli.precision.spec import Ranges
from cohomcli.precision.unseen import LEVEL, predictive_quantile, tail_quantile, unseen_bound
from cohomcli.precision.variation import Relative, _row_event, relative_sensitivities, unseen_factors

RNG = np.random.default_rng(0)


def _exceeded(draw: np.ndarray, level_of: float) -> float:
    """How often one further draw exceeds the bound from the others of its row."""
    return float(np.mean([row[-1] > unseen_bound(row[:-1].tolist(), "rel-l2") for row in draw])) / level_of


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0])
def test_one_log_normal_error_in_a_thousand_exceeds_the_bound_at_most(spread: float) -> None:
    assert _exceeded(np.exp(spread * RNG.normal(size=(1500, 17))), LEVEL) <= 3.0


def test_a_pareto_tail_is_kept_where_log_normal_thinking_fails() -> None:
    """P(X > x) = 1/x: its logarithms are far from normal."""
    draw = 1.0 / RNG.random(size=(2000, 17))
    logs = np.log(draw[:, :-1])
    naive = np.mean([x > math.exp(predictive_quantile(row, 0.12)) for row, x in zip(logs, draw[:, -1], strict=True)])
    assert _exceeded(draw, 1.0) < 0.8 * naive


def test_with_many_inputs_the_bound_is_the_quantile() -> None:
    logs = 0.5 + 0.2 * RNG.normal(size=20000)
    assert predictive_quantile(logs, 0.12) == pytest.approx(0.5 + 0.2 * normal.isf(LEVEL), abs=0.02)
    pareto = -np.log(RNG.random(20000)) / 2.0  # P(X > x) = x^-2
    assert tail_quantile(pareto) == pytest.approx(-math.log(LEVEL) / 2.0, abs=0.1)


def test_few_inputs_leave_more_room_and_units_do_not_matter() -> None:
    factors = [unseen_bound([2.0] * n, "rel-l2") / 2.0 for n in (1, 4, 16, 64)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == pytest.approx(3.4, abs=0.05)
    assert 1.0 < factors[-1] < 1.2
    errors = [1e-7, 3e-7, 2e-7]
    assert unseen_bound([1e6 * e for e in errors], "kl") == pytest.approx(1e6 * unseen_bound(errors, "kl"))
    assert unseen_bound(errors, "kl") > max(errors)


def test_what_is_exact_or_not_finite_stays_so() -> None:
    assert unseen_bound([0.0, 0.0], "max-abs") == 0.0
    assert unseen_bound([0.1, math.nan], "max-abs") == math.inf
    for wrong in ([], [-1.0]):
        with pytest.raises(ValueError, match="at least one"):
            unseen_bound(wrong, "rel-l2")


# --- variation --------------------------------------------------------------------------------------------------------


def test_relative_sensitivity_of_the_output_is_one_and_weights_follow_their_readers() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 2000).eval()
    calls = shape_inputs("4x64", 3)
    captured = capture(model, calls[0])
    found = relative_sensitivities(captured, calls, bind(captured, calls, "rel-l2"))
    index = {v.target or v.name: v.index for v in captured.graph.vertices}
    product = found.total[:, index["aten.linear.default"]]
    # mean_k sum_j (lambda_kj y_j)^2 / ||y||^2, of which the expectation is 1 and the standard deviation about 0.01
    assert product == pytest.approx(np.ones(3), abs=0.05)
    assert (found.total[:, index["weight"]] == product).all()
    rows = found.rows[index["aten.linear.default"]]
    assert rows.shape == (3, 4)
    assert rows.sum(axis=1) == pytest.approx(product)


def test_an_op_that_matters_on_one_input_alone_gets_a_factor() -> None:
    relative = np.ones((8, 3))
    relative[5, 1] = 100.0
    relative[:, 2] = 0.0
    alike, rare, never = unseen_factors(Relative(relative, {}, {}), 2, "rel-l2")
    assert 1.0 < alike < 3.0
    assert rare > 50.0
    assert never == 1.0


def test_near_ties_of_single_rows_show_before_one_of_them_makes_a_whole_input() -> None:
    """Totals that are all alike, of rows that are all alike or of a few large ones: only the second is a warning."""
    steady = RNG.random((8, 400)) + 0.5
    rare = np.where(RNG.random((8, 400)) < 0.02, 1.0 / RNG.random((8, 400)), 1e-3)
    total = np.ones((8, 2))
    rows = {0: steady / steady.sum(axis=1, keepdims=True), 1: rare / rare.sum(axis=1, keepdims=True)}
    few, many = unseen_factors(Relative(total, rows, {}), 2, "rel-l2")
    assert few < 3.0
    assert many > 3.0 * few


# --- ranges -----------------------------------------------------------------------------------------------------------


class Gain(nn.Module):
    """A product that is as large as its input says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n,) to (n,)."""
        return torch.tanh(x * 1e4)


def test_magnitudes_that_differ_from_input_to_input_are_refused_before_they_overflow() -> None:
    calls = [(torch.full((8,), size),) for size in (0.5, 1.2, 2.9, 0.3)]
    captured = capture(Gain().eval(), calls[0])
    found = ranges(captured, calls)
    (product,) = [v.index for v in captured.graph.vertices if v.target == "aten.mul.Tensor"]
    assert found.max_abs[product] == pytest.approx(2.9e4)
    assert found.peaks is not None
    assert found.peaks[:, product] == pytest.approx([5e3, 1.2e4, 2.9e4, 3e3])
    allowed = admissibility(captured.graph, found, ("fp32", "fp16"))
    assert not allowed.allowed[product, 1]
    assert "an unseen one may reach" in allowed.reasons[product, "fp16"]
    steady = ranges(captured, [(torch.full((8,), 2.9 + 0.01 * n),) for n in range(4)])
    assert admissibility(captured.graph, steady, ("fp32", "fp16")).allowed[product, 1]


def test_without_single_peaks_only_the_largest_counts() -> None:
    calls = [(torch.ones(8),)]
    captured = capture(Gain().eval(), calls[0])
    found = ranges(captured, calls)
    assert unseen_peaks(captured.graph, Ranges(found.max_abs, found.min_abs)) == pytest.approx(found.max_abs)


def test_positions_that_hardly_matter_make_no_tail_of_the_one_that_does() -> None:
    rng = np.random.default_rng(0)
    rows = 1e-12 * rng.lognormal(size=(32, 65))
    rows[:, 0] = rng.lognormal(sigma=0.3, size=32)  # a classifier reads off its first position
    event = _row_event(rows)
    assert rows.max() < event < 10.0 * rows.max()
    heavy = rng.pareto(1.0, size=(32, 65)) + 1.0  # one population: the largest of one input in 100 is about 6,500
    assert 1_500.0 < _row_event(heavy) < 26_000.0
