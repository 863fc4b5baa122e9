"""The training loop: accelerate underneath, checkpoints that resume bit for bit on the CPU, a history of every term."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.models.calls import uncached
from cohomcli.progress import Progress, silent
from cohomcli.training import checkpoint
from cohomcli.training.data import Batch, Order, Sequences, Task
from cohomcli.training.ema import Averaged, store
from cohomcli.training.language import decay_groups, inputs_of, summed_loss, targets_in
from cohomcli.training.options import TrainOptions
from cohomcli.training.results import Record, TrainingResult
from cohomcli.training.schedule import learning_rate

STEP = "train"
TASK_TERM = "lm"


class Objective(Protocol):
    """How a batch becomes a loss besides the task's own cross-entropy."""

    def forward(self, model: nn.Module, inputs: Batch, step: int | None = None) -> tuple[Any, Mapping[str, Tensor]]:
        """Call the model; return its outputs and further weighted terms, scalars that are added to the loss.

        `step` is the update's number, for terms that are not computed every time; None wants them all.
        """


class Levels(Protocol):
    """Learning rates by level: groups of the optimiser with a key "level" get their own factor."""

    def observe(self, model: nn.Module, inputs: Batch, step: int) -> None:
        """See the first micro-batch of an update."""

    def factor(self, level: int) -> float:
        """What the schedule's rate is multiplied by."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""


class Plain:
    """The task's cross-entropy alone."""

    def forward(self, model: nn.Module, inputs: Batch, step: int | None = None) -> tuple[Any, Mapping[str, Tensor]]:
        """The outputs and no further term."""
        return model(**inputs), {}


@dataclass(frozen=True)
class Job:
    """What is trained on what. `save_model` writes the model into a folder, `load_model` reads its weights back."""

    model: nn.Module
    task: Task
    train: Sequences
    evaluation: Sequences
    save_model: Callable[[nn.Module, Path], None]
    load_model: Callable[[nn.Module, Path], None]
    objective: Objective
    optimizer: Callable[[nn.Module, TrainOptions], torch.optim.Optimizer]
    levels: Levels | None = None


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to hear. `measure` is called with the model in eval mode at every evaluation."""

    progress: Progress = silent
    record: Callable[[Record], None] = lambda record: None
    measure: Callable[[int, nn.Module], Mapping[str, float]] = lambda step, model: {}
    saved: Callable[[Path], None] = lambda folder: None


def adamw(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """AdamW (Loshchilov, Hutter 2019); matrices decay, biases and norms do not."""
    groups = decay_groups(model, options.weight_decay)
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, eps=1e-8, fused=_fusible(model))


def _fusible(model: nn.Module) -> bool | None:
    """True where torch has AdamW as one kernel for all parameters, else None: torch's own choice."""
    kinds = {(p.device.type, p.is_floating_point()) for p in model.parameters()}
    return True if kinds in ({("cpu", True)}, {("cuda", True)}) else None


def train(job: Job, options: TrainOptions, folder: Path, hooks: Hooks, resume: Path | None = None) -> TrainingResult:
    """Train `job.model` in place for `options.max_steps` updates, with checkpoints in `folder`.

    `resume` is a checkpoint to go on from: 40 steps give the same weights as 20, a kill, and 20 more; on the CPU bit
    for bit. The model ends with its best weights when `patience` is set, which are averaged ones with `ema_decay`.

    Raises:
        AnalysisIncomplete: the loss is not finite; the last checkpoint is named.
        InputRefused: `resume` is damaged, or of another model.
        OSError: a checkpoint cannot be written.
    """
    return _Trainer(job, options, folder, hooks).run(resume)


class _Trainer:
    """The state of one run."""

    def __init__(self, job: Job, options: TrainOptions, folder: Path, hooks: Hooks) -> None:
        from accelerate import Accelerator

        self.job, self.options, self.folder, self.hooks = job, options, folder, hooks
        self.task = job.task
        device = next(job.model.parameters()).device
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=options.mixed_precision)
        if options.gradient_checkpointing:
            job.model.gradient_checkpointing_enable()  # type: ignore[operator]
        self.model, self.optimizer = self.accelerator.prepare(job.model, job.optimizer(job.model, options))
        self.order = Order(len(job.train), options.seed)
        self.ema = Averaged(job.model, options.ema_decay) if options.ema_decay else None
        self.best_weights: dict[str, Tensor] | None = None
        self.step, self.tokens = 0, 0
        self.best = (math.inf, 0)
        self.worse = 0
        self.initial = math.nan
        self.history: list[Record] = []
        self.sums: dict[str, float] = {}
        self.summed = 0
        self.grad_norm = 0.0
        self.started = time.monotonic()

    @property
    def global_batch(self) -> int:
        """Sequences of one update, over all processes and micro-batches."""
        processes: int = self.accelerator.num_processes
        return self.options.batch_size * self.options.accumulation * processes

    def run(self, resume: Path | None) -> TrainingResult:
        self.hooks.progress(STEP, 0, self.options.max_steps)
        if resume is not None:
            self._resume(resume)
        else:
            self._evaluate()
        stopped = "steps"
        while self.step < self.options.max_steps:
            self._update()
            self._after_update()
            self.hooks.progress(STEP, self.step, self.options.max_steps)
            if self.options.patience and self.worse >= self.options.patience:
                stopped = "patience"
                break
            if self._out_of_time():
                stopped = "time"
                break
        return self._finish(stopped)

    # ---- one update -----------------------------------------------------------------------------------------------

    def _update(self) -> None:
        self.model.train()
        batch = self.job.train.batch(self.order.indices(self.step * self.global_batch, self.global_batch), self.step)
        targets = targets_in(batch["labels"])
        parts = self._my_parts(batch)
        self._set_rates(parts[0])
        for at, part in enumerate(parts):
            # gradients are exchanged once, with the last micro-batch
            last = at == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                self._backward(part, targets)
        limit = self.options.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        # under fp16 an overflow is routine: the scaler skips the step and lowers its scale
        if not math.isfinite(norm) and self.options.mixed_precision != "fp16":
            raise self._diverged("the gradient is not finite")
        self.grad_norm = norm if math.isfinite(norm) else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.job.model)
        self.step += 1
        self.tokens += targets

    def _set_rates(self, part: Batch) -> None:
        rate, levels = learning_rate(self.step, self.options), self.job.levels
        if levels is not None:
            levels.observe(self.job.model, inputs_of(part), self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (levels.factor(group["level"]) if levels is not None and "level" in group else 1)

    def _my_parts(self, batch: Batch) -> list[Batch]:
        """This process's micro-batches: the global batch in order, by process and then by micro-batch."""
        size, count = self.options.batch_size, self.options.accumulation
        first = self.accelerator.process_index * size * count
        starts = [first + at * size for at in range(count)]
        device = self.accelerator.device
        return [{name: value[at : at + size].to(device) for name, value in batch.items()} for at in starts]

    def _backward(self, part: Batch, targets: int) -> None:
        """Add the gradient of this part of the mean over the whole update's targets."""
        shares = self.options.accumulation * self.accelerator.num_processes
        with self.accelerator.autocast():
            inputs = {**inputs_of(part), **uncached(self.job.model)}
            outputs, terms = self.job.objective.forward(self.model, inputs, self.step)
            task = summed_loss(outputs, part["labels"], self.task) * (shares / targets)
        total = task + sum(terms.values())
        self.accelerator.backward(total / self.options.accumulation)
        self._add({TASK_TERM: task, **terms})

    def _add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) / self.options.accumulation

    # ---- between updates ------------------------------------------------------------------------------------------

    def _after_update(self) -> None:
        self.summed += 1
        end = self.step == self.options.max_steps
        if not all(math.isfinite(value) for value in self.sums.values()):
            raise self._diverged("the loss is not finite")
        if _due(self.step, self.options.eval_every) or end:
            self._evaluate()
        elif _due(self.step, self.options.log_every):
            self._record(None, {})
        if _due(self.step, self.options.save_every) or end:
            self._save()

    def _evaluate(self) -> None:
        """Loss on the whole evaluation set, and what the caller measures, under the averaged weights if there are."""
        model = self.job.model
        with self.ema.used_by(model) if self.ema else nullcontext():
            model.eval()
            loss = evaluate(model, self.job.evaluation, self.task, self.options.batch_size, self.accelerator.device)
            measures = dict(self.hooks.measure(self.step, model))
            model.train()
            if self.options.patience and loss < self.best[0]:
                self.best_weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        if not math.isfinite(loss):
            raise self._diverged("the evaluation loss is not finite")
        if self.step == 0:
            self.initial = loss
        better = loss < self.best[0]
        self.best = (loss, self.step) if better else self.best
        self.worse = 0 if better else self.worse + 1
        self._record(loss, measures)

    def _record(self, loss: float | None, measures: Mapping[str, float]) -> None:
        means = {name: value / self.summed for name, value in self.sums.items()} if self.summed else {}
        rate = learning_rate(max(self.step - 1, 0), self.options)
        record = Record(self.step, means, rate, self.grad_norm, loss, measures)
        self.history.append(record)
        self.sums, self.summed = {}, 0
        if self.accelerator.is_main_process:
            self.hooks.record(record)

    def _diverged(self, what: str) -> AnalysisIncomplete:
        good = checkpoint.checkpoints(self.folder)
        where = f"the last good checkpoint is {str(good[-1])!r}" if good else "there is no checkpoint yet"
        return AnalysisIncomplete(
            f"training diverged at step {self.step}: {what}; {where}", "lower the learning rate or warm up longer"
        )

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _out_of_time(self) -> bool:
        """Whether the time is up on any process: all must stop at the same step."""
        if self.options.max_seconds is None:
            return False
        late = torch.tensor(float(self._seconds() > self.options.max_seconds), device=self.accelerator.device)
        return bool(self.accelerator.reduce(late, "sum") > 0)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        if main:
            checkpoint.begin(self.folder, self.step)
        self.accelerator.wait_for_everyone()
        stage = checkpoint.staging(self.folder, self.step)
        checkpoint.save_random(stage, self.accelerator.process_index)
        self.accelerator.wait_for_everyone()
        if not main:
            return
        kept = {"ema": self.ema.weights if self.ema else None, "best": self.best_weights}
        copies = {kind: weights for kind, weights in kept.items() if weights is not None}
        optimizer = self.optimizer.optimizer.state_dict()
        checkpoint.write(stage, partial(self.job.save_model, self.job.model), optimizer, self._state(), copies)
        self.hooks.saved(checkpoint.publish(stage, self.options.keep))

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "best": None if math.isinf(self.best[0]) else list(self.best),
            "worse": self.worse,
            "initial": self.initial,
            "sums": self.sums,
            "summed": self.summed,
            "grad_norm": self.grad_norm,
            "averaged": self.ema.updates if self.ema else 0,
            "history": [asdict(record) for record in self.history],
            "global_batch": self.global_batch,
            "sequences": len(self.job.train),
            "seed": self.options.seed,
            "levels": self.job.levels.state_dict() if self.job.levels else None,
        }

    def _resume(self, folder: Path) -> None:
        saved = checkpoint.read(folder)
        state = saved.state
        for name, now in (("global_batch", self.global_batch), ("sequences", len(self.job.train))):
            if state[name] != now:
                raise InputRefused(
                    f"checkpoint {str(folder)!r} was trained with {name} {state[name]}, and now it is {now}",
                    "resume with the same data, batch size and number of processes",
                )
        self.job.load_model(self.job.model, folder)
        try:
            self.optimizer.optimizer.load_state_dict(saved.optimizer)
        except (ValueError, KeyError) as error:
            raise InputRefused(f"checkpoint {str(folder)!r} is of another model: {error}") from error
        device = self.accelerator.device
        copies = {kind: {k: v.to(device) for k, v in weights.items()} for kind, weights in saved.copies.items()}
        self.best_weights = copies.get("best")
        if self.job.levels is not None and state.get("levels"):
            self.job.levels.load_state_dict(state["levels"])
        if self.ema is not None and "ema" in copies:
            self.ema.weights, self.ema.updates = copies["ema"], state["averaged"]
        self.step, self.tokens, self.worse = saved.step, state["tokens"], state["worse"]
        self.best = tuple(state["best"]) if state["best"] else (math.inf, 0)
        self.initial, self.sums, self.summed = state["initial"], dict(state["sums"]), state["summed"]
        self.grad_norm = state["grad_norm"]
        self.history = [Record(**record) for record in state["history"]]
        checkpoint.restore_random(folder, self.accelerator.process_index)

    def _finish(self, stopped: str) -> TrainingResult:
        if self.history[-1].step != self.step or self.history[-1].eval_loss is None:
            self._evaluate()
        if stopped != "steps":
            self._save()
        chosen = self.best_weights or (self.ema.weights if self.ema else None)
        if chosen is not None:
            store(chosen, self.job.model)
        self.job.model.eval()
        loss = self.best[0] if self.best_weights else (self.history[-1].eval_loss or 0.0)
        return TrainingResult(
            steps=self.step,
            loss=loss,
            initial_loss=self.initial,
            best_loss=self.best[0],
            best_step=self.best[1],
            tokens=self.tokens,
            history=tuple(self.history),
            stopped=stopped,
            seconds=self._seconds(),
            n_parameters=sum(p.numel() for p in self.job.model.parameters()),
        )


@torch.no_grad()
def evaluate(model: nn.Module, data: Sequences, task: Task, batch_size: int, device: torch.device) -> float:
    """Mean nats per predicted token over all of `data`, in which draw 0 hides the same tokens every time."""
    total, count = 0.0, 0
    for start in range(0, len(data), batch_size):
        batch = data.batch(range(start, min(start + batch_size, len(data))), 0)
        part = {name: value.to(device) for name, value in batch.items()}
        total += float(summed_loss(model(**inputs_of(part), **uncached(model)), part["labels"], task))
        count += targets_in(part["labels"])
    return total / count


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
