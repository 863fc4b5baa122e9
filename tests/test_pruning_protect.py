"""Pruning around a circuit: what is kept, what the total is, and that the smaller problem is the right one."""

from __future__ import annotations

import copy
import itertools

import pytest
import tinymodels
import torch

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.layout import find_stacks
from cohomcli.models.units import Unit, units_of_components
from cohomcli.models.wiring import weights_of, wire
from cohomcli.pruning import CircuitPreservationPruner
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import Pattern, parse_pattern
from cohomcli.pruning.protect import Guard, Kept, kept_of, reduced
from cohomcli.pruning.prune import prune
from cohomcli.pruning.solve import METHODS, Problem

NONE = torch.tensor([], dtype=torch.int64)


def _problem(out: int = 6, n_in: int = 8, pattern: str = "0.5") -> Problem:
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(out, n_in, generator=draw, dtype=torch.float64)
    x = torch.randn(64, n_in, generator=draw, dtype=torch.float64) @ torch.randn(n_in, n_in, generator=draw).double()
    gram = x.T @ x / 64
    return Problem(weight, gram, weight @ gram, parse_pattern(pattern))


def _batches() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(10, 300, (4, 2, 24), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]


def test_the_smaller_problem_has_the_same_losses() -> None:
    problem = _problem()
    rows, columns = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 4, 7])
    smaller = reduced(problem, rows, columns)
    draw = torch.Generator().manual_seed(4)

    def whole(part: torch.Tensor) -> float:
        full = problem.weight.clone()
        full[rows[:, None], columns] = part
        return problem.loss(full)

    parts = [torch.randn(3, 4, generator=draw, dtype=torch.float64) for _ in range(6)]
    for one, two in itertools.pairwise(parts):  # equal up to a constant
        assert whole(one) - whole(two) == pytest.approx(smaller.loss(one) - smaller.loss(two), rel=1e-9)


@pytest.mark.parametrize("method", ["magnitude", "random", "wanda", "sparsegpt", "admm", "chain"])
@pytest.mark.parametrize("pattern", ["0.5", "layer:0.5"])
def test_what_is_kept_stays_bit_for_bit_and_the_total_is_met(method: str, pattern: str) -> None:
    problem = _problem(16, 32, pattern)
    kept = {"a": Kept(torch.tensor([3, 4]), NONE), "b": Kept(NONE, torch.tensor([0, 9, 31]))}
    shapes = dict.fromkeys("abc", (16, 32))
    guard = Guard(kept, shapes, problem.pattern)
    found = {name: guard.solve(name, problem, METHODS.get(method)) for name in shapes}
    assert torch.equal(found["a"][3:5], problem.weight[3:5])
    assert torch.equal(found["b"][:, [0, 9, 31]], problem.weight[:, [0, 9, 31]])
    zeros = sum(int((solution == 0).sum()) for solution in found.values())
    assert abs(zeros - 0.5 * 3 * 16 * 32) <= 16  # to within one weight of every row of the last map
    if pattern == "0.5" and method != "sparsegpt":  # which compares the weights of 128 columns, not of a row
        rows = (found["b"] == 0).sum(1)
        assert len(set(rows.tolist())) == 1


def test_without_protection_nothing_changes() -> None:
    problem = _problem()
    guard = Guard({}, {"a": (6, 8)}, problem.pattern)
    assert torch.equal(guard.solve("a", problem, METHODS.get("wanda")), METHODS.get("wanda")(problem))
    elsewhere = Guard({"another": Kept(torch.tensor([0]), NONE)}, {"a": (6, 8)}, Pattern("nm", 0.5, 2, 4))
    assert elsewhere.kept == {}


def test_wanda_around_columns_is_wanda_among_the_others() -> None:
    problem = _problem()
    guard = Guard({"a": Kept(NONE, torch.tensor([0, 1]))}, {"a": (6, 8)}, problem.pattern)
    solution = guard.solve("a", problem, METHODS.get("wanda"))
    scores = problem.weight.abs() * problem.gram.diagonal().sqrt()
    for row in range(6):
        dropped = set((solution[row] == 0).nonzero().flatten().tolist())
        assert dropped == set((scores[row, 2:].argsort()[:4] + 2).tolist())


def test_a_pattern_without_room_is_refused() -> None:
    kept = {"a": Kept(torch.arange(5), NONE)}
    with pytest.raises(UsageError, match=r"holds 83\.3% of the weights: 50\.0%"):
        Guard(kept, {"a": (6, 8)}, parse_pattern("0.5"))
    for pattern in ("2:4", "mlp:0.25", "blocks:0.5"):
        with pytest.raises(UsageError, match="--protect cannot be combined"):
            Guard(kept, {"a": (60, 8)}, parse_pattern(pattern))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_models_heads_and_neurons_stay_and_the_model_has_the_asked_sparsity(family: str) -> None:
    model = tinymodels.build(family)
    dense = copy.deepcopy(model)
    units = [Unit(0, "head", 1), Unit(1, "neuron", 3), Unit(2, "head", 0), Unit(2, "neuron", 7)]
    pruner = CircuitPreservationPruner(model, prune_ratio=0.5, method="wanda")
    result = pruner.prune([unit.name for unit in units], _batches())
    assert result.sparsity == pytest.approx(0.5, abs=0.002)
    before, after = (wire(m, find_stacks(m).stacks[0]) for m in (dense, model))
    for one in weights_of(before, units):
        layer, _, path = one.name.partition(".")
        old, new = (blocks[int(layer[6:])].module(path).weight for blocks in (before, after))
        if type(before[0].module(path)).__name__ == "Conv1D":
            old, new = old.T, new.T
        assert torch.equal(old[one.rows], new[one.rows])
        assert torch.equal(old[:, one.columns], new[:, one.columns])


def test_a_circuit_of_edges_protects_both_ends() -> None:
    model = tinymodels.build("llama")
    blocks = wire(model, find_stacks(model).stacks[0])
    units = units_of_components(["layer_0.head_0 -> layer_1.group_0.v"], 2)
    assert units == [Unit(0, "head", 0), Unit(1, "head", 0), Unit(1, "head", 1)]
    kept = kept_of((one.name, one.rows, one.columns) for one in weights_of(blocks, units))
    options = PruneOptions("magnitude", parse_pattern("0.5"), protect=kept)
    result = prune(model, find_stacks(model).stacks[0], _batches(), options)
    by_name = {one.name: one.sparsity for one in result.maps}
    assert by_name["layer_1.self_attn.v_proj"] == 0  # all of its rows belong to the two heads
    assert by_name["layer_2.mlp.up_proj"] > 0.5


def test_a_circuit_of_another_model_is_refused() -> None:
    with pytest.raises(InputRefused, match="another model"):
        CircuitPreservationPruner(tinymodels.build("gpt2")).prune(["layer_9.mlp"], _batches())
