"""Which optimiser `cohom train` uses, and whether the learning rates go by levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cohomcli.config.training import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from cohomcli.training.levels import SpectralLevels
    from cohomcli.training.options import TrainOptions


def levels_for(model: nn.Module, wanted: TrainingConfig) -> SpectralLevels | None:
    """The levels of `--lr-scheduler-type spectral`; None with any other schedule."""
    if wanted.schedule != "spectral":
        return None
    from cohomcli.training.levels import SpectralLevels

    return SpectralLevels(model)


def optimizer_for(wanted: TrainingConfig, levels: SpectralLevels | None) -> Callable[[nn.Module, TrainOptions], Any]:
    """AdamW, or the one that guards what the next block reads; with `levels` its groups are split by them."""

    def make(model: nn.Module, options: TrainOptions) -> Any:
        from cohomcli.training.language import by_level
        from cohomcli.training.loop import adamw
        from cohomcli.training.optimiser import exact_adamw

        optimizer = (exact_adamw if wanted.optimizer == "exact" else adamw)(model, options)
        if levels is not None:
            optimizer.param_groups = by_level(optimizer.param_groups, levels.level_of)
        return optimizer

    return make
