"""Several passes: the schedule, masks inside masks, and drift from the dense model."""

from dataclasses import replace
from itertools import pairwise

import pytest
import tinymodels
import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.models.layout import find_stacks
from cohomcli.pruning.gradual import DenseStates, passes, zeros_of
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.protect import Kept
from cohomcli.pruning.prune import prune
from cohomcli.pruning.shelf import Shelf
from cohomcli.pruning.solve import METHODS, Problem


def test_shares_follow_the_cubic_schedule() -> None:
    found = passes(PruneOptions("wanda", parse_pattern("0.8")), 4)
    assert [one.pattern.sparsity for one in found] == pytest.approx([0.8 * s for s in (37 / 64, 7 / 8, 63 / 64, 1)])
    assert found[-1].pattern == parse_pattern("0.8")
    assert [one.nested for one in found] == [False, True, True, True]
    alone = PruneOptions("chain", parse_pattern("2:4"))
    assert passes(alone, 1) == (alone,)


@pytest.mark.parametrize("pattern", ["2:4", "mlp:0.25", "blocks:0.5", "rank:0.5"])
def test_what_goes_in_one_pass_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match=f"--rounds 3: {pattern} goes in one pass"):
        passes(PruneOptions("chain", parse_pattern(pattern)), 3)
    with pytest.raises(UsageError, match="owl"):
        passes(PruneOptions("chain", parse_pattern("0.5"), allocation="owl"), 2)


def _problem(pattern: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    weight = torch.randn(6, 16, generator=generator)
    gram = x.T @ x
    return Problem(weight, gram, weight @ gram, parse_pattern(pattern), shrink=0.1)


@pytest.mark.parametrize("pattern", ["0.5", "layer:0.5", "2:4"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_is_not_allowed_is_zero_and_counts(method: str, pattern: str) -> None:
    problem = _problem(pattern)
    # large weights that Wanda and magnitude would keep: a quarter of every row, one of every four
    allowed = torch.ones(6, 16, dtype=torch.bool)
    allowed[:, ::4] = False
    bound = replace(problem, weight=problem.weight + 10 * ~allowed, allowed=allowed)
    solution = METHODS.get(method)(bound)
    assert not bool(solution[:, ::4].any())
    assert int((solution != 0).sum()) == 48
    assert bool(METHODS.get(method)(replace(bound, allowed=None))[:, ::4].any()) or method == "random"
    everything = torch.ones_like(allowed)
    free = METHODS.get(method)(problem)
    assert torch.equal(METHODS.get(method)(replace(problem, allowed=everything)), free)


def _batches(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 300, (3, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def _maps(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if ".h." in name and p.dim() == 2]


@pytest.mark.parametrize("method", ["chain", "random", "sparsegpt"])
def test_masks_of_later_passes_lie_inside_those_before(method: str) -> None:
    model = tinymodels.build("gpt2").eval().requires_grad_(False)
    stack, masks, shares = find_stacks(model).stacks[0], [], []
    for options in passes(PruneOptions(method, parse_pattern("0.75")), 3):
        shares.append(prune(model, stack, _batches(), options).sparsity)
        masks.append(zeros_of(model, _maps(model)))
    for before, after in pairwise(masks):
        assert before.keys() == after.keys()
        assert all(bool((before[name] | ~after[name]).all()) for name in after)
        assert any(int(before[name].sum()) > int(after[name].sum()) for name in after)
    # 16 and 64 inputs: a row loses whole weights
    assert shares == pytest.approx([0.75 * 19 / 27, 0.75 * 26 / 27, 0.75], abs=0.04)
    assert shares[2] == pytest.approx(0.75)


def test_protected_weights_stay_through_all_passes() -> None:
    model = tinymodels.build("gpt2").eval().requires_grad_(False)
    stack, weight = find_stacks(model).stacks[0], model.transformer.h[1].mlp.c_fc.weight
    before = weight[:, :4].clone()
    kept = {"layer_1.mlp.c_fc": Kept(torch.arange(4), torch.arange(0))}
    for options in passes(PruneOptions("chain", parse_pattern("0.6"), protect=kept), 3):
        result = prune(model, stack, _batches(), options)
    assert torch.equal(weight[:, :4], before)
    assert result.sparsity == pytest.approx(0.6, abs=0.02)


def test_drift_is_that_of_the_pass_where_there_is_one(tmp_path) -> None:
    for pattern in ("0.5", "blocks:0.34"):
        model = tinymodels.build("gpt2").eval().requires_grad_(False)
        stack = find_stacks(model).stacks[0]
        place = tmp_path / pattern.replace(":", "")
        place.mkdir()
        dense = DenseStates(model, stack, _batches(), Shelf(place))
        result = prune(model, stack, _batches(), PruneOptions("chain", parse_pattern(pattern)))
        found = dense.drift(model, find_stacks(model).stacks[0], result.blocks_gone)
        assert found == pytest.approx(result.drift, rel=1e-3)
