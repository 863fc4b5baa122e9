"""The language-modelling term: cross-entropy of causal and masked models, in nats per predicted token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cohomcli.training.data import IGNORE, Batch, Task


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The batch without its labels: what the model is called with."""
    return {name: value for name, value in batch.items() if name != "labels"}


def summed_loss(outputs: Any, labels: Tensor, task: Task) -> Tensor:
    """Sum over the positions asked for of -log p, float32; `outputs.logits` is (B, T, V), `labels` (B, T).

    A causal model's logits at t predict the label at t + 1.
    """
    logits = outputs.logits
    if task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
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
