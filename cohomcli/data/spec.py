"""What a data set is to us: a named source of texts, and the sample of distinct texts drawn from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TextUnit = Literal["auto", "line", "paragraph", "file"]
HashSplit = Literal["calibration", "heldout"]
WHOLE = "all"  # the split of a file that is not split


@dataclass(frozen=True)
class DatasetSpec:
    """A `--dataset` value and its options.

    `reference` is `builtin`, a preset (`wikitext2`, `squad`), a path (text, jsonl, json, csv, tsv, folder) or a hub
    id. `unit` says what one text of a plain text file is. `field` names the text column of jsonl, json, csv, tsv and
    hub data sets. `split` is `train`, `calibration` or `heldout` for the built-in corpus, `calibration` or `heldout`
    (a split by hash) for files, and one of its own splits, or either of these two, for a hub data set.
    """

    reference: str = "builtin"
    config: str | None = None
    split: str | None = None
    field: str | None = None
    unit: TextUnit = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class TextSource:
    """An opened data set, before any text is drawn: where its texts come from and how they are to be taken.

    `texts` can be iterated once, which is when files are read. `hash_split` keeps one half of the texts by hash.
    `headings` says that the texts are in WikiText layout, whose headings are not texts. The other fields are those
    of `TextSample`.
    """

    name: str
    source: str
    split: str
    unit: str
    texts: Iterable[str]
    hash_split: HashSplit | None = None
    headings: bool = False
    field: str = ""


@dataclass(frozen=True)
class TextSample:
    """Exactly `len(texts)` distinct texts, drawn with `seed` from `n_available` distinct ones.

    `sha256` is over the texts in order (UTF-8, each followed by a zero byte). `name` is short and safe for file names.
    `unit` is `line`, `paragraph`, `file`, `record` (jsonl, json, csv, tsv) or `row` (hub). `source` names what was
    read, for a hub data set with its configuration and commit; `field` is the column the texts stand in, if any (two
    joined by a line break: `question+context`). `n_empty`, `n_duplicate` and `n_heading` count what did
    not enter the pool that was drawn from: blank items, repetitions, WikiText headings.
    """

    name: str
    source: str
    split: str
    unit: str
    seed: int
    n_available: int
    texts: tuple[str, ...]
    sha256: str
    field: str = ""
    n_empty: int = 0
    n_duplicate: int = 0
    n_heading: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the sample, in sentences; blank items are not worth one."""
        found = {
            "repeated texts were left out": self.n_duplicate,
            "WikiText headings were left out": self.n_heading,
        }
        return tuple(f"{count} {what}." for what, count in found.items() if count)
