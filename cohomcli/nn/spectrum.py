"""The singular values of everything seen so far, from a running second moment: memory d x d, whatever the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from cohomcli.errors import UsageError
from cohomcli.nn.exactness import numerical_rank


class SVDTracker:
    """Tracks the spectrum of a stream of features of width `dim`.

    `update(x)` adds the rows of `x` (..., dim) to sum x x^T in float64 and returns the singular values of the matrix of
    all rows so far, (dim,) descending. With `decay` < 1 older rows fade by that factor per update.
    """

    def __init__(self, dim: int, decay: float = 1.0) -> None:
        if not 0.0 < decay <= 1.0:
            raise UsageError(f"decay {decay} is not in (0, 1]", "1 remembers everything")
        self.dim, self.decay, self.n_rows = dim, decay, 0
        self.gram = torch.zeros(dim, dim, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Tensor) -> Tensor:
        """Take in `x` (..., dim); returns the singular values so far.

        Raises:
            UsageError: another width.
        """
        if x.shape[-1] != self.dim:
            raise UsageError(f"features of width {x.shape[-1]} do not fit a tracker of {self.dim}")
        rows = x.detach().reshape(-1, self.dim).double().cpu()
        self.gram = self.decay * self.gram + rows.T @ rows
        self.n_rows += len(rows)
        return self.singular_values()

    def singular_values(self) -> Tensor:
        """(dim,) float64, descending."""
        values: Tensor = torch.linalg.eigvalsh(self.gram).flip(0).clamp_min(0.0).sqrt()
        return values

    def rank(self, energy: float = 0.01) -> int:
        """Directions that hold all but `energy` of the squared norm."""
        return numerical_rank(self.singular_values(), energy, self.dim * 1e-8)

    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 before any data."""
        values = self.singular_values()
        if not float(values.sum()):
            return 0.0
        p = values / values.sum()
        return float(torch.exp(-torch.special.xlogy(p, p).sum()))

    def reset(self) -> None:
        """Forget everything."""
        self.gram.zero_()
        self.n_rows = 0
