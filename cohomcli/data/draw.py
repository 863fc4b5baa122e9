"""Which texts are drawn, and which half a text belongs to: decided by its content alone, never by its position.

Every distinct text gets the key SHA-256(seed, SHA-256(text)), and a draw of n keeps the n smallest keys (a bottom-k
sketch; Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007). With keys that behave as independent
uniform numbers that is a uniform sample without replacement. It needs one pass and the memory of n texts, does not
depend on the order or the repetitions of the source, on the platform or on the Python version, and draws with one
seed are nested: the first n of n + 1 texts are the n texts.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cohomcli.data.layout import is_heading
from cohomcli.data.spec import HashSplit, TextSource


def split_by_hash(text: str) -> HashSplit:
    """The half that `text` belongs to for ever: `calibration` when the first bit of its SHA-256 is 0, else `heldout`.

    The text is hashed as it is analysed, that is stripped, in UTF-8; whatever else is in the file does not matter.
    """
    return _split_of(_digest(text))


def sha256_of(texts: Iterable[str]) -> str:
    """SHA-256 over texts in order (UTF-8, each followed by a zero byte), in hex."""
    whole = hashlib.sha256()
    for text in texts:
        whole.update(text.encode() + b"\0")
    return whole.hexdigest()


@dataclass
class Pool:
    """The distinct texts of a source, streamed; after `draw` the counts tell what was seen."""

    source: TextSource
    distinct: int = 0
    empty: int = 0
    duplicate: int = 0
    heading: int = 0

    def draw(self, n: int, seed: int) -> tuple[str, ...]:
        """The `n` distinct texts with the smallest keys, in the order of their keys; fewer when there are fewer."""
        return tuple(text for _, text in heapq.nsmallest(n, self._keyed(seed)))

    def _keyed(self, seed: int) -> Iterator[tuple[bytes, str]]:
        """(key, text) of every distinct text of the wanted half."""
        seen: set[bytes] = set()
        for text in self._texts():
            digest = _digest(text)
            if self.source.hash_split not in (None, _split_of(digest)):
                continue
            if digest in seen:
                self.duplicate += 1
                continue
            seen.add(digest)
            self.distinct += 1
            yield hashlib.sha256(b"%d:" % seed + digest).digest(), text

    def _texts(self) -> Iterator[str]:
        """Stripped texts that are neither empty nor headings."""
        for raw in self.source.texts:
            text = raw.strip()
            if not text:
                self.empty += 1
            elif self.source.headings and is_heading(text):
                self.heading += 1
            else:
                yield text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _split_of(digest: bytes) -> HashSplit:
    return "calibration" if digest[0] < 0x80 else "heldout"
