"""Learning rates by level while a model trains: upper blocks wait until the pages of the lower levels agree.

The levels are thirds of the blocks (with the embedding below and the head on top), the pages the last hidden states
under growing attention windows. `SpectralLearningRateScheduler` has the rule; here its rates multiply the schedule's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cohomcli.models.layout import find_stacks
from cohomcli.training.data import Batch
from cohomcli.training.optimiser import SpectralLearningRateScheduler
from cohomcli.training.structure import EVERY, Structural

LEVELS = 3
WINDOW = 25  # observations over which a level must agree, one every fourth step: a hundred steps


class SpectralLevels:
    """The rule on one model. `level_of` gives every parameter's level by `id`."""

    def __init__(self, model: nn.Module) -> None:
        self.structural = Structural(model, 0.0, 1.0)
        self.rule = SpectralLearningRateScheduler(base_lr=1.0, num_levels=LEVELS, warmup_steps=0, window=WINDOW)
        self.level_of = levels_of(model)

    @torch.no_grad()
    def observe(self, model: nn.Module, inputs: Batch, step: int) -> None:
        """In every fourth step, note how far the pages of a sixteenth of the batch agree."""
        if step % EVERY == 0:
            pages = self.structural.pages(model, inputs)
            self.rule.step([page.float() for page in pages], step)

    def factor(self, level: int) -> float:
        """What the learning rate of `level` is multiplied by: 1, or ten times less for every lower level that waits."""
        return self.rule.get_level_lr(level, 1)

    def state_dict(self) -> dict[str, Any]:
        """The agreements seen, as JSON."""
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.rule.load_state_dict(state)


def levels_of(model: nn.Module) -> dict[int, int]:
    """Level by `id` of the parameter: 0 below the blocks, 0 to 2 by thirds inside, 2 above."""
    blocks = find_stacks(model).stacks[0].blocks
    found = {id(p): at * LEVELS // len(blocks) for at, block in enumerate(blocks) for p in block.parameters()}
    below = {id(p) for p in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    for parameter in model.parameters():
        found.setdefault(id(parameter), 0 if id(parameter) in below else LEVELS - 1)
    return found
