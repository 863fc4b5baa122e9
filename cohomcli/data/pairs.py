"""Pairs of prompts for circuit discovery: text to tokens, with every check that a fair comparison needs.

A pair is a clean prompt, a corrupt one of equal length that breaks the behaviour, the answers that are right after the
clean prompt and the answers that are wrong. Texts are read from JSON lines; `tasks.py` generates the shipped ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused, UsageError
from cohomcli.names import printable

_KEYS = {"clean", "corrupt", "answer", "wrong"}
_EXAMPLE = '{"clean": "... Ann gave it to", "corrupt": "...", "answer": " Mary", "wrong": " Ann"}'


@dataclass(frozen=True)
class Pair:
    """Texts. `answers` and `wrong` follow the prompt directly, leading space and all. `where` is for errors."""

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    where: str = "pair"


@dataclass(frozen=True)
class TokenPair:
    """The same in token ids; `clean` and `corrupt` have equal length, every answer is one token."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answers: tuple[int, ...]
    wrong: tuple[int, ...]


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file of JSON lines with `clean`, `corrupt`, `answer` and `wrong` (a string or a list of them).

    Raises:
        InputRefused: unreadable, no JSON, a key missing, unknown or of the wrong type, or no pairs at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputRefused(f"cannot read the pairs in {printable(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputRefused(f"{printable(path)!r} is not UTF-8 text") from error
    pairs = [_pair(line, f"{path.name}, line {at}") for at, line in enumerate(lines, start=1) if line.strip()]
    if not pairs:
        raise InputRefused(f"{printable(path)!r} holds no pairs", f"one JSON object a line: {_EXAMPLE}")
    return pairs


def pair_record(pair: Pair) -> dict[str, Any]:
    """The pair as a record that `read_pairs` reads back."""
    return {"clean": pair.clean, "corrupt": pair.corrupt, "answer": list(pair.answers), "wrong": list(pair.wrong)}


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair]) -> list[TokenPair]:
    """Tokens of every pair, in order.

    Raises:
        InputRefused: prompts of unequal length or equal prompts, answers that are not one token, or a right one that is
            also wrong; the message names the pair.
    """
    encoder = Encoder(tokenizer)
    return [_encode(encoder, pair) for pair in pairs]


class Encoder:
    """A tokenizer that puts its beginning-of-text token in front, if it uses one, and nothing at the end."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        with_special = tokenizer("a")["input_ids"]
        bos = getattr(tokenizer, "bos_token_id", None)
        self.front = [bos] if bos is not None and with_special[:1] == [bos] else []

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return [*self.front, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def next_tokens(self, prompt: str, answers: Sequence[str]) -> list[int | None]:
        """For each of `answers` the one token it adds to `prompt`, or None when it is not one, or is unknown."""
        texts = [prompt, *(prompt + answer for answer in answers)]
        before, *wholes = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return [whole[-1] if whole[:-1] == before and whole[-1] != unknown else None for whole in wholes]

    def next_token(self, prompt: str, answer: str) -> int | None:
        """The same for one answer."""
        return self.next_tokens(prompt, [answer])[0]


def _pair(line: str, where: str) -> Pair:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputRefused(f"{printable(where)}: not JSON", f"write {_EXAMPLE}") from error
    if not isinstance(record, dict) or set(record) != _KEYS:
        raise InputRefused(f"{printable(where)}: a pair has the keys {', '.join(sorted(_KEYS))}", f"write {_EXAMPLE}")
    answers, wrong = (_texts(record[key], key, where) for key in ("answer", "wrong"))
    if not all(isinstance(record[key], str) and record[key] for key in ("clean", "corrupt")):
        raise InputRefused(f"{printable(where)}: 'clean' and 'corrupt' are texts", f"write {_EXAMPLE}")
    return Pair(record["clean"], record["corrupt"], answers, wrong, where)


def _texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(text, str) and text for text in found):
        raise InputRefused(f"{printable(where)}: {key!r} is a text or a list of texts", f"write {_EXAMPLE}")
    return tuple(found)


def _encode(encoder: Encoder, pair: Pair) -> TokenPair:
    where = printable(pair.where)
    clean, corrupt = encoder.ids(pair.clean), encoder.ids(pair.corrupt)
    if len(clean) != len(corrupt):
        raise InputRefused(
            f"{where}: the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}",
            "both must have the same number: exchange words of equally many tokens",
        )
    if clean == corrupt:
        raise InputRefused(f"{where}: the clean and the corrupt prompt are the same tokens")
    answers, wrong = (_answers(encoder, pair, texts) for texts in (pair.answers, pair.wrong))
    if set(answers) & set(wrong):
        raise InputRefused(f"{where}: an answer is both right and wrong")
    return TokenPair(tuple(clean), tuple(corrupt), answers, wrong)


def _answers(encoder: Encoder, pair: Pair, texts: Sequence[str]) -> tuple[int, ...]:
    distinct = list(dict.fromkeys(texts))
    found = encoder.next_tokens(pair.clean, distinct)
    for text, token in zip(distinct, found, strict=True):
        if token is None:
            raise InputRefused(
                f"{printable(pair.where)}: the answer {printable(repr(text))} is not one token after its prompt",
                "answers follow the prompt directly (with their leading space) and must be one token of this model",
            )
    return tuple(token for token in found if token is not None)


def groups_of(pairs: Sequence[TokenPair]) -> Iterator[list[TokenPair]]:
    """Pairs of equal length together, so that no batch needs padding; shortest first."""
    for length in sorted({len(pair.clean) for pair in pairs}):
        yield [pair for pair in pairs if len(pair.clean) == length]


def enough(pairs: Sequence[Any], least: int, what: str) -> None:
    """Refuse fewer than `least` pairs.

    Raises:
        UsageError: there are fewer.
    """
    if len(pairs) < least:
        raise UsageError(f"{what} needs at least {least} pairs and there are {len(pairs)}", "give more --pairs")
