"""Whole channels: columns of a map are removed one batch after another, the rest re-solved by least squares.

Optimal Brain Surgeon on columns (Hassibi, Stork 1993; as in SlimGPT, arXiv:2412.18110): removing column j of the
least-squares solution V costs |V_j|^2 / [H^-1]_jj, and the inverse of what remains follows by a rank-one downdate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.pruning.solve import Problem, invertible
from cohomcli.pruning.spd import invert

BATCH = 16  # columns that go before the scores are computed anew


@dataclass(frozen=True)
class Columns:
    """`kept` (k,) indices in order, `weight` (out, k) on them, and `bias` (out,), what stands for those that went."""

    kept: Tensor
    weight: Tensor
    bias: Tensor | None = None


def remove_columns(problem: Problem, count: int, batch: int = BATCH) -> Columns:
    """Remove `count` columns (inputs) of `problem.weight` for the least loss, `batch` at a time."""
    gram, target = invertible(problem)
    inverse = invert(gram.double()).to(gram.dtype)
    weight = target @ inverse
    alive = torch.arange(len(inverse))
    gone_in_all = 0
    while gone_in_all < count:
        scores = weight.pow(2).sum(0) / inverse.diagonal()
        order = scores.argsort(stable=True)
        size = min(batch, count - gone_in_all)
        gone, stay = order[:size], order[size:].sort().values
        weight, inverse = downdate(weight, inverse, gone, stay)
        alive = alive[stay]
        gone_in_all += size
    return Columns(alive, weight)


def downdate(weight: Tensor, inverse: Tensor, gone: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and inverse Gram on the columns `stay` when the columns `gone` are constrained to zero."""
    rows = inverse[gone]
    lift = torch.linalg.solve(rows[:, gone], rows[:, stay])  # (g, s)
    kept = inverse[stay][:, stay]
    return weight[:, stay].addmm_(weight[:, gone], lift, alpha=-1), kept.addmm_(rows[:, stay].T, lift, alpha=-1)


def score_columns(problem: Problem, method: str, variances: Tensor) -> Tensor:
    """(in,) what a channel is worth where nothing is solved anew; `variances` (in,) are those of the inputs."""
    if method == "wanda":  # Wanda-sp: the mean of Wanda's scores over the column
        return problem.weight.abs().sum(0) * problem.gram.diagonal().clamp_min(0).sqrt()
    if method == "flap":  # WIFV of FLAP (An et al. 2024, arXiv:2312.11983)
        return problem.weight.pow(2).sum(0) * variances
    if method == "magnitude":
        return problem.weight.pow(2).sum(0)
    return torch.rand(problem.weight.shape[1], generator=torch.Generator().manual_seed(problem.seed))


def take_columns(problem: Problem, method: str, count: int, mean: Tensor, variances: Tensor) -> Columns:
    """Keep the best columns as they are; FLAP lets the mean (in,) of those that go live on in a bias."""
    order = score_columns(problem, method, variances).argsort(stable=True)
    kept, gone = order[count:].sort().values, order[:count]
    bias = problem.weight[:, gone] @ mean[gone] if method == "flap" else None
    return Columns(kept, problem.weight[:, kept], bias)
