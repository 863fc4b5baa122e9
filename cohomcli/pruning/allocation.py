"""How much of every block goes: the same everywhere, or less where outliers carry the function (OWL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.pruning.parts import Anatomy, at
from cohomcli.pruning.slicing import matrix
from cohomcli.pruning.stream import DENSE, Flow, run_block

OUTLIER = 5.0  # M of the paper: a score of so many times the block's mean is an outlier
SPREAD = 0.08  # lambda of the paper: sparsities differ from the mean by at most about so much


def outlier_allocation(
    flow: Flow, blocks: Sequence[nn.Module], anatomies: Sequence[Anatomy], sparsity: float
) -> list[float]:
    """Sparsity of every block by Outlier Weighed Layerwise sparsity (Yin et al. 2024, arXiv:2310.05175), equal to
    `sparsity` on average where blocks have one size; one dense pass over the calibration texts.
    """
    squares: list[dict[str, Any]] = [{} for _ in blocks]
    for batch in range(flow.n_batches):
        x = flow.hidden(DENSE, batch)
        for index, (block, anatomy) in enumerate(zip(blocks, anatomies, strict=True)):
            x = _listening(block, anatomy, x, flow, index, squares[index])
    shares = []
    for block, anatomy, seen in zip(blocks, anatomies, squares, strict=True):
        scores = [
            (matrix(at(block, path)).abs() * seen[group.key].float().sqrt()).flatten()
            for group in anatomy.groups
            for path in group.paths
        ]
        mean = sum(float(score.sum()) for score in scores) / sum(score.numel() for score in scores)
        outliers = sum(int((score > OUTLIER * mean).count_nonzero()) for score in scores)
        shares.append(outliers / sum(score.numel() for score in scores))
    return spread(shares, sparsity)


def spread(shares: Sequence[float], sparsity: float) -> list[float]:
    """Sparsities in [0, 1) whose complements rise with `shares`, within `SPREAD` of their mean and `sparsity` on
    average; a `sparsity` near 0 or 1 leaves less room.
    """
    least, most = min(shares), max(shares)
    if most == least:
        return [sparsity] * len(shares)
    room = min(SPREAD, sparsity / 2, (1 - sparsity) / 2)
    kept = [2 * room * (share - least) / (most - least) for share in shares]
    mean = sum(kept) / len(kept)
    return [sparsity + mean - one for one in kept]


def _listening(
    block: nn.Module, anatomy: Anatomy, x: Tensor, flow: Flow, index: int, squares: dict[str, Any]
) -> Tensor:
    """The block's output on `x` (B, T, d); sums of squares (in,) of what its groups read go into `squares`."""

    def listen(key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found = args[0].flatten(0, -2).square().sum(0, dtype=torch.float64)
            squares[key] = squares.get(key, 0.0) + found

        return hook

    handles = [at(block, group.paths[0]).register_forward_pre_hook(listen(group.key)) for group in anatomy.groups]
    try:
        return run_block(block, x, flow.calls[index])
    finally:
        for handle in handles:
            handle.remove()
