"""The published losses and learning-rate rule of cohomological_ai, formula by formula, faults included; for comparison.

The "exactness" loss looks at activations, not maps: zero activations minimise it, a residual step maximises it, and it
grows with batch and length. The published objective then replaces it by the spectral one. See docs/nn.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor


def literal_violations(representations: Sequence[Tensor]) -> list[Tensor]:
    """||H_(i+1) H_i^T||_F over the whole batch, one per consecutive pair of (B, N, d) of equal width."""
    return [(b @ a.transpose(-2, -1)).norm() for a, b in pairwise(representations)]


def literal_exact_loss(representations: Sequence[Tensor], base_loss: Tensor, weight: float = 0.1) -> Tensor:
    """base + weight * sum of the violations; the base alone for fewer than two representations."""
    violations = literal_violations(representations)
    return base_loss + weight * sum(violations[1:], violations[0]) if violations else base_loss


def literal_spectral_loss(local_repr: Tensor, global_repr: Tensor, base_loss: Tensor, weight: float = 0.1) -> Tensor:
    """base + weight * ||local - global||_F."""
    mismatch: Tensor = (local_repr - global_repr).norm()
    return base_loss + weight * mismatch


def literal_objective(
    representations: Sequence[Tensor],
    spectral: tuple[Tensor, Tensor] | None,
    base_loss: Tensor,
    exact_weight: float = 0.1,
    spectral_weight: float = 0.1,
) -> Tensor:
    """The published total: the exact loss, which the spectral one then overwrites."""
    total = literal_exact_loss(representations, base_loss, exact_weight)
    return total if spectral is None else literal_spectral_loss(*spectral, base_loss, spectral_weight)
