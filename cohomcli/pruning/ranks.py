"""Low rank on the image: every map of a block becomes a product of two thin ones, in the order data flows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.pruning.context import Context
from cohomcli.pruning.depth import refit
from cohomcli.pruning.moments import Moments
from cohomcli.pruning.parts import Anatomy, Group, at
from cohomcli.pruning.readers import metrics
from cohomcli.pruning.slicing import store
from cohomcli.pruning.solve import Factor, Problem, trusted
from cohomcli.pruning.truncate import TRUNCATIONS, Factors, Truncate, Truncation

Keep = Callable[[str, Factors], None]


def forget(name: str, factors: Factors) -> None:
    """Keep nothing."""


def rank_of(sparsity: float, name: str, shape: tuple[int, int]) -> int:
    """The rank at which two factors have a share `sparsity` fewer parameters than the map `name`, (out, in).

    Raises:
        UsageError: not even rank 1 has so few, or all are to stay.
    """
    out, n_in = shape
    if not sparsity > 0:
        raise UsageError("rank:0 makes no map smaller", "give a share above 0, such as rank:0.25")
    rank = int((1 - sparsity) * out * n_in / (out + n_in) + 1e-9)
    if rank < 1:
        most = 1 - (out + n_in) / (out * n_in)
        raise UsageError(
            f"rank:{sparsity:g} leaves no rank of {name}, {out} x {n_in}",
            f"give at most rank:{int(most * 1000) / 1000}",
        )
    return rank


def prune_ranks(context: Context, index: int, block: nn.Module, anatomy: Anatomy, keep: Keep) -> None:
    """Put a product of low rank in the place of every map of the block; `keep` gets the factors, by the map's name."""
    for group in anatomy.groups:
        _group(context, index, block, anatomy, group, keep)


def _group(context: Context, index: int, block: nn.Module, anatomy: Anatomy, group: Group, keep: Keep) -> None:
    method: Truncate = TRUNCATIONS.get(context.options.method)

    def read(moments: Moments) -> dict[str, Tensor]:
        balanced = context.options.method == "chain" and group is anatomy.groups[0]
        return metrics(context.model, block, anatomy, moments) if balanced else {}

    def seen(path: str, problem: Problem, moments: Moments) -> Problem:
        metric = read(moments).get(path)
        return problem if metric is None else whitened(problem, metric)

    def probe(problem: Problem) -> Tensor:
        return method(_truncation(context, "", problem)).product().to(problem.weight.dtype)

    moments, shrinks = context.moments(block, group, probe, rows=0, view=seen)
    found = read(moments)
    for path, shrink in zip(group.paths, shrinks, strict=True):
        name, module = f"layer_{index}.{path}", at(block, path)
        problem = replace(context.problem(module, moments, Factor()), shrink=shrink)
        todo = replace(_truncation(context, name, problem), metric=found.get(path))
        factors = method(todo)
        factors = Factors(factors.left.float(), factors.right.float())
        solution = factors.product()
        context.note(name, problem, solution, todo.rank)
        store(module, solution)
        keep(name, factors)


def _truncation(context: Context, name: str, problem: Problem) -> Truncation:
    """What is to be truncated: the map itself, or where the method aims at the dense state what would reach it best."""
    out, n_in = problem.weight.shape
    rank = rank_of(context.pattern.sparsity, name, (out, n_in))
    weight = refit(problem) if context.chained else problem.weight
    return Truncation(weight, problem.gram, rank, shrink=problem.shrink)


def whitened(problem: Problem, metric: Tensor) -> Problem:
    """The same problem for L^T y in place of the output y, C = L L^T: there the loss in the metric is a plain one."""
    root = torch.linalg.cholesky(trusted(metric, 0.0))
    weight, target = ((root.T @ part.double()).to(part.dtype) for part in (problem.weight, problem.target))
    return replace(problem, weight=weight, target=target)
