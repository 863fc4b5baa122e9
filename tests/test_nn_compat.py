"""The published formulas of both source systems, against the numbers that their own code put out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cohomcli.nn import SVDTracker, compat, compat_grid
from cohomcli.training import SpectralLearningRateScheduler
from cohomcli.training import compat as losses

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "source_layers.json").read_text())
AI, HEPTAPOD = VECTORS["cohomological_ai"], VECTORS["heptapod"]


def filled(module: nn.Module) -> nn.Module:
    """`module` in float64 with every parameter set to 0.1 sin(1), 0.1 sin(2), .., row-major."""
    for parameter in module.double().parameters():
        values = 0.1 * torch.sin(torch.arange(1, parameter.numel() + 1, dtype=torch.float64))
        parameter.data.copy_(values.view(parameter.shape))
    return module.eval()


def x() -> Tensor:
    return torch.cos(torch.arange(32, dtype=torch.float64)).view(1, 4, 8)


def equal(value: Tensor, wanted: Any, rel: float = 1e-9) -> None:
    expected = torch.tensor(wanted, dtype=torch.float64).flatten()
    assert torch.allclose(value.detach().double().flatten(), expected, rtol=rel, atol=1e-9)


def test_exact_sequence_attention() -> None:
    entry = next(value for key, value in AI.items() if key.startswith("ExactSequenceAttention"))
    out, norms = filled(compat.LiteralExactSequenceAttention(8, 1, 4))(x())
    equal(out, entry["out"])
    for name, value in entry["metrics"].items():
        assert float(norms[name].detach()) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("LocalAttention(8,2,window_size=1)", compat.LiteralLocalAttention(8, 2, 1)),
        ("LocalGlobalBlock(8,3,2)", compat.LiteralLocalGlobalBlock(8, 3, 2)),
        ("ExactSequencePreservingTransition(8,8,4)", compat.LiteralTransition(8, 8, 4)),
    ],
)
def test_layers_with_one_output(name: str, module: nn.Module) -> None:
    equal(filled(module)(x()), AI[name])


def test_tracker_and_spectral_layer() -> None:
    seq, other = filled(compat.LiteralTracker(8, 4))(x())
    equal(seq, AI["SequenceTracker(8,4)"]["seq"])
    equal(other, AI["SequenceTracker(8,4)"]["other"])
    levels, violation = filled(compat.LiteralSpectralLayer(8, 3, 4))(x())
    assert float(violation.detach()) == pytest.approx(AI["SpectralSequenceLayer(8,3,4)"]["violation"], rel=1e-9)
    for level, wanted in zip(levels, AI["SpectralSequenceLayer(8,3,4)"]["levels"], strict=True):
        equal(level, wanted)


@pytest.mark.parametrize(("state", "key"), [(None, "None"), (torch.ones(1, 4, dtype=torch.float64), "ones")])
def test_cell(state: Tensor | None, key: str) -> None:
    output, after = filled(compat.LiteralCell(8, 4))(x()[:, 0], state)
    entry = AI[f"ExactSequenceCell(8,4)(x[:,0],{key})"]
    equal(output, entry["output"])
    equal(after, entry["state"])


def test_losses_and_the_objective_that_drops_one() -> None:
    eye, diagonal = torch.eye(2).double()[None], torch.diag(torch.tensor([2.0, 3.0])).double()[None]
    swap, one = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]).double(), torch.tensor(1.0).double()
    entry = next(value for key, value in AI.items() if key.startswith("losses"))
    found = losses.literal_violations([eye, diagonal, swap])
    equal(torch.stack(found), entry["exact"]["exact_violations"])
    exact = losses.literal_exact_loss([eye, diagonal, swap], one)
    assert float(exact) == pytest.approx(entry["exact"]["total_loss"])
    spectral = losses.literal_spectral_loss(eye, diagonal, one)
    assert float(spectral) == pytest.approx(entry["spectral(I,diag)"]["total_loss"])
    total = losses.literal_objective([eye, diagonal, swap], (eye, diagonal), one)
    assert float(total) == pytest.approx(entry["objective_total(bug: exact dropped)"])


def test_singular_values_literally_and_in_our_tracker() -> None:
    batch = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    equal(compat.literal_singular_values(batch), AI["SVDTracker([[3,0],[0,4]])"], 1e-6)
    equal(SVDTracker(2).update(batch), AI["SVDTracker([[3,0],[0,4]])"], 1e-6)


def test_learning_rates_of_the_published_rule_are_ours() -> None:
    pages = [torch.ones(2, 3), 1.5 * torch.ones(2, 3), 1.5 * torch.ones(2, 3)]
    wanted = {int(k): v for k, v in AI["SpectralLearningRateScheduler step 500, pages ones,1.5,1.5"].items()}
    scheduler = SpectralLearningRateScheduler()
    assert scheduler.step(pages, 500) == pytest.approx(wanted)
    for _ in range(120):
        rates = scheduler.step(pages, 1000)
    assert rates == pytest.approx({0: 1e-3, 1: 1e-4, 2: 1e-4})


def test_cohomological_transformer_sees_no_token() -> None:
    entry = next(value for key, value in AI.items() if key.startswith("CohomologicalTransformer"))
    logits, components = filled(compat.LiteralCohomologicalTransformer(8, 4, (2, 2, 2)))(torch.arange(6)[None])
    equal(logits[0, 0, :5], entry["logits[0,0,:5]"])
    equal(torch.stack([component.sum() for component in components]), entry["seq_comp sums"])
    assert logits.std(dim=1).max().item() < 1e-6


def test_grid_attention() -> None:
    small = torch.arange(18, dtype=torch.float64).view(1, 3, 3, 2) / 10
    key = "Local2DAttention(2,1) on arange(18)/10 (1,3,3,2)"
    equal(compat_grid.literal_local_2d_attention(small, 1), HEPTAPOD[key], 1e-6)
    wide = torch.cos(torch.arange(128, dtype=torch.float64)).view(1, 4, 4, 8)
    equal(
        compat_grid.literal_local_2d_attention(wide, 2), HEPTAPOD["Local2DAttention(8,2) on cos(arange(128)) (1,4,4,8)"]
    )
    assert torch.allclose(compat_grid.literal_local_2d_attention(wide, 0), wide)


def test_grid_primitives() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    equal(compat_grid.literal_rotary_2d(8, 3, 3), HEPTAPOD["Rotary2DEmbedding(8)(3,3)"], 1e-6)
    equal(compat_grid.literal_rotate_half(values), HEPTAPOD["rotate_half([1,2,3,4])"])
    equal(compat_grid.literal_swiglu(values), HEPTAPOD["SwiGLU([1,2,3,4])"], 1e-6)
    equal(compat.literal_layer_norm(values, torch.ones(4)), HEPTAPOD["LayerNorm([1,2,3,4])"], 1e-5)


def test_grid_block_and_model() -> None:
    wide = torch.cos(torch.arange(128, dtype=torch.float64)).view(1, 4, 4, 8)
    block = HEPTAPOD["NonLinearTransformerBlock(8,1) filled on cos(arange(128))"]
    equal(filled(compat_grid.LiteralNonLinearBlock(8, 1))(wide), block)
    ids = (torch.arange(9) % 7).view(1, 3, 3)
    model = filled(compat_grid.LiteralNonLinearTransformer(7, 8, 2, 3, 1))
    key = "NonLinearTransformer(vocab 7, dim 8, depth 2, window 1) filled, z=arange(9)%7"
    equal(model(ids), HEPTAPOD[key], 1e-6)
    count = sum(p.numel() for p in compat_grid.LiteralNonLinearTransformer(100, 128, 2, 10).parameters())
    assert count == 289_380
