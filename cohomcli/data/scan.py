"""A small grammar of commands and the actions they mean, with splits that ask for composition.

In the manner of SCAN (Lake, Baroni 2018, arXiv:1711.00350), generated here from this grammar:

    command -> phrase | phrase "and" phrase | phrase "after" phrase
    phrase  -> unit | unit "twice" | unit "thrice"
    unit    -> verb | verb side | verb "opposite" side

A verb is one action, a side one turn before it, "opposite" two turns; "twice" and "thrice" repeat; "x and y" means x
then y, "x after y" means y then x. There are 7,260 commands of at most 18 actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from cohomcli.data.answers import Answered, AnsweredSplits, drawn, in_halves
from cohomcli.errors import UsageError

VERBS = ("walk", "run", "look", "jump")
SIDES = ("left", "right")
TIMES = {"": 1, "twice": 2, "thrice": 3}
HELD_VERB = "jump"


@dataclass(frozen=True)
class ScanOptions:
    """`split` "length": train on commands of at most `cutoff` actions, judge on longer ones. "primitive": train on
    every command without "jump", and "jump" alone in a tenth of the pairs; judge on commands that use it.

    `examples` limits the training pairs, `judged` the pairs of validation and test together; 0 keeps all.
    """

    split: Literal["length", "primitive"] = "length"
    cutoff: int = 9
    examples: int = 0
    judged: int = 1000


def commands() -> Iterator[Answered]:
    """Every command of the grammar with its actions."""
    phrases = list(_phrases())
    yield from phrases
    for (first, one), (second, two) in product(phrases, phrases):
        yield (*first, "and", *second), (*one, *two)
        yield (*first, "after", *second), (*two, *one)


def _phrases() -> Iterator[Answered]:
    for (words, actions), (times, count) in product(_units(), TIMES.items()):
        yield (*words, *([times] if times else [])), actions * count


def _units() -> Iterator[Answered]:
    for verb in VERBS:
        act = verb.upper()
        yield (verb,), (act,)
        for side in SIDES:
            yield (verb, side), (side.upper(), act)
            yield (verb, "opposite", side), (side.upper(), side.upper(), act)


def scan(options: ScanOptions, seed: int) -> AnsweredSplits:
    """The pairs under one split; validation and test are halves of what training leaves out.

    Raises:
        UsageError: a split that does not exist, or one that leaves a part empty.
    """
    everything = list(commands())
    if options.split == "length":
        kept = [pair for pair in everything if len(pair[1]) <= options.cutoff]
        apart = [pair for pair in everything if len(pair[1]) > options.cutoff]
        about = f"trained on commands of at most {options.cutoff} actions, judged on longer ones"
    elif options.split == "primitive":
        kept = [pair for pair in everything if HELD_VERB not in pair[0]]
        apart = [pair for pair in everything if HELD_VERB in pair[0] and pair[0] != (HELD_VERB,)]
        about = f'"{HELD_VERB}" is trained alone and judged in commands'
    else:
        raise UsageError(f"ablation.options: scan has no split {options.split!r}", "length or primitive")
    if not kept:
        raise UsageError(f"ablation.options: cutoff {options.cutoff} leaves no command to train on", "1 to 17")
    train = drawn(kept, options.examples or len(kept), seed)
    if options.split == "primitive":
        train = (*train, *[((HELD_VERB,), (HELD_VERB.upper(),))] * max(1, len(train) // 9))
    validation, test = in_halves(drawn(apart, options.judged or len(apart), seed + 1), seed + 2)
    return AnsweredSplits(f"scan-{options.split}", about, train, validation, test)
