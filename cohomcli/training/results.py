"""What training gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Record:
    """One line of the history. `terms` are the means of the objective's terms since the line before, `learning_rate`
    that of the step; an evaluation also has `eval_loss` (nats per predicted token) and `measures`.
    """

    step: int
    terms: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    eval_loss: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What the trained model wrote after a held-out `prompt`, token by token from its own distribution."""

    prompt: str
    text: str


@dataclass(frozen=True)
class TrainingResult:
    """A finished run. `loss` is the final model's on the evaluation set, in nats per predicted token.

    `tokens` counts the predicted tokens of training.

    `stopped` is "steps", "patience" or "time". `seconds` is wall time of the steps in this process and belongs into the
    manifest, not into results that must be equal. `checkpoint` is the final model's folder inside the run folder.
    """

    steps: int
    loss: float
    initial_loss: float
    best_loss: float
    best_step: int
    tokens: int
    history: tuple[Record, ...]
    stopped: str
    n_parameters: int
    seconds: float = field(default=0.0, compare=False)
    checkpoint: str = ""
    samples: tuple[Sample, ...] = ()
