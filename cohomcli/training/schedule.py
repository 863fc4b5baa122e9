"""Learning-rate schedules as pure functions of the step: nothing to save, so nothing that a resumed run could lose."""

from __future__ import annotations

import math
from collections.abc import Callable

from cohomcli.registry import Registry
from cohomcli.training.options import TrainOptions

WSD_DECAY = 0.2  # share of the steps that the last phase of warmup-stable-decay takes

SCHEDULES = Registry("schedule")
Shape = Callable[[float], float]


def learning_rate(step: int, options: TrainOptions) -> float:
    """The learning rate of update `step` (from 0): linear warm-up, then the schedule down to `min_lr_ratio`."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    length = max(1, options.max_steps - options.warmup_steps)
    shape: Shape = SCHEDULES.get(options.schedule)
    share = shape(min(1.0, (step - options.warmup_steps) / length))
    return options.learning_rate * (options.min_lr_ratio + (1 - options.min_lr_ratio) * share)


@SCHEDULES.register("cosine")
def cosine(progress: float) -> float:
    """(1 + cos(pi t)) / 2 (Loshchilov, Hutter 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULES.register("linear")
def linear(progress: float) -> float:
    """1 - t."""
    return 1 - progress


@SCHEDULES.register("constant")
def constant(progress: float) -> float:
    """1."""
    return 1.0


@SCHEDULES.register("spectral")
def spectral(progress: float) -> float:
    """1: the rates of the levels come on top, see `levels.py`."""
    return 1.0


@SCHEDULES.register("wsd")
def warmup_stable_decay(progress: float) -> float:
    """1, then 1 - sqrt of the share done of the last fifth (Haegele et al. 2024, arXiv:2405.18392)."""
    past = progress - (1 - WSD_DECAY)
    return 1.0 if past <= 0 else 1 - math.sqrt(past / WSD_DECAY)
