"""Attention within a window of tokens, computed on bands: memory N x window, never N x N for a fixed window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.errors import UsageError
from cohomcli.nn.attention import attend, check_heads, is_padding, merge_heads, pair_mask, split_heads
from cohomcli.nn.rotary import angles_1d, rotate

_SHORT = 128  # tokens up to which one product with a band mask is faster than many small ones
_LEAST_CHUNK = 16


class LocalAttention(nn.Module):
    """Multi-head attention in which token i sees the tokens j with |i - j| <= window_size (and j <= i if causal).

    `window_size` None means every token. Positions enter by rotary embedding of queries and keys unless `rotary` is
    False. The output is independent of what `mask` hides.
    """

    def __init__(
        self, dim: int, heads: int, window_size: int | None = 16, *, causal: bool = False, rotary: bool = True
    ) -> None:
        super().__init__()
        if window_size is not None and window_size < 0:
            raise UsageError(f"window_size {window_size} is negative", "0 means: each token sees itself alone")
        self.head_dim = check_heads(dim, heads)
        self.dim, self.heads, self.window_size = dim, heads, window_size
        self.causal, self.rotary = causal, rotary
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, eager: bool = False) -> Tensor:
        """`x` (B, N, dim) to (B, N, dim); `mask` is (B, N) padding or a pair mask (see `attention`).

        Raises:
            UsageError: the mask does not fit.
        """
        return self.pages(x, [self.window_size], mask, eager=eager)[0]

    def pages(
        self, x: Tensor, windows: Sequence[int | None], mask: Tensor | None = None, *, eager: bool = False
    ) -> list[Tensor]:
        """The output under each of `windows` with the same weights, in order: one (B, N, dim) per window."""
        q, k, v = self.heads_of(x)
        mixed = (windowed(q, k, v, window, mask, causal=self.causal, eager=eager) for window in windows)
        return [self.proj(merge_heads(each)) for each in mixed]

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, N, head_dim), the first two turned by position."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if self.rotary:
            theta = angles_1d(x.shape[1], self.head_dim, device=x.device)
            q, k = rotate(q, theta), rotate(k, theta)
        return q, k, v


def windowed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    eager: bool = False,
) -> Tensor:
    """Attention of `q`, `k`, `v` (B, h, N, d) within `window` tokens; equal to full attention under the band mask.

    Bands are used unless the text is short or `mask` is a pair mask, which has N x N entries anyway.

    Raises:
        UsageError: the mask does not fit.
    """
    n = q.shape[2]
    if window is None or n <= max(3 * window, _SHORT) or (mask is not None and not is_padding(mask)):
        allowed = pair_mask(mask, n, causal, q.device)
        if window is not None and window < n - 1:
            near = band(n, window, q.device)
            allowed = near if allowed is None else allowed & near
        return attend(q, k, v, allowed, eager)
    if mask is not None and mask.shape[-1] != n:
        raise UsageError(f"a mask of shape {tuple(mask.shape)} does not fit {n} tokens", "give (B, N)")
    return _banded(q, k, v, window, mask, causal, eager)


def band(n: int, window: int, device: torch.device | None = None) -> Tensor:
    """(n, n) boolean: |i - j| <= window."""
    index = torch.arange(n, device=device)
    return (index[:, None] - index[None, :]).abs() <= window


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, causal: bool, eager: bool) -> Tensor:
    """Queries in chunks of S = max(window, 16) tokens; a chunk sees its own keys and those `window` to either side."""
    B, h, n, _ = q.shape
    size = max(window, _LEAST_CHUNK)
    n_chunks = -(-n // size)
    after = 0 if causal else window
    fill = n_chunks * size - n
    real = torch.ones(1, n, dtype=torch.bool, device=q.device) if mask is None else mask.to(torch.bool)
    real = functional.pad(real, (window, after + fill)).unfold(1, size + window + after, size)  # (B, chunks, span)

    def chunks(x: Tensor, left: int, right: int) -> Tensor:
        spread = functional.pad(x, (0, 0, left, right + fill)).unfold(2, size + left + right, size)
        return spread.permute(0, 2, 1, 4, 3).flatten(0, 1)  # (B * chunks, h, span, d)

    offset = (
        torch.arange(size, device=q.device)[:, None] + window - torch.arange(size + window + after, device=q.device)
    )
    near = (offset.abs() <= window) & ((offset >= 0) if causal else torch.ones_like(offset, dtype=torch.bool))
    allowed = (real.unsqueeze(2) & near).expand(B, -1, -1, -1).flatten(0, 1).unsqueeze(1)
    out = attend(chunks(q, 0, 0), chunks(k, window, after), chunks(v, window, after), allowed, eager)
    out = out.view(B, n_chunks, h, size, -1).transpose(1, 2).flatten(2, 3)
    return out[:, :, :n]
