"""One matrix, its data, one pattern: which weights go, and what the others become. One function a method.

W is (out, in), H = E[x x^T] (in, in) the Gram of its inputs on the pruned path, T (out, in) = E[target x^T] the
correlation of what the map should put out with those inputs: T = W H when it should repeat itself. All methods
minimise, or approximate, tr(V H V^T) - 2 tr(T V^T), which is E|target - V x|^2 up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.pruning.pattern import Pattern, keep_mask
from cohomcli.registry import Registry

METHODS = Registry("pruning method")
Solver = Callable[["Problem"], Tensor]

DAMP = 0.01  # share of the mean diagonal that is added to a Gram before it is inverted (SparseGPT's default)
BLOCK = 128  # columns that SparseGPT chooses among at a time
GRADUAL, FIXED = 10, 5  # ADMM steps while the mask grows, and with the final mask
LAMBDAS = (0.1, 0.3, 0.6)  # shrinkages that `--lambda auto` chooses from
PROBE = (4, 2)  # ADMM steps of a choice of lambda


@dataclass(frozen=True)
class Problem:
    """`weight` (out, in), `gram` (in, in) and `target` (out, in) as above, float32 or float64.

    `shrink` is lambda of `shrunk`. `seed` is for random choices. `steps` are ADMM's (gradual, fixed).
    """

    weight: Tensor
    gram: Tensor
    target: Tensor
    pattern: Pattern
    shrink: float = 0.0
    seed: int = 0
    steps: tuple[int, int] = (GRADUAL, FIXED)

    def loss(self, solution: Tensor) -> float:
        """tr(V H V^T) - 2 tr(T V^T) of a `solution` V."""
        return float(((solution @ self.gram) * solution).sum() - 2 * (self.target * solution).sum())


def method(name: str) -> Callable[[Solver], Solver]:
    """Register a solver under `name`."""

    def register(solver: Solver) -> Solver:
        METHODS.add(name, solver)
        return solver

    return register


@method("magnitude")
def magnitude(problem: Problem) -> Tensor:
    """Drop the smallest |w| (Han et al. 2015, arXiv:1506.02626)."""
    return problem.weight * keep_mask(problem.weight.abs(), problem.pattern)


@method("random")
def random(problem: Problem) -> Tensor:
    """Drop at random: what any method must beat."""
    generator = torch.Generator().manual_seed(problem.seed)
    scores = torch.rand(problem.weight.shape, generator=generator)
    return problem.weight * keep_mask(scores, problem.pattern).to(problem.weight.device)


@method("wanda")
def wanda(problem: Problem) -> Tensor:
    """Drop the smallest |w_ij| ||x_j||, update nothing (Sun et al. 2024, arXiv:2306.11695)."""
    scores = problem.weight.abs() * problem.gram.diagonal().clamp_min(0).sqrt()
    return problem.weight * keep_mask(scores, problem.pattern)


@method("sparsegpt")
def sparsegpt(problem: Problem) -> Tensor:
    """Optimal Brain Surgeon column by column (Frantar, Alistarh 2023, arXiv:2301.00774).

    In blocks of 128 columns the weights of least w_ij^2 / [H^-1]_jj go, H^-1 being that of the columns still to come,
    and each column's loss is made good by those to its right.
    """
    weight = problem.weight.clone()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped(shrunk(problem.gram, problem.shrink))), upper=True)
    n_in = weight.shape[1]
    for start in range(0, n_in, BLOCK):
        end = min(start + BLOCK, n_in)
        scores = (weight[:, start:end] / upper.diagonal()[start:end]).pow(2)
        keep = keep_mask(scores, _of_block(problem.pattern)) if problem.pattern.kind != "nm" else None
        errors = torch.zeros_like(scores)
        for at in range(start, end):
            if problem.pattern.kind == "nm" and at % problem.pattern.m == 0:
                group = slice(at, at + problem.pattern.m)
                part = keep_mask((weight[:, group] / upper.diagonal()[group]).pow(2), problem.pattern)
                keep = torch.cat([part] if keep is None else [keep, part], dim=1)
            assert keep is not None  # set before the first column of a block
            error = torch.where(keep[:, at - start], 0.0, weight[:, at]) / upper[at, at]
            weight[:, at:end] -= error[:, None] * upper[at, at:end]
            weight[:, at] *= keep[:, at - start]
            errors[:, at - start] = error
        weight[:, end:] -= errors @ upper[start:end, end:]
    return weight


def _of_block(pattern: Pattern) -> Pattern:
    """SparseGPT compares all weights of a block of columns, not row by row."""
    return Pattern("layer", pattern.sparsity)


@method("admm")
def admm(problem: Problem) -> Tensor:
    """Alternating directions on E|target - V x|^2 under the pattern (Boza 2024, arXiv:2401.02938).

    In coordinates where every input has norm 1, so that a weight's size there is Wanda's score. The mask grows by the
    cubic schedule of Zhu, Gupta 2018 for `steps[0]` steps, then stays.
    """
    gram = damped(shrunk(problem.gram, problem.shrink))
    norms = gram.diagonal().sqrt()
    goal = shrunk_target(problem, problem.shrink) / norms
    inverse = torch.linalg.inv(gram / norms / norms[:, None] + torch.eye(len(norms), dtype=gram.dtype))
    x = problem.weight * norms
    u = torch.zeros_like(x)
    keep = torch.ones_like(x, dtype=torch.bool)
    gradual, fixed = problem.steps
    for step in range(1, gradual + fixed + 1):
        if step <= gradual:
            keep = keep_mask((x + u).abs(), _growing(problem.pattern, step / gradual))
        z = (x + u) * keep
        u = u + x - z
        x = (goal + z - u) @ inverse
    return (x + u) * keep / norms


def _growing(pattern: Pattern, progress: float) -> Pattern:
    """The pattern at a sparsity of s (1 - (1 - t)^3); N:M is whole from the start."""
    if pattern.kind == "nm":
        return pattern
    return Pattern(pattern.kind, pattern.sparsity * (1 - (1 - progress) ** 3))


@method("chain")
def chain(problem: Problem) -> Tensor:
    """ADMM on the shrunk Gram and a target that makes the square with the dense model commute.

    With lambda = 1 the Gram is diagonal: the saliency is Wanda's, and no kept weight changes.
    """
    own = problem.target is problem.weight or torch.equal(problem.target, problem.weight @ problem.gram)
    if problem.shrink == 1 and own:
        return wanda(problem)
    return admm(problem)


def shrunk(gram: Tensor, shrink: float) -> Tensor:
    """(1 - lambda) H + lambda diag H: how much of the measured correlations is trusted (after Ledoit, Wolf 2004)."""
    return (1 - shrink) * gram + shrink * torch.diag(gram.diagonal())


def shrunk_target(problem: Problem, shrink: float) -> Tensor:
    """(1 - lambda) T + lambda W diag H: with all trust withdrawn the map repeats itself."""
    return (1 - shrink) * problem.target + shrink * problem.weight * problem.gram.diagonal()


def damped(gram: Tensor) -> Tensor:
    """The Gram with a hundredth of its mean diagonal added, and inputs that are always zero made harmless."""
    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp_min(torch.finfo(gram.dtype).tiny)
    dead = torch.where(diagonal == 0, mean, torch.zeros_like(diagonal))
    return gram + torch.diag(dead + DAMP * mean)


def choose_shrink(fit: Problem, held: Problem, solver: Solver) -> float:
    """The lambda of `LAMBDAS` whose solution on `fit` has the least loss on `held`, another half of the calibration."""
    from dataclasses import replace

    losses = [(held.loss(solver(replace(fit, shrink=shrink, steps=PROBE))), shrink) for shrink in LAMBDAS]
    return min(losses)[1]
