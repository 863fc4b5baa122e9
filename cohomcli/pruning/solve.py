"""One matrix, its data, one pattern: which weights go, and what the others become. One function a method.

W is (out, in), H = E[x x^T] (in, in) the Gram of its inputs on the pruned path, T (out, in) = E[target x^T] the
correlation of what the map should put out with those inputs: T = W H when it should repeat itself. All methods
minimise, or approximate, tr(V H V^T) - 2 tr(T V^T), which is E|target - V x|^2 up to a constant. H and T may be sums
instead of means: no solution depends on their common scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cohomcli.pruning.pattern import Pattern, keep_mask
from cohomcli.pruning.spd import invert, upper_factor
from cohomcli.registry import Registry

METHODS = Registry("pruning method")
Solver = Callable[["Problem"], Tensor]

DAMP = 0.01  # share of the mean diagonal that is added to a Gram before it is inverted (SparseGPT's default)
BLOCK = 128  # columns that SparseGPT chooses among at a time
CHUNK = 128  # rows that ADMM works on at a time
GRADUAL, FIXED = 10, 5  # ADMM steps while the mask grows, and with the final mask


class Factor:
    """The last inverse of one Gram's normalised and shrunk form: maps that read the same inputs share it."""

    def __init__(self) -> None:
        self.shrink = -1.0
        self.norms = torch.zeros(0)
        self.inverse = torch.zeros(0)

    def of(self, gram: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
        """Norms n of the inputs, (in,), and (H_lambda / (n n^T) + I)^-1, (in, in)."""
        if shrink != self.shrink:
            self.inverse = torch.zeros(0)  # an old one would only take room
            matrix = alive(shrunk(gram, shrink))
            self.norms, self.shrink = matrix.diagonal().sqrt(), shrink
            matrix.div_(self.norms).div_(self.norms[:, None]).diagonal().add_(1)
            self.inverse = invert(matrix)
        return self.norms, self.inverse


@dataclass(frozen=True)
class Problem:
    """`weight` (out, in), `gram` (in, in) and `target` (out, in) as above, float32 or float64.

    `shrink` is lambda of `shrunk`. `seed` is for random choices. `steps` are ADMM's (gradual, fixed). Where `allowed`
    (out, in), boolean, is given, a solution is zero wherever it is False: those weights go first.
    """

    weight: Tensor
    gram: Tensor
    target: Tensor
    pattern: Pattern
    shrink: float = 0.0
    seed: int = 0
    steps: tuple[int, int] = (GRADUAL, FIXED)
    factor: Factor = field(default_factory=Factor, compare=False)
    allowed: Tensor | None = None

    def part(self, rows: Tensor | slice) -> Problem:
        """The problem of some rows: no other row has a part in their loss."""
        allowed = None if self.allowed is None else self.allowed[rows]
        return replace(self, weight=self.weight[rows], target=self.target[rows], allowed=allowed)

    def keep(self, scores: Tensor, pattern: Pattern | None = None, columns: slice = slice(None)) -> Tensor:
        """`keep_mask` of `scores`, of all columns or some, under `pattern` (None: the problem's own)."""
        pattern = pattern or self.pattern
        if self.allowed is None:
            return keep_mask(scores, pattern)
        allowed = self.allowed[:, columns]
        return keep_mask(scores.masked_fill(~allowed, -torch.inf), pattern) & allowed

    def loss(self, solution: Tensor) -> float:
        """tr(V H V^T) - 2 tr(T V^T) of a `solution` V."""
        return float(((solution @ self.gram) * solution).sum() - 2 * (self.target * solution).sum())


@METHODS.register("magnitude")
def magnitude(problem: Problem) -> Tensor:
    """Drop the smallest |w| (Han et al. 2015, arXiv:1506.02626)."""
    return problem.weight * problem.keep(problem.weight.abs())


@METHODS.register("random")
def random(problem: Problem) -> Tensor:
    """Drop at random: what any method must beat."""
    generator = torch.Generator().manual_seed(problem.seed)
    scores = torch.rand(problem.weight.shape, generator=generator)
    return problem.weight * problem.keep(scores.to(problem.weight.device))


@METHODS.register("wanda")
def wanda(problem: Problem) -> Tensor:
    """Drop the smallest |w_ij| ||x_j||, update nothing (Sun et al. 2024, arXiv:2306.11695)."""
    scores = problem.weight.abs() * problem.gram.diagonal().clamp_min(0).sqrt()
    return problem.weight * problem.keep(scores)


@METHODS.register("sparsegpt")
def sparsegpt(problem: Problem) -> Tensor:
    """Optimal Brain Surgeon column by column (Frantar, Alistarh 2023, arXiv:2301.00774).

    In blocks of 128 columns the weights of least w_ij^2 / [H^-1]_jj go, H^-1 being that of the columns still to come,
    and each column's loss is made good by those to its right.
    """
    weight = problem.weight.clone()
    upper = upper_factor(invert(damped(shrunk(problem.gram, problem.shrink))))
    n_in = weight.shape[1]
    for start in range(0, n_in, BLOCK):
        end = min(start + BLOCK, n_in)
        scores = (weight[:, start:end] / upper.diagonal()[start:end]).pow(2)
        here = slice(start, end)
        keep = problem.keep(scores, _of_block(problem.pattern), here) if problem.pattern.kind != "nm" else None
        errors = torch.zeros_like(scores)
        for at in range(start, end):
            if problem.pattern.kind == "nm" and at % problem.pattern.m == 0:
                group = slice(at, at + problem.pattern.m)
                part = problem.keep((weight[:, group] / upper.diagonal()[group]).pow(2), columns=group)
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


@METHODS.register("admm")
def admm(problem: Problem) -> Tensor:
    """Alternating directions on E|target - V x|^2 under the pattern (Boza 2024, arXiv:2401.02938).

    In coordinates where every input has norm 1, so that a weight's size there is Wanda's score. The mask grows by the
    cubic schedule of Zhu, Gupta 2018 for `steps[0]` steps, then stays. Rows that share no mask are done some at a time.
    """
    if problem.pattern.kind == "layer":
        return _alternate(problem)
    solution = torch.empty(problem.weight.shape, dtype=problem.weight.dtype)
    for start in range(0, len(solution), CHUNK):
        rows = slice(start, start + CHUNK)
        solution[rows] = _alternate(problem.part(rows))
    return solution


def _alternate(problem: Problem) -> Tensor:
    norms, inverse = problem.factor.of(problem.gram, problem.shrink)
    goal = shrunk_target(problem, problem.shrink).div_(norms)
    x = problem.weight * norms
    u = torch.zeros_like(x)
    keep = torch.ones_like(x, dtype=torch.bool)
    gradual, fixed = problem.steps
    for step in range(1, gradual + fixed + 1):
        moved = x + u
        if step <= gradual:
            keep = problem.keep(moved.abs(), _growing(problem.pattern, step / gradual))
        z = moved * keep
        u = moved.sub_(z)
        x = z.sub_(u).add_(goal) @ inverse
    return (x + u) * keep / norms


def _growing(pattern: Pattern, progress: float) -> Pattern:
    """The pattern at a sparsity of s (1 - (1 - t)^3); N:M is whole from the start."""
    if pattern.kind == "nm":
        return pattern
    return Pattern(pattern.kind, pattern.sparsity * (1 - (1 - progress) ** 3))


@METHODS.register("chain")
def chain(problem: Problem) -> Tensor:
    """ADMM on the shrunk Gram and a target that makes the square with the dense model commute.

    With lambda = 1 the Gram is diagonal: the saliency is Wanda's, and no kept weight changes.
    """
    if problem.shrink == 1 and torch.equal(problem.target, problem.weight @ problem.gram):
        return wanda(problem)
    return admm(problem)


def shrunk(gram: Tensor, shrink: float) -> Tensor:
    """(1 - lambda) H + lambda diag H, a new tensor: how much the correlations are trusted (after Ledoit, Wolf 2004)."""
    result = (1 - shrink) * gram
    result.diagonal().copy_(gram.diagonal())
    return result


def shrunk_target(problem: Problem, shrink: float) -> Tensor:
    """(1 - lambda) T + lambda W diag H: with all trust withdrawn the map repeats itself."""
    return (1 - shrink) * problem.target + shrink * problem.weight * problem.gram.diagonal()


def invertible(problem: Problem) -> tuple[Tensor, Tensor]:
    """Gram and target shrunk by lambda, but at least by a hundredth, and no input without energy.

    Damping every input by a share of its own energy, and its target likewise, draws the solution to W. A share of the
    mean energy, as `damped` adds, would draw it to zero, and hard: a few channels of trained models are so large that a
    hundredth of the mean is more than all that most inputs have.
    """
    return trusted(problem.gram, problem.shrink), shrunk_target(problem, max(problem.shrink, DAMP))


def trusted(gram: Tensor, shrink: float) -> Tensor:
    """The Gram of `invertible`, a new tensor."""
    return alive(shrunk(gram, max(shrink, DAMP)))


def alive(gram: Tensor) -> Tensor:
    """`gram`, changed: inputs that are always zero get the mean energy, which makes them harmless."""
    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp_min(torch.finfo(gram.dtype).tiny)
    diagonal.add_(torch.where(diagonal == 0, mean, torch.zeros_like(diagonal)))
    return gram


def damped(gram: Tensor) -> Tensor:
    """`gram`, changed: `alive`, with a hundredth of its mean diagonal added."""
    alive(gram).diagonal().add_(DAMP * gram.diagonal().mean())
    return gram
