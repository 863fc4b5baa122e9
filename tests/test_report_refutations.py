"""The report's table of proofs: one row per attempt, hostile names escaped, absent without attempts."""

from __future__ import annotations

from precisionresults import one_op, result

from cohomcli.precision.result import Refutation
from cohomcli.report.precision.part import precision_part
from cohomcli.report.precision.refutations import refutation_table


class Result:
    """Just what the table reads."""

    def __init__(self, *rows: Refutation) -> None:
        self.refutations = rows


def test_rows_say_what_was_tried_and_what_became_of_it() -> None:
    proved = Refutation("bf16", "format", "no algorithm ...", 1.0, "max-abs", 38.9, "artifacts/x/format-bf16.json")
    missing = Refutation("fp16", "collision", "the inputs are discrete", 1.0, "max-abs", None)
    table = refutation_table(Result(proved, missing))  # type: ignore[arg-type]
    assert [row[2] for row in table.rows] == ["proved", "not found"]
    assert table.rows[0][3] == "38.9"
    assert table.rows[0][-1].endswith("format-bf16.json")
    assert len({len(row) for row in table.rows} | {len(table.columns)}) == 1


def test_without_attempts_there_is_no_table() -> None:
    part = precision_part(result(one_op()), "m", ())
    assert "Proofs" not in [block.title for block in part.blocks]
