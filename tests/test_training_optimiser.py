"""ExactSequenceOptimizer: bitwise AdamW when off, monotone read images when on; the scheduler and its state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.nn.exactness import second_moment
from cohomcli.training import ExactSequenceOptimizer, SpectralLearningRateScheduler


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 5, bias=False))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(40, 6), 0.01 * torch.randn(40, 5)


def descend(model: nn.Sequential, optimiser: torch.optim.Optimizer, steps: int) -> None:
    x, y = data()
    for _ in range(steps):
        optimiser.zero_grad()
        (model(x) - y).pow(2).mean().backward()
        optimiser.step()


@pytest.mark.parametrize("registered", [False, True])
def test_a_step_is_bitwise_adamw_when_off(registered: bool) -> None:
    ours, theirs = network(), network()
    optimiser = ExactSequenceOptimizer(ours.parameters(), lr=1e-2, weight_decay=0.1, preserve=not registered)
    if registered:
        optimiser.watch(ours[0], ours[1])
    descend(ours, optimiser, 20)
    descend(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1), 20)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def read_image(model: nn.Sequential, reader: torch.Tensor) -> torch.Tensor:
    """Singular values of B A G^(1/2) for a fixed reader B, G the second moment of the data."""
    values, vectors = torch.linalg.eigh(second_moment(data()[0]))
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return torch.linalg.svdvals(reader.double() @ model[0].weight.detach().double() @ root)


def test_no_step_shrinks_the_image_that_the_next_map_reads() -> None:
    kept, plain = network(), network()
    optimiser = ExactSequenceOptimizer(kept.parameters(), lr=1e-2, weight_decay=0.0, refresh=1, decay=0.0)
    optimiser.watch(kept[0], kept[1])
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    shrunk = 0
    for _ in range(40):
        reader, before = kept[1].weight.detach().clone(), read_image(kept, kept[1].weight.detach())
        descend(kept, optimiser, 1)
        after = read_image(kept, reader)
        assert float(after.sum()) >= float(before.sum()) * (1 - 1e-5)
        reader, before = plain[1].weight.detach().clone(), read_image(plain, plain[1].weight.detach())
        descend(plain, adamw, 1)
        shrunk += int(read_image(plain, reader).sum() < before.sum())
    assert shrunk > 30  # the target is small, so AdamW alone shrinks the image at nearly every step


def test_coordinates_never_fall_and_free_directions_move_as_adamw_moves_them() -> None:
    ours, theirs = network(), network()
    x, _ = data()
    optimiser = ExactSequenceOptimizer(ours.parameters(), lr=1e-2, weight_decay=0.0, rank=2)
    optimiser.register_sequence(ours[0].weight, ours[1].weight)
    optimiser.observe(ours[0].weight, x)
    before = optimiser.coordinates(0)
    reader = ours[1].weight.detach().clone()
    descend(ours, optimiser, 1)
    descend(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0), 1)
    sequence = optimiser._sequences[0]
    assert sequence.left is not None
    assert sequence.right is not None
    after = torch.einsum("mr,mn,nr->r", reader.T @ sequence.left, ours[0].weight.detach(), sequence.right)
    assert (after >= before - 1e-5).all()
    difference = ours[0].weight.detach() - theirs[0].weight.detach()
    assert torch.linalg.matrix_rank(difference, rtol=1e-4) <= 2  # only the two guarded directions were touched
    assert torch.equal(ours[1].weight, theirs[1].weight)


def test_state_resumes_bit_for_bit() -> None:
    whole, half = network(), network()
    a = ExactSequenceOptimizer(whole.parameters(), lr=1e-2)
    a.watch(whole[0], whole[1])
    b = ExactSequenceOptimizer(half.parameters(), lr=1e-2)
    b.watch(half[0], half[1])
    descend(whole, a, 14)
    descend(half, b, 7)
    again = copy.deepcopy(network())
    again.load_state_dict(half.state_dict())
    c = ExactSequenceOptimizer(again.parameters(), lr=1e-2)
    c.watch(again[0], again[1])
    c.load_state_dict(copy.deepcopy(b.state_dict()))
    descend(again, c, 7)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_wrong_registrations_are_named() -> None:
    model = network()
    optimiser = ExactSequenceOptimizer(model.parameters())
    with pytest.raises(UsageError, match="follow each other"):
        optimiser.register_sequence(model[1].weight, model[0].weight)
    with pytest.raises(UsageError, match="not a parameter"):
        optimiser.register_sequence(nn.Parameter(torch.ones(8, 6)), model[1].weight)
    optimiser.watch(model[0], model[1])
    with pytest.raises(UsageError, match="sequences"):
        optimiser.load_state_dict(ExactSequenceOptimizer(network().parameters()).state_dict())
    with pytest.raises(UsageError, match="rank"):
        ExactSequenceOptimizer(model.parameters(), rank=0)


def test_scheduler_speeds_a_level_up_once_those_below_agree_and_sets_its_groups() -> None:
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(3)]
    groups = [{"params": [p], "level": level} for level, p in enumerate(parameters)]
    optimiser = torch.optim.SGD(groups, lr=1.0)
    scheduler = SpectralLearningRateScheduler(1e-2, 3, 10, optimizer=optimiser, window=5)
    same, other = torch.ones(3), torch.tensor([3.0, 0.0, 0.0])
    assert scheduler.step([same, other, other], 5) == pytest.approx({0: 5e-3, 1: 5e-4, 2: 5e-5})
    for step in range(10, 16):
        rates = scheduler.step([same, 1.001 * same, same], step)
    assert rates == pytest.approx({0: 1e-2, 1: 1e-2, 2: 1e-2})
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([1e-2] * 3)


def test_scheduler_resumes() -> None:
    pages = [torch.ones(2), 1.01 * torch.ones(2)]
    whole, second = (
        SpectralLearningRateScheduler(num_levels=2, window=4),
        SpectralLearningRateScheduler(num_levels=2, window=4),
    )
    for step in range(3):
        whole.step(pages, step)
    second.load_state_dict(whole.state_dict())
    for step in range(3, 9):
        assert whole.step(pages, step) == second.step(pages, step)
    assert whole.level_convergence == [True, True]
