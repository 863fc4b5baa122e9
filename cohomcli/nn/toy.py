"""A small classifier of feature sequences that hands out everything the structural losses look at."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cohomcli.nn.attention import is_padding
from cohomcli.nn.exact_attention import ExactSequenceAttention
from cohomcli.nn.exactness import MapPair
from cohomcli.nn.spectral import LocalGlobalBlock


class ToyCohomologicalModel(nn.Module):
    """Exact-sequence attention and a local-global block, each in a residual step; mean over tokens; linear classifier.

    Any number of heads that divides `dim`, any kernel size.
    """

    def __init__(
        self,
        dim: int = 64,
        num_classes: int = 10,
        *,
        num_heads: int = 4,
        sequence_dim: int = 16,
        kernel_size: int = 3,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.norm_1, self.norm_2, self.norm_3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = ExactSequenceAttention(dim, num_heads, sequence_dim, causal=causal)
        self.locglob = LocalGlobalBlock(dim, kernel_size, num_heads, causal=causal)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """`x` (B, N, dim), `mask` padding (B, N) or a pair mask, to a dictionary with

        `logits` (B, num_classes); `repr_list`, the stream before, between and after both steps, (B, N, dim) each;
        `local_repr` and `global_repr` (B, N, dim), the two branches of the local-global block; `map_pairs`, the maps
        that the exact-sequence loss acts on.
        """
        normed = self.norm_1(x)
        a = x + self.attn(normed, mask)[0]
        step, branches = self.locglob(self.norm_2(a), mask)
        out = a + step
        return {
            "logits": self.fc(_mean(self.norm_3(out), mask)),
            "repr_list": [x, a, out],
            "local_repr": branches["local"],
            "global_repr": branches["global"],
            "map_pairs": [*self.attn.map_pairs(normed), self._branch_pair(normed)],
        }

    def _branch_pair(self, normed: Tensor) -> MapPair:
        """What the attention writes into the stream, then what the second step's attention reads of it."""
        _, _, v = self.attn.qkv(normed).chunk(3, dim=-1)
        reader = self.locglob.global_attn.qkv.weight * self.norm_2.weight
        return MapPair(self.attn.proj.weight, reader, v.flatten(0, -2), "branch 1, branch 2")


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens, (B, N, d) to (B, d)."""
    if mask is None or not is_padding(mask):
        return x.mean(dim=1)
    real = mask.to(x.dtype).unsqueeze(-1)
    return (x * real).sum(dim=1) / real.sum(dim=1).clamp_min(1.0)
