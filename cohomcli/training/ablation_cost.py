"""What a step of every arm costs on this machine: for the arm of equal compute, and for a forecast of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from cohomcli.training.ablation import AblationPlan, AblationTask, first_batch, prepared
from cohomcli.training.arms import ARMS
from cohomcli.training.language import inputs_of, summed_loss, targets_in
from cohomcli.training.loop import Objective, adamw
from cohomcli.training.options import TrainOptions
from cohomcli.training.structure import EVERY

_GRAIN = 0.05  # ratios are rounded up to this: finer ones are noise


def step_seconds(task: AblationTask, arms: Sequence[str], options: TrainOptions, rounds: int) -> dict[str, float]:
    """CPU seconds of one step of every arm: the least of `rounds` means, taken in turn after one that warms up.

    A mean is over as many steps as the structural losses take to come round.
    """
    runs = {name: _Steps(task, name, options) for name in dict.fromkeys(arms)}
    least = dict.fromkeys(runs, math.inf)
    for at in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            for _ in range(EVERY):
                run.step()
            spent = (time.process_time() - begun) / EVERY
            if at:
                least[name] = min(least[name], spent)
    return least


class _Steps:
    """Steps of one arm at weight 0.1, which costs as much as any, on the run's first batch."""

    def __init__(self, task: AblationTask, arm: str, options: TrainOptions) -> None:
        self.model: nn.Module = task.new_model(options.seed)
        self.task = task.task
        self.objective: Objective = prepared(task, ARMS.get(arm), 0.1, self.model, options)
        self.optimizer = adamw(self.model, options)
        self.at = 0
        self.batch = first_batch(task, options, next(self.model.parameters()).device)

    def step(self) -> None:
        self.model.train()
        outputs, terms = self.objective.forward(self.model, inputs_of(self.batch), self.at)
        self.at += 1
        labels = self.batch["labels"]
        loss = summed_loss(outputs, labels, self.task) / targets_in(labels) + sum(terms.values())
        torch.autograd.backward(torch.as_tensor(loss))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def compute_ratio(seconds: Mapping[str, float]) -> float:
    """Cost of a step of ours over a plain one, at least 1, rounded up to 0.05."""
    ratio = seconds["ours"] / seconds["none"]
    return max(1.0, math.ceil(ratio / _GRAIN - 1e-9) * _GRAIN)


def forecast_seconds(plan: AblationPlan, options: TrainOptions, seconds: Mapping[str, float]) -> float:
    """CPU seconds of the steps of all cells; scoring, which is short beside them, is left out."""
    tuned = [name for name in plan.arms if ARMS.get(name).build is not None]
    tuning = sum(seconds[name] for name in tuned) * len(plan.weights) * len(plan.tune_seeds) * plan.tune_steps
    final = sum(seconds[name] * plan.steps(name, options.max_steps) for name in plan.arms) * len(plan.seeds)
    return tuning + final
