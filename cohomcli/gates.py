"""Gates: conditions on results that make a command fail, such as `precision.gap > 0.02`.

An expression is `path operator value`. A path names keys of the results document, separated by dots; `[3]` takes one
item of a list and `[*]` all of them, which trips the gate when any does. With several models a path may begin inside an
entry and is checked for every one. A gate fails closed: what is missing, null or of another type trips it.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Gate:
    """A condition that must not hold: `path` `comparison` `value`; `text` is what the user wrote."""

    text: str
    path: str
    comparison: str
    value: float | bool | str


@dataclass(frozen=True)
class GateOutcome:
    """Whether a gate tripped and on what: `found` is the first value that tripped it, or the first one looked at."""

    text: str
    tripped: bool
    found: Any
    message: str


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
        return GateOutcome(gate.text, True, None, f"gate {gate.text!r}: the results have no {gate.path!r}")
    for where, value in found:
        if (problem := _problem(gate, value)) is not None:
            return GateOutcome(gate.text, True, value, f"gate {gate.text!r}: {where} {problem}")
    return GateOutcome(gate.text, False, found[0][1], f"gate {gate.text!r}: holds not, {found[0][0]} is {found[0][1]}")


def _problem(gate: Gate, value: Any) -> str | None:
    """What trips the gate about a value, or None."""
    if gate.comparison in _ORDERED or _is_number(gate.value):
        if not _is_number(value):
            return f"is {value!r}, no number"
    elif type(value) is not type(gate.value):
        return f"is {value!r}, not comparable with {gate.value!r}"
    return f"is {value}" if _OPERATORS[gate.comparison](value, gate.value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _everywhere(path: str, document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values at `path` in the document, or else in each of its models; a model without it counts as missing."""
    parts = _PART.findall(path)
    found = list(_values(document, parts, ""))
    entries = document.get("models")
    if found or not isinstance(entries, list):
        return found
    each = [list(_values(entry, parts, f"models[{n}].")) for n, entry in enumerate(entries)]
    return [value for values in each for value in values] if all(each) else []


def _values(tree: Any, parts: Sequence[str], where: str) -> Iterator[tuple[str, Any]]:
    if not parts:
        yield where.rstrip("."), tree
        return
    part, rest = parts[0], parts[1:]
    if part.startswith("["):
        if not isinstance(tree, list):
            return
        chosen = range(len(tree)) if part == "[*]" else [int(part[1:-1])]
        for index in chosen:
            if index < len(tree):
                yield from _values(tree[index], rest, f"{where.rstrip('.')}[{index}].")
    elif isinstance(tree, Mapping) and part in tree:
        yield from _values(tree[part], rest, f"{where}{part}.")
