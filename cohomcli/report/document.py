"""The report before it is markdown or HTML: sections, tables and figures as plain text with harmless names."""

from __future__ import annotations

from dataclasses import dataclass

from cohomcli.report.picture import Picture


@dataclass(frozen=True)
class ReportContext:
    """How the run was called: `argv` reproduces it. Nothing here may change between equal runs."""

    command: str
    argv: tuple[str, ...]
    version: str
    title: str
    plots: bool = True
    html: bool = True


@dataclass(frozen=True)
class Fact:
    """A labelled value; `note` says what it means or why it is missing."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A table column; numeric ones are aligned right, `meaning` explains the heading."""

    name: str
    meaning: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of text cells under `columns`; all rows have one cell per column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class EntrySection:
    """One model on one data set. `error` is set, and the rest empty, when it could not be analysed."""

    anchor: str
    model: str
    dataset: str
    error: str
    headline: tuple[Fact, ...]
    seen: tuple[str, ...]
    limits: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    method: tuple[Fact, ...]
    claims: tuple[Fact, ...]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The section's heading."""
        return f"{self.model} on {self.dataset}" if self.dataset else self.model

    def in_group(self, *groups: str) -> tuple[Picture, ...]:
        """The section's pictures of the given groups, in order."""
        return tuple(picture for picture in self.pictures if picture.group in groups)


@dataclass(frozen=True)
class ComparisonSection:
    """What several models show side by side."""

    seen: tuple[str, ...]
    limits: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Document:
    """A whole report. `command` is the shell line that reproduces it, `files` the tables written beside it."""

    title: str
    version: str
    command: str
    entries: tuple[EntrySection, ...]
    comparison: ComparisonSection | None
    glossary: tuple[Fact, ...]
    files: tuple[Fact, ...]
