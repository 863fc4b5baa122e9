"""Layers of sequences: what each position may depend on, shown by gradients; masks; exactness by construction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.nn import (
    ExactSequenceAttention,
    ExactSequenceCell,
    ExactSequencePreservingTransition,
    LocalAttention,
    LocalGlobalBlock,
    SequenceTracker,
    SpectralSequenceLayer,
    ToyCohomologicalModel,
    betti_numbers,
    local,
    measure_pair,
)
from cohomcli.nn.attention import attend, pair_mask
from cohomcli.nn.spectral import full_window, page_norms
from cohomcli.training import ExactSequenceLoss


def reach(layer: nn.Module, n: int = 12, dim: int = 8, mask: Tensor | None = None) -> Tensor:
    """(n, n) boolean: whether output position i depends on input position j."""
    torch.manual_seed(0)
    x = torch.randn(1, n, dim, requires_grad=True)
    out = layer(x, mask)
    out = out[0] if isinstance(out, tuple) else out
    out = out[-1] if isinstance(out, list) else out
    rows = [torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)[0][0].abs().sum(-1) for i in range(n)]
    return torch.stack(rows) > 0


def distance(n: int = 12) -> Tensor:
    index = torch.arange(n)
    return index[:, None] - index[None, :]


CAUSAL = [
    LocalAttention(8, 2, 2, causal=True),
    LocalAttention(8, 4, None, causal=True),
    ExactSequenceAttention(8, 2, 5, causal=True),
    LocalGlobalBlock(8, 4, 2, causal=True),
    SpectralSequenceLayer(8, 3, 6, num_heads=3, causal=True),
]


@pytest.mark.parametrize("layer", CAUSAL, ids=lambda layer: type(layer).__name__)
def test_causal_layers_see_no_future(layer: nn.Module) -> None:
    seen = reach(layer)
    assert not seen[distance() < 0].any()
    assert seen.diagonal().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_a_window_means_what_it_says(window: int, causal: bool) -> None:
    seen = reach(LocalAttention(8, 2, window, causal=causal))
    wanted = distance().abs() <= window
    assert torch.equal(seen, wanted & (distance() >= 0) if causal else wanted)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
def test_any_kernel_size_keeps_the_length(kernel_size: int) -> None:
    out, branches = LocalGlobalBlock(8, kernel_size, 2)(torch.randn(2, 7, 8))
    assert out.shape == branches["local"].shape == branches["global"].shape == (2, 7, 8)


@pytest.mark.parametrize("n", [3, 50, 200])
@pytest.mark.parametrize("window", [0, 1, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("eager", [False, True])
def test_bands_equal_full_attention_under_the_band_mask(n: int, window: int, causal: bool, eager: bool) -> None:
    torch.manual_seed(n)
    q, k, v = (torch.randn(2, 3, n, 4) for _ in range(3))
    mask = torch.rand(2, n) > 0.3
    allowed = pair_mask(mask, n, causal, q.device)
    assert allowed is not None
    wanted = attend(q, k, v, allowed & local.band(n, window))
    assert torch.allclose(local.windowed(q, k, v, window, mask, causal=causal, eager=eager), wanted, atol=1e-5)


def test_bands_hold_a_fixed_number_of_keys_per_query_however_long_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = []

    def watching(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        spans.append((q.shape[2], k.shape[2]))
        return attend(q, k, v, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(local, "attend", watching)
    LocalAttention(8, 2, 4)(torch.randn(1, 5000, 8))
    assert spans == [(16, 24)]


def _outputs(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    out = layer(x, mask)
    out = out[0] if isinstance(out, tuple) else out
    return torch.cat(out, dim=-1) if isinstance(out, list) else out


@pytest.mark.parametrize(
    "layer",
    [*CAUSAL, LocalAttention(8, 2, 2), ExactSequenceAttention(8, 4), LocalGlobalBlock(8), SpectralSequenceLayer(8)],
    ids=lambda layer: f"{type(layer).__name__}-{layer.causal}",
)
def test_padding_on_either_side_changes_nothing_for_real_tokens(layer: nn.Module) -> None:
    torch.manual_seed(5)
    x, junk = torch.randn(2, 9, 8), 100 * torch.randn(2, 4, 8)
    alone = _outputs(layer, x, None)
    right = _outputs(layer, torch.cat([x, junk], 1), torch.tensor([[1] * 9 + [0] * 4] * 2))
    left = _outputs(layer, torch.cat([junk, x], 1), torch.tensor([[0] * 4 + [1] * 9] * 2))
    assert torch.allclose(right[:, :9], alone, atol=1e-5)
    assert torch.allclose(left[:, 4:], alone, atol=1e-5)
    assert torch.isfinite(left).all()


def test_pair_masks_are_respected_and_wrong_ones_named() -> None:
    mask = torch.eye(6, dtype=torch.bool)[None]
    assert torch.equal(reach(ExactSequenceAttention(8, 2), 6, mask=mask), mask[0])
    assert torch.equal(reach(LocalAttention(8, 2, 3), 6, mask=mask), mask[0])
    with pytest.raises(UsageError, match="does not fit 6 tokens"):
        ExactSequenceAttention(8, 2)(torch.randn(1, 6, 8), torch.ones(1, 5))
    with pytest.raises(UsageError, match="heads"):
        LocalAttention(8, 3)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_exact_attention_runs_with_any_head_count_and_sequence_width(heads: int) -> None:
    layer = ExactSequenceAttention(16, heads, sequence_dim=5)
    x = torch.randn(2, 7, 16)
    out, metrics = layer(x)
    assert out.shape == x.shape
    assert metrics["gate"].tolist() == [0.5] * heads
    assert torch.allclose(layer(x, eager=True)[0], out, atol=1e-5)


def test_second_score_vanishes_exactly_when_its_maps_form_a_complex() -> None:
    torch.manual_seed(6)
    layer = ExactSequenceAttention(8, 2, sequence_dim=6)
    with torch.no_grad():
        layer.kernel_checker.bias.zero_(), layer.image_checker.bias.zero_()
        layer.kernel_checker.weight[:3].zero_(), layer.image_checker.weight[3:].zero_()
        layer.exactness_gate.fill_(50.0)
    x = torch.randn(1, 5, 8)
    pair = layer.map_pairs(x)[0]
    assert measure_pair(pair, 0.0).complex_energy == 0.0
    v = layer.qkv(x).chunk(3, dim=-1)[2]
    assert torch.allclose(layer(x)[0], layer.proj(v.mean(1, keepdim=True)).expand(1, 5, 8), atol=1e-5)


def test_tracker_splits_without_loss_and_is_a_split_exact_sequence() -> None:
    torch.manual_seed(7)
    tracker = SequenceTracker(10, 4).double()
    x = torch.randn(3, 5, 10, dtype=torch.float64)
    seq, other = tracker(x)
    assert (seq.shape[-1], other.shape[-1]) == (4, 6)
    assert torch.allclose(tracker.combine(seq, other), x, atol=1e-12)
    assert torch.allclose(seq.norm() ** 2 + other.norm() ** 2, x.norm() ** 2)
    projection = tracker.projection()
    inclusion = tracker.combine(torch.zeros(6, 4, dtype=torch.float64), torch.eye(6, dtype=torch.float64)).T
    assert betti_numbers([inclusion, projection]) == (0, 0, 0)
    assert torch.allclose(projection @ projection.T, torch.eye(4, dtype=torch.float64))
    with pytest.raises(UsageError, match="sequence_dim"):
        SequenceTracker(4, 4)


def test_transitions_in_a_row_compose_to_zero_on_the_sequence_component() -> None:
    torch.manual_seed(8)
    first, second = (
        ExactSequencePreservingTransition(8, 8, 4).double(),
        ExactSequencePreservingTransition(8, 8, 4).double(),
    )
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    y = first(x)
    assert y.shape == x.shape
    without = torch.cat([torch.zeros_like(y[..., :4]), y[..., 4:]], dim=-1)
    S = second.sequence_map(first.image())
    assert torch.allclose(y @ S.T, without @ S.T, atol=1e-12)
    assert (S[:, :4] @ first.sequence_map()).abs().max() < 1e-12
    assert not torch.allclose(y @ second.sequence_map().T, without @ second.sequence_map().T, atol=1e-3)


def test_cell_adds_only_what_is_new_and_stays_bounded() -> None:
    torch.manual_seed(9)
    cell = ExactSequenceCell(3, 6)
    state = None
    with torch.no_grad():
        for _ in range(300):
            before = torch.zeros(2, 6) if state is None else state
            output, state = cell(10 * torch.randn(2, 3), state)
            size = (before * before).sum(-1, keepdim=True)
            along = (state * before).sum(-1, keepdim=True) / size.clamp_min(1e-12) * before
            kept = along.norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-6)
            assert (kept <= 1.0 + 1e-5).all()  # along the old state there is only decay: the new part is orthogonal
            assert (state.norm(dim=-1) <= max(6**0.5, float(before.norm(dim=-1).max())) + 1e-5).all()
    assert output.shape == (2, 6)


def test_levels_grow_with_their_windows_and_pages_are_measured_on_complete_windows() -> None:
    layer = SpectralSequenceLayer(8, 3, 4, windows=(1, 3, None))
    levels, norms = layer(torch.randn(2, 12, 8))
    assert [tuple(level.shape) for level in levels] == [(2, 12, 4)] * 3
    assert norms.shape == (2,)
    constant = torch.ones(1, 12, 8)
    assert layer(constant)[1].max() < 1e-10  # one token value: every window averages to the same
    inside = full_window(constant, 3, None, False)
    assert inside[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert full_window(constant, 3, None, True)[0].tolist() == [0, 0, 0, *[1] * 9]
    with pytest.raises(UsageError, match="filtration"):
        SpectralSequenceLayer(8, 2, windows=(3, 3))


def test_page_norms_by_hand_and_scale_free() -> None:
    a, b = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert page_norms([a, b]).tolist() == [1.0]
    assert page_norms([0.5 * b, b]).tolist() == pytest.approx([0.25])
    assert page_norms([5 * b, 10 * b]).tolist() == pytest.approx([0.25])


@pytest.mark.parametrize(("heads", "kernel_size"), [(1, 1), (2, 4), (8, 3)])
def test_toy_model_with_other_arguments_and_padding(heads: int, kernel_size: int) -> None:
    torch.manual_seed(10)
    model = ToyCohomologicalModel(16, 3, num_heads=heads, sequence_dim=4, kernel_size=kernel_size)
    x = torch.randn(2, 5, 16)
    outputs = model(x)
    padded = model(torch.cat([x, torch.full((2, 3, 16), 9.0)], 1), torch.tensor([[1] * 5 + [0] * 3] * 2))
    assert torch.allclose(outputs["logits"], padded["logits"], atol=1e-5)
    assert [h.shape for h in outputs["repr_list"]] == [x.shape] * 3
    loss, logs = ExactSequenceLoss(0.1)(outputs["map_pairs"], torch.zeros(()))
    loss.backward()
    assert 0 <= float(logs["complex_defect"]) <= 1
    assert all(p.grad is not None for name, p in model.named_parameters() if "sequence_projector.weight" in name)
