"""The draw: exactly n distinct texts, whatever the order and the repetitions of the source."""

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.data.draw import Pool, sha256_of, split_by_hash
from cohomcli.data.spec import TextSource

steady = settings(deadline=None, derandomize=True)
# Surrogates are no text; readers refuse them.
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts_lists = st.lists(plain, max_size=40)


def pool(texts: list[str], **options: Any) -> Pool:
    return Pool(TextSource("name", "source", "all", "line", texts, **options))


def distinct(texts: list[str]) -> set[str]:
    return {text.strip() for text in texts} - {""}


def by_definition(texts: list[str], n: int, seed: int) -> tuple[str, ...]:
    """The n texts with the smallest SHA-256("seed:" + SHA-256(text))."""

    def key(text: str) -> str:
        return hashlib.sha256(f"{seed}:".encode() + hashlib.sha256(text.encode()).digest()).hexdigest()

    return tuple(sorted(distinct(texts), key=key)[:n])


@steady
@given(texts_lists, st.integers(1, 50), st.integers(-(2**70), 2**70))
def test_draw_is_what_its_definition_says(texts: list[str], n: int, seed: int) -> None:
    assert pool(texts).draw(n, seed) == by_definition(texts, n, seed)


@steady
@given(texts_lists, st.integers(1, 50), st.integers(0, 9))
def test_draw_is_a_subset_distinct_and_exact(texts: list[str], n: int, seed: int) -> None:
    drawn = pool(texts).draw(n, seed)
    assert set(drawn) <= distinct(texts)
    assert len(drawn) == len(set(drawn)) == min(n, len(distinct(texts)))


@steady
@given(texts_lists, st.integers(1, 50), st.randoms(use_true_random=False))
def test_draw_ignores_order_and_repetition(texts: list[str], n: int, shuffler: random.Random) -> None:
    changed = texts + shuffler.choices(texts, k=5) if texts else []
    changed = [f"  {text}\n" for text in changed]
    shuffler.shuffle(changed)
    assert pool(changed).draw(n, 3) == pool(texts).draw(n, 3)


@steady
@given(texts_lists, st.integers(1, 20))
def test_draws_of_one_seed_are_nested(texts: list[str], n: int) -> None:
    assert pool(texts).draw(n + 1, 0)[:n] == pool(texts).draw(n, 0)


@steady
@given(texts_lists)
def test_every_item_is_counted_once(texts: list[str]) -> None:
    counted = pool(texts)
    counted.draw(1, 0)
    assert counted.distinct == len(distinct(texts))
    assert counted.empty == sum(not text.strip() for text in texts)
    assert counted.distinct + counted.empty + counted.duplicate == len(texts)


def test_draw_is_uniform() -> None:
    """Each of 10 texts is in a draw of 3 with probability 0.3: 900 of 3000 seeds, standard deviation 25."""
    texts = [f"text {i}" for i in range(10)]
    hits = dict.fromkeys(texts, 0)
    for seed in range(3000):
        for text in pool(texts).draw(3, seed):
            hits[text] += 1
    assert all(abs(count - 900) < 4 * 25 for count in hits.values()), hits


def test_draw_is_the_same_on_every_platform() -> None:
    """Frozen: a change of this draw changes every user's results."""
    assert pool([f"text {i}" for i in range(100)]).draw(4, 42) == ("text 42", "text 47", "text 50", "text 77")


# First bytes of the SHA-256 of "abc", "a" (FIPS 180 examples) and "hello": ba, ca, 2c.
@pytest.mark.parametrize(("text", "half"), [("abc", "heldout"), ("a", "heldout"), ("hello", "calibration")])
def test_split_by_hash_is_the_first_bit(text: str, half: str) -> None:
    assert split_by_hash(text) == half


@steady
@given(texts_lists)
def test_halves_are_a_partition(texts: list[str]) -> None:
    halves = [pool(texts, hash_split=half).draw(99, 0) for half in ("calibration", "heldout")]
    assert not set(halves[0]) & set(halves[1])
    assert set(halves[0]) | set(halves[1]) == distinct(texts)
    assert all(split_by_hash(text) == "calibration" for text in halves[0])


def test_halves_are_about_equal() -> None:
    """Of 10,000 texts 5,000 are expected in a half, standard deviation 50."""
    texts = [str(random.Random(i).random()) for i in range(10_000)]
    assert abs(sum(split_by_hash(text) == "heldout" for text in texts) - 5000) < 4 * 50


def test_headings_are_dropped_only_where_there_are_headings() -> None:
    texts = ["= Title =", "a", "= = Part = =", "b"]
    with_headings = pool(texts, headings=True)
    assert set(with_headings.draw(9, 0)) == {"a", "b"}
    assert with_headings.heading == 2
    assert len(pool(texts).draw(9, 0)) == 4


def test_sha256_is_over_zero_terminated_utf8() -> None:
    assert sha256_of(["é", "b"]) == hashlib.sha256("é\0b\0".encode()).hexdigest()
    assert sha256_of(["ab"]) != sha256_of(["a", "b"])
