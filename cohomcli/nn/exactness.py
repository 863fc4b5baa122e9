"""Is a sequence of linear maps exact? Ranks, angles and defects of image and kernel, on the data that flows through.

For A: R^n -> R^m followed by B: R^m -> R^k and inputs with second moment C, the image is that of A C^(1/2) (what A
really writes) and the kernel is that of B (what B cannot see). BA = 0 is a complex, im = ker is exactness. Everything
here is computed in float64 by singular values: measures, not losses (those are in `cohomcli.training.losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cohomcli.errors import UsageError


@dataclass(frozen=True)
class MapPair:
    """Consecutive linear maps: `first` (m, n), then `second` (k, m); `inputs` (rows, n) are samples of what goes in.

    `inputs` None stands for white data, second moment the identity.
    """

    first: Tensor
    second: Tensor
    inputs: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        n = self.first.shape[-1] if self.inputs is None else self.inputs.shape[-1]
        if self.first.dim() != 2 or self.second.dim() != 2 or self.second.shape[1] != self.first.shape[0]:
            shapes = f"{tuple(self.first.shape)} and {tuple(self.second.shape)}"
            raise UsageError(f"maps of shapes {shapes} do not follow each other", "give (m, n) and (k, m) matrices")
        if n != self.first.shape[1]:
            raise UsageError(f"inputs of width {n} do not fit a map {tuple(self.first.shape)}", "give (rows, n)")


@dataclass(frozen=True)
class Exactness:
    """What a pair of maps does to its data; ranks hold 1 - `energy` of the squared singular values.

    - `complex_defect` kappa = mean sin^2 of the angles from im A to ker B, in [0, 1]; 0 iff im is inside ker.
    - `complex_energy` ||BAC^(1/2)||_F^2 / (||B||_2^2 ||AC^(1/2)||_F^2), in [0, 1]; 0 iff BA = 0 on the data.
    - `homology_defect` eta = the share of ker B that im A leaves out, in [0, 1]; 0 iff ker is inside im.
    - `excess` dim ker B - rank A: for a complex the Betti number, 0 iff exact.
    - `free_rank` rank A - rank BA = dim(im A meet ker B): directions written that B never sees.
    - `kernel_share` of the energy of A's output that lies in ker B.
    - `read_alignment` m tr(B S B^T) / (tr S ||B||_F^2), S = ACA^T: 1 at random, above 1 when B reads what A writes.
    - `harmonic` dim of (im A)^perp meet ker B: neither written nor read.
    - `angles` principal angles between im A and ker B in radians, ascending.
    """

    rank_image: int
    dim_kernel: int
    rank_composite: int
    complex_defect: float
    complex_energy: float
    homology_defect: float
    excess: int
    free_rank: int
    kernel_share: float
    read_alignment: float
    harmonic: int
    angles: tuple[float, ...]
    energy: float


def second_moment(inputs: Tensor) -> Tensor:
    """X^T X / rows in float64 of `inputs` (..., n): the uncentred covariance (n, n)."""
    rows = inputs.detach().reshape(-1, inputs.shape[-1]).double()
    return rows.T @ rows / max(len(rows), 1)


def numerical_rank(values: Tensor, energy: float, tolerance: float) -> int:
    """How many descending singular `values` hold all but `energy` of their squared sum.

    `energy` 0 asks for the algebraic rank: values above `tolerance` times the largest. The usual tolerance is the
    larger side of the matrix times the unit roundoff it was computed in (the rule of numpy's matrix_rank).
    """
    if len(values) == 0 or float(values[0]) == 0.0:
        return 0
    if energy == 0.0:
        return int((values > tolerance * values[0]).sum())
    shares = torch.cumsum(values**2, 0) / (values**2).sum()
    return min(int((shares < 1.0 - energy).sum()) + 1, len(values))


def measure(first: Tensor, second: Tensor, covariance: Tensor | None = None, energy: float = 0.01) -> Exactness:
    """Measure the pair `first` (m, n), `second` (k, m) on data with second moment `covariance` (n, n), None for white.

    Ranks and angles at `energy` follow Bjorck and Golub (1973) on the truncated singular subspaces; 0 is algebraic.

    Raises:
        UsageError: shapes that do not fit, values that are not finite, or an `energy` outside [0, 1).
    """
    A, B = _checked(first, second, covariance, energy)
    m = A.shape[0]
    tolerance = _tolerance(first, second)
    U, written, _ = torch.linalg.svd(A, full_matrices=False)
    _, seen, Vh = torch.linalg.svd(B, full_matrices=True)
    rank_image = numerical_rank(written, energy, tolerance)
    rank_read = numerical_rank(seen, energy, tolerance)
    image, kernel = U[:, :rank_image], Vh[rank_read:].T
    composite = B @ A
    rank_composite = _composite_rank(composite, written, seen, energy, tolerance)
    cosines = torch.linalg.svdvals(image.T @ kernel).clamp(0.0, 1.0)
    inside = float((cosines**2).sum())
    total, passed = float((A**2).sum()), float((composite**2).sum())
    largest, frobenius = float(seen[0]) ** 2 if len(seen) else 0.0, float((B**2).sum())
    both = torch.cat([image, Vh[:rank_read].T], dim=1)
    covered = numerical_rank(torch.linalg.svdvals(both), 0.0, tolerance) if both.numel() else 0
    return Exactness(
        rank_image=rank_image,
        dim_kernel=kernel.shape[1],
        rank_composite=min(rank_composite, rank_image),
        complex_defect=_clip(1.0 - inside / rank_image) if rank_image else 0.0,
        complex_energy=_clip(passed / (largest * total)) if largest * total else 0.0,
        homology_defect=_clip(1.0 - inside / kernel.shape[1]) if kernel.shape[1] else 0.0,
        excess=kernel.shape[1] - rank_image,
        free_rank=rank_image - min(rank_composite, rank_image),
        kernel_share=_clip(float(((kernel.T @ A) ** 2).sum()) / total) if total else 0.0,
        read_alignment=m * passed / (total * frobenius) if total * frobenius else 0.0,
        harmonic=m - covered,
        angles=tuple(sorted(torch.arccos(cosines).tolist())),
        energy=energy,
    )


def measure_pair(pair: MapPair, energy: float = 0.01) -> Exactness:
    """`measure` of a `MapPair` on its own inputs."""
    covariance = None if pair.inputs is None else second_moment(pair.inputs)
    return measure(pair.first, pair.second, covariance, energy)


def betti_numbers(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """Dimensions of the cohomology of C^0 -> C^1 -> .. -> C^K, `maps` d_n of shape (dim C^(n+1), dim C^n).

    Betti number n is dim ker d_n - rank d_(n-1), by algebraic ranks (Hatcher, Algebraic Topology, section 2.1); there
    are K + 1 of them. For a chain complex give the transposed boundary matrices in ascending dimension.

    Raises:
        UsageError: no maps, widths that do not fit, or d d is not zero.
    """
    if not maps:
        raise UsageError("a complex needs at least one map", "give the coboundary matrices in ascending degree")
    matrices = [d.detach().double().cpu() for d in maps]
    for n, (d, e) in enumerate(pairwise(matrices)):
        if e.shape[1] != d.shape[0]:
            raise UsageError(f"map {n} writes {d.shape[0]} dimensions and map {n + 1} reads {e.shape[1]}")
        if float((e @ d).norm()) > _tolerance(*maps) * float(d.norm() * e.norm()):
            raise UsageError(f"map {n + 1} after map {n} is not zero", "this is no complex, so it has no homology")
    ranks = [numerical_rank(torch.linalg.svdvals(d), 0.0, _tolerance(*maps)) if d.numel() else 0 for d in matrices]
    dims = [matrices[0].shape[1], *(d.shape[0] for d in matrices)]
    into, out = [0, *ranks], [*ranks, 0]
    return tuple(dim - r_out - r_in for dim, r_in, r_out in zip(dims, into, out, strict=True))


def _checked(first: Tensor, second: Tensor, covariance: Tensor | None, energy: float) -> tuple[Tensor, Tensor]:
    """A C^(1/2) and B in float64 on the CPU."""
    MapPair(first, second)
    A, B = first.detach().double().cpu(), second.detach().double().cpu()
    if not 0.0 <= energy < 1.0:
        raise UsageError(f"energy {energy} is not in [0, 1)", "0.01 keeps 99 % of the energy, 0 is the algebraic rank")
    if covariance is not None:
        if covariance.shape != (A.shape[1], A.shape[1]):
            raise UsageError(f"a covariance {tuple(covariance.shape)} does not fit a map {tuple(A.shape)}")
        A = A @ _root(covariance.detach().double().cpu())
    if not (bool(torch.isfinite(A).all()) and bool(torch.isfinite(B).all())):
        raise UsageError("a map or its data holds NaN or infinity", "check the weights and the inputs")
    return A, B


def _tolerance(*maps: Tensor) -> float:
    """Larger side times unit roundoff, of the coarsest dtype among `maps`."""
    return max(max(d.shape) * torch.finfo(d.dtype).eps for d in maps)


def _composite_rank(composite: Tensor, written: Tensor, seen: Tensor, energy: float, tolerance: float) -> int:
    """Rank of BA; what rounding leaves of a zero product, relative to ||A||_2 ||B||_2, is zero."""
    values = torch.linalg.svdvals(composite)
    floor = tolerance * float(written[0] * seen[0]) if len(written) and len(seen) else 0.0
    return numerical_rank(values[values > floor], energy, tolerance)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero counts as zero."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    return root


def _clip(share: float) -> float:
    return min(max(share, 0.0), 1.0)
