"""The loss of a language model's logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def token_loss(logits: Tensor, labels: Tensor, n_items: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy in nats over the labels that are not -100; `logits` (..., V), `labels` (...).

    With `n_items` the sum is divided by that instead: the number of labels in a whole accumulated batch.
    """
    flat, wanted = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1)
    if n_items is None:
        return functional.cross_entropy(flat, wanted, ignore_index=-100)
    return functional.cross_entropy(flat, wanted, ignore_index=-100, reduction="sum") / n_items


def next_token_loss(logits: Tensor, labels: Tensor, n_items: Tensor | int | None = None) -> Tensor:
    """`token_loss` of predicting each token from those before it; `logits` (B, T, V), `labels` (B, T)."""
    return token_loss(logits[:, :-1], labels[:, 1:], n_items)
