"""Questions and answers as sequences for the loop: only the answer's tokens are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cohomcli.training.data import IGNORE, Batch

Tokens = Sequence[str]


@dataclass(frozen=True)
class AnswerRows:
    """Rows question, separator, answer, end, padded on the right: `ids` and `labels` (n, T) int64, `lengths` (n,).

    A batch is cut to its longest row.
    """

    ids: Tensor
    labels: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int], draw: int) -> Batch:
        """`input_ids`, `attention_mask` and `labels`, (B, T) int64; nothing in it is random."""
        rows = list(indices)
        lengths = self.lengths[rows]
        T = int(lengths.max())
        mask = (torch.arange(T) < lengths.unsqueeze(1)).long()
        return {"input_ids": self.ids[rows, :T], "attention_mask": mask, "labels": self.labels[rows, :T]}


def answer_rows(
    pairs: Sequence[tuple[Tokens, Tokens]], ids: Mapping[str, int], marks: tuple[str, str, str]
) -> AnswerRows:
    """Rows of `pairs` with the ids of their tokens; `marks` are the padding, the separator and the end."""
    pad, separator, end = (ids[mark] for mark in marks)
    questions = [[*(ids[word] for word in question), separator] for question, _ in pairs]
    answers = [[*(ids[word] for word in answer), end] for _, answer in pairs]
    lengths = [len(question) + len(answer) for question, answer in zip(questions, answers, strict=True)]
    T = max(lengths)
    rows = torch.full((len(pairs), T), pad, dtype=torch.int64)
    labels = torch.full((len(pairs), T), IGNORE, dtype=torch.int64)
    for at, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        rows[at, : lengths[at]] = torch.tensor(question + answer)
        labels[at, len(question) : lengths[at]] = torch.tensor(answer)
    return AnswerRows(rows, labels, torch.tensor(lengths))
