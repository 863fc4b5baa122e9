"""Canonical correlations between the subspaces that two representations span.

SVCCA: Raghu, Gilmer, Yosinski, Sohl-Dickstein, NeurIPS 2017 (arXiv:1706.05806).
PWCCA: Morcos, Raghu, Bengio, NeurIPS 2018 (arXiv:1806.05759).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cohomcli.topology.measure import MEASURES, Measure
from cohomcli.topology.results import Array

KEPT = 0.99


@dataclass(frozen=True)
class Subspace:
    """The span of a centred representation: `basis` (n, k) with orthonormal columns, `points` (n, d) what it spans."""

    basis: Array
    points: Array


def leading_subspace(x: Array, kept: float = KEPT, of: Literal["variance", "singular values"] = "variance") -> Subspace:
    """The fewest principal directions of the centred `x` (n, d) that keep the share `kept`.

    The paper says variance; the authors' published code sums the singular values themselves.
    """
    centred = x - x.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    rank = _rank(values, x.shape)
    weights = values[:rank] ** (2 if of == "variance" else 1)
    k = int(np.searchsorted(np.cumsum(weights), kept * weights.sum())) + 1 if rank else 0
    return Subspace(left[:, : min(k, rank)], centred)


def whole_subspace(x: Array) -> Subspace:
    """Everything the centred `x` (n, d) spans, to the numerical rank of its singular values."""
    centred = x - x.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return Subspace(left[:, : _rank(values, x.shape)], centred)


def _rank(values: Array, shape: tuple[int, ...]) -> int:
    """Singular values above max(n, d) eps times the largest (Golub, Van Loan, section 5.4)."""
    tolerance = max(shape) * np.finfo(np.float64).eps * float(values.max(initial=0.0))
    return int(np.count_nonzero(values > tolerance))


def canonical_correlations(a: Subspace, b: Subspace) -> Array:
    """Cosines of the principal angles, descending (Bjorck, Golub 1973)."""
    return np.clip(np.linalg.svd(a.basis.T @ b.basis, compute_uv=False), 0.0, 1.0)


def svcca(a: Subspace, b: Subspace) -> float:
    """The mean canonical correlation; NaN when one representation is a single point."""
    if not (a.basis.shape[1] and b.basis.shape[1]):
        return np.nan
    return float(canonical_correlations(a, b).mean())


def pwcca(a: Subspace, b: Subspace) -> float:
    """Canonical correlations weighted by how much of `a` each of its canonical directions carries; not symmetric.

    alpha_i = sum_j |<h_i, x_j>|, h_i the canonical directions of `a` and x_j its neurons.
    """
    if not (a.basis.shape[1] and b.basis.shape[1]):
        return np.nan
    left, correlations, _ = np.linalg.svd(a.basis.T @ b.basis, full_matrices=False)
    weights = np.abs((a.basis @ left).T @ a.points).sum(axis=1)
    return float(np.clip(correlations, 0.0, 1.0) @ weights / weights.sum())


MEASURES.add("svcca", Measure("svcca", "SVCCA", "similarity", leading_subspace, svcca, "arXiv:1706.05806", 0.0, 1.0))
MEASURES.add(
    "pwcca",
    Measure("pwcca", "PWCCA", "similarity", whole_subspace, pwcca, "arXiv:1806.05759", 0.0, 1.0, symmetric=False),
)
