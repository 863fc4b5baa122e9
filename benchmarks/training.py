"""What a training step costs: with both structural losses against without, and ours against the Hugging Face Trainer's.

    python -m benchmarks.training

CPU seconds of one thread, tiny-gpt at the default batch (8 sequences of 128 tokens), in turns, so that a busy machine
disturbs all alike. The structural losses come round every four steps, so a figure is the mean of four steps; minima and
medians are over all groups of four. The Trainer has the same model, data, optimiser (AdamW), clipping and schedule, and
saves, logs and evaluates nothing while it is timed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from cohomcli.models.load import load
from cohomcli.models.quiet import quiet
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions
from cohomcli.training.data import TextBlocks
from cohomcli.training.loop import Hooks, Job, Objective, Plain, adamw, train
from cohomcli.training.options import TrainOptions
from cohomcli.training.structure import EVERY, Structural

WEIGHT = 0.05
_RESTS = 2 * EVERY  # steps of every run that are not counted: allocations, and the first optimiser state


def main() -> None:
    """Time the three kinds of step in turn, and print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=3, help="groups of four steps that are timed in every run")
    parser.add_argument("--rounds", type=int, default=4, help="runs of every kind")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--block", type=int, default=128)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = load(resolve("tiny-gpt"), LoadOptions()).model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (256, wanted.block), generator=generator)
    data = TextBlocks(ids, "causal", torch.ones_like(ids, dtype=torch.bool))
    steps = _RESTS + EVERY * wanted.groups + 1  # the last step evaluates and saves, and is not timed
    options = TrainOptions(max_steps=steps, batch_size=wanted.batch, warmup_steps=2, eval_every=0, save_every=0)
    kinds: dict[str, Callable[[], list[float]]] = {
        "plain": lambda: _ours(deepcopy(model), data, options, structural=False),
        "both structural losses": lambda: _ours(deepcopy(model), data, options, structural=True),
        "Hugging Face Trainer": lambda: _trainer(deepcopy(model), data, options),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(wanted.rounds):
        for name, run in kinds.items():
            found[name] += _groups(run())
    _print(found)


def _groups(ends: Sequence[float]) -> list[float]:
    """Mean CPU seconds of four steps each, from the clock at the end of every step."""
    marks = ends[_RESTS - 1 :: EVERY]
    return [(b - a) / EVERY for a, b in pairwise(marks)]


def _ours(model: nn.Module, data: TextBlocks, options: TrainOptions, structural: bool) -> list[float]:
    objective: Objective = Structural(model, WEIGHT, WEIGHT) if structural else Plain()
    few = TextBlocks(data.ids[:2], data.task, data.maskable[:2])
    job = Job(model, "causal", data, few, lambda model, folder: None, lambda model, folder: None, objective, adamw)
    ends: list[float] = []

    def progress(step: str, done: int, total: int) -> None:
        if done:
            ends.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        train(job, options, Path(folder), Hooks(progress))
    return ends[:-1]  # the last step also evaluates and saves


def _trainer(model: nn.Module, data: TextBlocks, options: TrainOptions) -> list[float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.process_time())

    rows: list[Mapping[str, torch.Tensor]] = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in data.ids
    ]
    with tempfile.TemporaryDirectory() as folder, quiet():
        arguments = TrainingArguments(
            output_dir=folder, max_steps=options.max_steps, per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate, weight_decay=options.weight_decay, max_grad_norm=1.0,
            lr_scheduler_type="cosine", warmup_steps=options.warmup_steps, save_strategy="no", logging_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True, dataloader_num_workers=0, seed=0,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()])
        with redirect_stdout(StringIO()):  # its summary
            trainer.train()
    return ends[:-1]


def _print(found: Mapping[str, Sequence[float]]) -> None:
    print(f"{'CPU seconds of a step':<28}{'least':>9}{'median':>9}{'groups':>8}")
    for name, values in found.items():
        print(f"{name:<28}{min(values):>9.4f}{median(values):>9.4f}{len(values):>8}")
    plain = found["plain"]
    for name, bar, over in (
        ("both structural losses", "at most 1.15", "plain"),
        ("plain", "at most 1", "Hugging Face Trainer"),
    ):
        below = found[over] if over != "plain" else plain
        least, middle = min(found[name]) / min(below), median(found[name]) / median(below)
        print(f"{name} / {over}: {least:.3f} (least), {middle:.3f} (median); wanted {bar}")


if __name__ == "__main__":
    main()
