"""How good a model is on a data set: nats per token asked for, and the share that it gets right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cohomcli.training.data import IGNORE, Sequences, Task
from cohomcli.training.language import inputs_of


@dataclass(frozen=True)
class Score:
    """`loss` in nats per token asked for; `accuracy` the share of tokens, or of whole answers, that are right."""

    loss: float
    accuracy: float


@torch.no_grad()
def score(model: nn.Module, data: Sequences, task: Task, batch_size: int, whole_answers: bool) -> Score:
    """The score on all of `data`, in which draw 0 hides the same tokens every time; the model is left in eval mode.

    With `whole_answers` a row counts when the most likely token is right at every position asked for: exactly when
    greedy decoding would write the answer.
    """
    model.eval()
    device = next(model.parameters()).device
    total, right, asked, units = 0.0, 0, 0, 0
    for start in range(0, len(data), batch_size):
        batch = data.batch(range(start, min(start + batch_size, len(data))), 0)
        part = {name: value.to(device) for name, value in batch.items()}
        logits, labels = model(**inputs_of(part)).logits, part["labels"]
        if task == "causal":
            logits, labels = logits[:, :-1], labels[:, 1:]
        wanted = labels != IGNORE
        total += float(cross_entropy(logits[wanted].float(), labels[wanted], reduction="sum"))
        hit = (logits.argmax(-1) == labels) | ~wanted
        right += int(hit.all(1).sum()) if whole_answers else int((hit & wanted).sum())
        asked += int(wanted.sum())
        units += len(labels) if whole_answers else int(wanted.sum())
    return Score(total / asked, right / units)
