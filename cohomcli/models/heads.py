"""Apply a model's own language-modelling head to hidden states, a slice of positions at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.models.layout import Stack, vocabulary
from cohomcli.models.memory import logit_rows


@dataclass(frozen=True)
class Scores:
    """Per prediction: negative log-likelihood in nats (float64) and whether the argmax was right; both (P,) on cpu."""

    loss: Tensor
    hit: Tensor


def score(model: nn.Module, stack: Stack, states: Tensor, targets: Tensor) -> Scores:
    """Score `targets` (P,) against the logits the model's head gives on `states` (P, d).

    The head is the model's whole forward with its backbone replaced by one that returns `states`: so logit scaling,
    soft-capping, biases and projections are exactly the model's. Slices bound the (P, vocabulary) logits.
    """
    rows = logit_rows(vocabulary(model))
    losses, hits = [], []
    for start in range(0, len(states), rows):
        part, wanted = states[start : start + rows], targets[start : start + rows]
        logits = head_logits(model, stack, part.unsqueeze(0))[0].float()
        losses.append(functional.cross_entropy(logits, wanted, reduction="none").cpu().double())
        hits.append((logits.argmax(dim=-1) == wanted).cpu())
    return Scores(torch.cat(losses), torch.cat(hits))


def head_logits(model: nn.Module, stack: Stack, states: Tensor) -> Tensor:
    """Logits (B, T, vocabulary) of the model's head on last hidden states (B, T, d)."""
    dummy = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
    with _replaying(stack, states):
        logits: Tensor = model(input_ids=dummy).logits
    return logits


class _States:
    """What a head sees of its backbone: the hidden states, and None for every other field it may pass on."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _replaying(stack: Stack, states: Tensor) -> Iterator[None]:
    """While open, every module from the backbone down to the blocks' owner returns `states` instead of computing.

    All of them, because architectures differ in which one their head calls (OPT's calls `model.decoder`).
    """
    output = _States(states)

    def replay(*args: Any, **kwargs: Any) -> _States:
        return output

    try:
        for module in stack.path:
            module.forward = replay
        yield
    finally:
        for module in stack.path:
            del module.forward  # uncovers the class's own method
