"""Multi-head attention with a second score per head: an image map, a kernel map, and a learned gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cohomcli.nn.attention import attend, check_heads, merge_heads, pair_mask, split_heads
from cohomcli.nn.exactness import MapPair


class ExactSequenceAttention(nn.Module):
    """Each head mixes two attentions over the same values: (1 - g) softmax(q k^T / sqrt d) + g softmax(f e^T / sqrt s).

    e = I P k is what a key writes into the sequence space R^s and f = K P q is what a query reads of it, so the second
    score is the composition of R^d -(I P)-> R^s -((K P)^T)-> R^d. It vanishes for all tokens exactly when the two maps
    form a complex; `map_pairs` hands them to the measures and the exactness loss. g is one learned gate per head and
    starts at 1/2. Both branches respect causality and the mask.
    """

    def __init__(self, dim: int, num_heads: int = 8, sequence_dim: int = 64, *, causal: bool = False) -> None:
        super().__init__()
        self.head_dim = check_heads(dim, num_heads)
        self.dim, self.num_heads, self.sequence_dim, self.causal = dim, num_heads, sequence_dim, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sequence_projector = nn.Linear(self.head_dim, sequence_dim)
        self.kernel_checker = nn.Linear(sequence_dim, sequence_dim)
        self.image_checker = nn.Linear(sequence_dim, sequence_dim)
        self.exactness_gate = nn.Parameter(torch.zeros(num_heads))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, eager: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`x` (B, N, dim) to (B, N, dim) and {"gate": (num_heads,)}; `mask` is padding (B, N) or a pair mask.

        Raises:
            UsageError: the mask does not fit.
        """
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        allowed = pair_mask(mask, x.shape[1], self.causal, x.device)
        reads = self.kernel_checker(self.sequence_projector(q))
        writes = self.image_checker(self.sequence_projector(k))
        gate = torch.sigmoid(self.exactness_gate)
        g = gate.view(1, -1, 1, 1)
        mixed = (1 - g) * attend(q, k, v, allowed, eager) + g * attend(reads, writes, v, allowed, eager)
        return self.proj(merge_heads(mixed)), {"gate": gate.detach()}

    def map_pairs(self, x: Tensor | None = None) -> list[MapPair]:
        """The maps R^d -> R^s -> R^d behind the second score, on the keys of `x` (B, N, dim) when given."""
        P = self.sequence_projector.weight
        keys = None
        if x is not None:
            keys = self.qkv(x).chunk(3, dim=-1)[1].reshape(-1, self.head_dim)
        return [MapPair(self.image_checker.weight @ P, (self.kernel_checker.weight @ P).T, keys, "sequence score")]
