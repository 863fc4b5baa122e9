"""Which column of a table holds the texts."""

from __future__ import annotations

from collections.abc import Mapping

from cohomcli.errors import UsageError
from cohomcli.names import printable
from cohomcli.registry import did_you_mean

# The usual names of a text column, the most telling first.
USUAL = ("text", "content", "sentence", "document", "passage", "paragraph", "article", "review", "body")


def choose_field(columns: Mapping[str, bool], asked: str | None, where: str) -> str:
    """The text column of a table with `columns` (name -> whether it holds strings).

    That is the column `asked` for; else the first of the usual names (`text`, `content`, `sentence`, ..., in any case)
    that holds strings; else the only column that holds strings.

    Raises:
        UsageError: no such column, or none could be chosen; the message lists the columns.
    """
    if asked is not None:
        if asked in columns:
            return asked
        hint = printable(did_you_mean(asked, columns))
        raise UsageError(f"{where} has no column {printable(repr(asked))}", hint)
    strings = [name for name, is_string in columns.items() if is_string]
    usual = [name for usual_name in USUAL for name in strings if name.lower() == usual_name]
    if usual or len(strings) == 1:
        return (usual or strings)[0]
    if not strings:
        raise UsageError(f"{where} has no column of texts among its columns {printable(', '.join(columns))}")
    listed = printable(", ".join(strings))
    raise UsageError(f"{where} has several columns that could be the text: {listed}", "choose one with --field")
