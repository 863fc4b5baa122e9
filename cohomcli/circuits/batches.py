"""Pairs of prompts as tensors, and what is measured on them: how much better right answers are than wrong ones."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.calls import uncached

Metric = Literal["logit", "probability"]
Side = Literal["clean", "corrupt"]


class Tokens(Protocol):
    """One pair in token ids: prompts of equal length, and the tokens that are right and wrong after the clean one."""

    @property
    def clean(self) -> Sequence[int]:
        """The clean prompt."""

    @property
    def corrupt(self) -> Sequence[int]:
        """The corrupt prompt."""

    @property
    def answers(self) -> Sequence[int]:
        """Right next tokens."""

    @property
    def wrong(self) -> Sequence[int]:
        """Wrong next tokens."""


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one length: `clean` and `corrupt` (B, T) int64, `answers` (B, A) and `wrong` (B, W), padded with -1."""

    clean: Tensor
    corrupt: Tensor
    answers: Tensor
    wrong: Tensor

    def __len__(self) -> int:
        return len(self.clean)

    def side(self, side: Side) -> Tensor:
        """The prompts of one side, (B, T)."""
        return self.clean if side == "clean" else self.corrupt


@dataclass(frozen=True)
class Recorded:
    """A batch with what a graph's parts compute on both sides.

    Channels (B, T, C) of every site for heads and neurons; for edges one tensor (U, B, T, d), what every source adds to
    the residual stream.
    """

    batch: PairBatch
    clean: tuple[Tensor, ...]
    corrupt: tuple[Tensor, ...]

    def side(self, side: Side) -> tuple[Tensor, ...]:
        """The tensors of one side."""
        return self.clean if side == "clean" else self.corrupt


def batches_of(pairs: Sequence[Tokens], device: torch.device, most: int = 16) -> list[PairBatch]:
    """Batches of at most `most` pairs of equal length: none needs padding."""
    batches = []
    for length in sorted({len(pair.clean) for pair in pairs}):
        same = [pair for pair in pairs if len(pair.clean) == length]
        batches += [_batch(same[at : at + most], device) for at in range(0, len(same), most)]
    return batches


def _batch(pairs: Sequence[Tokens], device: torch.device) -> PairBatch:
    return PairBatch(
        clean=torch.tensor([list(pair.clean) for pair in pairs], device=device),
        corrupt=torch.tensor([list(pair.corrupt) for pair in pairs], device=device),
        answers=_padded([pair.answers for pair in pairs], device),
        wrong=_padded([pair.wrong for pair in pairs], device),
    )


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows], device=device)


def measure(logits: Tensor, batch: PairBatch, metric: Metric) -> Tensor:
    """(P, B) from next-token `logits` (P * B, V), P runs of the batch one after another.

    "logit": mean logit of the right answers less that of the wrong ones (Wang et al. 2022, arXiv:2211.00593).
    "probability": probability of the right ones less that of the wrong ones (Hanna et al. 2023, arXiv:2305.00586).
    """
    found = logits.reshape(-1, len(batch), logits.shape[-1])
    found = found.float() if found.dtype in (torch.float16, torch.bfloat16) else found
    if metric == "probability":
        found = found.softmax(-1)
    right, wrong = (_gathered(found, ids, mean=metric == "logit") for ids in (batch.answers, batch.wrong))
    return right - wrong


def _gathered(values: Tensor, ids: Tensor, mean: bool) -> Tensor:
    real = ids >= 0
    picked = values.gather(-1, ids.clamp_min(0).expand(len(values), -1, -1)) * real
    total = picked.sum(-1)
    return total / real.sum(-1) if mean else total


def last_logits(model: Any, ids: Tensor) -> Tensor:
    """Next-token logits (B, V) after `ids` (B, T), all of which are text.

    Raises:
        AnalysisIncomplete: they are not finite.
    """
    known = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **uncached(model)}
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = 1
    logits: Tensor = model(**arguments).logits[:, -1]
    if not bool(torch.isfinite(logits.detach()).all()):
        raise AnalysisIncomplete("the logits are not finite", "check the model's weights")
    return logits


@torch.no_grad()
def plain(model: nn.Module, batches: Sequence[PairBatch], side: Side, metric: Metric) -> Tensor:
    """The metric of every pair, (N,), when the model simply reads one side."""
    return torch.cat([measure(last_logits(model, batch.side(side)), batch, metric)[0] for batch in batches])
