"""Nested operations on digits and their value: a task whose answer follows the tree, not the order, of its tokens.

In the manner of ListOps (Nangia, Bowman 2018, arXiv:1804.06028): "[MAX 2 [MIN 3 4 ] 5 ]" is 5. Generated here, with
shorter expressions than the published ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cohomcli.data.answers import Answered, AnsweredSplits
from cohomcli.errors import UsageError


def _median(values: Sequence[int]) -> int:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


OPERATIONS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[MED": _median,  # of an even number the mean of the middle two, rounded down
    "[SUM": lambda values: sum(values) % 10,
}
CLOSE = "]"


@dataclass(frozen=True)
class ListOpsOptions:
    """Expressions nested `depth` deep at most, with 2 to `arguments` arguments and `longest` tokens at most."""

    depth: int = 3
    arguments: int = 4
    longest: int = 32
    examples: int = 4000
    judged: int = 1000

    def __post_init__(self) -> None:
        if self.depth < 1 or self.arguments < 2 or self.longest < 4 or self.examples < 1 or self.judged < 2:
            raise UsageError("ablation.options: listops needs depth >= 1, arguments >= 2, longest >= 4, judged >= 2")


def expression(options: ListOpsOptions, rng: random.Random) -> Answered:
    """One expression with an operation outermost, and its value as one digit."""
    while True:
        tokens, value = _operation(options, options.depth, rng)
        if len(tokens) <= options.longest:
            return tuple(tokens), (str(value),)


def _operation(options: ListOpsOptions, depth: int, rng: random.Random) -> tuple[list[str], int]:
    name = rng.choice(sorted(OPERATIONS))
    tokens, values = [name], []
    for _ in range(rng.randint(2, options.arguments)):
        if depth > 1 and rng.random() < 0.4:
            inner, value = _operation(options, depth - 1, rng)
        else:
            value = rng.randrange(10)
            inner = [str(value)]
        tokens += inner
        values.append(value)
    return [*tokens, CLOSE], OPERATIONS[name](values)


def listops(options: ListOpsOptions, seed: int) -> AnsweredSplits:
    """Distinct expressions in three parts of one distribution.

    Raises:
        UsageError: the options allow fewer distinct expressions than are asked for.
    """
    rng = random.Random(seed)
    wanted = options.examples + options.judged
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for _ in range(20 * wanted):
        question, answer = expression(options, rng)
        found.setdefault(question, answer)
        if len(found) == wanted:
            break
    else:
        raise UsageError(f"ablation.options: listops has not {wanted} distinct expressions", "allow longer ones")
    pairs = tuple(found.items())
    middle = options.examples + options.judged // 2
    about = f"expressions nested at most {options.depth} deep, of at most {options.longest} tokens"
    return AnsweredSplits("listops", about, pairs[: options.examples], pairs[options.examples : middle], pairs[middle:])
