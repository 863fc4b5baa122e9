"""Training engine: the loop, structural losses, the objective, optimisers; see docs/train.md and docs/nn.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.training.losses import CohomologicalTrainingObjective, ExactSequenceLoss, SpectralSequenceLoss
    from cohomcli.training.optimiser import ExactSequenceOptimizer, SpectralLearningRateScheduler

_HOMES = {
    "CohomologicalTrainingObjective": "losses",
    "ExactSequenceLoss": "losses",
    "ExactSequenceOptimizer": "optimiser",
    "SpectralLearningRateScheduler": "optimiser",
    "SpectralSequenceLoss": "losses",
}
__all__ = [
    "CohomologicalTrainingObjective",
    "ExactSequenceLoss",
    "ExactSequenceOptimizer",
    "SpectralLearningRateScheduler",
    "SpectralSequenceLoss",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: results of a training are read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
