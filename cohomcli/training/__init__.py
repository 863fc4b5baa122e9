"""Training engine: the loop, structural losses, the objective, optimisers; see docs/train.md and docs/nn.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.lazy import lazily

if TYPE_CHECKING:
    from cohomcli.training.losses import CohomologicalTrainingObjective, ExactSequenceLoss, SpectralSequenceLoss
    from cohomcli.training.optimiser import ExactSequenceOptimizer, SpectralLearningRateScheduler

__all__ = [
    "CohomologicalTrainingObjective",
    "ExactSequenceLoss",
    "ExactSequenceOptimizer",
    "SpectralLearningRateScheduler",
    "SpectralSequenceLoss",
]

__getattr__ = lazily(
    __name__,
    {
        "CohomologicalTrainingObjective": "losses",
        "ExactSequenceLoss": "losses",
        "ExactSequenceOptimizer": "optimiser",
        "SpectralLearningRateScheduler": "optimiser",
        "SpectralSequenceLoss": "losses",
    },
)
