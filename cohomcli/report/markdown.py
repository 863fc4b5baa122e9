"""The report as GitHub-flavoured markdown; every text is escaped, so names cannot become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cohomcli.report.document import Block, ComparisonSection, Document, EntrySection, Fact, Part, Table
from cohomcli.report.picture import Picture

_SPECIAL = re.compile(r"[\\`*\[\]<>|~$&!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINE_START = re.compile(r"^([#+=-](?!\d)|\d{1,9}(?=[.)](?:\s|$)))")
_AUTOLINK = re.compile(r"(?i)(https?|ftp|mailto|xmpp)(?=:)|www(?=\.)")


def escape(text: str) -> str:
    """`text` as literal markdown: no emphasis, link, image, HTML, entity, maths, cell, list or heading comes of it.

    An underscore within a word is literal already and stays readable. GitHub turns bare addresses into links; a
    zero-width space before their colon or dot prevents it.
    """
    text = _SPECIAL.sub(lambda match: "\\" + match.group(), text)
    text = _AUTOLINK.sub(lambda match: match.group() + "&#8203;", text)
    return _LINE_START.sub(lambda match: f"{match[1]}\\" if match[1].isdigit() else f"\\{match[1]}", text)


def render(document: Document, plots: bool) -> str:
    """The whole report; `plots` says whether the figures were drawn and can be shown."""
    parts = [f"# {escape(document.title)}"]
    failed = [entry for entry in document.entries if entry.error]
    if failed:
        names = "\n".join(f"- {escape(entry.title)}: {escape(entry.error)}" for entry in failed)
        parts.append(f"**{len(failed)} of {len(document.entries)} analyses failed:**\n\n{names}")
    if document.comparison:
        parts += _comparison(document.comparison, plots)
    for entry in document.entries:
        if not entry.error:
            parts += _entry(entry, plots)
    parts += _end(document)
    return "\n\n".join(parts) + "\n"


def _entry(entry: EntrySection, plots: bool) -> list[str]:
    parts = [f"## {escape(entry.title)}"]
    several = len(entry.parts) > 1
    for part in entry.parts:
        parts += [f"### {escape(part.title)}"] if several else []
        parts += _part(part, plots, "####" if several else "###")
    if entry.method:
        parts += ["### How it was measured", _facts_table(("what", "value", ""), entry.method)]
    if entry.claims:
        parts += ["### Claims", _facts_table(("status", "claim", "certificate"), entry.claims)]
    return parts


def _part(part: Part, plots: bool, level: str) -> list[str]:
    parts = [_facts_table(("figure", "value", ""), part.headline)] if part.headline else []
    parts += [f"{level} What is seen", *map(escape, part.seen)] if part.seen else []
    parts += _pictures(part.overview, plots)
    if part.limits:
        parts += [f"{level} What it does not mean", _bullets(part.limits)]
    if part.notes:
        parts += [f"{level} Notes", _bullets(part.notes)]
    for block in part.blocks:
        parts += _block(block, plots, level)
    return parts


def _block(block: Block, plots: bool, level: str) -> list[str]:
    if isinstance(block, Table):
        return _table(block, level)
    return [f"{level} {escape(block.title)}", *_pages(block.pictures)] if plots else []


def _comparison(comparison: ComparisonSection, plots: bool) -> list[str]:
    parts = ["## Models side by side", *map(escape, comparison.seen), *_pictures(comparison.pictures, plots)]
    for table in comparison.tables:
        parts += _table(table, "###")
    return [*parts, "### What the comparison does not mean", _bullets(comparison.limits)]


def _end(document: Document) -> list[str]:
    parts = []
    if document.glossary:
        parts += ["## Words", "\n".join(f"- **{escape(f.label)}**: {escape(f.value)}" for f in document.glossary)]
    parts += ["## Reproduce", f"Made by cohom {escape(document.version)} with", code_block(document.command)]
    parts.append("The manifest beside this report holds versions, seeds, threads and hashes.")
    if document.files:
        parts.append("\n".join(f"- [{f.label}]({f.label}): {escape(f.value)}" for f in document.files))
    return parts


def code_block(text: str) -> str:
    """`text` in a fence that no run of backticks inside it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"


def _pictures(pictures: Iterable[Picture], plots: bool) -> list[str]:
    """Each figure with its caption; file names are slugs and need no escaping."""
    if not plots:
        return []
    return [f"![{escape(p.alt)}](plots/{p.file})\n\n*{escape(p.title)}.* {escape(p.caption)}" for p in pictures]


def _pages(pictures: Sequence[Picture]) -> list[str]:
    """The first page as a picture, further pages as links."""
    parts = _pictures(pictures[:1], plots=True)
    rest = [f"[{escape(p.title)}](plots/{p.file})" for p in pictures[1:]]
    return [*parts, f"Further pages: {', '.join(rest)}."] if rest else parts


def _table(table: Table, level: str) -> list[str]:
    lines = [
        _row(escape(column.name) for column in table.columns),
        _row("--:" if column.numeric else ":--" for column in table.columns),
        *(_row(map(escape, row)) for row in table.rows),
    ]
    parts = [f"{level} {escape(table.title)}", "\n".join(lines)]
    return [*parts, escape(table.note)] if table.note else parts


def _facts_table(heads: tuple[str, str, str], facts: Sequence[Fact]) -> str:
    lines = [_row(heads), _row((":--", ":--", ":--"))]
    lines += [_row((escape(fact.label), escape(fact.value), escape(fact.note))) for fact in facts]
    return "\n".join(lines)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
