"""The parts of a representation that form an exact sequence: how to split it off, pass it on, and carry it in time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.errors import UsageError
from cohomcli.nn.cochain import away_from, image_basis


class SequenceTracker(nn.Module):
    """Splits features into a sequence component (s) and the rest, without loss: 0 -> rest -> x -> sequence -> 0.

    The split is an orthogonal change of basis made of s Householder reflections, Q = 1 - V T V^T (the UT form of
    Joffrain et al. 2006), so `combine(*tracker(x)) == x` to rounding while `sequence_mask` is one. The inclusion of the
    rest has exactly the projection's kernel as image: a split short exact sequence.
    """

    def __init__(self, dim: int, sequence_dim: int) -> None:
        super().__init__()
        if not 0 < sequence_dim < dim:
            raise UsageError(f"sequence_dim {sequence_dim} is not between 1 and {dim - 1}", "take a part of the width")
        self.dim, self.sequence_dim = dim, sequence_dim
        self.reflectors = nn.Parameter(torch.randn(dim, sequence_dim))
        self.sequence_mask = nn.Parameter(torch.ones(sequence_dim))

    def _factor(self) -> Tensor:
        """T V^T (s, dim), with T^-1 the upper triangle of V^T V whose diagonal is halved."""
        V = self.reflectors
        gram = V.T @ V
        inverse = torch.triu(gram, 1) + torch.diag(0.5 * torch.diagonal(gram))
        factor: Tensor = torch.linalg.solve_triangular(inverse, V.T, upper=True)
        return factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (..., dim) to the sequence component (..., s), scaled by `sequence_mask`, and the rest (..., dim - s)."""
        y = x - (x @ self.reflectors) @ self._factor()
        return y[..., : self.sequence_dim] * self.sequence_mask, y[..., self.sequence_dim :]

    def combine(self, seq: Tensor, other: Tensor) -> Tensor:
        """Back to (..., dim) from both components."""
        y = torch.cat([seq, other], dim=-1)
        return y - (y @ self._factor().T) @ self.reflectors.T

    def projection(self) -> Tensor:
        """(s, dim): the linear map from features to the sequence component, before the mask."""
        Q = torch.eye(self.dim, dtype=self.reflectors.dtype, device=self.reflectors.device)
        return (Q - self.reflectors @ self._factor())[:, : self.sequence_dim].T


class ExactSequencePreservingTransition(nn.Module):
    """From one level to the next: [g(x) S x, M x], where S never reads what the transition before it wrote.

    S = W R has rank `rank` (half of s by default). Given the `image` of the transition before, R is made blind to it in
    the first s coordinates, so that both sequence maps compose to zero exactly. The gate g is one number per token: a
    scalar commutes with every linear map, while a gate per coordinate would destroy the zero.
    """

    def __init__(self, in_dim: int, out_dim: int, sequence_dim: int, rank: int | None = None) -> None:
        super().__init__()
        if not 0 < sequence_dim < min(out_dim, in_dim + 1):
            raise UsageError(f"sequence_dim {sequence_dim} does not fit widths {in_dim} and {out_dim}", "lower it")
        self.in_dim, self.out_dim, self.sequence_dim = in_dim, out_dim, sequence_dim
        self.rank = max(sequence_dim // 2, 1) if rank is None else rank
        if not 0 < self.rank <= sequence_dim:
            raise UsageError(f"rank {self.rank} is not between 1 and {sequence_dim}", "lower it")
        self.reader = nn.Parameter(torch.randn(self.rank, in_dim) / in_dim**0.5)
        self.writer = nn.Parameter(torch.randn(sequence_dim, self.rank) / self.rank**0.5)
        self.main_projector = nn.Linear(in_dim, out_dim - sequence_dim)
        self.exactness_gate = nn.Linear(in_dim, 1)

    def image(self) -> Tensor:
        """Orthonormal basis (s, rank) of what this transition writes into the sequence component."""
        return image_basis(self.writer)

    def _blind_reader(self, image: Tensor | None) -> Tensor:
        if image is None:
            return self.reader
        seq, rest = self.reader[:, : self.sequence_dim], self.reader[:, self.sequence_dim :]
        return torch.cat([away_from(seq, image), rest], dim=1)

    def sequence_map(self, image: Tensor | None = None) -> Tensor:
        """S (s, in_dim), blind to `image` (s, k) orthonormal when given."""
        return self.writer @ self._blind_reader(image)

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        """`x` (..., in_dim) to (..., out_dim), the first s coordinates being the sequence component."""
        seq = functional.linear(functional.linear(x, self._blind_reader(image)), self.writer)
        return torch.cat([torch.sigmoid(self.exactness_gate(x)) * seq, self.main_projector(x)], dim=-1)


class ExactSequenceCell(nn.Module):
    """A recurrent cell that adds to its state only what the state does not hold yet.

    The candidate is replaced by its class in R^s / <state>: the part orthogonal to the state, the cokernel of the
    sequence 0 -> <state> -> R^s -> R^s / <state> -> 0. With the scalar gate z in (0, 1), state' = (1 - z) state + z new
    has ||state'|| <= max(||state||, sqrt(s)): it neither explodes nor repeats itself.
    """

    def __init__(self, dim: int, sequence_dim: int) -> None:
        super().__init__()
        self.dim, self.sequence_dim = dim, sequence_dim
        self.sequence_gate = nn.Linear(dim + sequence_dim, 1)
        self.output_gate = nn.Linear(dim + sequence_dim, sequence_dim)
        self.sequence_transform = nn.Linear(dim + sequence_dim, sequence_dim)

    def forward(self, x: Tensor, prev_sequence: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: `x` (B, dim) and the state (B, s), None for zeros, to the output and the new state (B, s)."""
        state = x.new_zeros(x.shape[0], self.sequence_dim) if prev_sequence is None else prev_sequence
        seen = torch.cat([x, state], dim=-1)
        new = novelty(torch.tanh(self.sequence_transform(seen)), state)
        z = torch.sigmoid(self.sequence_gate(seen))
        state = (1 - z) * state + z * new
        return torch.sigmoid(self.output_gate(seen)) * state, state


def novelty(candidate: Tensor, state: Tensor) -> Tensor:
    """The part of `candidate` (B, s) orthogonal to `state` (B, s); a zero state takes nothing away."""
    size = (state * state).sum(-1, keepdim=True)
    along = (candidate * state).sum(-1, keepdim=True) / size.clamp_min(torch.finfo(state.dtype).tiny)
    return candidate - along * state
