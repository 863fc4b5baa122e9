"""Attention primitives shared by every layer: heads, one mask convention, and the two ways to compute the weights.

Masks are boolean and True means "may be attended to". A mask of two dimensions (B, N) is padding: which tokens are
real. A mask of three or four, (B, N, N) or (B, h or 1, N, N), says which query (second to last) sees which key (last).
A query that sees no key gets zeros, never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cohomcli.errors import UsageError


def check_heads(dim: int, heads: int) -> int:
    """The width of one head.

    Raises:
        UsageError: `heads` does not divide `dim`.
    """
    if heads < 1 or dim % heads:
        raise UsageError(f"{heads} heads do not divide the width {dim}", "choose a divisor of the width")
    return dim // heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, h * d) to (B, h, N, d)."""
    B, N, width = x.shape
    return x.view(B, N, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, N, d) to (B, N, h * d)."""
    B, heads, N, d = x.shape
    return x.transpose(1, 2).reshape(B, N, heads * d)


def is_padding(mask: Tensor | None) -> bool:
    """Whether `mask` is a padding mask (B, N)."""
    return mask is not None and mask.dim() == 2


def pair_mask(mask: Tensor | None, n: int, causal: bool, device: torch.device) -> Tensor | None:
    """What each query may see, broadcastable to (B, h, N, N), or None for everything.

    `mask` is any of the masks above, of any dtype whose non-zero values mean True; `n` is the number of tokens.

    Raises:
        UsageError: the mask is for another number of tokens, or has a dimension too many.
    """
    allowed = None
    if mask is not None:
        if mask.dim() not in (2, 3, 4) or mask.shape[-1] != n or (mask.dim() > 2 and mask.shape[-2] != n):
            raise UsageError(
                f"a mask of shape {tuple(mask.shape)} does not fit {n} tokens",
                "give (B, N) for padding, or (B, N, N) or (B, heads, N, N) for pairs",
            )
        real = mask.to(torch.bool)
        allowed = {2: lambda: real[:, None, None, :], 3: lambda: real[:, None], 4: lambda: real}[mask.dim()]()
    if not causal:
        return allowed
    past = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    return past if allowed is None else allowed & past


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, eager: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d_q)) v over the allowed keys (Vaswani et al. 2017, equation 1).

    `q` is (B, h, N, d_q), `k` (B, h, M, d_q), `v` (B, h, M, d_v); `allowed` is boolean and broadcasts to
    (B, h, N, M). Returns (B, h, N, d_v). `eager` computes scores, softmax and sum as operations of their own, which is
    what a precision analysis needs; otherwise the fused kernel runs.
    """
    if not eager:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if allowed is None:
        weights = scores.softmax(dim=-1)
        return torch.matmul(weights, v)
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.matmul(weights.masked_fill(~allowed, 0.0), v)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N, d) with the rows of padding set to zero; `mask` (B, N) or None."""
    return x if mask is None or not is_padding(mask) else x * mask.to(x.dtype).unsqueeze(-1)
