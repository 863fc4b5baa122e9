"""Local attention on a grid row by row: a row of queries against its own row of keys and r rows to either side.

Rows lie one after the other in memory, so the 2r + 1 rows that a row sees are one block, and the blocks of successive
rows overlap: all of them are views of one padded copy of the keys, and each product over all rows is one batched matrix
product. The backward pass is written out (the gradient of softmax attention, as in Dao et al. 2022, appendix B.2), for
autograd would copy the overlapping views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


@dataclass(frozen=True)
class _Layout:
    """`n` grids (batch and heads) of `height` rows of `width` cells, windows of radius `r`, vectors of length `d`.

    Between two grids lie 2r empty rows, so that the block of row y begins y rows further on for all grids alike; the
    rows of queries that belong to the empty ones compute nothing that is used.
    """

    n: int
    height: int
    width: int
    r: int
    d: int

    @property
    def rows(self) -> int:
        """Rows of one grid with the empty ones."""
        return self.height + 2 * self.r

    @property
    def seen(self) -> int:
        """Cells in a block of keys."""
        return (2 * self.r + 1) * self.width

    def laid(self, x: Tensor, first: int) -> Tensor:
        """(n, height * width, d) as (n * rows + 2r rows, width * d), each grid `first` rows below its start."""
        after = (self.rows - self.height - first) * self.width
        grids = functional.pad(x, (0, 0, first * self.width, after)).reshape(self.n * self.rows, -1)
        return functional.pad(grids, (0, 0, 0, 2 * self.r))

    def queries(self, x: Tensor) -> Tensor:
        """Rows of queries (n * rows, width, d) of what `laid(x, 0)` gave."""
        return x[: self.n * self.rows].view(-1, self.width, self.d)

    def blocks(self, x: Tensor) -> Tensor:
        """Blocks of keys (n * rows, seen, d), views of what `laid(x, r)` gave."""
        step = self.width * self.d
        return x.as_strided((self.n * self.rows, self.seen, self.d), (step, self.d, 1))

    def cells(self, x: Tensor) -> Tensor:
        """The inverse of `queries`: (n * rows, width, d) to (n, height * width, d)."""
        return x.view(self.n, self.rows * self.width, self.d)[:, : self.height * self.width]

    def folded(self, x: Tensor) -> Tensor:
        """Sum over the blocks that hold a cell: (n * rows, seen, d) to (n, height * width, d)."""
        parts = x.view(self.n, self.rows, 2 * self.r + 1, self.width * self.d)
        total = x.new_zeros(self.n, self.rows, self.width * self.d)
        for at in range(2 * self.r + 1):
            total[:, at : at + self.height] += parts[:, : self.height, at]
        return total[:, self.r : self.r + self.height].reshape(self.n, self.height * self.width, self.d)

    def hidden(self, device: torch.device) -> Tensor:
        """(rows, width, seen) bool: keys outside the window or the grid, by row of queries."""
        y, a = torch.arange(self.rows, device=device), torch.arange(2 * self.r + 1, device=device)
        x, key = torch.arange(self.width, device=device), torch.arange(self.seen, device=device)
        outside = (y[:, None] + a < self.r) | (y[:, None] + a >= self.r + self.height)
        far = (x[:, None] - key % self.width).abs() > self.r
        return outside.repeat_interleave(self.width, dim=1)[:, None] | far


class _Rows(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v over the windows; `absent` (n, rows * width + 2r * width) bool or None."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, absent: Tensor | None, layout: _Layout) -> Tensor:
        queries = layout.laid(q * layout.d**-0.5, 0)
        keys, values = layout.laid(k, layout.r), layout.laid(v, layout.r)
        scores = torch.bmm(layout.queries(queries), layout.blocks(keys).transpose(1, 2))
        shaped = scores.view(layout.n, layout.rows, layout.width, layout.seen)
        hidden = layout.hidden(q.device)
        if absent is not None:
            hidden = hidden | absent.unfold(1, layout.seen, layout.width)[:, :, None]
        # not -inf: a row that sees nothing would become NaN, and its gradient too
        shaped.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        if absent is not None:  # a cell that sees nothing gets zeros
            weights.view_as(shaped).masked_fill_(hidden, 0.0)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.layout = layout
        return layout.cells(torch.bmm(weights, layout.blocks(values))).contiguous()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        layout: _Layout = ctx.layout
        rows = layout.queries(layout.laid(grad, 0))
        of_weights = torch.bmm(rows, layout.blocks(values).transpose(1, 2))
        of_values = layout.folded(torch.bmm(weights.transpose(1, 2), rows))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_queries = layout.cells(torch.bmm(of_scores, layout.blocks(keys))) * layout.d**-0.5
        of_keys = layout.folded(torch.bmm(of_scores.transpose(1, 2), layout.queries(queries)))
        return of_queries, of_keys, of_values, None, None


def attend_in_rows(q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int], r: int, present: Tensor | None) -> Tensor:
    """Local attention of radius `r` on grids of `size` (rows, columns).

    `q`, `k`, `v` are (B, h, H * W, d); `present` (B, H * W) bool marks the cells that exist. Returns (B, h, H * W, d);
    its gradient cannot be differentiated again. Autograd keeps (2r + 1) W weights a cell and head.
    """
    B, h, _, d = q.shape
    layout = _Layout(B * h, *size, r, d)
    flat = (x.reshape(B * h, -1, d) for x in (q, k, v))
    absent = None
    if present is not None:
        margin = r * layout.width
        absent = functional.pad(~present.to(torch.bool), (margin, margin + 2 * margin), value=True)
        absent = absent.repeat_interleave(h, dim=0)
    out: Tensor = _Rows.apply(*flat, absent, layout)  # type: ignore[no-untyped-call]
    return out.view(q.shape)
