"""Question and answer as tokens, in three parts: what the synthetic tasks of an ablation are made of."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cohomcli.errors import UsageError

Answered = tuple[tuple[str, ...], tuple[str, ...]]  # a question and its answer
PAD, SEPARATOR, END = "<pad>", "<sep>", "<end>"


@dataclass(frozen=True)
class AnsweredSplits:
    """Questions with answers to train on, to choose by, and to judge by; none is in two parts.

    `name` says which task and split, `about` in one sentence what its parts are.
    """

    name: str
    about: str
    train: tuple[Answered, ...]
    validation: tuple[Answered, ...]
    test: tuple[Answered, ...]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Padding, separator, end, then every token of all parts in sorted order; the position is the token's id."""
        parts = (self.train, self.validation, self.test)
        words = {word for part in parts for question, answer in part for word in question + answer}
        return (PAD, SEPARATOR, END, *sorted(words))


def in_halves(items: Iterable[Answered], seed: int) -> tuple[tuple[Answered, ...], tuple[Answered, ...]]:
    """The items in two halves of equal size (the second has one more of an odd number), drawn with `seed`.

    Raises:
        UsageError: fewer than two items.
    """
    shuffled = sorted(items)
    if len(shuffled) < 2:
        raise UsageError("ablation.options leave nothing to validate and test on", "leave more out of training")
    random.Random(seed).shuffle(shuffled)
    middle = len(shuffled) // 2
    return tuple(shuffled[:middle]), tuple(shuffled[middle:])


def drawn(items: Sequence[Answered], most: int, seed: int) -> tuple[Answered, ...]:
    """At most `most` of the items, drawn without replacement; all in a drawn order when there are fewer."""
    chosen = sorted(items)
    random.Random(seed).shuffle(chosen)
    return tuple(chosen[:most])
