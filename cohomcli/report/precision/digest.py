"""Sums and counts over a precision result, for display: formats by place and by operation, obstructions by place."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cohomcli.precision.result import BytesRow, ObstructedOp, ObstructionSet, PlanRow, PrecisionResult
from cohomcli.report.precision.look import WEIGHT_ONLY

TOP = "(top level)"
_NUMBER = re.compile(r"(?<![^.])[0-9]+(?![^.])")  # a whole component of a dotted path


@dataclass(frozen=True)
class Group:
    """Rows of the plan that belong together; `share` is their part of the predicted squared error."""

    key: tuple[str, ...]
    rows: tuple[PlanRow, ...]

    @property
    def share(self) -> float:
        """The sum of the rows' shares."""
        return math.fsum(row.share for row in self.rows)

    def formats(self, kind: str) -> Counter[str]:
        """How many rows of a kind ("op", "weight") have each format."""
        return Counter(row.format for row in self.rows if row.kind == kind)


@dataclass(frozen=True)
class ObstructedPlace:
    """Obstructed ops of one type at one place of a repeated structure; `n_all` is how many the plan has there."""

    place: str
    op: str
    ops: tuple[ObstructedOp, ...]
    n_all: int


def place(module: str) -> str:
    """A module path with the numbers of repeated blocks taken out.

    >>> place("model.layers.3.mlp.down_proj"), place("")
    ('model.layers.*.mlp.down_proj', '(top level)')
    """
    return _NUMBER.sub("*", module) or TOP


def short_op(target: str, kind: str) -> str:
    """An operation without its library and overload: `linear` for `aten.linear.default`; `weight` for a weight."""
    if kind != "op":
        return kind
    name = target.removeprefix("aten.")
    return name.rpartition(".")[0] or name


def what(row: PlanRow | ObstructedOp) -> str:
    """An operation's type, or the last part of a weight's name: `linear`, `bias`."""
    return row.op.rpartition(".")[2] if row.kind == "weight" else short_op(row.target, row.kind)


def numel(row: PlanRow) -> int:
    """Elements of a row's tensor."""
    return math.prod(row.shape)


def of_kind(rows: Iterable[PlanRow], kind: str) -> list[PlanRow]:
    """The rows of a kind."""
    return [row for row in rows if row.kind == kind]


def formats_of(rows: Iterable[PlanRow], size: Callable[[PlanRow], int] = lambda _: 1) -> Counter[str]:
    """How many rows, or how much of `size`, have each format."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.format] += size(row)
    return counts


def grouped(rows: Iterable[PlanRow], key: Callable[[PlanRow], tuple[str, ...]]) -> list[Group]:
    """The rows by key, in order of first appearance."""
    found: dict[tuple[str, ...], list[PlanRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return [Group(k, tuple(members)) for k, members in found.items()]


def forward(rows: Iterable[PlanRow]) -> list[PlanRow]:
    """Operations in the order in which they run, then the weights, which a graph may list first."""
    return sorted(rows, key=lambda row: row.kind == "weight")


def by_place(rows: Iterable[PlanRow]) -> list[Group]:
    """The rows by module in forward order, repeated blocks taken together."""
    return grouped(forward(rows), lambda row: (place(row.module),))


def by_place_and_op(rows: Iterable[PlanRow]) -> list[Group]:
    """The rows by module and operation in forward order, repeated blocks taken together."""
    return grouped(forward(rows), lambda row: (place(row.module), what(row)))


def obstructed_places(found: ObstructionSet, plan: Sequence[PlanRow]) -> list[ObstructedPlace]:
    """The obstructions of one format by place and operation, most first; of a weight-only format the weights alone."""
    existing = Counter((place(row.module), what(row)) for row in plan)
    groups: dict[tuple[str, str], list[ObstructedOp]] = {}
    for op in shown_obstructions(found):
        groups.setdefault((place(op.module), what(op)), []).append(op)
    places = [ObstructedPlace(*key, tuple(ops), existing[key]) for key, ops in groups.items()]
    return sorted(places, key=lambda p: -len(p.ops))


def shown_obstructions(found: ObstructionSet) -> tuple[ObstructedOp, ...]:
    """The obstructions worth reading: all, or those at weights where no operation may have the format by rule."""
    return tuple(op for op in found.ops if op.kind == "weight") if found.format in WEIGHT_ONLY else found.ops


def obstructed_names(result: PrecisionResult) -> set[tuple[str, str]]:
    """(kind, name) of everything where some format is inadmissible; weight-only formats count for weights."""
    return {(op.kind, op.op) for found in result.obstructions for op in shown_obstructions(found)}


def contributors(rows: Iterable[PlanRow], most: int) -> list[PlanRow]:
    """The rows with the largest positive shares of the predicted squared error, largest first."""
    return sorted((row for row in rows if row.share > 0), key=lambda row: -row.share)[:most]


@dataclass(frozen=True)
class Way:
    """One way to run the model: the plan or a baseline. `key` is "plan" or the baseline's.

    `error` is None where the outputs were not finite, or where it was not run (`ran` False).
    """

    key: str
    label: str
    semantics: str
    error: float | None
    ran: bool
    bytes: BytesRow | None
    n_overflows: int | None
    note: str = ""


def ways(result: PrecisionResult) -> list[Way]:
    """The plan, then every baseline; the three whose bytes are always counted are there even if they were not run."""
    found = []
    if result.plan or result.bytes_plan is not None:
        mine = (result.measured_error, True, result.bytes_plan, result.n_overflows)
        found.append(Way("plan", "the plan", result.semantics, *mine))
    found += [
        Way(b.name, b.label, b.semantics, b.error, b.ran, b.bytes, b.n_overflows, b.note) for b in result.baselines
    ]
    known = {way.key for way in found}
    counted = {
        "uniform-fp32": Way("", "uniform fp32", result.semantics, result.fp32_error, True, result.bytes_fp32, None),
        "uniform-fp16": Way("", "uniform fp16", "", None, False, result.bytes_fp16, None, "bytes only"),
        "autocast-cuda-fp16": Way(
            "", "autocast fp16 (CUDA lists)", "", None, False, result.bytes_autocast, None, "bytes only"
        ),
    }
    return [*found, *(replace(way, key=key) for key, way in counted.items() if key not in known)]
