"""The verdict as GitHub-flavoured markdown: the step summary of a workflow, or a comment on a change.

GitHub cuts a step's summary at 1 MiB and refuses a longer one, so tables are short and names are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cohomcli.gates import GateOutcome
from cohomcli.report.comparing import labels_of
from cohomcli.report.comparing_permutations import p_summary
from cohomcli.report.markdown import escape
from cohomcli.report.names import DASH, clean, count, listing, number, ratio
from cohomcli.report.verdict import Verdict, subject
from cohomcli.results import Entry

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.drift import DriftReport

MOST_ENTRIES = 50
MOST_LAYERS = 8


def render(verdict: Verdict) -> str:
    """The summary; every text from outside is escaped, so a name can open no link, image, tag or table cell."""
    parts = [f"## cohom {_escape(clean(verdict.command, 40))}: {_headline(verdict)}"]
    if verdict.gates:
        rows = [(_state(gate.tripped, gate.unknown), gate.text, _found(gate)) for gate in verdict.gates]
        parts.append(_table(("gate", "condition that must not hold", "what was found"), rows))
    parts.append(_figures(verdict.entries))
    if verdict.comparison is not None and verdict.comparison.drift is not None:
        parts += _drift(verdict.comparison, verdict.comparison.drift)
    if verdict.comparison is not None and verdict.comparison.permutations is not None:
        tested = p_summary(verdict.comparison.permutations)
        parts += ["### Permutation tests", _table(("test", "smallest corrected p-value"), tested)] if tested else []
    return "\n\n".join(parts) + "\n"


def _headline(verdict: Verdict) -> str:
    words = []
    if verdict.failed:
        words.append(f"{count(len(verdict.failed), 'analysis', 'analyses')} failed")
    if verdict.tripped:
        words.append(f"{count(len(verdict.tripped), 'gate')} of {len(verdict.gates)} tripped")
    elif verdict.gates:
        words.append(f"{'the gate passes' if len(verdict.gates) == 1 else f'all {len(verdict.gates)} gates pass'}")
    return ", ".join(words) or f"{count(len(verdict.entries), 'analysis', 'analyses')}"


def _state(tripped: bool, unknown: bool) -> str:
    return "UNKNOWN METRIC" if unknown else "TRIPPED" if tripped else "passes"


def _found(gate: GateOutcome) -> str:
    """The message without the gate's own text, which stands beside it."""
    return gate.message.removeprefix(f"gate {gate.text!r}").removeprefix(" passes").removeprefix(": ")


def _figures(entries: Sequence[Entry]) -> str:
    rows = [_row(entry) for entry in entries[:MOST_ENTRIES]]
    table = _table(("analysis", "perplexity", "raw H0 expansion", "scale-free"), rows)
    rest = len(entries) - MOST_ENTRIES
    return f"{table}\n\n{count(rest, 'further analysis', 'further analyses')} in the report." if rest > 0 else table


def _row(entry: Entry) -> tuple[str, ...]:
    if entry.error:
        return subject(entry), f"failed: {clean(entry.error, 200)}", DASH, DASH
    expansion = entry.topology.expansion if entry.topology else None
    perplexity = number(entry.metrics.perplexity) if entry.metrics else DASH
    return (
        subject(entry),
        perplexity,
        ratio(expansion.raw if expansion else None),
        ratio(expansion.scale_free if expansion else None),
    )


def _drift(comparison: Comparison, drift: DriftReport) -> list[str]:
    labels = labels_of(comparison.rows)
    start = listing(labels[row] for row in drift.baselines)
    parts = [f"### Drift from {_escape(start)}", f"Measure: {_escape(drift.measure)}, in 0 to 1."]
    rows = [
        (labels[one.row], number(one.max_drift, 3), one.worst_layer or DASH, number(one.mean_drift, 3), one.reason)
        for one in drift.models[:MOST_ENTRIES]
    ]
    parts.append(_table(("analysis", "largest", "in layer", "mean", "remark"), rows))
    for one in drift.models:
        worst = sorted(one.layers, key=lambda layer: -layer.drift)[:MOST_LAYERS]
        if len(drift.models) == 1 and len(worst) > 1:
            parts.append(_table(("layer", "drift"), [(layer.layer, number(layer.drift, 3)) for layer in worst]))
    return parts


def _escape(text: str) -> str:
    """`text` as literal markdown that mentions nobody."""
    return escape(text).replace("@", "@&#8203;")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, [":--"] * len(heads), *([_escape(clean(cell, 300)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
