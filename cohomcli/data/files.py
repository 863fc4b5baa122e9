"""Local data sets: one file, or a folder of files of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

from cohomcli.data.records import find_field, read_record_texts
from cohomcli.data.spec import WHOLE, DatasetSpec, HashSplit, TextSource
from cohomcli.data.textfile import layout_of, read_texts, reading
from cohomcli.errors import InputRefused, UsageError
from cohomcli.names import printable, safe_name

TEXT = "text"
KINDS = {
    ".txt": TEXT,
    ".text": TEXT,
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
HASH_SPLITS = ("calibration", "heldout")


def kind_by_suffix(path: Path) -> str | None:
    """The kind that the suffix (before `.gz`) stands for, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix != ".gz"]
    return KINDS.get(suffixes[-1]) if suffixes else None


def open_files(spec: DatasetSpec, path: Path) -> TextSource:
    """Open a file or folder. A file with an unknown suffix is read as plain text.

    Raises:
        InputRefused: unreadable, no texts in the folder, or files of several kinds.
        UsageError: an option that does not apply to files, or a split that files do not have.
    """
    _check_options(spec)
    with reading(path):
        paths = _folder_files(path) if path.is_dir() else [path]
    if not path.is_dir() and not path.is_file():
        raise InputRefused(f"{printable(path)} is neither a file nor a folder")
    kind = kind_by_suffix(paths[0]) or TEXT
    opener = _open_text_files if kind == TEXT else partial(_open_record_files, kind=kind)
    return opener(spec, path, paths)


def _check_options(spec: DatasetSpec) -> None:
    where = printable(spec.reference)
    if spec.config is not None or spec.revision is not None:
        raise UsageError(f"{where} is a local file: configurations and revisions exist only on the hub")
    if spec.split not in (None, *HASH_SPLITS):
        hint = f"leave --split out or use {' or '.join(HASH_SPLITS)} (halves by hash)"
        raise UsageError(f"{where} is a local file and has no split {printable(repr(spec.split))}", hint)


def _open_text_files(spec: DatasetSpec, path: Path, paths: list[Path]) -> TextSource:
    if spec.field is not None:
        raise UsageError(f"{printable(spec.reference)} is plain text and has no field {printable(repr(spec.field))}")
    layouts = [layout_of(file, spec.unit) for file in paths]
    texts = chain.from_iterable(map(read_texts, paths, layouts))
    unit = "+".join(sorted({layout.unit for layout in layouts}))
    headings = any(layout.headings for layout in layouts)
    return replace(_source(spec, path), unit=unit, texts=texts, headings=headings)


def _open_record_files(spec: DatasetSpec, path: Path, paths: list[Path], kind: str) -> TextSource:
    if spec.unit != "auto":
        raise UsageError(f"--unit {spec.unit} is for plain text, and {printable(spec.reference)} is {kind}")
    # One column for all files of a folder: that of the first which has records.
    field = next((found for file in paths if (found := find_field(file, kind, spec.field))), "")
    texts = chain.from_iterable(read_record_texts(file, kind, field) for file in paths)
    return replace(_source(spec, path), unit="record", texts=texts, field=field)


def _source(spec: DatasetSpec, path: Path) -> TextSource:
    """What all local data sets have in common; the caller puts in the texts."""
    name = path.resolve().name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem
    return TextSource(
        name=safe_name(name),
        source=printable(spec.reference),
        split=spec.split or WHOLE,
        unit="",
        texts=(),
        hash_split=cast("HashSplit | None", spec.split),
    )


def _folder_files(folder: Path) -> list[Path]:
    """The data files below a folder, hidden ones left out, in the order of their names.

    Raises:
        InputRefused: there are none, or of several kinds.
    """
    found = sorted(_walk(folder), key=lambda file: file.relative_to(folder).as_posix())
    kinds = Counter(kind for file in found if (kind := kind_by_suffix(file)))
    if not kinds:
        others = f" ({len(found)} other files)" if found else ""
        known = ", ".join(KINDS)
        raise InputRefused(f"{printable(folder)} holds no texts{others}", f"files are taken by suffix: {known}")
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise InputRefused(f"{printable(folder)} holds files of several kinds ({listed})", "pass one file or folder")
    return [file for file in found if kind_by_suffix(file)]


def _walk(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        inside = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(".") for part in inside):
            yield file
