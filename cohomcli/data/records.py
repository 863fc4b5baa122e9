"""Records of jsonl, json, csv and tsv files, and the text in each of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cohomcli.data.fields import choose_field
from cohomcli.data.textfile import MAX_TEXT_BYTES, read_lines
from cohomcli.errors import InputRefused
from cohomcli.names import printable

# Columns and their types are judged by this many records.
HEAD_RECORDS = 100


@dataclass(frozen=True)
class Record:
    """One record and where it stands in its file, such as "line 3"."""

    where: str
    values: dict[str, Any]


def find_field(path: Path, kind: str, asked: str | None) -> str | None:
    """The text column of a file of `kind` "jsonl", "json", "csv" or "tsv"; None when it has no records.

    Raises:
        InputRefused: unreadable or malformed.
        UsageError: the column `asked` for does not exist, or nothing was asked and several come into question.
    """
    head = list(islice(_read(path, kind), HEAD_RECORDS))
    return choose_field(_columns(head, csv_like=kind in ("csv", "tsv")), asked, printable(path)) if head else None


def read_record_texts(path: Path, kind: str, field: str) -> Iterator[str]:
    """Yield the text in column `field` of every record; a null is an empty text.

    Raises:
        InputRefused: unreadable or malformed, a record without the field or with something else than a string in it.
    """
    return (_text_of(record, field, path) for record in _read(path, kind))


def _read(path: Path, kind: str) -> Iterator[Record]:
    reader = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "tsv": _read_csv}[kind]
    return reader(path)


def _columns(head: list[Record], csv_like: bool) -> dict[str, bool]:
    """Name -> whether the column holds strings (in csv: strings that are not all numbers)."""
    names = dict.fromkeys(name for record in head for name in record.values)
    found = {}
    for name in names:
        values = [value for record in head if (value := record.values.get(name)) not in (None, "")]
        # One string is enough: what is wrong with the others is said of their line, when it is read.
        strings = any(isinstance(value, str) for value in values)
        found[name] = strings and not (csv_like and all(_is_number(value) for value in values))
    return found


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _text_of(record: Record, field: str, path: Path) -> str:
    if field not in record.values:
        has = printable(", ".join(record.values)) or "nothing"
        raise _refusal(path, record.where, f"no field {printable(repr(field))} (it has {has})")
    text = record.values[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        found = f"field {printable(repr(field))} is of type {type(text).__name__}, not a string"
        raise _refusal(path, record.where, found)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # "\ud800" is valid JSON and not valid text
            raise _refusal(path, record.where, "the text holds half of a surrogate pair") from error
    return text


def _refusal(path: Path, where: str, what: str) -> InputRefused:
    return InputRefused(f"{printable(path)}, {where}: {what}")


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield _record(_parse(line.rstrip(), path, number), path, f"line {number}")


def _read_json(path: Path) -> Iterator[Record]:
    """A list of records, an object whose only list is that list, or JSON lines in spite of the suffix."""
    whole = "".join(read_lines(path))
    if not whole.strip():
        return iter(())
    try:
        document = json.loads(whole)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_jsonl(path)
        raise _json_refusal(error, path, error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise _refusal(path, "JSON", str(error)) from error
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        document = lists[0] if len(lists) == 1 else document
    if not isinstance(document, list):
        raise InputRefused(f"{printable(path)} holds no list of records", 'expected [{"text": ...}, ...] or JSON lines')
    return (_record(value, path, f"record {number}") for number, value in enumerate(document, start=1))


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _json_refusal(error, path, number) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting of thousands of levels
        raise _refusal(path, f"line {number}", str(error)) from error


def _json_refusal(error: json.JSONDecodeError, path: Path, line: int) -> InputRefused:
    return _refusal(path, f"line {line}, column {error.colno}", f"not valid JSON: {error.msg}")


def _record(value: Any, path: Path, where: str) -> Record:
    """A record; a bare string counts as one with the single field `text`."""
    if isinstance(value, str):
        return Record(where, {"text": value})
    if not isinstance(value, dict):
        raise _refusal(path, where, f"expected an object or a string, found {type(value).__name__}")
    return Record(where, value)


def _read_csv(path: Path) -> Iterator[Record]:
    """Rows below a header row; `;` parts the columns where the header shows it, tabs in tsv."""
    csv.field_size_limit(MAX_TEXT_BYTES)  # the default of 128 KiB is less than many texts
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    rows = csv.reader(chain([first], lines), delimiter=_delimiter(path, first), strict=True)
    header: list[str] | None = None
    for row in _rows(rows, path):
        if header is None:
            header = _header(row, path)
        elif len(row) != len(header):
            found = f"{len(row)} columns where the header has {len(header)} (is a text with a separator not quoted?)"
            raise _refusal(path, f"line {rows.line_num}", found)
        else:
            yield Record(f"line {rows.line_num}", dict(zip(header, row, strict=True)))


def _delimiter(path: Path, first: str) -> str:
    if {".tsv", ".tab"} & set(path.suffixes):
        return "\t"
    return ";" if ";" in first and "," not in first else ","


def _rows(rows: Any, path: Path) -> Iterable[list[str]]:
    """The rows that are not blank lines."""
    try:
        yield from (row for row in rows if row)
    except csv.Error as error:
        raise _refusal(path, f"line {rows.line_num}", f"not valid CSV: {error}") from error


def _header(row: list[str], path: Path) -> list[str]:
    if repeated := [name for name in row if row.count(name) > 1]:
        raise _refusal(path, "header", f"column {printable(repr(repeated[0]))} occurs twice")
    return row
