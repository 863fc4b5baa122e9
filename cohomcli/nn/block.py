"""The residual block around any attention: pre-norm (Xiong et al. 2020), with an MLP of four times the width."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Block(nn.Module):
    """x + attn(norm x), then x + mlp(norm x); each branch has its own norm, each sum happens once."""

    def __init__(self, dim: int, attn: nn.Module, mlp_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        width = 4 * dim if mlp_dim is None else mlp_dim
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attn
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """`hidden_states` (B, N, dim) to the same shape; `mask` and `options` go to the attention."""
        x = hidden_states + self.dropout(self.attn(self.norm_1(hidden_states), mask, **options))
        out: Tensor = x + self.dropout(self.mlp(self.norm_2(x)))
        return out


def mark_residual_writers(block: Any, n_layer: int) -> None:
    """Let the maps that write into the residual stream start smaller by sqrt(2 n_layer), for `initialise`.

    The norm of the stream then does not grow with depth (Radford et al. 2019, section 2.3).
    """
    for linear in (block.attn.proj, block.mlp[2]):
        linear.initial_scale = (2 * n_layer) ** -0.5


def initialise(module: nn.Module, std: float) -> None:
    """Draw the weights of a map that was marked, N(0, (std * scale)^2); others are left alone."""
    scale = getattr(module, "initial_scale", None)
    if scale is not None and isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std * scale)
