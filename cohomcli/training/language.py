"""The language-modelling term: cross-entropy of causal and masked models, in nats per predicted token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from cohomcli.training.data import IGNORE, Batch, Task


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The batch without its labels: what the model is called with."""
    return {name: value for name, value in batch.items() if name != "labels"}


def summed_loss(outputs: Any, labels: Tensor, task: Task) -> Tensor:
    """Sum over the positions asked for of -log p, float32; `outputs.logits` is (B, T, V), `labels` (B, T).

    A causal model's logits at t predict the label at t + 1. There most positions are asked for, and moving the labels
    is cheaper than picking logits; a masked model is asked for few.
    """
    logits = outputs.logits
    if task == "causal":
        following = pad(labels[:, 1:], (0, 1), value=IGNORE)
        return cross_entropy(logits.float().flatten(0, 1), following.flatten(), ignore_index=IGNORE, reduction="sum")
    asked = labels != IGNORE
    return cross_entropy(logits[asked].float(), labels[asked], reduction="sum")


def targets_in(labels: Tensor) -> int:
    """How many positions a batch asks for."""
    return int((labels != IGNORE).sum())


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which matrices decay, and biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def by_level(groups: list[dict[str, Any]], level_of: Mapping[int, int]) -> list[dict[str, Any]]:
    """The groups, each split by the level of its parameters, which `level_of` gives by `id`, under the key "level"."""
    split = []
    for group in groups:
        for level in sorted({level_of[id(p)] for p in group["params"]}):
            mine = [p for p in group["params"] if level_of[id(p)] == level]
            split.append({**group, "params": mine, "level": level})
    return split
