"""Records: jsonl, json, csv and tsv, their text column, and what is wrong with broken ones."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.data import DatasetSpec, load_texts
from cohomcli.data.fields import choose_field
from cohomcli.errors import InputRefused, UsageError

Write = Callable[[str, str], str]
steady = settings(deadline=None, derandomize=True)
cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
tables = st.lists(cell, min_size=1, max_size=12)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", newline="")
        return str(path)

    return write


def as_csv(texts: list[str], delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")  # RFC 4180; makes the writer quote \r as well
    writer.writerows([["id", "text"], *enumerate(texts)])
    return out.getvalue()


WRITERS = {
    "jsonl": lambda texts: "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)),
    "json": lambda texts: json.dumps([{"id": i, "text": t} for i, t in enumerate(texts)], indent=1),
    "csv": lambda texts: as_csv(texts, ","),
    "tsv": lambda texts: as_csv(texts, "\t"),
}


@pytest.mark.parametrize("kind", WRITERS)
@steady
@given(texts=tables)
def test_what_was_written_comes_back(tmp_path_factory: pytest.TempPathFactory, kind: str, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp(kind) / f"data.{kind}"
    path.write_text(WRITERS[kind](texts), encoding="utf-8", newline="")
    wanted = {text.strip() for text in texts} - {""}
    if not wanted:
        return
    sample = load_texts(DatasetSpec(str(path), field="text"), len(wanted), 0)
    assert set(sample.texts) == wanted
    assert (sample.unit, sample.field, sample.n_available) == ("record", "text", len(wanted))


def test_kinds_give_the_same_sample(write: Write) -> None:
    texts = [f"text {i}, with a comma" for i in range(30)]
    samples = [load_texts(DatasetSpec(write(WRITERS[kind](texts), f"data.{kind}")), 10, 5) for kind in WRITERS]
    assert len({sample.sha256 for sample in samples}) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", '{"text": "a"}\n{"text": "b"}\n'),
        ("wrapped.json", '{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}'),
        ("strings.json", '["a", "b"]'),
        ("strings.jsonl", '"a"\n\n"b"\n'),
        ("nulls.jsonl", '{"text": null}\n{"text": "a"}\n{"text": "b"}'),
        ("semicolons.csv", "id;text\n1;a\n2;b\n"),
        ("tabs.tab", "id\ttext\n1\ta\n2\tb\n"),
        ("blank.csv", "text\na\n\nb\n"),
        ("usual.csv", "title,Content\nt,a\nu,b\n"),
        ("numbers.csv", "label,comment\n1,a\n0,b\n"),
        ("types.jsonl", '{"n": 1, "comment": "a"}\n{"n": 2, "comment": "b"}\n'),
    ],
)
def test_shapes_that_are_understood(write: Write, name: str, text: str) -> None:
    assert sorted(load_texts(DatasetSpec(write(text, name)), 2, 0).texts) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2, column 9: not valid JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "line 2: expected an object or a string, found list"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', "line 2: no field 'text' (it has txt)"),
        ("a.jsonl", '{"text": "a"}\n{"text": 7}\n' * 60, "line 2: field 'text' is of type int, not a string"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: the text holds half of a surrogate pair"),
        ("a.jsonl", '{"text": ' + "[" * 200_000 + "\n", "line 1"),
        ("a.json", '{"text": "a"', "line 1, column 13: not valid JSON"),
        ("a.json", "[\n1]", "record 1: expected an object or a string, found int"),
        ("a.json", '{"a": 1}', "holds no list of records"),
        ("a.json", "", "holds no text"),
        ("a.csv", "", "holds no text"),
        ("a.csv", "id,text\n", "holds no text"),
        ("a.csv", "id,text\n1,a\n2,b,c\n", "line 3: 3 columns where the header has 2"),
        ("a.csv", 'id,text\n1,"a\n2,b\n', "not valid CSV: unexpected end of data"),
        ("a.csv", "text,text\na,b\n", "header: column 'text' occurs twice"),
    ],
)
def test_broken_files_are_refused_with_the_place(write: Write, name: str, text: str, message: str) -> None:
    with pytest.raises(InputRefused) as caught:
        load_texts(DatasetSpec(write(text, name)), 1, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_csv_cells(write: Write) -> None:
    """The csv module refuses cells of more than 128 KiB unless told otherwise."""
    assert len(load_texts(DatasetSpec(write("text\n" + "x" * 200_000 + "\n", "a.csv")), 1, 0).texts[0]) == 200_000


@pytest.mark.parametrize(
    ("columns", "asked", "chosen"),
    [
        ({"id": False, "text": True}, None, "text"),
        ({"sentence": True, "content": True}, None, "content"),
        ({"Text": True, "title": True}, None, "Text"),
        ({"id": False, "comment": True}, None, "comment"),
        ({"a": True, "b": True}, "b", "b"),
    ],
)
def test_choice_of_the_column(columns: dict[str, bool], asked: str | None, chosen: str) -> None:
    assert choose_field(columns, asked, "x") == chosen


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"a": True, "b": True, "n": False}, None, "x has several columns that could be the text: a, b; choose one"),
        ({"n": False, "m": False}, None, "x has no column of texts among its columns n, m"),
        ({"text": False}, None, "x has no column of texts"),
        ({"text": True}, "txt", "x has no column 'txt'; did you mean text?"),
    ],
)
def test_no_choice(columns: dict[str, bool], asked: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_field(columns, asked, "x")
    assert message in str(caught.value)
