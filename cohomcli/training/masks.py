"""Training that keeps zeros: masked weights are zero before the first step and after every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.training.options import TrainOptions

MakeOptimizer = Callable[[nn.Module, TrainOptions], torch.optim.Optimizer]


def masked(make: MakeOptimizer, masks: Mapping[str, Tensor]) -> MakeOptimizer:
    """`make` with hooks: the optimiser it makes never moves a weight whose mask, by parameter name, is False.

    Gradients of masked weights are zero, so that they enter no moment and no decay can be due; the weights are set to
    zero again after every step, whatever the optimiser did.
    """

    def make_masked(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
        parameters = dict(model.named_parameters())
        pairs = [(parameters[name], mask.to(parameters[name].device)) for name, mask in masks.items()]
        optimizer = make(model, options)

        def before(*_: Any) -> None:
            for parameter, mask in pairs:
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)

        @torch.no_grad()
        def after(*_: Any) -> None:
            for parameter, mask in pairs:
                parameter.masked_fill_(~mask, 0)

        after()
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    return make_masked
