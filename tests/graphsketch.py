"""Computation graphs drawn by hand, and plans for them."""

from __future__ import annotations

import math
from typing import Any

from cohomcli.precision.spec import ComputationGraph, Plan, Vertex


class Sketch:
    """Builds graphs by hand: every method returns the index of the vertex it adds."""

    def __init__(self) -> None:
        self.vertices: list[Vertex] = []

    def _add(self, kind: Any, numel: int | tuple[int, ...], **fields: Any) -> int:
        shape = (numel,) if isinstance(numel, int) else numel
        index = len(self.vertices)
        name = fields.pop("name", f"v{index}")
        defaults: dict[str, Any] = {"target": "", "module": "", "dtype": "float32"} | fields
        self.vertices.append(Vertex(index, name, kind, shape=shape, numel=math.prod(shape), **defaults))
        return index

    def input(self, numel: int, dtype: str = "int64") -> int:
        return self._add("input", numel, dtype=dtype, fixed="input")

    def weight(self, numel: int | tuple[int, ...], **fields: Any) -> int:
        return self._add("weight", numel, **({"storage": f"s{len(self.vertices)}"} | fields))

    def op(self, numel: int | tuple[int, ...], *operands: int, **fields: Any) -> int:
        return self._add("op", numel, operands=operands, **({"target": "aten.add.Tensor"} | fields))

    def graph(self, *outputs: int) -> ComputationGraph:
        return ComputationGraph(tuple(self.vertices), outputs or (len(self.vertices) - 1,))


def plan(graph: ComputationGraph, *formats: str) -> Plan:
    """The formats of the vertices that are not fixed, in order."""
    chosen = iter(formats)
    return Plan(tuple("" if v.fixed else next(chosen) for v in graph.vertices))


def uniform(graph: ComputationGraph, fmt: str) -> Plan:
    return Plan(tuple("" if v.fixed else fmt for v in graph.vertices))
