"""Plain text files, read line by line and decoded strictly, and cut into texts."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import IO, cast

from cohomcli.data.layout import HEAD_LINES, Layout, detect
from cohomcli.data.spec import TextUnit
from cohomcli.errors import InputRefused
from cohomcli.names import printable

# A longer line or paragraph is not a text but a mistake, and would be held in memory whole.
MAX_TEXT_BYTES = 64 << 20
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of the file system and of gzip into one line.

    Raises:
        InputRefused: the file cannot be opened or read to its end.
    """
    try:
        yield
    except OSError as error:
        raise InputRefused(f"cannot read {printable(path)}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise InputRefused(f"cannot read {printable(path)}: damaged gzip data", "fetch the file again") from error


def open_bytes(path: Path) -> IO[bytes]:
    """Open `path` for reading, unpacking `.gz`."""
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, without a byte order mark.

    Raises:
        InputRefused: unreadable, binary, not UTF-8 (with the position), or a line of more than 64 MiB.
    """
    offset = 0
    with reading(path), open_bytes(path) as stream:
        for number in count(1):
            raw = stream.readline(MAX_TEXT_BYTES + 1)
            if not raw:
                return
            yield _decode(raw, path, number, offset)
            offset += len(raw)


def _decode(raw: bytes, path: Path, number: int, offset: int) -> str:
    if number == 1 and raw.startswith(UTF16_MARKS):
        raise InputRefused(f"{printable(path)} is UTF-16 text", "save it as UTF-8")
    if b"\0" in raw:
        raise InputRefused(f"{printable(path)} is a binary file: zero byte in line {number}", "give UTF-8 text")
    if len(raw) > MAX_TEXT_BYTES:
        raise too_long(path, number)
    mark = len(UTF8_MARK) if number == 1 and raw.startswith(UTF8_MARK) else 0
    try:
        return raw[mark:].decode()
    except UnicodeDecodeError as error:
        at = error.start + mark
        where = f"byte 0x{raw[at]:02x} at offset {offset + at}, line {number}"
        raise InputRefused(f"{printable(path)} is not UTF-8 text: {where}", "convert it to UTF-8") from error


def too_long(path: Path, number: int) -> InputRefused:
    """The refusal of a text that is larger than any text is."""
    return InputRefused(
        f"{printable(path)}: the text at line {number} is longer than {MAX_TEXT_BYTES >> 20} MiB",
        "give one text per line, or --unit line",
    )


def layout_of(path: Path, unit: TextUnit) -> Layout:
    """The layout to read `path` with: the unit asked for, or the one that `auto` decides on."""
    found = detect(list(islice(read_lines(path), HEAD_LINES)))
    if unit == "auto":
        return found
    # Whoever takes a whole file as one text wants its headings in it.
    return Layout(unit, headings=found.headings and unit != "file")


def read_texts(path: Path, layout: Layout) -> Iterator[str]:
    """Yield the texts of a plain text file, unstripped.

    Raises:
        InputRefused: see `read_lines`; a paragraph or file of more than 64 MiB.
    """
    lines = read_lines(path)
    if layout.unit == "line":
        return lines
    return _joined(lines, path, at_blank=layout.unit == "paragraph")


def _joined(lines: Iterable[str], path: Path, at_blank: bool) -> Iterator[str]:
    """Join lines up to the next blank line, or up to the end of the file."""
    block: list[str] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        if at_blank and not line.strip():
            if block:
                yield "".join(block)
            block, size = [], 0
            continue
        block.append(line)
        size += len(line)
        if size > MAX_TEXT_BYTES:
            raise too_long(path, number)
    if block:
        yield "".join(block)
