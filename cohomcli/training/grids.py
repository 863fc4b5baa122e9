"""Grids with hidden cells to train on: the masked-token objective of MaskGIT (Chang et al. 2022, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.training.data import IGNORE, Batch, mix


@dataclass(frozen=True)
class GridSequences:
    """Grids of equal outer size for the loop. `cells` is (n, H, W) int64 and `present` of that shape, bool, False where
    a smaller grid ends (None: all cells exist); `classes` is (n,) int64 or None.

    Of every grid a share cos(pi r / 2) of its cells is hidden, r uniform in [0, 1), one cell at least, and the hidden
    ones are asked for: the objective is E_r of the cross-entropy on hidden cells, an upper bound of the negative log
    likelihood up to weights of the masking rates (absorbing discrete diffusion). A share `class_dropout` of grids is
    shown as of the class `n_classes`, which means unknown, so that one model knows both distributions that guidance
    needs (Ho and Salimans 2022).
    """

    cells: Tensor
    mask_id: int
    present: Tensor | None = None
    classes: Tensor | None = None
    n_classes: int = 0
    class_dropout: float = 0.0
    seed: int = 0

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def length(self) -> int:
        """Cells of one sequence."""
        return self.cells[0].numel()

    def batch(self, indices: Sequence[int], draw: int) -> Batch:
        """`input_ids` and `labels`, (B, H, W) int64; `attention_mask` of that shape where cells are absent; `class_ids`
        (B,) int64 where there are classes. What is hidden depends on seed, draw and index alone.
        """
        chosen = list(indices)
        cells, seeds = self.cells[chosen], [mix(self.seed, draw, index) for index in chosen]
        noise = torch.stack([_uniform(seed, self.length + 2) for seed in seeds])
        real = torch.ones_like(cells, dtype=torch.bool) if self.present is None else self.present[chosen]
        hidden = hide(noise[:, 0], noise[:, 2:], real.flatten(1)).view_as(cells)
        batch = {"input_ids": cells.masked_fill(hidden, self.mask_id), "labels": cells.masked_fill(~hidden, IGNORE)}
        if self.present is not None:
            batch["attention_mask"] = real.to(torch.int64)
        if self.classes is not None:
            dropped = noise[:, 1] < self.class_dropout
            batch["class_ids"] = self.classes[chosen].masked_fill(dropped, self.n_classes)
        return batch


def hide(r: Tensor, noise: Tensor, present: Tensor) -> Tensor:
    """Which cells to hide, (B, N) bool: of each row's `present` cells the ceil(cos(pi r / 2) n) with the least `noise`.

    `r` is (B,) in [0, 1) and `noise` (B, N) without order among its values. At least one cell of a row is hidden.
    """
    wanted = (torch.cos(r * (math.pi / 2)) * present.sum(dim=1)).ceil().clamp_min(1)
    ranks = noise.masked_fill(~present, math.inf).argsort(dim=1).argsort(dim=1)
    return (ranks < wanted[:, None]) & present


def _uniform(seed: int, n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))
