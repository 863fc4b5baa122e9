"""An ablation cell by cell: every arm tunes its weight on a validation split, then all are judged on a test split.

A cell is one training run (phase, arm, weight, seed) and depends on nothing else, so cells can be interrupted, stored
and repeated one by one. All arms of a seed start from the same weights and see the same batches in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.progress import Progress, silent
from cohomcli.training import checkpoint
from cohomcli.training.ablation_results import CellResult, Metric
from cohomcli.training.arms import ARMS, Arm, objective_of
from cohomcli.training.data import Batch, Order, Sequences, Task
from cohomcli.training.loop import Hooks, Job, Objective, adamw, train
from cohomcli.training.options import TrainOptions
from cohomcli.training.scoring import score

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class AblationTask:
    """What is learnt: `new_model` gives a model with the initial weights of a seed; `whole_answers` as in `score`."""

    name: str
    about: str
    new_model: Callable[[int], nn.Module]
    task: Task
    train: Sequences
    validation: Sequences
    test: Sequences
    metric: Metric
    whole_answers: bool


@dataclass(frozen=True)
class AblationPlan:
    """Which runs there are. `weights` are shares of the task's gradient (see `arms`); `tune_seeds` differ from `seeds`.

    `tune_steps` are those of a tuning run. `compute_ratio` is what a step of ours costs over a plain one: the arm
    "compute" takes so many times the steps.
    """

    arms: tuple[str, ...]
    weights: tuple[float, ...]
    tune_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    tune_steps: int
    compute_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what compares nothing.

        Raises:
            UsageError: an unknown arm, no plain arm, weights or seeds that make no sense.
        """
        for name in self.arms:
            ARMS.get(name)
        if "none" not in self.arms or len(set(self.arms)) < 2:
            raise UsageError("ablation.arms must hold none and another arm", "differences are taken from the plain arm")
        if not self.weights or not all(0 < weight < math.inf for weight in self.weights):
            raise UsageError("ablation.weights must be positive numbers", "for example 0.03,0.1,0.3")
        if set(self.tune_seeds) & set(self.seeds):
            raise UsageError("tuning and final runs must not share seeds", "choose others")

    def steps(self, arm: str, full: int) -> int:
        """Steps of a final run of `arm` where plain ones take `full`."""
        return round(full * self.compute_ratio) if ARMS.get(arm).longer else full


@dataclass(frozen=True)
class Cell:
    """One training run; `weight` None for an arm without one."""

    phase: str
    arm: str
    weight: float | None
    seed: int

    @property
    def key(self) -> str:
        """A name for files and bars."""
        weight = "" if self.weight is None else f"-w{self.weight:g}"
        return f"{self.phase}-{self.arm}{weight}-s{self.seed}"


def tuning_cells(plan: AblationPlan) -> list[Cell]:
    """As many runs for every arm with a weight."""
    tuned = [name for name in plan.arms if ARMS.get(name).build is not None]
    return [Cell("tune", name, w, seed) for name in tuned for w in plan.weights for seed in plan.tune_seeds]


def final_cells(plan: AblationPlan, chosen: Mapping[str, float]) -> list[Cell]:
    """Every arm at its chosen weight with every seed, seed by seed."""
    return [Cell("final", name, chosen.get(name), seed) for seed in plan.seeds for name in plan.arms]


def choose_weights(plan: AblationPlan, results: Sequence[CellResult], metric: Metric) -> dict[str, float]:
    """The weight of every tuned arm with the best mean on the validation split; the smaller one of equals.

    Raises:
        AnalysisIncomplete: every weight of an arm diverged.
    """
    chosen = {}
    for name in dict.fromkeys(result.arm for result in results):
        means = {weight: validation_mean(results, name, weight, metric) for weight in sorted(plan.weights)}
        known = {weight: mean for weight, mean in means.items() if mean is not None}
        if not known:
            raise AnalysisIncomplete(f"arm {name!r} diverged at every weight", "give smaller ablation.weights")
        sign = -1 if metric == "loss" else 1
        chosen[name] = max(known, key=lambda weight: (sign * known[weight], -weight))
    return chosen


def validation_mean(results: Sequence[CellResult], arm: str, weight: float, metric: Metric) -> float | None:
    """Mean of the metric on the validation split over the tuning seeds; None when one diverged."""
    of_weight = [result for result in results if (result.arm, result.weight) == (arm, weight)]
    values = [r.validation_loss if metric == "loss" else r.validation_accuracy for r in of_weight]
    found = [value for value in values if value is not None]
    return fmean(found) if found and len(found) == len(values) else None


def run_cell(
    task: AblationTask, plan: AblationPlan, cell: Cell, options: TrainOptions, folder: Path, progress: Progress = silent
) -> CellResult:
    """Train the cell in `folder`, where its checkpoints lie while it runs, and score the last weights.

    A cell that was interrupted goes on from its newest checkpoint. Divergence is a result, not an error.

    Raises:
        OSError: a checkpoint cannot be written.
    """
    tuning = cell.phase == "tune"
    steps = plan.tune_steps if tuning else plan.steps(cell.arm, options.max_steps)
    mine = replace(
        options,
        max_steps=steps,
        warmup_steps=min(options.warmup_steps, steps),
        seed=cell.seed,
        eval_every=0,
        patience=0,
    )
    result = CellResult("tune" if tuning else "final", cell.arm, cell.weight, cell.seed, steps)
    model = task.new_model(cell.seed)
    objective = prepared(task, ARMS.get(cell.arm), cell.weight, model, mine)
    job = Job(model, task.task, task.train, _Few(task.validation), _save, _load, objective, adamw)
    folder.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.checkpoints(folder)
    try:
        train(job, mine, folder, Hooks(progress), saved[-1] if saved else None)
    except AnalysisIncomplete:
        return replace(result, diverged=True)
    at = score(model, task.validation, task.task, options.batch_size, task.whole_answers)
    result = replace(result, validation_loss=at.loss, validation_accuracy=at.accuracy)
    if tuning:
        return result
    at = score(model, task.test, task.task, options.batch_size, task.whole_answers)
    return replace(result, test_loss=at.loss, test_accuracy=at.accuracy)


def prepared(task: AblationTask, arm: Arm, weight: float | None, model: nn.Module, options: TrainOptions) -> Objective:
    """The arm's objective, scaled on the first batch of the run; random numbers start at the seed after it."""
    device = next(model.parameters()).device
    objective = objective_of(arm, weight, model, first_batch(task, options, device), task.task, options.seed)
    torch.manual_seed(options.seed)
    return objective


def first_batch(task: AblationTask, options: TrainOptions, device: torch.device) -> Batch:
    """What the first step of a run with this seed sees."""
    rows = Order(len(task.train), options.seed).indices(0, options.batch_size)
    return {name: value.to(device) for name, value in task.train.batch(rows, 0).items()}


class _Few:
    """The first rows of a data set: the loop's own evaluations are not used here, and must only be cheap."""

    def __init__(self, data: Sequences, rows: int = 8) -> None:
        self.data, self.rows = data, min(rows, len(data))

    def __len__(self) -> int:
        return self.rows

    def batch(self, indices: Sequence[int], draw: int) -> Batch:
        return self.data.batch(indices, draw)


def _save(model: nn.Module, folder: Path) -> None:
    save_model(model, str(folder / _WEIGHTS))


def _load(model: nn.Module, folder: Path) -> None:
    load_model(model, str(folder / _WEIGHTS))
