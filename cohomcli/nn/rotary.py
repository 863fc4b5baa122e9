"""Rotary position embeddings in one and two dimensions (Su et al. 2021; axial form: Heo et al. 2024).

A pair of coordinates is a complex number, turned by an angle proportional to its position; the product of a turned
query and a turned key depends on the difference of positions only. In two dimensions half of the pairs turn with the
row and half with the column.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def angles(positions: Tensor, n_pairs: int, base: float = 10000.0) -> Tensor:
    """The angle of every pair: position * base^(-i / n_pairs), i = 0 .. n_pairs - 1.

    `positions` is (N,) in any dtype; returns (N, n_pairs) float32.
    """
    steps = torch.arange(n_pairs, device=positions.device, dtype=torch.float32)
    return positions.to(torch.float32)[:, None] * base ** (-steps / max(n_pairs, 1))


def rotate(x: Tensor, theta: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+p}) of the last dimension by `theta`, p the number of pairs.

    `x` is (..., N, d) and `theta` (N, p) with 2p <= d; coordinates from 2p on stay as they are.
    """
    p = theta.shape[-1]
    cos, sin = theta.cos().to(x.dtype), theta.sin().to(x.dtype)
    a, b, rest = x[..., :p], x[..., p : 2 * p], x[..., 2 * p :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


def angles_1d(n: int, d: int, base: float = 10000.0, device: torch.device | None = None) -> Tensor:
    """(n, d // 2) angles of positions 0 .. n - 1 for heads of width `d`."""
    return angles(torch.arange(n, device=device), d // 2, base)


def angles_2d(rows: Tensor, columns: Tensor, d: int, base: float = 10000.0) -> Tensor:
    """(N, 2 * (d // 4)) angles for heads of width `d`: first d // 4 pairs by row, then as many by column.

    `rows` and `columns` (N,) are the cells' coordinates; they need not be whole numbers.
    """
    return torch.cat([angles(rows, d // 4, base), angles(columns, d // 4, base)], dim=-1)


def cell_coordinates(height: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row and column of every cell of a grid in row-major order, both (height * width,) int64."""
    index = torch.arange(height * width, device=device)
    return index // width, index % width


class Rotary2DEmbedding(nn.Module):
    """Two-dimensional rotary embedding for queries and keys of heads of width `dim`.

    `forward(height, width)` gives the angles (height * width, 2 * (dim // 4)); `turn(x, height, width)` turns
    (B, h, height * width, dim). A grid need not be square.
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def forward(self, height: int, width: int, *, device: torch.device | None = None) -> Tensor:
        """Angles of every cell in row-major order."""
        return angles_2d(*cell_coordinates(height, width, device), self.dim, self.base)

    def turn(self, x: Tensor, height: int, width: int) -> Tensor:
        """`x` (B, h, height * width, dim) with every cell's pairs turned by its row and its column."""
        return rotate(x, self(height, width, device=x.device))
