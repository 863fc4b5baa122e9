"""What one forward pass stores, converts, reads and writes, given the format of every vertex and of every read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from cohomcli.errors import UsageError
from cohomcli.precision.formats import FORMATS, get_format, storage_bytes
from cohomcli.precision.spec import ComputationGraph, Plan, Vertex

_IN_OUT = re.compile(r"aten\.(addmm|mm|matmul|baddbmm)\.")  # these read their weight as (in, out)


@dataclass(frozen=True)
class Bytes:
    """Bytes of one forward pass.

    `weights` is what the parameters and buffers occupy, each storage once, however many names it has. `casts` reads
    the source and writes the copy of every conversion, one per (producer, format), `n_casts` counts them.
    `activations_traffic` writes every result once and reads every input and result once per consumer, in the format
    the consumer computes with. `activations_peak` is the largest sum of inputs, results and copies alive at one op,
    freed after their last use.
    """

    weights: int
    activations_peak: int
    activations_traffic: int
    casts: int
    n_casts: int

    @property
    def total(self) -> int:
        """What the pass moves: every weight loaded once, activations written and read, copies made."""
        return self.weights + self.activations_traffic + self.casts

    @property
    def memory(self) -> int:
        """What the pass needs at once: the weights and the activations' peak."""
        return self.weights + self.activations_peak


@dataclass(frozen=True)
class Flow:
    """The formats of one pass: `stored[v]` of every vertex, and `asked[v][k]` that v wants its k-th operand in.

    "" stands for a value that has no format (integers, booleans, complex numbers) and for a read as it is stored.
    `weights_cached` says that copies of weights stay until the end of the pass.
    """

    stored: tuple[str, ...]
    asked: tuple[tuple[str, ...], ...]
    weights_cached: bool = False


def plan_flow(graph: ComputationGraph, plan: Plan) -> Flow:
    """The flow of a plan: every op whose format is chosen asks for its operands in it, fixed ops read what is stored.

    A fixed vertex of a floating-point dtype is stored in it. int8 weights are dequantised inside the op that reads
    them, which asks for no copy.

    Raises:
        UsageError: the plan has not one known format for every vertex that is not fixed.
    """
    if len(plan.formats) != len(graph.vertices):
        raise UsageError(f"the plan has {len(plan.formats)} formats for {len(graph.vertices)} vertices")
    stored = tuple(
        own_format(v) if v.fixed else get_format(f).name for v, f in zip(graph.vertices, plan.formats, strict=True)
    )
    asked = tuple(
        tuple(
            "" if v.fixed or not stored[u] or get_format(stored[u]).per_channel else stored[v.index] for u in v.operands
        )
        for v in graph.vertices
    )
    return Flow(stored, asked)


def count(graph: ComputationGraph, flow: Flow) -> Bytes:
    """The bytes of a flow."""
    copies = _copies(graph, flow)
    casts = sum(stored_bytes(graph, u, flow.stored[u]) + stored_bytes(graph, u, fmt) for u, fmt in copies)
    return Bytes(
        weights=_weights(graph, flow),
        activations_peak=_peak(graph, flow, copies),
        activations_traffic=_activations(graph, flow),
        casts=casts,
        n_casts=len(copies),
    )


def stored_bytes(graph: ComputationGraph, index: int, fmt: str) -> int:
    """Bytes of a vertex in a format, in its own dtype when that is ""; int8 has a float32 scale per output channel.

    The power-of-two scale of an eight-bit float tensor is a constant of the plan and not counted.
    """
    vertex = graph.vertices[index]
    if not fmt:
        return vertex.numel * dtype_bytes(vertex.dtype)
    scales = _channels(graph, vertex) if get_format(fmt).per_channel else 0
    return storage_bytes(fmt, vertex.numel, scales)


def own_format(vertex: Vertex) -> str:
    """The format that a vertex's dtype is, "" when it is not a real floating-point one."""
    return next((f.name for f in FORMATS.values() if f.dtype == vertex.dtype and not f.per_channel), "")


@cache
def dtype_bytes(dtype: str) -> int:
    """Bytes per element of a dtype by its torch name: the bits are in the name ("complex64"), bool has one byte.

    >>> dtype_bytes("bool"), dtype_bytes("bfloat16"), dtype_bytes("float8_e4m3fn"), dtype_bytes("complex64")
    (1, 2, 1, 8)
    """
    bits = re.search(r"[0-9]+", dtype)
    return int(bits.group()) // 8 if bits else 1


def one_per_storage(graph: ComputationGraph) -> dict[str, list[int]]:
    """The weights of every storage; a weight without one is its own. Weights of one storage are tied."""
    found: dict[str, list[int]] = {}
    for v in graph.vertices:
        if v.kind == "weight":
            found.setdefault(v.storage or f"#{v.index}", []).append(v.index)
    return found


def _channels(graph: ComputationGraph, weight: Vertex) -> int:
    """Output channels of a weight: the axis depends on the op that reads it first."""
    if len(weight.shape) < 2:
        return 1
    reader = next((v for v in graph.vertices if weight.index in v.operands), None)
    return weight.shape[1 if reader is not None and _IN_OUT.match(reader.target) else 0]


def _weights(graph: ComputationGraph, flow: Flow) -> int:
    total = 0
    for tied in one_per_storage(graph).values():
        sizes: dict[str, int] = {}
        for v in tied:  # a storage is kept once in every format that one of its names is stored in
            fmt = flow.stored[v]
            sizes[fmt] = max(sizes.get(fmt, 0), stored_bytes(graph, v, fmt))
        total += sum(sizes.values())
    return total


def _activations(graph: ComputationGraph, flow: Flow) -> int:
    total = 0
    for v in graph.vertices:
        if v.kind == "op":
            total += stored_bytes(graph, v.index, flow.stored[v.index])
        for u, fmt in zip(v.operands, flow.asked[v.index], strict=True):
            if graph.vertices[u].kind != "weight":
                total += stored_bytes(graph, u, fmt or flow.stored[u])
    return total


def _copies(graph: ComputationGraph, flow: Flow) -> dict[tuple[int, str], tuple[int, int]]:
    """Every copy (producer, format) with the first and the last vertex that asks for it."""
    spans: dict[tuple[int, str], tuple[int, int]] = {}
    for v in graph.vertices:
        for u, fmt in zip(v.operands, flow.asked[v.index], strict=True):
            if fmt and fmt != flow.stored[u]:
                spans[u, fmt] = (spans.get((u, fmt), (v.index, 0))[0], v.index)
    return spans


def _peak(graph: ComputationGraph, flow: Flow, copies: dict[tuple[int, str], tuple[int, int]]) -> int:
    """The largest sum of buffers alive while one vertex is computed, vertices being computed in their order."""
    end = len(graph.vertices)
    last = {u: v.index for v in graph.vertices for u in v.operands} | dict.fromkeys(graph.outputs, end - 1)
    change = [0] * (end + 1)

    def alive(first: int, final: int, size: int) -> None:
        change[first] += size
        change[final + 1] -= size

    for v in graph.vertices:
        if v.kind == "op" or (v.kind == "input" and v.index in last):
            first = 0 if v.kind == "input" else v.index
            alive(first, last.get(v.index, v.index), stored_bytes(graph, v.index, flow.stored[v.index]))
    for (u, fmt), (first, final) in copies.items():
        stays = flow.weights_cached and graph.vertices[u].kind == "weight"
        alive(first, end - 1 if stays else final, stored_bytes(graph, u, fmt))
    peak = now = 0
    for step in change:
        now += step
        peak = max(peak, now)
    return peak
