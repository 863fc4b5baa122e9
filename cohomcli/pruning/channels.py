"""Whole channels: columns of a map are removed one batch after another, the rest re-solved by least squares.

Optimal Brain Surgeon on columns (Hassibi, Stork 1993; as in SlimGPT, arXiv:2412.18110): removing column j of the
least-squares solution V costs |V_j|^2 / [H^-1]_jj, and the inverse of what remains follows by a rank-one downdate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.pruning.solve import Problem, damped, shrunk, shrunk_target

BATCH = 16  # columns that go before the scores are computed anew


@dataclass(frozen=True)
class Columns:
    """`kept` (k,) indices in order and `weight` (out, k), the least-squares solution on them."""

    kept: Tensor
    weight: Tensor


def remove_columns(problem: Problem, count: int) -> Columns:
    """Remove `count` columns (inputs) of `problem.weight` for the least loss, in batches of 16."""
    gram = damped(shrunk(problem.gram, problem.shrink)).double()
    inverse = torch.linalg.inv(gram)
    weight = shrunk_target(problem, problem.shrink).double() @ inverse
    alive = torch.ones(len(gram), dtype=torch.bool)
    for _ in range(0, count, BATCH):
        size = min(BATCH, int(alive.sum()) - (len(gram) - count))
        scores = weight.pow(2).sum(0) / inverse.diagonal()
        scores[~alive] = torch.inf
        gone = scores.argsort(stable=True)[:size]
        weight, inverse = _without(weight, inverse, gone)
        alive[gone] = False
    kept = alive.nonzero().flatten()
    return Columns(kept, weight[:, kept].to(problem.weight.dtype))


def _without(weight: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and inverse Gram when the columns `gone` are constrained to zero."""
    lift = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # (g, in)
    weight = weight - weight[:, gone] @ lift
    inverse = inverse - inverse[:, gone] @ lift
    weight[:, gone] = 0
    inverse[gone], inverse[:, gone] = 0, 0
    inverse[gone, gone] = 1  # never looked at again, and no division by zero
    return weight, inverse
