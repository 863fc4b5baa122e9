"""Solvers against references written another way: explicit inverses, brute force, least squares."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.pruning.channels import remove_columns
from cohomcli.pruning.depth import refit
from cohomcli.pruning.pattern import Pattern, check_fits, keep_mask, parse_pattern
from cohomcli.pruning.shrinkage import most_shrunk
from cohomcli.pruning.solve import DAMP, METHODS, Problem
from cohomcli.pruning.spd import invert, upper_factor


def _problem(out: int = 6, n_in: int = 8, pattern: str = "0.5", seed: int = 0, rows: int = 200) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n_in, n_in, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, n_in, generator=generator, dtype=torch.float64) @ mix  # correlated inputs
    weight = torch.randn(out, n_in, generator=generator, dtype=torch.float64)
    gram = x.T @ x / rows
    return Problem(weight, gram, weight @ gram, parse_pattern(pattern))


def _energy(problem: Problem, solution: Tensor) -> float:
    change = problem.weight - solution
    return float(((change @ problem.gram) * change).sum())


@given(st.integers(1, 5), st.integers(1, 12), st.floats(0, 0.99))
def test_exactly_the_asked_share_of_every_row_goes(out: int, n_in: int, sparsity: float) -> None:
    scores = torch.arange(out * n_in, dtype=torch.float64).reshape(out, n_in).sin().abs()
    keep = keep_mask(scores, Pattern("rows", sparsity))
    assert (keep.sum(1) == n_in - int(n_in * sparsity)).all()
    for row, kept in zip(scores, keep, strict=True):
        assert not kept.any() or not (~kept).any() or row[kept].min() >= row[~kept].max()


def test_n_of_m_holds_in_every_group() -> None:
    for name in METHODS:
        solution = METHODS.get(name)(_problem(5, 16, "2:4"))
        assert ((solution.reshape(5, 4, 4) != 0).sum(-1) <= 2).all(), name
        assert (solution != 0).float().mean() == 0.5


@pytest.mark.parametrize("text", ["", "x", "1.0", "-0.1", "nan", "0:4", "5:4", "rows:0.5", ":0.5", "mlp:1"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_pattern(text)


def test_patterns_are_read_and_written_back() -> None:
    for text in ("0.5", "2:4", "layer:0.25", "mlp:0.3", "0"):
        assert str(parse_pattern(text)) == text
    with pytest.raises(UsageError, match="does not divide"):
        check_fits(parse_pattern("2:4"), "layer_0.x", 10)


def test_wanda_is_the_published_rule() -> None:
    problem = _problem()
    scores = problem.weight.abs() * problem.gram.diagonal().sqrt()
    expected = problem.weight.clone()
    for row, values in zip(expected, scores, strict=True):
        row[values.sort(stable=True).indices[:4]] = 0
    assert torch.equal(METHODS.get("wanda")(problem), expected)


@pytest.mark.parametrize("pattern", ["0.5", "2:4", "layer:0.5"])
def test_chain_with_lambda_one_is_wanda_bit_for_bit(pattern: str) -> None:
    problem = _problem(pattern=pattern)
    assert torch.equal(METHODS.get("chain")(replace(problem, shrink=1.0)), METHODS.get("wanda")(problem))


def _naive_sparsegpt(problem: Problem) -> Tensor:
    """One weight matrix, one column at a time, with the inverse of what remains computed from nothing every time."""
    weight = problem.weight.clone()
    gram = problem.gram + DAMP * problem.gram.diagonal().mean() * torch.eye(len(problem.gram), dtype=torch.float64)
    n_in, pattern = weight.shape[1], problem.pattern

    def remaining(at: int) -> Tensor:
        return torch.linalg.inv(gram[at:, at:])

    first = torch.stack([remaining(at)[0, 0] for at in range(n_in)])
    keep = torch.ones_like(weight, dtype=torch.bool)
    if pattern.kind != "nm":
        scores = weight.pow(2) / first
        keep = scores > scores.flatten().sort().values[int(scores.numel() * pattern.sparsity) - 1]
    for at in range(n_in):
        if pattern.kind == "nm" and at % pattern.m == 0:
            group = slice(at, at + pattern.m)
            scores = weight[:, group].pow(2) / first[group]
            for row in range(len(weight)):
                keep[row, at + scores[row].sort().indices[: pattern.m - pattern.n]] = False
        inverse = remaining(at)
        for row in range(len(weight)):
            if not keep[row, at]:
                weight[row, at:] -= weight[row, at] / inverse[0, 0] * inverse[0]
                weight[row, at] = 0
    return weight


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_sparsegpt_agrees_with_a_naive_optimal_brain_surgeon(pattern: str) -> None:
    problem = _problem(7, 24, pattern, seed=3)
    torch.testing.assert_close(METHODS.get("sparsegpt")(problem), _naive_sparsegpt(problem), rtol=1e-6, atol=1e-8)


def test_sparsegpt_over_several_blocks_updates_what_lies_behind() -> None:
    problem = _problem(4, 200, seed=5, rows=900)
    solution = METHODS.get("sparsegpt")(problem)
    assert (solution[:, :128] == 0).float().mean() == 0.5
    assert _energy(problem, solution) < _energy(problem, METHODS.get("wanda")(problem))


def _best(problem: Problem, row: int) -> float:
    """The least energy of one row over all masks with half of the weights, each solved by least squares."""
    w, gram = problem.weight[row], problem.gram
    best = float("inf")
    for kept in combinations(range(len(w)), len(w) // 2):
        index = list(kept)
        v = torch.zeros_like(w)
        v[index] = torch.linalg.solve(gram[index][:, index], (gram @ w)[index])
        change = w - v
        best = min(best, float(change @ gram @ change))
    return best


def test_admm_comes_close_to_the_best_of_all_masks() -> None:
    ratios, wanda, sparsegpt = [], [], []
    for seed in range(12):
        problem = _problem(2, 10, seed=seed)
        best = sum(_best(problem, row) for row in range(2))
        ratios.append(_energy(problem, METHODS.get("admm")(problem)) / best)
        wanda.append(_energy(problem, METHODS.get("wanda")(problem)) / best)
        sparsegpt.append(_energy(problem, METHODS.get("sparsegpt")(problem)) / best)
    medians = [torch.tensor(values).median() for values in (ratios, sparsegpt, wanda)]
    assert min(ratios) >= 1 - 1e-9  # no solver beats brute force
    assert medians[0] < medians[1] < medians[2]
    assert medians[0] < 3


def test_a_chain_target_is_what_the_solution_aims_at() -> None:
    problem = _problem(5, 8, "0")  # nothing goes: the solution is the least-squares map to the target
    wanted = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    solution = METHODS.get("chain")(replace(problem, target=wanted @ problem.gram, steps=(1, 4000)))
    torch.testing.assert_close(solution, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shrink", [0.0, 0.3])
def test_one_huge_input_does_not_draw_the_others_to_zero(shrink: float) -> None:
    problem = _problem(5, 8, "0")
    scale = torch.ones(8, dtype=torch.float64)
    scale[3] = 1e4  # its energy is 1e8 times that of the others: a hundredth of the mean is more than they have
    gram = problem.gram * scale * scale[:, None]
    whole = replace(problem, gram=gram, target=problem.weight @ gram, shrink=shrink)
    for solution in (METHODS.get("admm")(whole), remove_columns(whole, 0).weight, refit(whole)):
        torch.testing.assert_close(solution, problem.weight, rtol=1e-6, atol=1e-6)


def test_dead_inputs_harm_no_solver() -> None:
    problem = _problem()
    gram = problem.gram.clone()
    gram[2], gram[:, 2] = 0, 0
    for name in METHODS:
        solution = METHODS.get(name)(replace(problem, gram=gram, target=problem.weight @ gram))
        assert torch.isfinite(solution).all(), name


def test_columns_go_as_the_exact_inverse_says() -> None:
    problem = _problem(5, 20, seed=2)
    found = remove_columns(problem, 6)
    gram = (1 - DAMP) * problem.gram + DAMP * problem.gram.diagonal().diag()
    target = problem.weight @ gram
    assert len(found.kept) == 14
    inner = gram[found.kept][:, found.kept]
    torch.testing.assert_close(found.weight, target[:, found.kept] @ torch.linalg.inv(inner), rtol=1e-6, atol=1e-8)
    one = remove_columns(problem, 1)  # the first column to go is the one whose removal costs least, by brute force
    costs = []
    for gone in range(20):
        rest = [at for at in range(20) if at != gone]
        v = target[:, rest] @ torch.linalg.inv(gram[rest][:, rest])
        costs.append(float(((v @ gram[rest][:, rest]) * v).sum() - 2 * (target[:, rest] * v).sum()))
    (gone,) = set(range(20)) - set(one.kept.tolist())
    assert gone == min(range(20), key=costs.__getitem__)


@pytest.mark.parametrize("n", [1, 7, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverses_and_factors_are_made_in_place(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(3 * n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    gram = x.T @ x + torch.eye(n, dtype=dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    inverse, upper = gram.clone(), gram.clone()
    assert invert(inverse) is inverse
    torch.testing.assert_close(inverse @ gram, torch.eye(n, dtype=dtype), rtol=0, atol=tolerance)
    assert torch.equal(inverse, inverse.T)
    upper_factor(upper)
    assert not upper.tril(-1).any()
    torch.testing.assert_close(upper.T @ upper, gram, rtol=tolerance, atol=tolerance)


def test_what_is_not_positive_definite_is_refused() -> None:
    for refused in (invert, upper_factor):
        with pytest.raises(AnalysisIncomplete, match="positive definite"):
            refused(-torch.eye(3))


def test_lambda_is_the_largest_within_one_standard_error_of_the_best() -> None:
    # means 1, 1.1, 1.3; the best one's standard error over four batches is 0.1291 = sqrt(0.2 / 3) / 2
    steady = torch.tensor([1.0, 1.1, 1.3]).double()[:, None]
    spread = torch.tensor([[-0.3, -0.1, 0.1, 0.3]]).double()
    assert most_shrunk(steady + spread) == 0.3
    assert most_shrunk(steady + 0.1 * spread) == 0.1  # losses that hardly vary leave no room
    assert most_shrunk(steady + 3 * spread) == 0.6  # standard error 0.387
    assert most_shrunk(steady) == 0.1  # one batch says nothing about chance
