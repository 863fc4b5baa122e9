"""Low rank against closed forms written another way, and whole models whose factors are saved, loaded and trained."""

from pathlib import Path

import numpy as np
import pytest
import tinymodels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.layout import find_stacks
from cohomcli.pruning.lowrank import FACTORS_FILE, TwoFactor, factored, load_factored, read_factors, save_factors
from cohomcli.pruning.moments import Moments
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.parts import anatomy_of, at
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import prune
from cohomcli.pruning.ranks import rank_of, whitened
from cohomcli.pruning.readers import metrics
from cohomcli.pruning.slicing import matrix
from cohomcli.pruning.solve import DAMP, Problem
from cohomcli.pruning.truncate import TRUNCATIONS, Factors, Truncation, balanced, best


def _spd(n: int, seed: int) -> Tensor:
    root = torch.randn(n, 3 * n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def _problem(out: int, n_in: int, rank: int, seed: int = 0) -> Truncation:
    weight = torch.randn(out, n_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Truncation(weight, _spd(n_in, seed + 1), rank, _spd(out, seed + 2))


def _drawn_in(gram: Tensor) -> Tensor:
    """What is inverted in place of a Gram: correlations a hundredth smaller."""
    return (1 - DAMP) * gram + DAMP * torch.diag(gram.diagonal())


def _root(matrix: Tensor) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix.numpy())
    return vectors @ np.diag(values**0.5) @ vectors.T


def _truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


SHAPES = [(5, 9), (9, 5), (6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_two_sided_optimum_is_the_truncated_whitened_matrix(shape: tuple[int, int], rank: int) -> None:
    # symmetric square roots and a full decomposition, where the engine has Cholesky factors and one side's eigenvectors
    problem = _problem(*shape, rank)
    outer, inner = _root(problem.metric), _root(problem.gram)
    seen = _truncated(outer @ problem.weight.numpy() @ inner, rank)
    expected = np.linalg.inv(outer) @ seen @ np.linalg.inv(inner)
    found = best(problem.weight, rank, problem.gram, problem.metric)
    assert found.left.shape == (shape[0], rank)
    assert found.right.shape == (rank, shape[1])
    np.testing.assert_allclose(found.product().numpy(), expected, atol=1e-11)
    # the loss is what the singular values that went say: those of balanced truncation
    product = problem.metric @ problem.weight @ problem.gram @ problem.weight.T
    gone = np.sort(np.linalg.eigvals(product.numpy()).real)[::-1][rank:]
    assert problem.loss(found.product()) == pytest.approx(float(gone.sum()), rel=1e-8, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_grams_it_is_the_plain_decomposition(shape: tuple[int, int]) -> None:
    problem = _problem(*shape, 2)
    plain = _truncated(problem.weight.numpy(), 2)
    np.testing.assert_allclose(TRUNCATIONS.get("svd")(problem).product().numpy(), plain, atol=1e-11)
    white = best(problem.weight, 2, torch.eye(shape[1]), torch.eye(shape[0]))
    np.testing.assert_allclose(white.product().numpy(), plain, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 1000))
def test_no_method_has_less_loss_in_the_metric_than_the_optimum(out: int, n_in: int, seed: int) -> None:
    problem = _problem(out, n_in, 1 + seed % min(out, n_in), seed)
    optimum = problem.loss(best(problem.weight, problem.rank, problem.gram, problem.metric).product())
    for name in TRUNCATIONS:
        loss = problem.loss(TRUNCATIONS.get(name)(problem).product())
        assert optimum <= loss * (1 + 1e-9) + 1e-9, name
    # and against whatever else has this rank
    other = torch.randn(out, problem.rank, dtype=torch.float64) @ torch.randn(problem.rank, n_in, dtype=torch.float64)
    assert optimum <= problem.loss(other) + 1e-9


def test_methods_differ_in_the_grams_they_use() -> None:
    problem = _problem(6, 8, 3)
    inner, outer = _drawn_in(problem.gram), _drawn_in(problem.metric)
    scale = torch.diag(problem.gram.diagonal() ** 0.25)  # root mean square to the power 1/2
    expected = {
        "svdllm": _truncated(problem.weight.numpy() @ _root(inner), 3) @ np.linalg.inv(_root(inner)),
        "asvd": _truncated((problem.weight @ scale).numpy(), 3) @ np.linalg.inv(scale.numpy()),
        "chain": best(problem.weight, 3, inner, outer).product().numpy(),
    }
    for name, wanted in expected.items():
        np.testing.assert_allclose(TRUNCATIONS.get(name)(problem).product().numpy(), wanted, atol=1e-10, err_msg=name)
    assert TRUNCATIONS.get("svdllm").__doc__.count("2403.07378") == 1


def test_in_whitened_outputs_the_loss_in_the_metric_is_a_plain_one() -> None:
    problem = _problem(4, 6, 2)
    plain = Problem(problem.weight, problem.gram, problem.weight @ problem.gram, parse_pattern("rank:0.5"))
    metric = _drawn_in(problem.metric)
    root = torch.linalg.cholesky(metric)
    seen, moved = whitened(plain, problem.metric), torch.randn(4, 6, dtype=torch.float64)
    difference = seen.weight - root.T @ moved
    loss = float(((difference @ problem.gram) * difference).sum())
    assert loss == pytest.approx(Truncation(problem.weight, problem.gram, 2, metric).loss(moved), rel=1e-9)


def test_factors_share_their_size_and_zeros_stay_harmless() -> None:
    found = balanced(Factors(torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])))
    assert torch.equal(found.product(), torch.tensor([[4.0, 0.0]]))
    assert float(found.left.norm(dim=0)[0]) == float(found.right.norm(dim=1)[0]) == 2.0
    with pytest.raises(AnalysisIncomplete, match="not positive definite"):
        best(torch.ones(2, 2), 1, -torch.eye(2))


@pytest.mark.parametrize(("shape", "rank"), [((288, 96), 36), ((96, 96), 24), ((96, 384), 38)])
def test_the_rank_keeps_that_share_of_the_parameters(shape: tuple[int, int], rank: int) -> None:
    assert rank_of(0.5, "x", shape) == rank
    assert rank * sum(shape) <= 0.5 * shape[0] * shape[1] < (rank + 1) * sum(shape)


def test_no_rank_is_refused() -> None:
    with pytest.raises(UsageError, match=r"leaves no rank of layer_0\.x, 96 x 96; give at most rank:0\.979"):
        rank_of(0.98, "layer_0.x", (96, 96))
    assert rank_of(0.979, "layer_0.x", (96, 96)) == 1
    with pytest.raises(UsageError, match="makes no map smaller"):
        rank_of(0.0, "layer_0.x", (96, 96))
    for method in ("wanda", "influence"):
        with pytest.raises(UsageError, match=r"does not prune rank:0\.5; chain, svdllm, asvd, svd do"):
            PruneOptions(method, parse_pattern("rank:0.5"))
    with pytest.raises(UsageError, match=r"svdllm does not prune 0\.5"):
        PruneOptions("svdllm", parse_pattern("0.5"))


def _batches(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 300, (3, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def _pruned(family: str, method: str = "chain", share: str = "0.4") -> tuple[nn.Module, dict[str, Factors], float]:
    model = tinymodels.build(family).eval().requires_grad_(False)
    factors: dict[str, Factors] = {}
    options = PruneOptions(method, parse_pattern(f"rank:{share}"))
    result = prune(model, find_stacks(model).stacks[0], _batches(), options, keep=factors.__setitem__)
    assert [one.name for one in result.maps] == list(factors)
    for one in result.maps:
        assert one.rank == factors[one.name].left.shape[1]
        assert one.sparsity == pytest.approx(1 - one.rank * sum(one.shape) / (one.shape[0] * one.shape[1]))
        assert one.sparsity >= float(share) - 1e-9
    assert result.n_parameters[0] == result.n_parameters[1]
    return model, factors, result.drift[-1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "opt"])
def test_every_family_keeps_ranks_and_drifts_less_than_under_svd(family: str) -> None:
    model, factors, drift = _pruned(family)
    blocks = find_stacks(model).stacks[0].blocks
    for name, one in factors.items():
        layer, _, path = name.partition(".")
        weight = matrix(at(blocks[int(layer[6:])], path))
        assert torch.equal(weight, one.product())
        assert int(torch.linalg.matrix_rank(weight.double(), rtol=1e-5)) <= one.left.shape[1]
    assert drift < _pruned(family, "svd")[2]


def test_a_model_is_saved_loaded_and_computes_the_same(tmp_path: Path) -> None:
    folder = tinymodels.save("gpt2", tmp_path / "m")
    model, factors, _ = _pruned("gpt2")
    model.save_pretrained(folder)
    save_factors(folder / FACTORS_FILE, factors)
    ids = _batches(1)[0]["input_ids"]
    stock = type(model).from_pretrained(folder).eval()
    assert torch.equal(stock(input_ids=ids).logits, model(input_ids=ids).logits)
    thin = load_factored(folder)
    torch.testing.assert_close(thin(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(module, TwoFactor) for module in thin.modules()) == len(factors)
    count = sum(one.left.numel() + one.right.numel() for one in factors.values())
    dense = sum(one.left.shape[0] * one.right.shape[1] for one in factors.values())
    saved = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in thin.parameters())
    assert saved == dense - count > 0


def test_damaged_and_foreign_factors_are_refused(tmp_path: Path) -> None:
    folder = tinymodels.save("gpt2", tmp_path / "m")
    with pytest.raises(InputRefused, match=r"no factors\.safetensors"):
        load_factored(folder)
    (folder / FACTORS_FILE).write_bytes(b"nothing")
    with pytest.raises(InputRefused, match="no safetensors file"):
        load_factored(folder)
    save_file({"layer_0.mlp.c_fc.left": torch.zeros(4, 2)}, folder / FACTORS_FILE)
    with pytest.raises(InputRefused, match="do not fit each other"):
        read_factors(folder)
    for name, shape in (("layer_0.mlp.c_fc", (4, 16)), ("layer_9.mlp.c_fc", (64, 16)), ("layer_0.mlp.up", (64, 16))):
        save_factors(folder / FACTORS_FILE, {name: Factors(torch.zeros(shape[0], 2), torch.zeros(2, shape[1]))})
        with pytest.raises(InputRefused, match="do not fit this model"):
            load_factored(folder)
    save_file({}, folder / FACTORS_FILE)
    with pytest.raises(InputRefused, match="holds no factors"):
        read_factors(folder)


def test_factors_can_be_trained_and_go_back_into_the_weights() -> None:
    model, factors, _ = _pruned("llama")
    stack, ids = find_stacks(model).stacks[0], _batches(1)[0]["input_ids"]
    before = model(input_ids=ids).logits
    kinds = [type(module) for module in model.modules()]
    with factored(stack, factors, trained=False):
        assert TwoFactor in {type(module) for module in model.modules()}
    assert torch.equal(model(input_ids=ids).logits, before)
    with factored(stack, factors):
        for module in model.modules():
            if isinstance(module, TwoFactor):
                with torch.no_grad():
                    module.left.mul_(2)
        inside = model(input_ids=ids).logits
    assert [type(module) for module in model.modules()] == kinds
    torch.testing.assert_close(model(input_ids=ids).logits, inside, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, inside)


def _moments(x: Tensor) -> Moments:
    moments = Moments.__new__(Moments)
    moments.gram, moments.rows = (x.T @ x).float(), len(x)
    moments.total = x.sum(0)
    return moments


def test_values_are_measured_by_what_the_output_map_makes_of_them() -> None:
    model = tinymodels.build("llama").eval()  # two query heads, one group of keys and values
    block = find_stacks(model).stacks[0].blocks[0]
    x = torch.randn(50, 16, dtype=torch.float64)
    found = metrics(model, block, anatomy_of(block), _moments(x))
    output = matrix(block.self_attn.o_proj).double()
    change = torch.randn(8, dtype=torch.float64)
    by_heads = [torch.cat([change, torch.zeros(8)]), torch.cat([torch.zeros(8), change])]  # whichever head attends
    expected = sum(float((output @ one.double()).square().sum()) for one in by_heads)
    assert float(change @ found["self_attn.v_proj"] @ change) == pytest.approx(expected, rel=1e-6)


def test_queries_are_measured_by_the_scores_that_softmax_sees() -> None:
    model = tinymodels.build("opt").eval()  # no turns, with biases
    block = find_stacks(model).stacks[0].blocks[0]
    attention = block.self_attn
    with torch.no_grad():
        attention.k_proj.bias.normal_()
        attention.q_proj.bias.normal_()
    x = torch.randn(300, 16, dtype=torch.float64)
    found = metrics(model, block, anatomy_of(block), _moments(x))
    weights = {name: p.detach().double() for name, p in attention.named_parameters()}
    keys = x @ weights["k_proj.weight"].T + weights["k_proj.bias"]
    queries = x @ weights["q_proj.weight"].T + weights["q_proj.bias"]
    change = torch.randn(16, dtype=torch.float64)
    scores = torch.stack([keys[:, :8] @ change[:8], keys[:, 8:] @ change[8:]])  # of each head with all keys
    seen = float((scores - scores.mean(1, keepdim=True)).square().mean(1).sum())
    assert float(change @ found["self_attn.q_proj"] @ change) == pytest.approx(seen, rel=1e-4)
    moved = torch.stack([queries[:, :8] @ change[:8], queries[:, 8:] @ change[8:]])
    assert float(change @ found["self_attn.k_proj"] @ change) == pytest.approx(
        float(moved.square().mean(1).sum()), rel=1e-4
    )


def test_a_map_of_queries_keys_and_values_lets_each_count_as_before() -> None:
    model = tinymodels.build("gpt2").eval()
    block = find_stacks(model).stacks[0].blocks[0]
    x = torch.randn(60, 16, dtype=torch.float64)
    moments = _moments(x)
    (metric,) = metrics(model, block, anatomy_of(block), moments).values()
    weight = matrix(block.attn.c_attn).double()
    image = weight @ moments.gram.double() @ weight.T
    for part in range(3):
        rows = slice(16 * part, 16 * part + 16)
        assert float((metric[rows, rows] * image[rows, rows]).sum()) == pytest.approx(
            float(image[rows, rows].trace()), rel=1e-9
        )


def test_files_hold_float32_pairs(tmp_path: Path) -> None:
    save_factors(tmp_path / FACTORS_FILE, {"layer_0.x": Factors(torch.ones(3, 2).double(), torch.ones(2, 5).double())})
    tensors = load_file(tmp_path / FACTORS_FILE)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "layer_0.x.left": ((3, 2), torch.float32),
        "layer_0.x.right": ((2, 5), torch.float32),
    }
