"""The published layers of nonlinear-transformer 0.0.3, formula by formula, faults included; for comparison only.

Its attention has no parameters, its "rotary" term is an angle added to the hidden state, and residuals are counted
twice. The layers to use are in `cohomcli.nn`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.nn.compat import literal_gelu_mlp, literal_layer_norm
from cohomcli.nn.local2d import Grid, band_2d


def literal_local_2d_attention(x: Tensor, window_size: int = 1) -> Tensor:
    """softmax(<x_ij, x_kl> / sqrt d) x_kl over the clipped window of each cell, q = k = v = x; (B, H, W, d)."""
    B, H, W, d = x.shape
    cells = x.reshape(B, H * W, d)
    scores = (cells * d**-0.5) @ cells.transpose(1, 2)
    near = band_2d(Grid(H, W, window_size), x.device)
    mixed: Tensor = scores.masked_fill(~near, float("-inf")).softmax(-1) @ cells
    return mixed.view(B, H, W, d)


def literal_rotary_2d(dim: int, height: int, width: int) -> Tensor:
    """Row i: (i f_0, i f_1, .., i f_0, i f_1, ..), f = 10000^(-2k / dim): (height, dim), which broadcasts over columns.

    Raises:
        RuntimeError: height and width differ, as in the original.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
    rows, columns = (torch.outer(torch.arange(side).float(), frequencies) for side in (height, width))
    return torch.cat([rows, columns], dim=-1)


def literal_rotate_half(x: Tensor) -> Tensor:
    """(a, b) to (-b, a) over the two halves of the last dimension."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


def literal_swiglu(x: Tensor) -> Tensor:
    """The first half times SiLU of the second."""
    value, gate = x.chunk(2, dim=-1)
    return functional.silu(gate) * value


class LiteralNonLinearBlock(nn.Module):
    """x + attention(norm x), then + mlp(norm x), with one norm for both."""

    def __init__(self, dim: int, window_size: int = 1) -> None:
        super().__init__()
        self.gamma, self.mlp, self.window_size = nn.Parameter(torch.ones(dim)), literal_gelu_mlp(dim), window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) to the same."""
        x = x + literal_local_2d_attention(literal_layer_norm(x, self.gamma), self.window_size)
        out: Tensor = x + self.mlp(literal_layer_norm(x, self.gamma))
        return out


class LiteralNonLinearTransformer(nn.Module):
    """h + block(h), then + attention(h), per block; angles are added at the very end; square grids only."""

    def __init__(self, vocab_size: int, dim: int, depth: int, matrix_dim: int, window_size: int = 3) -> None:
        super().__init__()
        self.embedding, self.to_logits = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        self.blocks = nn.ModuleList(LiteralNonLinearBlock(dim) for _ in range(depth))
        self.dim, self.window_size = dim, window_size

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` (B, H, H) to logits (B, H, H, vocabulary)."""
        h = self.embedding(ids)
        for block in self.blocks:
            h = h + block(h)
            h = h + literal_local_2d_attention(h, self.window_size)
        logits: Tensor = self.to_logits(h + literal_rotary_2d(self.dim, *ids.shape[1:]).to(h))
        return logits
