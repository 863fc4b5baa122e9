"""Layers for grids of cells: attention to neighbours, to every cell, or to the means of chunks, and their block.

Every layer takes (B, H, W, d), or (B, H * W, d) in row-major order together with `size` = (H, W), and returns the shape
it got. `mask` (B, H, W) or (B, H * W) marks the cells that exist.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.errors import UsageError
from cohomcli.nn.attention import attend, check_heads, merge_heads, pair_mask, split_heads
from cohomcli.nn.block import Block
from cohomcli.nn.local2d import Backend, Grid, local2d_attention
from cohomcli.nn.rotary import Rotary2DEmbedding, angles_2d, rotate

Size = tuple[int, int]


class GridAttention(nn.Module):
    """What the three kinds share: projections, heads, two-dimensional rotary positions, and the shapes above."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim = check_heads(dim, heads)
        self.dim, self.heads = dim, heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rotary = Rotary2DEmbedding(self.head_dim)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, size: Size | None = None, eager: bool = False
    ) -> Tensor:
        """Attend; shapes as the module's head says.

        Raises:
            UsageError: cells that do not fit `size`, or flat cells without it.
        """
        size = grid_size(x, size)
        flat = x.reshape(x.shape[0], -1, self.dim)
        present = None if mask is None else mask.reshape(mask.shape[0], -1).to(torch.bool)
        out: Tensor = self.proj(self.mix(flat, present, size, eager))
        return out.view(x.shape)

    def mix(self, x: Tensor, present: Tensor | None, size: Size, eager: bool) -> Tensor:
        """`x` (B, H * W, dim) to the heads' outputs side by side, (B, H * W, dim), before the output map."""
        raise NotImplementedError

    def heads_of(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, H * W, head_dim), the first two turned by row and column."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.rotary.turn(q, *size), self.rotary.turn(k, *size), v


class Local2DAttention(GridAttention):
    """Each cell sees the cells at most `window_size` rows and columns away, itself included."""

    def __init__(self, dim: int, window_size: int = 1, heads: int = 1, *, backend: Backend = "auto") -> None:
        super().__init__(dim, heads)
        self.window_size, self.backend = window_size, backend

    def mix(self, x: Tensor, present: Tensor | None, size: Size, eager: bool) -> Tensor:
        """Local attention by `local2d_attention`."""
        q, k, v = self.heads_of(x, size)
        grid = Grid(*size, self.window_size)
        return merge_heads(local2d_attention(q, k, v, grid, present, backend=self.backend, eager=eager))


class Global2DAttention(GridAttention):
    """Each cell sees every cell."""

    def mix(self, x: Tensor, present: Tensor | None, size: Size, eager: bool) -> Tensor:
        """Full attention."""
        q, k, v = self.heads_of(x, size)
        return merge_heads(attend(q, k, v, pair_mask(present, x.shape[1], False, x.device), eager))


class ChunkAttention(GridAttention):
    """Each cell sees one super-token per chunk of `chunk` x `chunk` cells, the mean of the cells that exist in it.

    Global reach at H W / chunk^2 keys per query. Keys are turned by the middle of their chunk. Chunks at the border
    hold fewer cells; a chunk without any is not seen.
    """

    def __init__(self, dim: int, chunk: int = 4, heads: int = 1) -> None:
        super().__init__(dim, heads)
        if chunk < 1:
            raise UsageError(f"chunk {chunk} is not positive", "4 makes super-tokens of 4 x 4 cells")
        self.chunk = chunk

    def mix(self, x: Tensor, present: Tensor | None, size: Size, eager: bool) -> Tensor:
        """Attention from cells to chunks."""
        means, exists = self.pooled(x, present, size)
        width = 2 * self.dim
        q = functional.linear(x, self.qkv.weight[: self.dim], self.qkv.bias[: self.dim])
        keyed = functional.linear(means, self.qkv.weight[-width:], self.qkv.bias[-width:])
        k, v = (split_heads(part, self.heads) for part in keyed.chunk(2, dim=-1))
        rows, columns = (-(-side // self.chunk) for side in size)
        index = torch.arange(rows * columns, device=x.device)
        middle = (self.chunk - 1) / 2
        theta = angles_2d(
            (index // columns) * self.chunk + middle, (index % columns) * self.chunk + middle, self.head_dim
        )
        q = self.rotary.turn(split_heads(q, self.heads), *size)
        return merge_heads(attend(q, rotate(k, theta), v, exists[:, None, None, :], eager))

    def pooled(self, x: Tensor, present: Tensor | None, size: Size) -> tuple[Tensor, Tensor]:
        """Means of chunks (B, n_chunks, dim) and which chunks have a cell at all, boolean (1 or B, n_chunks)."""
        real = x.new_ones(1, x.shape[1]) if present is None else present.to(x.dtype)
        sums = self._sum(x * real.unsqueeze(-1), size)
        counts = self._sum(real.unsqueeze(-1), size)
        return sums / counts.clamp_min(1.0), counts[..., 0] > 0

    def _sum(self, x: Tensor, size: Size) -> Tensor:
        """Sum the cells of each chunk: (B, H * W, d) to (B, n_chunks, d)."""
        B, _, d = x.shape
        c, (H, W) = self.chunk, size
        padded = functional.pad(x.view(B, H, W, d), (0, 0, 0, -W % c, 0, -H % c))
        rows, columns = padded.shape[1] // c, padded.shape[2] // c
        return padded.view(B, rows, c, columns, c, d).sum(dim=(2, 4)).flatten(1, 2)


class NonLinearTransformerBlock(Block):
    """A residual block with local two-dimensional attention of radius `window_size`; two norms, one residual each."""

    def __init__(self, dim: int, window_size: int = 1, heads: int = 1, mlp_dim: int | None = None) -> None:
        super().__init__(dim, Local2DAttention(dim, window_size, heads), mlp_dim)


def grid_size(x: Tensor, size: Size | None) -> Size:
    """(H, W) of the cells `x`.

    Raises:
        UsageError: flat cells without `size`, or cells that do not fit it.
    """
    if x.dim() == 4:
        return (x.shape[1], x.shape[2])
    if x.dim() != 3 or size is None or x.shape[1] != size[0] * size[1]:
        raise UsageError(f"cells {tuple(x.shape)} with size {size} are no grid", "give (B, H, W, d), or size=(H, W)")
    return size
