"""The published layers of cohomological_ai, formula by formula, faults included; for comparison, not for use.

They are right only in that they reproduce that project's numbers: scores that ignore the mask, attention of N x N under
a window, no residuals, norms or positions. The layers to use have the same names in `cohomcli.nn`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LiteralLocalAttention(nn.Module):
    """Full N x N attention masked to |i - j| <= window_size; x (B, N, dim)."""

    def __init__(self, dim: int, heads: int, window_size: int = 16) -> None:
        super().__init__()
        self.heads, self.window_size = heads, window_size
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to (B, N, dim)."""
        q, k, v = _heads(self.qkv(x), self.heads)
        place = torch.arange(x.shape[1])
        far = (place[:, None] - place[None, :]).abs() > self.window_size
        scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
        out: Tensor = self.proj(_merged(scores.masked_fill(far, float("-inf")).softmax(-1) @ v))
        return out


class LiteralExactSequenceAttention(nn.Module):
    """0.5 (softmax(q k^T) + softmax(K P q (I P k)^T m)) v with P of width dim: runs for one head and N = s only."""

    def __init__(self, dim: int, num_heads: int = 8, sequence_dim: int = 64) -> None:
        super().__init__()
        self.heads, self.s = num_heads, sequence_dim
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.P, self.K = nn.Linear(dim, sequence_dim), nn.Linear(sequence_dim, sequence_dim)
        self.I = nn.Linear(sequence_dim, sequence_dim)
        self.m = nn.Parameter(torch.ones(num_heads, sequence_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, N, dim) to (B, N, dim) and the Frobenius norms of both weight matrices."""
        q, k, v = _heads(self.qkv(x), self.heads)
        usual = ((q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5).softmax(-1)
        second = self.K(self.P(q)) @ self.I(self.P(k)).transpose(-2, -1) / self.s**0.5
        second = (second * self.m[None, :, None]).softmax(-1)
        out = self.proj(_merged(0.5 * (usual + second) @ v))
        return out, {"attn_norm": usual.norm(), "seq_attn_norm": second.norm()}


class LiteralTransition(nn.Module):
    """[W x * sigmoid(G x) * m, M x]."""

    def __init__(self, in_dim: int, out_dim: int, sequence_dim: int) -> None:
        super().__init__()
        self.W, self.M = nn.Linear(in_dim, sequence_dim), nn.Linear(in_dim, out_dim - sequence_dim)
        self.m, self.G = nn.Parameter(torch.ones(sequence_dim)), nn.Linear(in_dim, sequence_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim)."""
        return torch.cat([self.W(x) * torch.sigmoid(self.G(x)) * self.m, self.M(x)], dim=-1)


class LiteralTracker(nn.Module):
    """(W x * m, M x), two independent projections."""

    def __init__(self, dim: int, sequence_dim: int) -> None:
        super().__init__()
        self.W, self.M = nn.Linear(dim, sequence_dim), nn.Linear(dim, dim - sequence_dim)
        self.m = nn.Parameter(torch.ones(sequence_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) to (..., s) and (..., dim - s)."""
        return self.W(x) * self.m, self.M(x)


class LiteralCell(nn.Module):
    """Interpolates the state with a linear image of itself; the input enters through gates alone."""

    def __init__(self, dim: int, sequence_dim: int) -> None:
        super().__init__()
        both = dim + sequence_dim
        self.forget, self.update, self.out = (nn.Linear(both, sequence_dim) for _ in range(3))
        self.T, self.check = nn.Linear(sequence_dim, sequence_dim), nn.Linear(2 * sequence_dim, 1)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x` (B, dim) and the state (B, s) to output and new state, (B, s) each."""
        before = x.new_zeros(len(x), self.T.in_features) if state is None else state
        seen = torch.cat([x, before], dim=-1)
        update = torch.sigmoid(self.update(seen))
        new = update * self.T(before) + (1 - update) * before
        gate = torch.sigmoid(self.forget(seen)) * torch.sigmoid(self.check(torch.cat([new, before], dim=-1)))
        after = gate * new + (1 - gate) * before
        return torch.sigmoid(self.out(seen)) * after, after


class LiteralSpectralLayer(nn.Module):
    """Independent projections per level; inner levels gated; affine "differentials" compared between tokens."""

    def __init__(self, dim: int, num_levels: int = 3, filtration_dim: int = 64) -> None:
        super().__init__()
        f = filtration_dim
        self.F = nn.ModuleList(nn.Linear(dim, f) for _ in range(num_levels))
        self.D = nn.ModuleList(nn.Linear(f, f) for _ in range(num_levels - 1))
        self.G = nn.ModuleList(nn.Linear(2 * f, f) for _ in range(num_levels - 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, N, dim) to the levels (B, N, f) and the summed violations."""
        levels, violation = [self.F[0](x)], x.new_zeros(())
        for i in range(1, len(self.F)):
            level = self.F[i](x)
            if i < len(self.F) - 1:
                violation = violation + (self.D[i](level) @ self.D[i - 1](levels[i - 1]).transpose(-2, -1)).norm()
                level = level * torch.sigmoid(self.G[i - 1](torch.cat([levels[i - 1], level], dim=-1)))
            levels.append(level)
        return levels, violation


class LiteralLocalGlobalBlock(nn.Module):
    """proj([conv(x), multi-head attention(x)]); odd kernels only."""

    def __init__(self, dim: int, kernel_size: int = 3, num_heads: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2)
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.proj = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to (B, N, dim)."""
        local = self.conv(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.proj(torch.cat([local, self.attn(x, x, x, need_weights=False)[0]], dim=-1))
        return out


class LiteralCohomologicalTransformer(nn.Module):
    """Three stacks of windowed attention without residuals, norms or positions: all positions predict the same."""

    def __init__(self, dim: int = 512, sequence_dim: int = 64, heads: tuple[int, int, int] = (8, 4, 2)) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(30000, dim), nn.Linear(dim, 30000)
        shapes = zip((4, 2, 1), heads, (16, 8, 4), strict=True)
        self.stacks = nn.ModuleList(
            nn.Sequential(*(LiteralLocalAttention(dim, h, window) for _ in range(n))) for n, h, window in shapes
        )
        self.transitions = nn.ModuleList(LiteralTransition(dim, dim, sequence_dim) for _ in range(2))
        self.trackers = nn.ModuleList(LiteralTracker(dim, sequence_dim) for _ in range(3))

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`ids` (B, N) to logits (B, N, 30000) and three sequence components (B, N, s)."""
        x, components = self.embedding(ids), []
        for level, stack in enumerate(self.stacks):
            x = self.transitions[level - 1](x) if level else x
            components.append(self.trackers[level](x)[0])
            x = stack(x)
        return self.output(x), components


def literal_singular_values(x: Tensor) -> Tensor:
    """The singular values of one batch (..., d) as a matrix: what the published SVDTracker returns and forgets."""
    values: Tensor = torch.linalg.svdvals(x.reshape(-1, x.shape[-1]))
    return values


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    B, N, width = qkv.shape
    q, k, v = qkv.view(B, N, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def literal_gelu_mlp(dim: int) -> nn.Sequential:
    """The four times wider MLP of both source systems."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


def literal_layer_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Layer norm without bias over the last dimension, eps 1e-5."""
    return functional.layer_norm(x, x.shape[-1:], gamma)
