"""A program op by op: what each op reads, how its value comes about, and what nothing reads after it.

`execute.run` keeps every view it makes; here only the values of vertices stay, so that whoever walks the steps decides
how a value is held between them and in which form it is read. An op's views are made again for each of its readers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cohomcli.precision.capture import Captured
from cohomcli.precision.program import Instruction, Program, call


@dataclass(frozen=True)
class Step:
    """The values of `vertices` (one op, or the results of one op that returns several) from those of `operands`.

    `instructions` lead from the operands to them, views first; `dead` are the vertices that no later step reads.
    """

    vertices: tuple[int, ...]
    operands: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class Shown:
    """A result of the model: output `name` is `vertex` seen through the views `instructions`, at `slot`."""

    name: str
    vertex: int
    slot: int
    instructions: tuple[Instruction, ...]


def steps(captured: Captured) -> tuple[Step, ...]:
    """The ops of the graph in order, ops with several results once."""
    graph, layout, program = captured.graph, captured.layout, captured.program
    grouped: dict[int, list[int]] = {}
    for vertex in graph.vertices:
        if vertex.kind == "op":
            grouped.setdefault(_source(program, layout.cone[vertex.index]), []).append(vertex.index)
    found = []
    for members in grouped.values():
        needed = sorted({n for v in members for n in layout.cone[v]})
        operands = tuple(dict.fromkeys(u for v in members for u in graph.vertices[v].operands))
        found.append((tuple(members), operands, tuple(program.instructions[n] for n in needed)))
    return _with_deaths(found, set(graph.outputs))


def _source(program: Program, cone: Sequence[int]) -> int:
    """The instruction that computes: the last one, or the one whose results it takes a single one out of."""
    last = program.instructions[cone[-1]]
    return cone[-2] if last.target is operator.getitem else cone[-1]


def _with_deaths(
    found: Sequence[tuple[tuple[int, ...], tuple[int, ...], tuple[Instruction, ...]]], kept: set[int]
) -> tuple[Step, ...]:
    seen, finished = set(kept), []
    for vertices, operands, instructions in reversed(found):
        dead = tuple(v for v in (*vertices, *operands) if v not in seen)
        seen.update(dead)
        finished.append(Step(vertices, operands, instructions, dead))
    return tuple(reversed(finished))


def shown(captured: Captured) -> tuple[Shown, ...]:
    """How the program's outputs show its vertices, in their order."""
    program, layout = captured.program, captured.layout
    producer = {i.result: i for i in program.instructions}
    found = []
    for name, slot in program.outputs:
        vertex, chain = layout.root[slot], []
        current = slot
        while current != layout.slot[vertex] and current in producer:
            chain.append(producer[current])
            current = next(s for s in producer[current].reads if layout.root.get(s) == vertex)
        found.append(Shown(name, vertex, slot, tuple(reversed(chain))))
    return tuple(found)


def evaluate(
    captured: Captured, instructions: Sequence[Instruction], operands: Mapping[int, torch.Tensor], dtype: torch.dtype
) -> dict[int, Any]:
    """Values by slot after `instructions` ran on the values of vertices `operands`; `dtype` as in `program.call`."""
    layout = captured.layout
    values: dict[int, Any] = {layout.slot[u]: value for u, value in operands.items()}
    for instruction in instructions:
        for slot in instruction.reads:
            if slot not in values:
                values[slot] = _missing(captured, slot, values, dtype)
        values[instruction.result] = call(instruction, values, dtype)
    return values


def _missing(captured: Captured, slot: int, values: Mapping[int, Any], dtype: torch.dtype) -> torch.Tensor:
    """A tied weight under its other name, or a stand-in for a tensor whose shape or dtype alone a view asks for."""
    root = captured.layout.root[slot]
    if captured.layout.slot[root] in values:
        tied: torch.Tensor = values[captured.layout.slot[root]]
        return tied
    vertex = captured.graph.vertices[root]
    own = getattr(torch, vertex.dtype)
    return torch.zeros((), dtype=dtype if own.is_floating_point else own).expand(vertex.shape)
