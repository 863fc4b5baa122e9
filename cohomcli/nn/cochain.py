"""Linear maps whose composition is zero by construction, and a residual block made of them.

d_n = W_n R_n (1 - Q Q^T) with Q an orthonormal basis of what d_(n-1) writes: d_n d_(n-1) = 0 for every value of the
parameters, so gradient descent stays among complexes and needs no penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.errors import UsageError
from cohomcli.nn.exactness import MapPair


def image_basis(writer: Tensor) -> Tensor:
    """Orthonormal columns (c, r) that span the image of `writer` (c, r), by QR."""
    basis: Tensor = torch.linalg.qr(writer).Q
    return basis


def away_from(reader: Tensor, image: Tensor) -> Tensor:
    """`reader` (r, c) made blind to the column space of `image` (c, k), orthonormal: reader (1 - Q Q^T).

    Done twice: one pass leaves a rounding error as large as the removed part, the second removes that too (Parlett,
    The Symmetric Eigenvalue Problem, "twice is enough").
    """
    for _ in range(2):
        reader = reader - (reader @ image) @ image.T
    return reader


class CochainBlock(nn.Module):
    """A residual step x + D x on features graded as C^0 + C^1 + .. + C^K, where D = (d_0, d_1, ..) and D D = 0.

    `widths` are dim C^n, `ranks` the ranks of d_n (None: half of the next space, so that equal even widths give a
    sequence exact at every inner place). The Betti numbers are fixed by the ranks: dim C^n - rank d_n - rank d_(n-1).
    Since D is nilpotent, L steps with one D multiply a feature by 1 + L D: growth is linear in depth, never
    exponential.
    """

    def __init__(self, widths: Sequence[int], ranks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.ranks = default_ranks(self.widths) if ranks is None else tuple(ranks)
        _check_ranks(self.widths, self.ranks)
        self.readers = nn.ParameterList(
            nn.Parameter(torch.randn(r, c) / c**0.5) for r, c in zip(self.ranks, self.widths, strict=False)
        )
        self.writers = nn.ParameterList(
            nn.Parameter(torch.randn(c, r) / max(r, 1) ** 0.5) for r, c in zip(self.ranks, self.widths[1:], strict=True)
        )

    @property
    def betti(self) -> tuple[int, ...]:
        """Dimensions of the cohomology at C^0 .. C^K for generic parameters."""
        into, out = (0, *self.ranks), (*self.ranks, 0)
        return tuple(c - a - b for c, a, b in zip(self.widths, into, out, strict=True))

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """Per map the pair (reader (r_n, c_n), writer (c_(n+1), r_n)), with d_n = writer @ reader."""
        found: list[tuple[Tensor, Tensor]] = []
        for n, (reader, writer) in enumerate(zip(self.readers, self.writers, strict=True)):
            found.append((reader if n == 0 else away_from(reader, image_basis(found[-1][1])), writer))
        return found

    def maps(self) -> list[Tensor]:
        """The matrices d_n (c_(n+1), c_n)."""
        return [writer @ reader for reader, writer in self.factors()]

    def coboundary(self, x: Tensor) -> Tensor:
        """D x for `x` (..., sum of widths), of the same shape."""
        parts = torch.split(x, list(self.widths), dim=-1)
        new = [torch.zeros_like(parts[0])]
        for part, (reader, writer) in zip(parts, self.factors(), strict=False):
            new.append(functional.linear(functional.linear(part, reader), writer))
        return torch.cat(new, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """x + D x for `x` (..., sum of widths)."""
        return x + self.coboundary(x)

    def map_pairs(self, x: Tensor | None = None) -> list[MapPair]:
        """Consecutive maps, measured on the features `x` (..., sum of widths) when given."""
        maps = self.maps()
        parts = None if x is None else torch.split(x, list(self.widths), dim=-1)
        return [
            MapPair(maps[n], maps[n + 1], None if parts is None else parts[n].flatten(0, -2), f"d_{n + 1} d_{n}")
            for n in range(len(maps) - 1)
        ]


def default_ranks(widths: Sequence[int]) -> tuple[int, ...]:
    """For each map half the width of the space it writes, as far as what the map before left to read allows."""
    ranks: list[int] = []
    for c, following in pairwise(widths):
        left = c - (ranks[-1] if ranks else 0)
        ranks.append(max(min(left, (following + 1) // 2), 0))
    return tuple(ranks)


def _check_ranks(widths: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    if len(widths) < 2 or len(ranks) != len(widths) - 1 or min(widths) < 1:
        raise UsageError(f"{len(widths)} widths and {len(ranks)} ranks make no complex", "give K + 1 widths, K ranks")
    for n, rank in enumerate(ranks):
        room = min(widths[n] - (ranks[n - 1] if n else 0), widths[n + 1])
        if not 0 <= rank <= room:
            raise UsageError(f"rank {rank} of map {n} is impossible: between 0 and {room}", "lower the ranks")
