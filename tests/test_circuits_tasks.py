"""The shipped tasks for several tokenizers, and pairs from files: what aligns, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import inductionmodel
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import cohomcli.assets
from cohomcli.data.pairs import Encoder, encode_pairs, groups_of, pair_record, read_pairs
from cohomcli.data.tasks import EVENTS, IOI_TEMPLATES, NAMES, PLACES, THINGS, YEAR_TEMPLATE, task_pairs
from cohomcli.errors import InputRefused, UsageError

BUILTIN = Path(cohomcli.assets.__file__).parent / "models" / "tiny-gpt"


def _words(*, two_digits: bool) -> Any:
    texts = " ".join([*IOI_TEMPLATES, YEAR_TEMPLATE, *NAMES, *PLACES, *THINGS, *EVENTS])
    numbers = [f"{n:02d}" for n in range(100)] if two_digits else list("0123456789")
    known = dict.fromkeys(["<unk>", "<s>", *re.findall(r"[A-Za-z]+|[.,]", texts), *numbers])
    found = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="<unk>"))
    pieces = r"\d\d|[A-Za-z]+|[.,]" if two_digits else r"\d|[A-Za-z]+|[.,]"
    from tokenizers import Regex, processors

    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(pieces), "isolated")]
    )
    found.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>", bos_token="<s>")


TOKENIZERS = {
    "bytes": lambda: AutoTokenizer.from_pretrained(BUILTIN),
    "words": lambda: _words(two_digits=True),
    "digits": lambda: _words(two_digits=False),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_in_ioi_only_the_giver_differs(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    pairs = task_pairs("ioi", tokenizer, 16, 0)
    tokens = encode_pairs(tokenizer, pairs)
    orders = set()
    for pair, encoded in zip(pairs, tokens, strict=True):
        giver, receiver = pair.wrong[0].strip(), pair.answers[0].strip()
        assert (pair.clean.count(giver), pair.clean.count(receiver)) == (2, 1)
        assert (pair.corrupt.count(giver), pair.corrupt.count(receiver)) == (1, 1)
        assert sum(a != b for a, b in zip(encoded.clean, encoded.corrupt, strict=True)) == 1
        orders.add(pair.clean.index(giver) < pair.clean.index(receiver))
    assert orders == {True, False}
    assert sum(len(group) for group in groups_of(tokens)) == 16


def test_greater_than_judges_two_digits_where_they_are_one_token() -> None:
    tokenizer = TOKENIZERS["words"]()
    for pair in task_pairs("greater-than", tokenizer, 8, 0):
        century, year = re.search(r"year (\d\d)(\d\d) to", pair.clean).groups()
        assert pair.clean.endswith(f"the year {century}")
        assert set(pair.answers) == {f"{n:02d}" for n in range(int(year) + 1, 100)}
        assert set(pair.wrong) == {f"{n:02d}" for n in range(int(year) + 1)}
        assert f"year {century}01 to" in pair.corrupt
    assert encode_pairs(tokenizer, task_pairs("greater-than", tokenizer, 8, 0))[0].clean[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("kind", ["bytes", "digits"])
def test_greater_than_judges_the_next_digit_where_numbers_are_split(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    for pair in task_pairs("greater-than", tokenizer, 8, 0):
        tens = int(re.search(r"year \d\d(\d)\d to", pair.clean)[1])
        assert set(pair.answers) == {str(n) for n in range(tens + 1, 10)}
        assert set(pair.wrong) == {str(n) for n in range(tens)}
    encode_pairs(tokenizer, task_pairs("greater-than", tokenizer, 8, 0))


@pytest.mark.parametrize("tokenizer", [TOKENIZERS["bytes"], inductionmodel.tokenizer])
def test_induction_breaks_the_first_place_of_the_last_word(tokenizer: Any) -> None:
    tokenizer = tokenizer()
    pairs = task_pairs("induction", tokenizer, 9, 0)
    for pair, encoded in zip(pairs, encode_pairs(tokenizer, pairs), strict=True):
        words = pair.clean.split()
        last, first = words[-1], words.index(words[-1])
        assert f" {words[first + 1]}" == pair.answers[0]
        assert pair.corrupt.split().count(last) == 1
        assert pair.wrong[0].strip() in words[:10]
        assert sum(a != b for a, b in zip(encoded.clean, encoded.corrupt, strict=True)) == 1


def test_a_seed_gives_the_same_pairs_again() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    assert task_pairs("ioi", tokenizer, 8, 3) == task_pairs("ioi", tokenizer, 8, 3)
    assert task_pairs("ioi", tokenizer, 8, 3) != task_pairs("ioi", tokenizer, 8, 4)


def test_a_tokenizer_without_the_words_is_refused() -> None:
    few = inductionmodel.tokenizer()
    for task, fragment in (("ioi", "names"), ("greater-than", "digits")):
        with pytest.raises(InputRefused, match=fragment):
            task_pairs(task, few, 4, 0)
    with pytest.raises(InputRefused, match="too few whole words"):
        task_pairs("induction", PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "apple": 1}, unk_token="<unk>")), unk_token="<unk>"
        ), 4, 0)  # fmt: skip


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean induction"):
        task_pairs("inducton", TOKENIZERS["bytes"](), 4, 0)
    with pytest.raises(InputRefused, match="cannot read"):
        task_pairs("nowhere/pairs.jsonl", TOKENIZERS["bytes"](), 4, 0)


# ---- pairs from files ------------------------------------------------------------------------------------------------

GOOD = {
    "clean": "The king and the queen",
    "corrupt": "The lord and the queen",
    "answer": " is",
    "wrong": [" was", " of"],
}


def _file(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def test_pairs_are_read_and_written_back(tmp_path: Path) -> None:
    pairs = read_pairs(_file(tmp_path, GOOD, "", GOOD))
    assert len(pairs) == 2
    assert pairs[1].where == "pairs.jsonl, line 3"
    again = read_pairs(_file(tmp_path, *map(pair_record, pairs)))
    assert [(p.clean, p.corrupt, p.answers, p.wrong) for p in again] == [
        (p.clean, p.corrupt, p.answers, p.wrong) for p in pairs
    ]
    tokens = encode_pairs(TOKENIZERS["bytes"](), pairs)[0]
    assert (len(tokens.answers), len(tokens.wrong)) == (1, 2)


@pytest.mark.parametrize(
    ("record", "fragment"),
    [
        ("not json", "not JSON"),
        ([1], "keys"),
        ({**GOOD, "extra": 1}, "keys"),
        ({**GOOD, "clean": ""}, "are texts"),
        ({**GOOD, "answer": []}, "'answer' is a text"),
        ({**GOOD, "wrong": [3]}, "'wrong' is a text"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, record: Any, fragment: str) -> None:
    with pytest.raises(InputRefused, match=fragment) as caught:
        read_pairs(_file(tmp_path, GOOD, record))
    assert "line 2" in str(caught.value)


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no pairs"):
        read_pairs(_file(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputRefused, match="UTF-8"):
        read_pairs(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"corrupt": "The old lord and the queen"}, "5 tokens and the corrupt one 6|tokens and the corrupt one"),
        ({"corrupt": GOOD["clean"]}, "same tokens"),
        ({"answer": " Antidisestablishmentarianism"}, "not one token"),
        ({"answer": "zq"}, "not one token"),
        ({"answer": " was"}, "both right and wrong"),
    ],
)
def test_a_pair_that_compares_nothing_is_named(tmp_path: Path, changes: dict, fragment: str) -> None:
    pairs = read_pairs(_file(tmp_path, GOOD, {**GOOD, **changes}))
    with pytest.raises(InputRefused, match=fragment) as caught:
        encode_pairs(TOKENIZERS["bytes"](), pairs)
    assert "line 2" in str(caught.value)


def test_special_tokens_stand_in_front_and_never_behind() -> None:
    encoder = Encoder(TOKENIZERS["words"]())
    ids = encoder.ids("Mary and John")
    assert ids[0] == encoder.tokenizer.bos_token_id
    assert len(ids) == 4
    assert encoder.next_token("Mary and", " John") == ids[-1]
    assert encoder.next_token("Mary and", " Zebedee") is None
