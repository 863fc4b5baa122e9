"""Second moments of what flows past a group of maps, summed batch by batch from the shelf."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cohomcli.pruning.parts import Group
from cohomcli.pruning.stream import Flow

COLUMNS = 256  # inputs whose float64 sums are taken at a time


class Moments:
    """Sums over tokens: `gram` of x x^T (in, in), `cross` of goal x^T (or None), float32; of x and its square, float64.

    Adding n batches rounds the Gram by at most n 6e-8 of its diagonal, which is lost in the hundredth of the diagonal
    that every solver adds.
    """

    def __init__(self, group: Group, flow: Flow, chained: bool) -> None:
        self.group, self.flow, self.chained = group, flow, chained
        self.gram = torch.zeros(0)
        self.cross: Tensor | None = None
        self.total = self.squares = torch.zeros(0)
        self.rows = 0

    @torch.inference_mode()
    def add(self, batches: Iterable[int]) -> Moments:
        """Take the tokens of these batches in."""
        for batch in batches:
            x = self.flow.inputs(self.group, batch)
            goal = self.flow.goal(self.group, batch) if self.chained else None
            if self.rows == 0:
                self.gram = torch.zeros(x.shape[1], x.shape[1])
                self.total, self.squares = torch.zeros(2, x.shape[1], dtype=torch.float64)
                self.cross = None if goal is None else torch.zeros(goal.shape[1], x.shape[1])
            self.gram.addmm_(x.T, x)
            if self.cross is not None and goal is not None:
                self.cross.addmm_(goal.T, x)
            for start in range(0, x.shape[1], COLUMNS):  # a whole batch in float64 would take twice its room
                here = slice(start, start + COLUMNS)
                self.total[here] += x[:, here].sum(0, dtype=torch.float64)
                self.squares[here] += x[:, here].square().sum(0, dtype=torch.float64)
            self.rows += len(x)
        return self

    @torch.inference_mode()
    def variances(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every input, (in,) each."""
        mean = self.total / self.rows
        return mean.float(), (self.squares / self.rows - mean**2).clamp_min(0).float()
