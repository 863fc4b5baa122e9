"""Gates: conditions on results that make a command fail, such as `topology.layers.max_drift > 0.1`.

An expression is `path operator value`. A path names keys of the results document, separated by dots; `[3]` takes one
item of a list and `[*]` all of them, which trips the gate when any does. With several models a path may begin inside an
entry and is checked for every one. A gate fails closed: what is missing, null, not finite or of another type trips it,
and a path that no part of the results could have is a usage error (exit code 2), never a pass.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cohomcli.errors import UsageError

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_ORDERED = ("<", "<=", ">", ">=")
_KEY = r"[A-Za-z0-9_\-]+"
_PATH = re.compile(rf"{_KEY}(?:\[(?:\d{{1,9}}|\*)\])*(?:\.{_KEY}(?:\[(?:\d{{1,9}}|\*)\])*)*")
_EXPRESSION = re.compile(r"\s*(\S+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*", re.DOTALL)
_PART = re.compile(rf"{_KEY}|\[\d+\]|\[\*\]")
LONGEST = 500
# Sections that some commands produce and others do not: without them a metric in them is absent, not misspelt.
SECTIONS = (
    "ablation", "comparison", "generation", "metrics", "precision", "pruning", "representation", "topology", "training",
)  # fmt: skip
# Keys that say why something beside them was not computed.
_ABSENT = ("absent", "error")
_REASONS = (*_ABSENT, "reason", "why")


@dataclass(frozen=True)
class Gate:
    """A condition that must not hold: `path` `comparison` `value`; `text` is what the user wrote."""

    text: str
    path: str
    comparison: str
    value: float | bool | str


@dataclass(frozen=True)
class GateOutcome:
    """Whether a gate tripped and on what: `found` is the first value that tripped it, or the first one looked at.

    `unknown` says that the results of no analysis could have such a path: the gate is misspelt. It counts as tripped.
    """

    text: str
    tripped: bool
    found: Any
    message: str
    path: str = ""
    unknown: bool = False


def parse_gate(text: str) -> Gate:
    """A gate from its expression; a value is a JSON number, true, false, or a string with or without quotes.

    Raises:
        UsageError: it has another form.
    """
    match = _EXPRESSION.fullmatch(text) if len(text) <= LONGEST else None
    if match is None or not _PATH.fullmatch(match[1]):
        raise UsageError(
            f"cannot read the gate {text[:80]!r}", "write path, comparison, value: 'precision.measured_error > 0.01'"
        )
    value = _value(match[3])
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"the gate {text[:80]!r} compares with {value}", "nothing is beyond it: give a finite number")
    if match[2] in _ORDERED and not _is_number(value):
        raise UsageError(f"the gate {text[:80]!r} orders something that is no number", "compare with a number")
    return Gate(text.strip(), match[1], match[2], value)


def _value(text: str) -> float | bool | str:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
    return found if isinstance(found, (int, float, str)) else text


def check_gates(gates: Sequence[Gate], document: Mapping[str, Any]) -> tuple[GateOutcome, ...]:
    """Every gate against a results document."""
    return tuple(_check(gate, document) for gate in gates)


def _check(gate: Gate, document: Mapping[str, Any]) -> GateOutcome:
    found = _everywhere(gate.path, document)
    if not found:
        return _missing(gate, document)
    for where, value, around in found:
        if (problem := _problem(gate, value)) is not None:
            reason = _reason(around, _REASONS) if value is None else ""
            return GateOutcome(gate.text, True, value, f"gate {gate.text!r}: {where} {problem}{reason}", gate.path)
    where, value, _ = found[0]
    return GateOutcome(gate.text, False, value, f"gate {gate.text!r} passes: {where} is {value}", gate.path)


def _problem(gate: Gate, value: Any) -> str | None:
    """What trips the gate about a value, or None."""
    if gate.comparison in _ORDERED or _is_number(gate.value):
        if not _is_number(value):
            return "is absent" if value is None else f"is {value!r}, no number"
        if not math.isfinite(value):
            return f"is {value}, not finite"
    elif type(value) is not type(gate.value):
        return "is absent" if value is None else f"is {value!r}, not comparable with {gate.value!r}"
    return f"is {value}" if _OPERATORS[gate.comparison](value, gate.value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reason(around: Any, keys: Sequence[str]) -> str:
    """Why something is absent, as the first of `keys` in the mapping beside it says."""
    texts = (around.get(key) for key in keys) if isinstance(around, Mapping) else ()
    found = next((text for text in texts if isinstance(text, str) and text), "")
    return f" ({found})" if found else ""


def _missing(gate: Gate, document: Mapping[str, Any]) -> GateOutcome:
    """The outcome for a path with no value: absent where an analysis could have had it, unknown anywhere else."""
    parts = _PART.findall(gate.path)
    entries = document.get("models")
    inside = entries if isinstance(entries, list) else []
    trees = [document, *inside] if parts[0] in document or not inside else inside
    excuses = [excuse for tree in trees if (excuse := _excuse(tree, parts)) is not None]
    if excuses:
        message = f"gate {gate.text!r}: the results have no {gate.path!r}{next(filter(None, excuses), '')}"
        return GateOutcome(gate.text, True, None, message, gate.path)
    near = difflib.get_close_matches(_plain(gate.path), sorted(_known(document, "")), n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; results.json lists what there is"
    message = f"gate {gate.text!r}: unknown metric {gate.path!r}{hint}"
    return GateOutcome(gate.text, True, None, message, gate.path, unknown=True)


def _excuse(tree: Any, parts: Sequence[str]) -> str | None:
    """Why `parts` may rightly be missing in a tree ("" when it does not say), or None when they can never be there."""
    around = tree
    for depth, part in enumerate(parts):
        if isinstance(around, list):
            if not part.startswith("["):
                return None
            chosen = around if part == "[*]" else around[int(part[1:-1]) :][:1]
            found = [_excuse(item, parts[depth + 1 :]) for item in chosen]
            return next((excuse for excuse in found if excuse is not None), None) if chosen else ""
        if around is None:
            return ""
        if not isinstance(around, Mapping):
            return None
        if part not in around:
            section = depth == 0 and part in SECTIONS
            return _reason(around, _ABSENT) or ("" if section else None)
        around = around[part]
    return ""


def _everywhere(path: str, document: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Place, value and surroundings of `path` in the document, or else in each of its models.

    A model without it counts as missing.
    """
    parts = _PART.findall(path)
    found = list(_values(document, parts, "", document))
    entries = document.get("models")
    if found or not isinstance(entries, list):
        return found
    each = [list(_values(entry, parts, f"models[{n}].", entry)) for n, entry in enumerate(entries)]
    return [value for values in each for value in values] if all(each) else []


def _values(tree: Any, parts: Sequence[str], where: str, around: Any) -> Iterator[tuple[str, Any, Any]]:
    if not parts:
        yield where.rstrip("."), tree, around
        return
    part, rest = parts[0], parts[1:]
    if part.startswith("["):
        if not isinstance(tree, list):
            return
        chosen = range(len(tree)) if part == "[*]" else [int(part[1:-1])]
        for index in chosen:
            if index < len(tree):
                yield from _values(tree[index], rest, f"{where.rstrip('.')}[{index}].", tree)
    elif isinstance(tree, Mapping) and part in tree:
        yield from _values(tree[part], rest, f"{where}{part}.", tree)


def _plain(path: str) -> str:
    return re.sub(r"\[\d+\]", "[*]", path)


def _known(tree: Any, where: str) -> set[str]:
    """Every path to a plain value, lists as `[*]`; a path inside an entry stands without `models[*]`."""
    if isinstance(tree, Mapping):
        return {path for key, value in tree.items() for path in _known(value, f"{where}.{key}" if where else key)}
    if isinstance(tree, list):
        place = "" if where == "models" else f"{where}[*]"
        return {path for item in tree for path in _known(item, place)}
    return {where} if where else set()
