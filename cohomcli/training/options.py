"""How a model is trained: every choice that the loop reads, under names that users of the Trainer know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cohomcli.errors import UsageError

MixedPrecision = Literal["no", "bf16", "fp16"]
ScheduleName = Literal["cosine", "linear", "wsd", "constant", "spectral"]


@dataclass(frozen=True)
class TrainOptions:
    """One training run. A step is one update of the weights.

    A step reads `batch_size` sequences per process and micro-batch, in `accumulation` micro-batches, on every process:
    one process with a batch of 8 takes the same steps as two with 4 each. `warmup_steps` and `stable_steps` belong to
    the schedule (see `schedule.py`). A decay, interval or patience of 0 switches the thing off. `max_seconds` ends the
    run after a checkpoint; the run can be resumed.
    """

    max_steps: int = 1000
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 100
    min_lr_ratio: float = 0.05
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False
    ema_decay: float = 0.0
    log_every: int = 10
    eval_every: int = 100
    save_every: int = 100
    keep: int = 2
    patience: int = 0
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            UsageError: a number is out of its range.
        """
        low = {"max_steps": 1, "batch_size": 1, "accumulation": 1, "log_every": 1, "warmup_steps": 0, "keep": 1}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise UsageError(f"training.{name} {getattr(self, name)} must be at least {least}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"training.ema_decay {self.ema_decay} must lie in [0, 1)", "0.999 is usual, 0 is off")
        if not self.learning_rate > 0 or not 0 <= self.min_lr_ratio <= 1:
            raise UsageError("the learning rate must be positive and training.min_lr_ratio lie in [0, 1]")
        if self.warmup_steps > self.max_steps:
            raise UsageError(f"{self.warmup_steps} warm-up steps do not fit into {self.max_steps} steps")
