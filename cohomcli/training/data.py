"""What the loop trains on: numbered sequences, their order, and the batches that text makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from cohomcli.errors import InputRefused, UsageError

IGNORE = -100  # label of a position that is not predicted
Task = Literal["causal", "masked"]
Batch = dict[str, Tensor]


class Sequences(Protocol):
    """A data set of equally long sequences that can say what a batch of them looks like."""

    def __len__(self) -> int:
        """How many sequences there are."""

    def batch(self, indices: Sequence[int], draw: int) -> Batch:
        """The sequences `indices` as tensors with leading dimension len(indices), among them `labels` (int64, IGNORE
        where nothing is predicted). Whatever is random in it depends on `draw` and the index alone.
        """


class Order:
    """Endless passes over n sequences, each shuffled by (seed, pass): position -> index, with no state to save."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._passes: dict[int, list[int]] = {}

    def indices(self, start: int, count: int) -> list[int]:
        """The indices at the positions start .. start + count - 1 of the endless sequence."""
        return [self._pass(position // self.n)[position % self.n] for position in range(start, start + count)]

    def _pass(self, number: int) -> list[int]:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(mix(self.seed, number))
            self._passes = {k: v for k, v in self._passes.items() if k >= number - 1}
            self._passes[number] = torch.randperm(self.n, generator=generator).tolist()
        return self._passes[number]


def mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring ones give unrelated streams."""
    state = 0
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return state


@dataclass(frozen=True)
class TextBlocks:
    """Texts packed end to end into `ids`, (n, T) int64; the task says which tokens are asked for.

    "causal": every token but the first of a block. "masked": `mask_rate` of the positions that `maskable`, (n, T) bool,
    allows, of which 80% are hidden by `mask_id`, 10% by another token and 10% by nothing (Devlin et al. 2019, 3.1).
    """

    ids: Tensor
    task: Task
    maskable: Tensor
    mask_id: int = 0
    vocab_size: int = 0
    mask_rate: float = 0.15
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int], draw: int) -> Batch:
        """`input_ids`, `attention_mask` and `labels`, (B, T) int64."""
        ids = self.ids[list(indices)]
        if self.task == "causal":
            labels = ids.clone()
            labels[:, 0] = IGNORE
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        rows = [self._hidden(index, draw) for index in indices]
        hidden, labels = (torch.stack([row[part] for row in rows]) for part in (0, 1))
        return {"input_ids": hidden, "attention_mask": torch.ones_like(ids), "labels": labels}

    def _hidden(self, index: int, draw: int) -> tuple[Tensor, Tensor]:
        """One block with tokens hidden and its labels, (T,) each; at least one token is asked for."""
        generator = torch.Generator().manual_seed(mix(self.seed, draw, index))
        ids, allowed = self.ids[index], self.maskable[index]
        chosen = (torch.rand(ids.shape, generator=generator) < self.mask_rate) & allowed
        if not chosen.any() and allowed.any():
            chosen[allowed.nonzero()[0]] = True
        fate = torch.rand(ids.shape, generator=generator)
        other = torch.randint(self.vocab_size, ids.shape, generator=generator)
        hidden = ids.masked_fill(chosen & (fate < 0.8), self.mask_id)
        hidden = torch.where(chosen & (fate >= 0.9), other, hidden)
        return hidden, ids.masked_fill(~chosen, IGNORE)


def pack(rows: Sequence[Sequence[int]], length: int, first: int | None, last: int | None) -> Tensor:
    """Token ids of texts, end to end with `last` after each, cut into blocks of `length`; a rest is left out.

    With `first` every block begins with it (and its `last` stands at the block's end): the layout of encoders.
    Returns (n, length) int64.

    Raises:
        InputRefused: the texts do not fill one block.
    """
    if first is not None:
        stream = [token for row in rows for token in row]
        body = length - (1 if last is None else 2)
    else:
        stream = [token for row in rows for token in (*row, *([] if last is None else [last]))]
        body = length
    n = len(stream) // body
    if n == 0:
        raise InputRefused(
            f"the texts have {len(stream)} tokens, too few for one block of {length}", "give more text or a shorter "
            "--block-size"
        )  # fmt: skip
    blocks = torch.tensor(stream[: n * body], dtype=torch.int64).reshape(n, body)
    if first is None:
        return blocks
    edges = [torch.full((n, 1), first), blocks, *([] if last is None else [torch.full((n, 1), last)])]
    return torch.cat(edges, dim=1)


def text_blocks(
    tokenizer: Any, texts: Sequence[str], length: int, task: Task, vocab_size: int, seed: int = 0
) -> TextBlocks:
    """Tokenise `texts` and pack them for `task`; `vocab_size` is the model's.

    Raises:
        InputRefused: too little text.
        UsageError: the tokenizer has tokens that the model does not know, or no mask token for a masked model.
    """
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    highest = max((max(row) for row in rows if row), default=0)
    if highest >= vocab_size:
        raise UsageError(
            f"the tokenizer gives token {highest} and the model knows {vocab_size}", "name its own with --tokenizer"
        )
    masked = task == "masked"
    if masked and tokenizer.mask_token_id is None:
        raise UsageError("the tokenizer has no mask token, which a masked model needs", "name another with --tokenizer")
    first = tokenizer.cls_token_id if masked else None
    last = tokenizer.sep_token_id if masked else tokenizer.eos_token_id
    ids = pack(rows, length, first, last)
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.int64)
    return TextBlocks(
        ids=ids,
        task=task,
        maskable=~torch.isin(ids, special),
        mask_id=tokenizer.mask_token_id if masked else 0,
        vocab_size=vocab_size,
        seed=seed,
    )
