"""Structural losses on maps and on representations: exact sequences, and agreement of local with global.

Both are scale-free (multiplying a map, its data or a representation by a number changes nothing), means over tokens and
features, built from matrix products and one Cholesky factorisation, never a singular value decomposition. With weight
zero nothing is computed, so the gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.nn.exactness import MapPair
from cohomcli.nn.spectral import full_window, page_norms

Logs = dict[str, Tensor]
_HALVES = (torch.float16, torch.bfloat16)
_SQUARED = 512  # up to this width the power is taken by squaring: five matrix products instead of 32 small ones
_STEPS = 32  # power iterations; the Rayleigh quotient's error falls with the fourth power of sigma_2 / sigma_1 per step


class ExactSequenceLoss(nn.Module):
    """base + weight * mean over pairs of (kappa + coverage * eta), for maps A then B on data x.

    kappa = mean ||B A x||^2 / (||B||_2^2 mean ||A x||^2) in [0, 1] is zero iff B sees nothing that A writes: im inside
    ker. eta = -1/m log det((L + epsilon 1) / (1 + epsilon)) with L = m/2 (S_A / tr S_A + S_B / tr S_B), S_A = E[A x (A
    x)^T], S_B = B^T B, is zero iff L = 1 and grows by log(1 + 1/epsilon) / m for every direction that is neither
    written nor read: ker inside im. So zero activations, zero maps and rank-one maps pay eta, an identity pair pays
    kappa = 1, and the minimum 0 is reached exactly at exact pairs whose image and coimage are isotropic and share the
    space equally.
    """

    def __init__(self, weight: float = 0.1, *, coverage: float = 1.0, epsilon: float = 1e-3) -> None:
        super().__init__()
        _check_weights(weight=weight, coverage=coverage)
        if not epsilon > 0:
            raise UsageError(f"epsilon {epsilon} is not positive", "it bounds the price of an uncovered direction")
        self.weight, self.coverage, self.epsilon = weight, coverage, epsilon

    def forward(self, pairs: Sequence[MapPair], base_loss: Tensor) -> tuple[Tensor, Logs]:
        """The total loss and detached scalars: `complex_defect`, `coverage`, `exact_loss` (unweighted sum of both).

        Raises:
            UsageError: something other than map pairs is given.
        """
        if self.weight == 0 or not pairs:
            return base_loss, {}
        if not all(isinstance(pair, MapPair) for pair in pairs):
            raise UsageError(
                "exactness is a property of maps, not of representations",
                "give MapPair objects; the published formula on representations is cohomcli.training.compat",
            )
        with torch.autocast(base_loss.device.type, enabled=False):
            maps = [(image_samples(pair), _full(pair.second)) for pair in pairs]
            kappa = torch.stack([complex_defect(y, B) for y, B in maps]).mean()
            eta = torch.stack([uncovered(y, B, self.epsilon) for y, B in maps]).mean()
            loss = kappa + self.coverage * eta
        logs = {"complex_defect": kappa, "coverage": eta, "exact_loss": loss}
        return base_loss + self.weight * loss, {name: value.detach() for name, value in logs.items()}


def image_samples(pair: MapPair) -> Tensor:
    """What the first map writes: rows A x of its inputs (rows, m), or the columns of A as rows for white data."""
    A = _full(pair.first)
    return A.T if pair.inputs is None else _full(pair.inputs) @ A.T


def _full(x: Tensor) -> Tensor:
    """`x` in at least single precision."""
    return x.float() if x.dtype in _HALVES else x


def complex_defect(written: Tensor, second: Tensor) -> Tensor:
    """kappa = ||B y||^2 / (||B||_2^2 ||y||^2), summed over rows y of `written` (rows, m), B = `second` (k, m)."""
    tiny = torch.finfo(written.dtype).tiny
    size = written.pow(2).sum()
    passed = (written @ second.T).pow(2).sum()
    return passed / (squared_norm(second) * size).clamp_min(tiny)


def uncovered(written: Tensor, second: Tensor, epsilon: float = 1e-3) -> Tensor:
    """eta of `ExactSequenceLoss` for rows `written` (rows, m) and `second` (k, m), by Cholesky of an m x m matrix."""
    m = second.shape[1]
    half = _shape_of(written) + _shape_of(second)
    eye = torch.eye(m, dtype=half.dtype, device=half.device)
    factor = torch.linalg.cholesky((0.5 * m * half + epsilon * eye) / (1 + epsilon))
    return -2.0 * torch.diagonal(factor).log().mean()


def _shape_of(rows: Tensor) -> Tensor:
    """R^T R / tr for `rows` R (n, m): a second moment of trace one, zero when R is."""
    peak = rows.detach().abs().amax().clamp_min(torch.finfo(rows.dtype).tiny)
    scaled = rows / peak  # so that squares neither overflow nor vanish
    return scaled.T @ scaled / scaled.pow(2).sum().clamp_min(torch.finfo(rows.dtype).tiny)


def squared_norm(matrix: Tensor) -> Tensor:
    """||B||_2^2 by power iteration on B^T B from a fixed start; differentiable, exact for the converged vector.

    The Rayleigh quotient is stationary at an eigenvector, so the vector itself may stay without gradient.
    """
    with torch.no_grad():
        tiny = torch.finfo(matrix.dtype).tiny
        power = matrix.T @ matrix
        v = torch.arange(1, len(power) + 1, dtype=power.dtype, device=power.device).sin()  # generic, always the same
        if len(power) <= _SQUARED:
            for _ in range(_STEPS.bit_length() - 1):
                power = power / power.norm().clamp_min(tiny)
                power = power @ power
            v = power @ v
        else:
            for _ in range(_STEPS):
                v = power @ (v / v.norm().clamp_min(tiny))
        v = v / v.norm().clamp_min(tiny)
    squared: Tensor = (matrix @ v).pow(2).sum()
    return squared


class SpectralSequenceLoss(nn.Module):
    """base + weight * (mean of page norms + coverage * eta): local sections agree with the restricted global one.

    The norm of page r is E_r = mean ||L_(r+1) - L_r||^2 / mean ||L_last||^2, L_r the representation under window r. A
    constant or low-dimensional representation agrees with itself for free, so it pays eta = -1/d log det of the
    correlation-like matrix (C + epsilon) / (1 + epsilon), C the centred covariance of L_last scaled to mean eigenvalue
    1: zero iff C is isotropic. Zero activations have no covariance and pay log(1 + 1/epsilon).
    """

    def __init__(self, weight: float = 0.1, *, coverage: float = 0.1, epsilon: float = 1e-3) -> None:
        super().__init__()
        _check_weights(weight=weight, coverage=coverage)
        if not epsilon > 0:
            raise UsageError(f"epsilon {epsilon} is not positive", "it bounds the price of an uncovered direction")
        self.weight, self.coverage, self.epsilon = weight, coverage, epsilon

    def forward(
        self, local_repr: Tensor | Sequence[Tensor], global_repr: Tensor, base_loss: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Logs]:
        """Local representations from narrow to wide, or one, and the global one, (B, N, d) each.

        `mask` (B, N) is non-zero on real tokens. Logs: `page_norms`, `coverage`, `spectral_loss`, detached.

        Raises:
            UsageError: representations of different shapes.
        """
        if self.weight == 0:
            return base_loss, {}
        levels = [_full(x) for x in (*([local_repr] if isinstance(local_repr, Tensor) else local_repr), global_repr)]
        if len({level.shape for level in levels}) != 1:
            shapes = ", ".join(str(tuple(level.shape)) for level in levels)
            raise UsageError(f"representations of different shapes: {shapes}", "project them to one width first")
        real = full_window(levels[-1], None, mask, False)
        with torch.autocast(base_loss.device.type, enabled=False):
            norms = page_norms(levels, [real] * (len(levels) - 1))
            eta = uncovered_features(levels[-1], real, self.epsilon)
            loss = norms.mean() + self.coverage * eta
        logs = {"page_norms": norms, "coverage": eta, "spectral_loss": loss}
        return base_loss + self.weight * loss, {name: value.detach() for name, value in logs.items()}


_ROWS_PER_FEATURE = 8  # tokens that enter a covariance: enough to estimate it, cheap in every batch


def uncovered_features(x: Tensor, real: Tensor, epsilon: float = 1e-3) -> Tensor:
    """-1/d log det((C + epsilon 1) / (1 + epsilon)), C the centred covariance of tokens, of mean eigenvalue 1.

    `x` is (B, N, d), `real` (B, N) weights. At most about 8 d tokens enter, evenly spaced.
    """
    d = x.shape[-1]
    rows, weights = x.flatten(0, 1), real.flatten().unsqueeze(-1)
    stride = max(len(rows) // (_ROWS_PER_FEATURE * d), 1)
    rows, weights = rows[::stride], weights[::stride]
    mean = (rows * weights).sum(0) / weights.sum().clamp_min(1.0)
    C = d * _shape_of((rows - mean) * weights)
    eye = torch.eye(d, dtype=C.dtype, device=C.device)
    factor = torch.linalg.cholesky((C + epsilon * eye) / (1 + epsilon))
    return -2.0 * torch.diagonal(factor).log().mean()


class CohomologicalTrainingObjective(nn.Module):
    """The task's loss plus both structural losses; terms are summed and each is logged."""

    def __init__(self, exact_loss_weight: float = 0.1, spectral_loss_weight: float = 0.1) -> None:
        super().__init__()
        self.exact_loss_fn = ExactSequenceLoss(exact_loss_weight)
        self.spectral_loss_fn = SpectralSequenceLoss(spectral_loss_weight)

    @property
    def needs_structure(self) -> bool:
        """Whether a model must be asked for its maps and pages."""
        return self.exact_loss_fn.weight != 0 or self.spectral_loss_fn.weight != 0

    def forward(self, outputs: Any, base_loss: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The total loss and the logs (detached scalars, no device synchronisation).

        `outputs` is a dictionary or model output with `map_pairs` for the exact loss, and `pages` (narrow to wide, with
        `page_mask`) or `local_repr` and `global_repr` for the spectral loss; what is missing adds nothing. Logs:
        `base_loss`, `exact_loss` and `spectral_loss` (dictionaries of their terms), `final_total_loss`.
        """
        total, logs = base_loss, {"base_loss": base_loss.detach()}
        pairs = _entry(outputs, "map_pairs")
        if pairs:
            total, logs["exact_loss"] = self.exact_loss_fn(pairs, total)
        pages = _entry(outputs, "pages")
        if pages is None and _entry(outputs, "local_repr") is not None and _entry(outputs, "global_repr") is not None:
            pages = [_entry(outputs, "local_repr"), _entry(outputs, "global_repr")]
        if pages is not None:
            mask = _entry(outputs, "page_mask")
            total, logs["spectral_loss"] = self.spectral_loss_fn(pages[:-1], pages[-1], total, mask)
        logs["final_total_loss"] = total.detach()
        return total, logs


def _entry(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)


def _check_weights(**weights: float) -> None:
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} {value} is not a finite number from zero up", "0 switches a term off")
