"""Plain text: what one text is, and how files that are none are refused."""

import gzip
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.data import DatasetSpec, load_texts, textfile
from cohomcli.data.layout import Layout, detect, is_heading
from cohomcli.data.spec import TextUnit
from cohomcli.data.textfile import layout_of, read_texts
from cohomcli.errors import InputRefused

Write = Callable[..., Path]
steady = settings(deadline=None, derandomize=True)
SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank while the sun goes down behind the hills. "
PROSE = "\n\n".join(textwrap.fill(f"Paragraph {i}. " + SENTENCE * (2 + i % 3), 72) for i in range(12)) + "\n"
WIKITEXT = """ \n = Robert <unk> = \n \n Robert <unk> is an actor . {long}\n In 2006 , <unk> starred . {long}
 \n = = Career = = \n \n \n = = = 2000 – 2005 = = = \n \n In 2000 <unk> had a role . {long}\n q = \n"""
WIKITEXT = WIKITEXT.format(long=SENTENCE * 3)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes | str, name: str = "data.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def texts_of(path: Path, unit: TextUnit = "auto") -> tuple[Layout, list[str]]:
    layout = layout_of(path, unit)
    return layout, [text.strip() for text in read_texts(path, layout) if text.strip()]


def test_wikitext_gives_lines_without_headings(write: Write) -> None:
    sample = load_texts(DatasetSpec(str(write(WIKITEXT))), 4, 0)
    assert sample.unit == "line"
    assert sorted(text[:14] for text in sample.texts) == ["In 2000 <unk> ", "In 2006 , <unk", "Robert <unk> i", "q ="]
    assert sample.n_heading == 3
    assert "3 WikiText headings were left out." in sample.notes


def test_hard_wrapped_prose_gives_paragraphs(write: Write) -> None:
    layout, texts = texts_of(write(PROSE))
    assert layout == Layout("paragraph")
    assert len(texts) == 12
    assert all(text.startswith(f"Paragraph {i}.") and "\n" in text for i, text in enumerate(texts))


@pytest.mark.parametrize(
    ("what", "head"),
    [
        ("one text a line, no blank lines", [SENTENCE] * 50),
        ("short texts in two long blocks", [*["short text"] * 500, "", *["short text"] * 500]),
        ("paragraphs of one line, parted by blank lines", [SENTENCE * 4, "", SENTENCE * 5, "", SENTENCE * 4]),
        ("long lines in blocks", [SENTENCE * 4, SENTENCE * 4, "", SENTENCE * 5, SENTENCE * 3]),
        ("one line", ["a single text"]),
        ("nothing", []),
        ("equations are no headings", ["x = 1", "", "= 2", "", "y = = z", "", "= = a ="]),
    ],
)
def test_everything_else_gives_lines(what: str, head: list[str]) -> None:
    assert detect(head) == Layout("line"), what


def test_verse_gives_paragraphs() -> None:
    assert detect(["Two roads", "diverged", "", "And both", "that morning", "equally lay"]).unit == "paragraph"


def test_heading_needs_blank_neighbours() -> None:
    assert not detect(["= a =", "text", "", "text"]).headings
    assert detect(["= a =", "", "text"]).headings


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_headings_are_balanced(depth: int) -> None:
    assert is_heading("= " * depth + "A = B" + " =" * depth)
    assert not is_heading("= " * depth + "A" + " =" * (depth + 1))


def test_asking_for_a_unit(write: Write) -> None:
    path = write(PROSE)
    assert len(texts_of(path, "line")[1]) > 30
    assert texts_of(path, "file")[1] == [PROSE.strip()]
    assert texts_of(write(WIKITEXT), "file")[0] == Layout("file", headings=False)
    assert texts_of(write(WIKITEXT), "paragraph")[0] == Layout("paragraph", headings=True)


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n"), min_size=1)


@steady
@given(st.lists(lines, min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_lines_come_back(tmp_path_factory: pytest.TempPathFactory, given_lines: list[str], end: str) -> None:
    path = tmp_path_factory.mktemp("lines") / "data.txt"
    path.write_bytes(end.join(["first", *given_lines]).encode())
    found = [text.strip() for text in read_texts(path, Layout("line"))]
    assert found == ["first", *(line.strip() for line in given_lines)]


@steady
@given(st.lists(st.lists(lines.filter(str.strip), min_size=1), min_size=1), st.integers(1, 3))
def test_paragraphs_come_back(
    tmp_path_factory: pytest.TempPathFactory, paragraphs: list[list[str]], blank_lines: int
) -> None:
    path = tmp_path_factory.mktemp("paragraphs") / "data.txt"
    wanted = ["\n".join(["first", *paragraph]) for paragraph in paragraphs]
    path.write_bytes(("\n" * blank_lines + "\n").join(wanted).encode())
    assert [text.strip() for text in read_texts(path, Layout("paragraph"))] == [text.strip() for text in wanted]


def test_byte_order_mark_and_gzip(write: Write) -> None:
    assert texts_of(write("\ufeffone\ntwo"))[1] == ["one", "two"]
    assert texts_of(write(gzip.compress(b"one\ntwo"), "data.txt.gz"))[1] == ["one", "two"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no text"),
        (b" \n\t\n\n", "holds no text"),
        (b"one line\n", "holds a single text and 2 were asked for"),
        (b"a\nb\na\n", None),
        (b"text\n\x7fELF\x00\x01", "is a binary file: zero byte in line 2"),
        ("text".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"good\nbad \xe9t\xe9\n", "is not UTF-8 text: byte 0xe9 at offset 9, line 2"),
        (b"\xef\xbb\xbfbad \xff", "is not UTF-8 text: byte 0xff at offset 7, line 1"),
    ],
)
def test_files_that_are_no_texts(write: Write, data: bytes, message: str | None) -> None:
    spec = DatasetSpec(str(write(data)))
    if message is None:
        assert len(load_texts(spec, 2, 0).texts) == 2
        return
    with pytest.raises(InputRefused) as caught:
        load_texts(spec, 2, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_asked_for(write: Write) -> None:
    with pytest.raises(InputRefused, match=r"holds 3 distinct texts and 200 were asked for; pass --samples 3 or fewer"):
        load_texts(DatasetSpec(str(write("a\nb\nc\na\n"))), 200, 0)


def test_damaged_gzip(write: Write) -> None:
    whole = gzip.compress(os.urandom(2000).hex().encode())
    for broken in (b"no gzip", whole[:-500], whole[:300] + b"xxxx" + whole[304:]):
        with pytest.raises(InputRefused, match="cannot read"):
            load_texts(DatasetSpec(str(write(broken, "data.txt.gz"))), 1, 0)


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_endless_texts_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch, unit: TextUnit) -> None:
    monkeypatch.setattr(textfile, "MAX_TEXT_BYTES", 1 << 20)
    path = write("x" * ((1 << 20) + 1) if unit == "line" else "line of text\n" * 100_000)
    with pytest.raises(InputRefused, match="is longer than 1 MiB"):
        load_texts(DatasetSpec(str(path), unit=unit), 1, 0)
