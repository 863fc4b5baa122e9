"""The calls of this package: exactly n distinct texts of a data set, drawn with a seed, or all of them."""

from __future__ import annotations

from cohomcli.data.draw import Pool, sha256_of
from cohomcli.data.sources import open_source
from cohomcli.data.spec import WHOLE, DatasetSpec, TextSample, TextSource
from cohomcli.errors import InputRefused, UsageError


def load_texts(spec: DatasetSpec, samples: int, seed: int) -> TextSample:
    """Draw exactly `samples` distinct texts of the data set `spec`.

    Texts are stripped, empty ones and repetitions left out. The draw depends on the set of texts and on `seed` only
    (see `cohomcli.data.draw`); it is in random order.

    Raises:
        UsageError: `samples` < 1, or an option that does not fit the data set.
        InputRefused: missing, unreadable or malformed data, or fewer than `samples` distinct texts.
        AnalysisIncomplete: the disk is full (hub data sets).
    """
    if samples < 1:
        raise UsageError(f"--samples {samples}: at least one text is needed")
    source = open_source(spec)
    pool = Pool(source)
    texts = pool.draw(samples, seed)
    if len(texts) < samples:
        raise _too_few(source, pool.distinct, samples)
    return _sample(source, pool, texts, seed)


def load_all_texts(spec: DatasetSpec, limit: int, seed: int) -> TextSample:
    """All distinct texts of `spec` in the order of a seeded draw; with `limit` > 0 only the first so many of them.

    Raises:
        UsageError, InputRefused, AnalysisIncomplete: as `load_texts`; also when there is no text at all.
    """
    source = open_source(spec)
    pool = Pool(source)
    texts = pool.draw(limit or 2**62, seed)
    if not texts:
        raise _too_few(source, 0, 1)
    return _sample(source, pool, texts, seed)


def _sample(source: TextSource, pool: Pool, texts: tuple[str, ...], seed: int) -> TextSample:
    return TextSample(
        name=source.name,
        source=source.source,
        split=source.split,
        unit=source.unit,
        seed=seed,
        n_available=pool.distinct,
        texts=texts,
        sha256=sha256_of(texts),
        field=source.field,
        n_empty=pool.empty,
        n_duplicate=pool.duplicate,
        n_heading=pool.heading,
    )


def _too_few(source: TextSource, available: int, samples: int) -> InputRefused:
    where = source.source if source.split == WHOLE else f"{source.source} (split {source.split})"
    if available == 0:
        return InputRefused(f"{where} holds no text", "give a file with texts in it")
    if available == 1:
        hint = "give more texts, or --unit line if each line of a plain text file is one"
        return InputRefused(f"{where} holds a single text and {samples} were asked for", hint)
    found = f"{where} holds {available} distinct texts and {samples} were asked for"
    return InputRefused(found, f"pass --samples {available} or fewer")
