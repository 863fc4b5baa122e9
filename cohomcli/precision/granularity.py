"""What may be chosen: which vertices take one format together, and which formats a user or the hardware allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import UsageError
from cohomcli.precision.formats import get_format
from cohomcli.precision.spec import ComputationGraph, Vertex
from cohomcli.precision.traffic import one_per_storage, own_format
from cohomcli.registry import did_you_mean

Level = Literal["op", "module", "block"]
LEVELS: tuple[Level, ...] = ("op", "module", "block")
Mask = NDArray[np.bool_]
_BLOCK = re.compile(r"(?:[^.]*[^.0-9][^.]*\.)*?[0-9]+(?=\.|$)")  # up to the first component that is a number

# Which formats PyTorch has kernels for, by target: op name (or "*") -> formats. NVIDIA computes in bf16 from compute
# capability 8.0 on, and multiplies fp8 matrices from 8.9 on. On CPUs PyTorch has fp8 kernels for matrix products only.
_MATRIX = ("linear", "matmul", "mm", "addmm")
_WITH_BF16 = ("fp64", "fp32", "bf16", "fp16")
_WITH_FP8 = {"*": _WITH_BF16, **dict.fromkeys(_MATRIX, (*_WITH_BF16, "e4m3", "e5m2"))}
HARDWARE: dict[str, Mapping[str, tuple[str, ...]]] = {
    "cpu": _WITH_FP8,
    "sm70": {"*": ("fp64", "fp32", "fp16")},
    "sm75": {"*": ("fp64", "fp32", "fp16")},
    "sm80": {"*": _WITH_BF16},
    "sm86": {"*": _WITH_BF16},
    "sm89": _WITH_FP8,
    "sm90": _WITH_FP8,
}


@dataclass(frozen=True)
class Keep:
    """A user's wish: vertices that match the glob `pattern` take one of `formats`."""

    pattern: str
    formats: tuple[str, ...]


def groups(graph: ComputationGraph, level: Level = "op") -> tuple[tuple[int, ...], ...]:
    """Vertices that must agree, fixed ones left out: tied weights always; at "module" or "block" level also all ops and
    weights of one module, or of one repeated block (the path up to its first numbered part, "encoder.layer.3").

    Groups may overlap, where a tied weight belongs to two modules: overlapping groups are one.

    Raises:
        UsageError: an unknown level.
    """
    if level not in LEVELS:
        raise UsageError(f"unknown granularity {level!r}", did_you_mean(level, LEVELS))
    found = list(one_per_storage(graph).values())
    if level != "op":
        places: dict[str, list[int]] = {}
        for v in graph.vertices:
            if v.kind != "input":
                places.setdefault(block_of(v.module) if level == "block" else v.module, []).append(v.index)
        found += places.values()
    free = ([v for v in group if not graph.vertices[v].fixed] for group in found)
    return tuple(tuple(group) for group in free if len(group) > 1)


def block_of(module: str) -> str:
    """The path of the repeated block that a module is in: up to its first numbered part, all of it if none is numbered.

    >>> block_of("encoder.layer.3.attention.self"), block_of("lm_head"), block_of("0")
    ('encoder.layer.3', 'lm_head', '0')
    """
    match = _BLOCK.match(module)
    return match.group() if match else module


def parse_keep(text: str) -> Keep:
    """A wish from `pattern=format` or `pattern=format|format`.

    Raises:
        UsageError: it has another form or an unknown format.
    """
    pattern, equals, names = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"cannot read the keep rule {text!r}", "write a module and a format, for example lm_head=fp32")
    return Keep(pattern, tuple(get_format(name).name for name in names.split("|")))


def matches(vertex: Vertex, pattern: str) -> bool:
    """Whether a glob names the vertex, its module, or a module around it."""
    parts = vertex.module.split(".") if vertex.module else []
    around = [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
    return any(fnmatchcase(name, pattern) for name in (vertex.name, *around))


def keep(graph: ComputationGraph, formats: Sequence[str], rules: Iterable[Keep]) -> Mask:
    """The formats that all rules allow, (n, F) bool; vertices that no rule names may take any.

    Raises:
        UsageError: a rule names nothing, a format that is not among `formats`, or leaves a vertex without a format.
    """
    allowed = np.ones((len(graph.vertices), len(formats)), dtype=np.bool_)
    for rule in rules:
        for name in rule.formats:
            if name not in formats:
                raise UsageError(f"{rule.pattern} cannot keep {name}", f"the plan's formats are {', '.join(formats)}")
        named = [v.index for v in graph.vertices if not v.fixed and matches(v, rule.pattern)]
        if not named:
            known = {v.module for v in graph.vertices if v.module}
            raise UsageError(f"nothing is called {rule.pattern!r}", did_you_mean(rule.pattern, known))
        allowed[named] &= np.isin(formats, rule.formats)
        for v in named:
            if not allowed[v].any():
                raise UsageError(f"the keep rules leave {graph.vertices[v].name} no format", "drop one of them")
    return allowed


def hardware(graph: ComputationGraph, formats: Sequence[str], target: str | Mapping[str, Sequence[str]]) -> Mask:
    """The formats that a target computes in, (n, F) bool: a name of `HARDWARE`, or a table op name -> formats.

    Names are ATen names with or without overload ("linear", "aten.linear.default"), "*" for all others. Weights may be
    stored in any format: an op that cannot compute in it gets a converted copy.

    Raises:
        UsageError: an unknown target or format, or a table without an entry for some op.
    """
    if isinstance(target, str):
        if target not in HARDWARE:
            raise UsageError(f"unknown hardware {target!r}", did_you_mean(target, HARDWARE))
        target = HARDWARE[target]
    for names in target.values():
        for name in names:
            get_format(name)
    allowed = np.ones((len(graph.vertices), len(formats)), dtype=np.bool_)
    for v in graph.vertices:
        if v.kind == "op" and not v.fixed:
            allowed[v.index] = np.isin(formats, _supported(v, target))
    return allowed


def _supported(vertex: Vertex, table: Mapping[str, Sequence[str]]) -> Sequence[str]:
    short = vertex.target.removeprefix("aten.").rpartition(".")[0]
    for name in (vertex.target, short, "*"):
        if name in table:
            return table[name]
    raise UsageError(f"the hardware table has no op {vertex.target}", 'add it, or "*" for all others')


def pinned(graph: ComputationGraph, formats: Sequence[str]) -> Mask:
    """What is not a choice, (n, F) bool: fixed real values keep their own format, int8 is for weights alone.

    A fixed vertex whose dtype is none of `formats` has no cost that depends on the column, and may take any.
    """
    allowed = np.ones((len(graph.vertices), len(formats)), dtype=np.bool_)
    weight_only = np.array([get_format(f).per_channel for f in formats])
    for v in graph.vertices:
        if v.fixed and own_format(v) in formats:
            allowed[v.index] = np.isin(formats, [own_format(v)])
        elif not v.fixed and v.kind != "weight":
            allowed[v.index] = ~weight_only
    return allowed
