"""From local to global: one attention seen through growing windows, and a block that merges a convolution with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.errors import UsageError
from cohomcli.nn.attention import check_heads, is_padding, zero_padding
from cohomcli.nn.local import LocalAttention


class SpectralSequenceLayer(nn.Module):
    """One attention with the same weights under windows w_0 < w_1 < .. : a filtration of its output by range.

    Operators of bandwidth w form a filtered algebra (bandwidths add under composition), F_0 inside F_1 and so on. The
    page differential delta_r = L_(r+1) - L_r is what the wider window changes: the class of L_(r+1) in F_(r+1) / F_r.
    The norm of page r is E_r = mean ||delta_r||^2 / mean ||L_last||^2 over the tokens whose window w_r is complete. The
    sequence degenerates at page r when all later norms are zero: then windows of w_r carry everything.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int = 3,
        filtration_dim: int = 64,
        *,
        windows: Sequence[int | None] | None = None,
        num_heads: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.windows = default_windows(num_levels) if windows is None else tuple(windows)
        reach = [float("inf") if w is None else w for w in self.windows]
        if len(self.windows) != num_levels or num_levels < 2 or any(a >= b for a, b in pairwise(reach)):
            raise UsageError(f"windows {self.windows} are no filtration of {num_levels} levels", "let them increase")
        check_heads(filtration_dim, num_heads)
        self.dim, self.num_levels, self.filtration_dim, self.causal = dim, num_levels, filtration_dim, causal
        self.filtration = nn.Linear(dim, filtration_dim)
        self.attention = LocalAttention(filtration_dim, num_heads, None, causal=causal)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, eager: bool = False) -> tuple[list[Tensor], Tensor]:
        """`x` (B, N, dim) to the levels, each (B, N, filtration_dim), and the page norms (num_levels - 1,)."""
        levels = self.attention.pages(self.filtration(x), self.windows, mask, eager=eager)
        return levels, page_norms(levels, [full_window(x, w, mask, self.causal) for w in self.windows[:-1]])


def default_windows(num_levels: int) -> tuple[int | None, ...]:
    """1, 4, 16, .. and the whole sequence last."""
    return (*(4**level for level in range(num_levels - 1)), None)


def full_window(x: Tensor, window: int | None, mask: Tensor | None, causal: bool) -> Tensor:
    """(B, N) float weights: 1 for tokens whose window lies inside the real tokens, 0 for others.

    When no token has a complete window every real token counts, so that short sequences still have a norm.
    """
    B, n = x.shape[:2]
    real = mask.to(x.dtype) if mask is not None and is_padding(mask) else x.new_ones(B, n)
    if window is None or window == 0:
        return real
    before = functional.pad(real, (window, 0))[:, :n]
    after = real if causal else functional.pad(real, (0, window))[:, window:]
    inside = real * before * after
    return torch.where(inside.sum() > 0, inside, real)


def page_norms(levels: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """E_r = mean ||L_(r+1) - L_r||^2 / mean ||L_last||^2, one per page, (len(levels) - 1,); differentiable, scale-free.

    `levels` are (B, N, d); `weights` (B, N) per page say which tokens count (None: all of them).
    """
    last = levels[-1].pow(2).mean(-1)
    tiny = torch.finfo(last.dtype).tiny
    norms = []
    for r in range(len(levels) - 1):
        w = torch.ones_like(last) if weights is None else weights[r]
        delta = (levels[r + 1] - levels[r]).pow(2).mean(-1)
        norms.append((w * delta).sum() / (w * last).sum().clamp_min(tiny))
    return torch.stack(norms)


class LocalGlobalBlock(nn.Module):
    """A convolution over neighbouring tokens and attention over all of them, merged by one linear map.

    Any kernel size: an even one reaches one token further into the past. If `causal`, the whole kernel lies in the
    past.
    """

    def __init__(self, dim: int, kernel_size: int = 3, num_heads: int = 4, *, causal: bool = False) -> None:
        super().__init__()
        if kernel_size < 1:
            raise UsageError(f"kernel_size {kernel_size} is not positive", "3 sees one neighbour to either side")
        self.dim, self.kernel_size, self.causal = dim, kernel_size, causal
        self.local_conv = nn.Conv1d(dim, dim, kernel_size)
        self.global_attn = LocalAttention(dim, num_heads, None, causal=causal)
        self.proj = nn.Linear(2 * dim, dim)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, eager: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`x` (B, N, dim) to (B, N, dim) and both branches, {"local": (B, N, dim), "global": (B, N, dim)}.

        Raises:
            UsageError: the mask does not fit.
        """
        reach = self.kernel_size - 1
        after = 0 if self.causal else reach // 2
        padded = functional.pad(zero_padding(x, mask).transpose(1, 2), (reach - after, after))
        local = self.local_conv(padded).transpose(1, 2)
        overall = self.global_attn(x, mask, eager=eager)
        return self.proj(torch.cat([local, overall], dim=-1)), {"local": local, "global": overall}
