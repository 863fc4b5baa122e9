"""Fine-tuning of a pruned model on the calibration texts by the training engine: what went stays gone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cohomcli.models.spec import LoadedModel
    from cohomcli.training.options import TrainOptions
    from cohomcli.training.results import TrainingResult

SEEN = 4  # sequences of the calibration texts whose loss is noted before the first and after the last step


def train_options(config: Config, number: int = 0) -> TrainOptions:
    """The loop's options after pass `number`: the training section's, with the steps and the rate of --recover."""
    from cohomcli.jobs.train import loop_options

    wanted = config.pruning
    changes = {
        "max_steps": wanted.recover,
        "epochs": None,
        "learning_rate": wanted.recover_lr,
        "warmup_steps": min(config.training.warmup_steps, wanted.recover // 10),
        "eval_every": wanted.recover,
        "save_every": 0,
        "keep": 1,
        "patience": 0,
        "max_time": None,
    }
    training = config.training.model_copy(update=changes)
    compute = config.compute.model_copy(update={"seed": config.compute.seed + number})
    return loop_options(config.model_copy(update={"training": training, "compute": compute}), 1)


def recover(
    loaded: LoadedModel, blocks: Any, masks: Mapping[str, Tensor], options: TrainOptions, progress: Progress
) -> TrainingResult:
    """Train `loaded.model` in place on `blocks`; weights whose mask, by parameter name, is False stay zero.

    Raises:
        AnalysisIncomplete: the training diverged.
    """
    from dataclasses import replace

    import torch

    from cohomcli.training.loop import Hooks, Job, Plain, adamw, train
    from cohomcli.training.masks import masked

    model = loaded.model
    torch.manual_seed(options.seed)  # dropout
    job = Job(
        model=model.requires_grad_(True),
        task=loaded.info.lm_head or "causal",
        train=blocks,
        evaluation=replace(blocks, ids=blocks.ids[:SEEN], maskable=blocks.maskable[:SEEN]),
        save_model=_nothing,
        load_model=_nothing,
        objective=Plain(),
        optimizer=masked(adamw, masks),
    )
    try:
        with tempfile.TemporaryDirectory(prefix="cohom-") as folder:
            return train(job, options, Path(folder), Hooks(progress))
    finally:
        model.requires_grad_(False).eval()


def _nothing(model: nn.Module, folder: Path) -> None:
    """An interrupted pruning starts again from the dense model: no weights are kept on the way."""
