"""The balance class of a captured model: relative amplifications in closed form, and what the report says of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from precisionresults import small
from torch import nn

from cohomcli.precision.amplification import amplifications, balance_of
from cohomcli.precision.capture import Captured, capture
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.result import BalanceEdge, BalanceSummary
from cohomcli.report.precision.balancing import balance_tables
from tests.massive import call, massive_llama


class Branches(nn.Module):
    """3x is added to x: the branch asks log2 3 bits more of x than the other way to the sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 3.0 * x


class Chain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(3.0 * x)


def _captured(model: nn.Module) -> tuple[Captured, Any]:
    example = shape_inputs("64x64", 1)[0]
    return capture(model.eval(), example), example


def test_amplifications_of_a_residual_sum_are_the_shares_of_its_operands() -> None:
    captured, example = _captured(Branches())
    gains = amplifications(captured, example)
    names = {(captured.graph.vertices[u].name, captured.graph.vertices[v].name): a for (u, v), a in gains.items()}
    assert names == pytest.approx({("x", "mul"): 1.0, ("x", "add"): 0.25, ("mul", "add"): 0.75}, rel=0.03)


def test_the_waste_of_a_residual_sum_is_the_logarithm_of_its_scale() -> None:
    captured, example = _captured(Branches())
    found = balance_of(captured, example)
    assert found is not None
    assert (found.n_loops, found.n_unbalanced) == (1, 1)
    assert found.waste == pytest.approx(math.log2(3.0), abs=0.05)
    assert found.certified == pytest.approx(found.waste, rel=1e-9)
    assert sum(abs(edge.waste) for edge in found.edges) == pytest.approx(found.waste)


def test_a_chain_wastes_nothing_and_has_no_table() -> None:
    captured, example = _captured(Chain())
    found = balance_of(captured, example)
    assert found is not None
    assert (found.n_loops, found.n_unbalanced, found.edges) == (0, 0, ())
    assert found.waste == pytest.approx(0.0, abs=1e-9)
    assert balance_tables(replace(small(), balance=found)) == []


def test_masks_and_massive_activations_leave_every_gain_finite() -> None:
    model, example = massive_llama(), call(0)
    found = balance_of(capture(model, example), example)
    assert found is not None
    assert 0.0 < found.certified <= found.waste * (1 + 1e-9) < 1e4
    assert all(math.isfinite(edge.waste) for edge in found.edges)


def test_the_table_is_marked_experimental_and_gives_both_bounds() -> None:
    edge = BalanceEdge("mul", "layers.0", "add", "", 1.5)
    (table,) = balance_tables(replace(small(), balance=BalanceSummary(4, 1, 2.5, 2.25, (edge,))))
    assert "experimental" in table.title
    assert table.note.startswith("Experimental")
    assert "1 of 4 independent loops" in table.note
    assert "at least 2.25 bits" in table.note
    assert table.rows == (("mul", "layers.0", "add", "–", "1.5"),)
