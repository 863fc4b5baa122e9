"""Exponential moving average of the weights (Polyak, Juditsky 1992, in the form every trainer uses)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averaged:
    """w_avg <- decay w_avg + (1 - decay) w after every update; tied weights are averaged once.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of one more update into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        store(self.weights, model)
        try:
            yield
        finally:
            store(own, model)


@torch.no_grad()
def store(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Replace the model's parameters by `weights`, which names them all."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
