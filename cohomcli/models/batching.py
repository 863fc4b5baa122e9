"""Texts to token batches: tokenise once, sort by length, fill batches up to a token budget, pad on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.spec import LoadedModel


@dataclass(frozen=True)
class Encoded:
    """Token ids of every text, cut at `max_length`, in the order of the texts; `n_truncated` texts were cut."""

    ids: tuple[tuple[int, ...], ...]
    max_length: int
    n_truncated: int

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts, special tokens included."""
        return sum(len(row) for row in self.ids)


@dataclass(frozen=True)
class Batch:
    """`rows` are the texts' positions; `ids` and `mask` are (B, T) int64 on the model's device."""

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor


def encode(loaded: LoadedModel, texts: Sequence[str], max_length: int) -> Encoded:
    """Tokenise with the tokenizer's own special tokens, truncating at `max_length` or the model's limit.

    Raises:
        UsageError: `max_length` leaves no room for a token.
        InputRefused: no texts, a text without a single token, or an id outside the model's vocabulary.
    """
    tokenizer = loaded.tokenizer
    n_special = tokenizer.num_special_tokens_to_add()
    limit = min(max_length, loaded.info.max_positions or max_length)
    if limit <= n_special:
        raise UsageError(f"max_length {limit} leaves no room beside {n_special} special tokens", "raise --max-length")
    if not texts:
        raise InputRefused("no texts to analyse", "check the data set")
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    too_long = [row for row, tokens in enumerate(ids) if len(tokens) > limit]
    if too_long:
        # cut by the tokenizer, which knows which special tokens must stay at the end
        cut = tokenizer([texts[row] for row in too_long], truncation=True, max_length=limit)["input_ids"]
        for row, tokens in zip(too_long, cut, strict=True):
            ids[row] = tokens
    _check(loaded, ids, n_special)
    return Encoded(tuple(tuple(tokens) for tokens in ids), limit, len(too_long))


def plan(lengths: Sequence[int], token_budget: int, equal_lengths: bool = False) -> list[list[int]]:
    """Row numbers per batch: longest rows first, each batch at most `token_budget` padded tokens (or one row).

    With `equal_lengths` no batch mixes lengths, so that nothing is padded.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        rows = order[start : start + max(1, token_budget // longest)]
        if equal_lengths:
            rows = [row for row in rows if lengths[row] == longest]
        batches.append(rows)
        start += len(rows)
    return batches


def batches(
    loaded: LoadedModel, ids: Sequence[Sequence[int]], token_budget: int, equal_lengths: bool
) -> Iterator[Batch]:
    """Yield the planned batches on the model's device, padded on the right whatever side the tokenizer prefers.

    Right padding is the side on which absolute positions start at 0 for every text without position ids.
    """
    padding, device = pad_id(loaded), next(loaded.model.parameters()).device
    for rows in plan([len(tokens) for tokens in ids], token_budget, equal_lengths):
        width = max(len(ids[row]) for row in rows)
        padded = [[*ids[row], *[padding] * (width - len(ids[row]))] for row in rows]
        mask = [[1] * len(ids[row]) + [0] * (width - len(ids[row])) for row in rows]
        yield Batch(tuple(rows), torch.tensor(padded, device=device), torch.tensor(mask, device=device))


def pad_id(loaded: LoadedModel) -> int:
    """An id the model knows, for the padding: its value never matters under the mask.

    A tokenizer's padding token can lie outside the vocabulary the model was trained with.
    """
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        token = getattr(loaded.tokenizer, name, None)
        if token is not None and token < loaded.info.vocab_size:
            return int(token)
    return 0


def _check(loaded: LoadedModel, ids: Sequence[Sequence[int]], n_special: int) -> None:
    vocab = loaded.info.vocab_size
    for row, tokens in enumerate(ids):
        if len(tokens) <= n_special:
            raise InputRefused(f"text {row + 1} has no tokens", "remove empty texts from the data set")
        if max(tokens) >= vocab:
            raise InputRefused(
                f"the tokenizer produced id {max(tokens)} but the model knows only {vocab} tokens",
                "the tokenizer belongs to another model",
            )
