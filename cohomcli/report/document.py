"""The report before it is markdown or HTML: sections, tables and figures as plain text with harmless names."""

from __future__ import annotations

from dataclasses import dataclass

from cohomcli.report.explorer import Explorer
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
    """A table column; numeric ones are aligned right, `meaning` explains the heading, `prose` cells may wrap."""

    name: str
    meaning: str = ""
    numeric: bool = True
    prose: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text cells under `columns`; all rows have one cell per column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Figures under one heading: the first is shown, the others are further pages of it."""

    title: str
    pictures: tuple[Picture, ...]


Block = Table | Gallery


@dataclass(frozen=True)
class Part:
    """One analysis of an entry: its figures at a glance, its sentences, then tables and figures in reading order.

    `explorer` is the interactive view of a page.
    """

    title: str
    headline: tuple[Fact, ...]
    seen: tuple[str, ...]
    overview: tuple[Picture, ...]
    limits: tuple[str, ...]
    notes: tuple[str, ...]
    blocks: tuple[Block, ...]
    explorer: Explorer | None = None


@dataclass(frozen=True)
class EntrySection:
    """One model on one data set. `error` is set, and the rest empty, when it could not be analysed."""

    anchor: str
    model: str
    dataset: str
    error: str
    parts: tuple[Part, ...]
    method: tuple[Fact, ...]
    claims: tuple[Fact, ...]

    @property
    def title(self) -> str:
        """The section's heading."""
        return f"{self.model} on {self.dataset}" if self.dataset else self.model


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
    about: str
    command: str
    entries: tuple[EntrySection, ...]
    comparison: ComparisonSection | None
    glossary: tuple[Fact, ...]
    files: tuple[Fact, ...]
