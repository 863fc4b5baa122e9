"""The shipped tasks for circuit discovery, written out for a model's own tokenizer: one decorated function a task.

Every word that carries the task is one token of that tokenizer, so that clean and corrupt prompts align token by token.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cohomcli.data.pairs import Encoder, Pair, read_pairs
from cohomcli.errors import InputRefused, UsageError
from cohomcli.registry import Registry

Task = Callable[[Encoder, int, random.Random], list[Pair]]
TASKS = Registry("task")

NAMES = (
    "Mary", "John", "Tom", "James", "Anna", "Paul", "Mark", "Peter", "Sarah", "David", "Kate", "Jack", "Emma", "Adam",
    "Alice", "George", "Laura", "Henry", "Jane", "Robert", "Simon", "Lucy", "Edward", "Helen", "Richard", "Kevin",
    "Martin", "Susan", "Charles", "Brian", "William", "Thomas", "Michael", "Daniel", "Elizabeth", "Margaret",
)  # fmt: skip
PLACES = ("store", "school", "house", "garden", "office", "station", "park", "church", "market", "river")
THINGS = ("book", "ring", "letter", "drink", "bone", "box", "key", "picture", "ball", "coat")
IOI_TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "Then, {a} and {b} had a long talk at the {place}. Afterwards {s} handed the {thing} to",
    "While {a} and {b} were working at the {place}, {s} passed a {thing} to",
    "After {a} and {b} had met at the {place}, {s} wanted to give a {thing} to",
)
EVENTS = ("war", "siege", "voyage", "trial", "reign", "strike", "journey", "exile", "dispute", "famine")
CENTURIES = tuple(range(11, 19))
YEAR_TEMPLATE = "The {event} lasted from the year {century}{year:02d} to the year {century}"
INDUCTION_WORDS = 9  # different words before they start again
_SHORTEST, _LONGEST = 3, 8  # letters of an induction word
_CANDIDATES = 4000  # of the vocabulary's words, most frequent first


def task_pairs(reference: str, tokenizer: Any, count: int, seed: int) -> list[Pair]:
    """`count` pairs of the shipped task `reference` for `tokenizer`, or all pairs of the JSON lines file it names.

    Raises:
        UsageError: neither a task nor a file; fewer than two pairs asked for.
        InputRefused: the file is refused, or the tokenizer has no single tokens for the task.
    """
    path = Path(reference)
    if reference not in TASKS and (path.suffix or path.exists()):
        return read_pairs(path)
    generator: Task = TASKS.get(reference)
    if count < 2:
        raise UsageError(f"--pairs {count}: a task needs at least two pairs")
    pairs = generator(Encoder(tokenizer), count, random.Random(seed))
    return [Pair(p.clean, p.corrupt, p.answers, p.wrong, f"pair {at}") for at, p in enumerate(pairs, start=1)]


@TASKS.register("ioi")
def indirect_object(encoder: Encoder, count: int, draw: random.Random) -> list[Pair]:
    """Who gets the thing? The name that stood only once (Wang et al. 2022, arXiv:2211.00593).

    The corrupt prompt lets a third person give it, so that neither name is better.
    """
    names = _single(encoder, NAMES, 3, "the names of the task ioi")
    pairs = []
    for at in range(count):
        giver, receiver, third = draw.sample(names, 3)
        first, second = (giver, receiver) if at % 2 else (receiver, giver)
        words = {"a": first, "b": second, "place": draw.choice(PLACES), "thing": draw.choice(THINGS)}
        template = IOI_TEMPLATES[at // 2 % len(IOI_TEMPLATES)]
        clean, corrupt = (template.format(s=who, **words) for who in (giver, third))
        pairs.append(Pair(clean, corrupt, (f" {receiver}",), (f" {giver}",)))
    return pairs


@TASKS.register("greater-than")
def greater_than(encoder: Encoder, count: int, draw: random.Random) -> list[Pair]:
    """A year that ends something comes after the one that began it (Hanna, Liu, Variengien 2023, arXiv:2305.00586).

    Right are all last two digits above the first year's, wrong those at or below; the corrupt prompt begins in 01.
    Where the tokenizer splits years into digits the next digit is judged: above the first year's, or below.
    """
    events = [event for event in EVENTS if len(encoder.ids(f"The {event}")) == len(encoder.ids("The")) + 1] or EVENTS
    found = _two_digits(encoder) or _one_digit(encoder)
    if not found:
        raise InputRefused(
            "this tokenizer has no tokens for the last digits of a year", "choose another task, or give pairs"
        )
    pairs = []
    for _ in range(count):
        (century, year), (right, wrong) = draw.choice(found)
        event = draw.choice(events)
        clean, corrupt = (YEAR_TEMPLATE.format(event=event, century=century, year=begun) for begun in (year, 1))
        pairs.append(Pair(clean, corrupt, right, wrong))
    return pairs


Beginning = tuple[tuple[int, int], tuple[tuple[str, ...], tuple[str, ...]]]


def _two_digits(encoder: Encoder) -> list[Beginning]:
    """Centuries and years whose last two digits, and all answers, are one token each; with the answers."""
    found: list[Beginning] = []
    for century in CENTURIES:
        prompt = f"the year {century}"
        tokens = encoder.next_tokens(prompt, [f"{year:02d}" for year in range(100)])
        known = [year for year, token in enumerate(tokens) if token is not None]
        if 1 not in known:
            continue
        for year in known:
            right = tuple(f"{each:02d}" for each in known if each > year)
            wrong = tuple(f"{each:02d}" for each in known if each <= year)
            if 2 <= year <= 98 and right and wrong:
                found.append(((century, year), (right, wrong)))
    return found


def _one_digit(encoder: Encoder) -> list[Beginning]:
    """The same for tokenizers that split numbers into digits: the next digit is judged."""
    found: list[Beginning] = []
    for century, digit in product(CENTURIES, range(1, 9)):
        prompt = f"the year {century}"
        if None not in encoder.next_tokens(prompt, [str(each) for each in range(10)]):
            right, wrong = (tuple(str(e) for e in part) for part in (range(digit + 1, 10), range(digit)))
            found += [((century, 10 * digit + last), (right, wrong)) for last in range(10)]
    return found


@TASKS.register("induction")
def induction(encoder: Encoder, count: int, draw: random.Random) -> list[Pair]:
    """After A B ... A comes B (Olsson et al. 2022, arXiv:2209.11895): unrelated words that start again.

    In the corrupt prompt the first A is another word, so that nothing was seen after A; wrong is another word seen.
    """
    words = _words(encoder)
    if len(words) < 2 * INDUCTION_WORDS:
        raise InputRefused("this tokenizer has too few whole words for the task induction", "give pairs of your own")
    pairs = []
    for at in range(count):
        again = (3, 5, 7)[at % 3]  # words of the second round; the answer is the next
        seen = draw.sample(words, INDUCTION_WORDS + 1)
        first, stranger = seen[:INDUCTION_WORDS], seen[-1]
        broken = [*first[: again - 1], stranger, *first[again:]]
        wrong = draw.choice([word for word in first if word not in first[again - 1 : again + 1]])
        clean, corrupt = (" ".join(["The", *round_, *first[:again]]) for round_ in (first, broken))
        pairs.append(Pair(clean, corrupt, (f" {first[again]}",), (f" {wrong}",)))
    return pairs


def _words(encoder: Encoder) -> list[str]:
    """Lower-case words of the vocabulary that are one token after a space, in order of their token ids."""
    vocabulary = sorted(encoder.tokenizer.get_vocab().items(), key=lambda item: item[1])
    marks = ("\u0120", "\u2581")  # how byte-level and sentencepiece vocabularies write a space
    spaced = [token[1:] for token, _ in vocabulary if token[:1] in marks]
    plain = spaced or [token for token, _ in vocabulary]
    fitting = [w for w in plain if _SHORTEST <= len(w) <= _LONGEST and w.isascii() and w.isalpha() and w.islower()]
    words = list(dict.fromkeys(fitting[:_CANDIDATES]))
    tokens = encoder.next_tokens("The", [f" {word}" for word in words])
    return [word for word, token in zip(words, tokens, strict=True) if token is not None]


def _single(encoder: Encoder, words: Sequence[str], least: int, what: str) -> list[str]:
    tokens = encoder.next_tokens("When", [f" {word}" for word in words])
    found = [word for word, token in zip(words, tokens, strict=True) if token is not None]
    if len(found) < least:
        raise InputRefused(f"{what} are not single tokens of this model", "choose another task, or give pairs")
    return found
