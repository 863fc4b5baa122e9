"""Attention of grid cells to their neighbours at most r rows and r columns away, by four exact back-ends.

All give softmax attention over the (2r + 1)^2 window, clipped at the border; they differ in memory and speed only:
`mask` full attention under a band mask, N^2 scores; fastest on small grids
`stripes` every row against its own and r to either side, N (2r + 1) W scores; fastest on middling grids
`tiles` square tiles of cells with a border of r: N (T + 2r)^2 / T^2 keys, linear in cells for any shape
`flex` block-sparse kernel of torch's flex_attention, CUDA only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from cohomcli.errors import UsageError
from cohomcli.nn.attention import attend
from cohomcli.nn.rotary import cell_coordinates
from cohomcli.nn.stripes import attend_in_rows

Backend = Literal["auto", "mask", "stripes", "tiles", "flex"]
BACKENDS: tuple[Backend, ...] = ("auto", "mask", "stripes", "tiles", "flex")
_SMALL = 32 * 32  # cells


@dataclass(frozen=True)
class Grid:
    """The shape of a grid of cells and the reach of its windows: |row difference| <= r and |column difference| <= r."""

    height: int
    width: int
    r: int

    @property
    def n_cells(self) -> int:
        """height * width."""
        return self.height * self.width


def local2d_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    present: Tensor | None = None,
    *,
    backend: Backend = "auto",
    eager: bool = False,
) -> Tensor:
    """Local attention on a grid; `q`, `k`, `v` are (B, h, height * width, d) in row-major order, and so is the result.

    `present` (B, height * width) boolean marks the cells that exist; the others are never attended to. A cell without
    a visible neighbour gets zeros. `eager` writes scores and softmax out as operations of their own.

    Raises:
        UsageError: a shape that does not fit the grid, a negative radius, or a back-end that cannot run here.
    """
    if q.dim() != 4 or q.shape[2] != grid.n_cells or grid.r < 0:
        raise UsageError(f"a tensor {tuple(q.shape)} does not fit {grid}", "give (B, heads, height * width, d), r >= 0")
    chosen = choose_backend(grid, q.device) if backend == "auto" else backend
    if chosen == "mask":
        return attend(q, k, v, _with_present(band_2d(grid, q.device), present), eager)
    if chosen == "stripes" and not eager:
        return attend_in_rows(q, k, v, (grid.height, grid.width), grid.r, present)
    if chosen == "stripes":
        return _tiled(q, k, v, grid, (max(grid.r, 4), grid.width), present, eager)
    if chosen == "tiles":
        side = max(grid.r, 4)
        return _tiled(q, k, v, grid, (side, side), present, eager)
    if chosen == "flex":
        return _flex(q, k, v, grid, present)
    raise UsageError(f"unknown back-end {backend!r}", f"use {', '.join(BACKENDS)}")


def choose_backend(grid: Grid, device: torch.device) -> Backend:
    """The fastest back-end, by how many keys each makes a query read.

    `mask` reads all N, the others so many and the border's; measured on one CPU thread (`benchmarks.local2d
    --backends`), a key costs `stripes` about three times as much as `mask`, and `tiles` eight times as much as
    `stripes`. On CUDA `mask` up to 32 x 32 cells and `flex` above.
    """
    if device.type == "cuda":
        return "mask" if grid.n_cells <= _SMALL else "flex"
    side = max(grid.r, 4) + 2 * grid.r
    stripes = (2 * grid.r + 1) * grid.width * (grid.height + 2 * grid.r) / grid.height
    if grid.n_cells < 3 * min(stripes, 8 * side**2):
        return "mask"
    return "stripes" if stripes <= 8 * side**2 else "tiles"


def band_2d(grid: Grid, device: torch.device | None = None) -> Tensor:
    """(N, N) boolean: which cells lie in each other's window."""
    rows, columns = cell_coordinates(grid.height, grid.width, device)
    near_rows = (rows[:, None] - rows[None, :]).abs() <= grid.r
    return near_rows & ((columns[:, None] - columns[None, :]).abs() <= grid.r)


def _with_present(band: Tensor, present: Tensor | None) -> Tensor:
    return band if present is None else band & present.to(torch.bool)[:, None, None, :]


def _tiled(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, tile: tuple[int, int], present: Tensor | None, eager: bool
) -> Tensor:
    """Tiles of queries against their own keys and a border of r cells; a tile as wide as the grid is a stripe."""
    H, W, r = grid.height, grid.width, grid.r
    th, tw = min(tile[0], H), min(tile[1], W)
    border = 0 if tw == W else r  # a stripe needs no columns beside it
    rows, columns = -(-H // th), -(-W // tw)
    fill = (0, columns * tw - W, 0, rows * th - H)

    def cut(x: Tensor, around: tuple[int, int]) -> Tensor:
        """(B, c, H, W) to (B * rows * columns, c, cells of one tile with its border)."""
        dy, dx = around
        x = functional.pad(x, (dx, dx + fill[1], dy, dy + fill[3]))
        x = x.unfold(2, th + 2 * dy, th).unfold(3, tw + 2 * dx, tw)
        return x.permute(0, 2, 3, 1, 4, 5).flatten(4).flatten(0, 2)

    def heads(x: Tensor, around: tuple[int, int]) -> Tensor:
        B, h, _, d = x.shape
        planes = x.transpose(2, 3).reshape(B, h * d, H, W)
        tiles = cut(planes, around)
        return tiles.view(len(tiles), h, d, -1).transpose(2, 3)

    B = q.shape[0]
    exists = torch.ones(1, H * W, device=q.device) if present is None else present.to(torch.float32)
    exists = cut(exists.view(-1, 1, H, W), (r, border)).to(torch.bool)  # (B * tiles, 1, span)
    allowed = exists.unsqueeze(2) & _tile_band((th, tw), (r, border), r, q.device)
    if present is None and B > 1:
        allowed = allowed.repeat(B, 1, 1, 1)
    out = attend(heads(q, (0, 0)), heads(k, (r, border)), heads(v, (r, border)), allowed, eager)
    return _sewn(out, (B, rows, columns), (th, tw), (H, W))


def _tile_band(tile: tuple[int, int], around: tuple[int, int], r: int, device: torch.device) -> Tensor:
    """(cells of a tile, cells with border) boolean: which keys lie in each query's window, relative to the tile."""
    y, x = cell_coordinates(*tile, device)
    ky, kx = cell_coordinates(tile[0] + 2 * around[0], tile[1] + 2 * around[1], device)
    near_rows = (y[:, None] - ky[None, :] + around[0]).abs() <= r
    return near_rows & ((x[:, None] - kx[None, :] + around[1]).abs() <= r)


def _sewn(out: Tensor, tiles: tuple[int, int, int], tile: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undo the cut: (B * tiles, h, cells of a tile, d) to (B, h, H * W, d)."""
    B, rows, columns = tiles
    _, h, _, d = out.shape
    out = out.view(B, rows, columns, h, *tile, d).permute(0, 3, 1, 4, 2, 5, 6)
    out = out.reshape(B, h, rows * tile[0], columns * tile[1], d)[:, :, : size[0], : size[1]]
    return out.reshape(B, h, size[0] * size[1], d)


def _flex(q: Tensor, k: Tensor, v: Tensor, grid: Grid, present: Tensor | None) -> Tensor:
    """torch's flex_attention with the window as block mask; it has no backward pass on CPUs."""
    if q.device.type != "cuda":
        raise UsageError("the back-end flex runs on CUDA only", "use mask, stripes or tiles")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    width, r, n = grid.width, grid.r, grid.n_cells
    real = None if present is None else present.to(torch.bool)

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        inside = ((i // width - j // width).abs() <= r) & ((i % width - j % width).abs() <= r)
        return inside if real is None else inside & real[b, j]

    block_mask = create_block_mask(near, None if real is None else q.shape[0], None, n, n, device=str(q.device))
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    out: Tensor = compiled(q, k, v, block_mask=block_mask)
    return out
