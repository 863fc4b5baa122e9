"""What formats cost: bytes of a plan, and the cost tables of an assignment problem.

The assignment's objective "bytes" is `Bytes.total` exactly: its costs and casts add up to it for every plan.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import UsageError
from cohomcli.precision.autocast import Device, autocast_flow
from cohomcli.precision.formats import FORMATS, get_format
from cohomcli.precision.spec import ComputationGraph, Plan, Vertex
from cohomcli.precision.traffic import Bytes, count, one_per_storage, own_format, plan_flow, stored_bytes
from cohomcli.registry import did_you_mean

CostTable = Mapping[str, Mapping[str, float]]
Objective = Literal["bytes", "weights"] | CostTable
_KEYS = ("*", "weight", "cast")
_OP = re.compile(r"[A-Za-z_]\w*\.\w+\.\w+")


@dataclass(frozen=True)
class Costs:
    """The cost side of a `Problem`: `cost` (n, F), `edges` (m, 2), `cast_cost` (m,), `cast_table` (F, F).

    Casts are shared: one per producer and format. Edges without a conversion (integers, weights that the op
    dequantises, readers whose format is fixed) have cast cost 0.
    """

    cost: NDArray[np.float64]
    edges: NDArray[np.int64]
    cast_cost: NDArray[np.float64]
    cast_table: NDArray[np.float64]


def bytes_of(graph: ComputationGraph, plan: Plan) -> Bytes:
    """The bytes of one forward pass under a plan; see `traffic.plan_flow` for what is converted.

    Raises:
        UsageError: the plan has not one known format for every vertex that is not fixed.
    """
    return count(graph, plan_flow(graph, plan))


def autocast_bytes(graph: ComputationGraph, dtype: str, device: Device = "cuda") -> Bytes:
    """The bytes of one forward pass of the float32 model under `torch.autocast(device, dtype)`, by its op lists.

    Counts the float32 weights, which stay, the copies of weights that autocast makes and caches until the context
    ends, the copies of activations before ops on its lists, and every result in the dtype it comes out in.

    Raises:
        UsageError: `dtype` is not bf16 or fp16, or the device has no op list.
    """
    return count(graph, autocast_flow(graph, dtype, device))


def problem_costs(graph: ComputationGraph, formats: Sequence[str], objective: Objective = "bytes") -> Costs:
    """Costs of every vertex in every format, and of casts.

    "bytes" is `Bytes.total`, "weights" its weights alone. A cost table gives, per format, the cost of an op per element
    it reads and writes, by ATen name with "*" for all others, of loading a "weight" and of a "cast" to that format
    per element (both 0 when absent). A storage is charged to its first weight: tied weights belong in one group.

    Raises:
        UsageError: an unknown format or objective, or a table that lacks an op.
    """
    for name in formats:
        get_format(name)
    if objective == "bytes":
        return _byte_costs(graph, formats)
    if objective == "weights":
        return _weight_costs(graph, formats)
    if isinstance(objective, str):
        raise UsageError(f"unknown objective {objective!r}", "use bytes, weights or a cost table")
    return _table_costs(graph, formats, objective)


def parse_cost_table(text: str) -> CostTable:
    """A cost table from JSON: {"fp16": {"aten.linear.default": 0.5, "*": 1.0, "weight": 0.1, "cast": 0.2}, ...}.

    Raises:
        UsageError: not such a JSON document, an unknown format or op, or a cost that is not a number >= 0.
    """
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"the cost table is not JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise UsageError("a cost table maps formats to costs", 'for example {"fp16": {"*": 1.0}}')
    for fmt, row in table.items():
        get_format(fmt)
        for key, value in row.items():
            _check_entry(fmt, key, value)
    return table


def _check_entry(fmt: str, key: str, value: Any) -> None:
    if key not in _KEYS and not _is_op(key):
        raise UsageError(f"the cost table names no op {key!r}", "use names like aten.linear.default, *, weight or cast")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UsageError(f"the cost of {key} in {fmt} is {value!r}", "it must be a number >= 0")


def _is_op(name: str) -> bool:
    """Whether `name` is an op of ATen, or looks like one of another library, which may not be loaded."""
    import torch

    if not _OP.fullmatch(name):
        return False
    namespace, packet, overload = name.split(".")
    return namespace != "aten" or hasattr(getattr(torch.ops.aten, packet, None), overload)


# --- bytes ------------------------------------------------------------------------------------------------------------


def _byte_costs(graph: ComputationGraph, formats: Sequence[str]) -> Costs:
    costs = _weight_costs(graph, formats)
    cost, vertices = costs.cost, graph.vertices
    for v in vertices:
        if v.kind == "op":
            cost[v.index] += _sizes(graph, v.index, formats)
        for u in v.operands:
            if vertices[u].kind == "weight":
                continue
            sizes = _sizes(graph, u, formats)
            if v.fixed and not vertices[u].fixed:
                cost[u] += sizes  # read as it is stored
            elif v.fixed or not own_format(vertices[u]):
                cost[v.index] += stored_bytes(graph, u, "")
            else:
                cost[v.index] += [stored_bytes(graph, u, f) for f in formats]
    sizes = np.array([FORMATS[f].n_bytes for f in formats], dtype=np.float64)
    table = sizes[:, None] + sizes[None, :]
    np.fill_diagonal(table, 0.0)
    table[[FORMATS[f].per_channel for f in formats]] = 0.0
    return Costs(cost, costs.edges, _cast_sizes(graph, formats), table)


def _weight_costs(graph: ComputationGraph, formats: Sequence[str]) -> Costs:
    cost = np.zeros((len(graph.vertices), len(formats)))
    for tied in one_per_storage(graph).values():
        cost[tied[0]] = np.max([_sizes(graph, v, formats) for v in tied], axis=0)
    edges = np.array(graph.edges, dtype=np.int64).reshape(-1, 2)
    return Costs(cost, edges, np.zeros(len(edges)), np.zeros((len(formats), len(formats))))


def _sizes(graph: ComputationGraph, index: int, formats: Sequence[str]) -> NDArray[np.float64]:
    """Bytes of a vertex in every format; of its own dtype in all of them when it is fixed."""
    fixed = graph.vertices[index].fixed
    return np.array([stored_bytes(graph, index, "" if fixed else f) for f in formats], dtype=np.float64)


def _cast_sizes(graph: ComputationGraph, formats: Sequence[str]) -> NDArray[np.float64]:
    """Elements that a cast on each edge converts, 0 where there is none.

    A fixed floating-point value whose own format is not among `formats` has no column to be cast from: such casts are
    left out of the problem, though `bytes_of` counts them.
    """
    vertices = graph.vertices
    return np.array(
        [vertices[u].numel if _may_cast(vertices[u], vertices[v], formats) else 0 for u, v in graph.edges],
        dtype=np.float64,
    )


def _may_cast(producer: Vertex, consumer: Vertex, formats: Sequence[str]) -> bool:
    return not consumer.fixed and (not producer.fixed or own_format(producer) in formats)


# --- cost tables ------------------------------------------------------------------------------------------------------


def _table_costs(graph: ComputationGraph, formats: Sequence[str], table: CostTable) -> Costs:
    for fmt in formats:
        if fmt not in table:
            raise UsageError(f"the cost table has no format {fmt!r}", did_you_mean(fmt, table))
    edges = np.array(graph.edges, dtype=np.int64).reshape(-1, 2)
    cost = np.zeros((len(graph.vertices), len(formats)))
    for v in graph.vertices:
        if v.kind == "op" and not v.fixed:
            moved = v.numel + sum(graph.vertices[u].numel for u in v.operands)
            cost[v.index] = [moved * _op_cost(table[f], f, v.target) for f in formats]
    for tied in one_per_storage(graph).values():
        numel = max(graph.vertices[v].numel for v in tied)
        if not graph.vertices[tied[0]].fixed:
            cost[tied[0]] = [numel * table[f].get("weight", 0.0) for f in formats]
    to = np.array([table[f].get("cast", 0.0) for f in formats])
    casts = np.tile(to, (len(formats), 1))
    np.fill_diagonal(casts, 0.0)
    casts[[FORMATS[f].per_channel for f in formats]] = 0.0
    return Costs(cost, edges, _cast_sizes(graph, formats), casts)


def _op_cost(row: Mapping[str, float], fmt: str, target: str) -> float:
    if target not in row and "*" not in row:
        raise UsageError(f"the cost table has no cost for {target} in {fmt}", 'add it, or "*" for all others')
    return row[target] if target in row else row["*"]
