"""A matrix as the product of two thin ones, the best for what comes in and for what is read of what goes out.

W is (out, in), G = E[x x^T] (in, in) the Gram of its inputs, C (out, out) the metric in which its output is read. Of
all V of rank r, ||C^(1/2) (W - V) G^(1/2)||_F is least for the truncated singular value decomposition of C^(1/2) W
G^(1/2) between the inverse roots (Eckart, Young 1936). Its singular values are those of balanced truncation, the roots
of the eigenvalues of C W G W^T: what is neither written nor read goes (Moore 1981). One function a method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.errors import AnalysisIncomplete
from cohomcli.pruning.solve import trusted
from cohomcli.registry import Registry

TRUNCATIONS = Registry("low-rank method")
ASVD_POWER = 0.5  # alpha of the paper
Truncate = Callable[["Truncation"], "Factors"]


@dataclass(frozen=True)
class Factors:
    """`left` (out, r) and `right` (r, in), whose product stands for a map."""

    left: Tensor
    right: Tensor

    def product(self) -> Tensor:
        """(out, in)."""
        return self.left @ self.right


@dataclass(frozen=True)
class Truncation:
    """One map, what comes in, what is read of it (`metric` None: all of it alike), and the rank that is left.

    `weight` (out, in), `gram` (in, in), a sum or a mean, and `metric` (out, out). `shrink` is lambda of `shrunk`.
    """

    weight: Tensor
    gram: Tensor
    rank: int
    metric: Tensor | None = None
    shrink: float = 0.0

    def loss(self, solution: Tensor) -> float:
        """||C^(1/2) (W - V) G^(1/2)||_F^2 of a `solution` V, G and C as they are given."""
        change = (self.weight - solution).double()
        read = change if self.metric is None else self.metric.double() @ change
        return float((read * (change @ self.gram.double())).sum())


@TRUNCATIONS.register("svd")
def svd(problem: Truncation) -> Factors:
    """The r largest singular values of W itself (Eckart, Young 1936)."""
    return best(problem.weight, problem.rank)


@TRUNCATIONS.register("asvd")
def asvd(problem: Truncation) -> Factors:
    """Inputs scaled by their size to the power 1/2 (ASVD, Yuan et al. 2023, arXiv:2312.05821).

    Size is the root mean square, which the Gram holds; the paper takes the mean of absolute values.
    """
    diagonal = trusted(problem.gram, 1.0).diagonal()
    return best(problem.weight, problem.rank, torch.diag(diagonal**ASVD_POWER))


@TRUNCATIONS.register("svdllm")
def svdllm(problem: Truncation) -> Factors:
    """Inputs whitened by the Cholesky factor of their whole Gram (SVD-LLM, Wang et al. 2024, arXiv:2403.07378)."""
    return best(problem.weight, problem.rank, trusted(problem.gram, 0.0))


@TRUNCATIONS.register("chain")
def chain(problem: Truncation) -> Factors:
    """Balanced: the shrunk Gram of what comes in, and the metric of what is read of the output."""
    metric = None if problem.metric is None else trusted(problem.metric, 0.0)
    return best(problem.weight, problem.rank, trusted(problem.gram, problem.shrink), metric)


def best(weight: Tensor, rank: int, gram: Tensor | None = None, metric: Tensor | None = None) -> Factors:
    """Factors in float64 of the V of `rank` for which ||C^(1/2) (W - V) G^(1/2)||_F is least; None is the identity.

    With C = L L^T and G = K K^T the singular vectors of L^T W K are needed on its smaller side only: V is W projected
    from there. Columns of `left` and rows of `right` have equal norms.

    Raises:
        AnalysisIncomplete: a Gram that is not positive definite.
    """
    w = weight.double()
    outer, inner = (None if given is None else _root(given.double()) for given in (metric, gram))
    seen = w if outer is None else outer.T @ w  # L^T W
    if w.shape[0] <= w.shape[1]:
        half = seen if inner is None else seen @ inner
        vectors = _leading(half @ half.T, rank)
        left = vectors if outer is None else torch.linalg.solve_triangular(outer.T, vectors, upper=True)
        return balanced(Factors(left, vectors.T @ seen))
    half = seen if inner is None else seen @ inner
    vectors = _leading(half.T @ half, rank)
    right = vectors.T if inner is None else torch.linalg.solve_triangular(inner, vectors.T, upper=False, left=False)
    return balanced(Factors((w if inner is None else w @ inner) @ vectors, right))


def _root(matrix: Tensor) -> Tensor:
    """L, lower triangular, with L L^T the matrix."""
    root: Tensor
    root, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise AnalysisIncomplete("the Gram of the calibration data is not positive definite", "give other texts")
    return root


def _leading(square: Tensor, rank: int) -> Tensor:
    """Eigenvectors (n, rank) of the largest eigenvalues of a symmetric matrix (n, n)."""
    vectors: Tensor = torch.linalg.eigh(square).eigenvectors
    return vectors[:, -rank:]


def balanced(factors: Factors) -> Factors:
    """The same product with norms shared evenly, so that both factors keep their digits in float32."""
    left, right = factors.left, factors.right
    outer, inner = left.norm(dim=0), right.norm(dim=1)
    scale = (inner / outer.clamp_min(torch.finfo(outer.dtype).tiny)).sqrt()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    return Factors((left * scale).contiguous(), (right / scale[:, None]).contiguous())
