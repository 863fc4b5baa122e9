"""Runs a captured program: as reference in float64, as the module itself in float32, or emulated under a plan.

Emulation follows the `store` semantics of `precision.spec`: every op reads its operands as they are stored, computes in
float32 (float64 where a format is fp64) and is rounded once. Eight-bit floats are stored with a per-tensor power-of-two
scale taken from the tensor at hand, int8 weights with one scale per output channel. PyTorch's own CPU kernels for fp16
and bf16 do the same: float32 inside, one rounding at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured
from cohomcli.precision.formats import get_format
from cohomcli.precision.program import call, last_uses
from cohomcli.precision.rounding import choose_scale, overflows, round_to
from cohomcli.precision.spec import Plan, Vertex

Store = Callable[[int, torch.Tensor], torch.Tensor]
# Dtypes that hold the stored values of a weight exactly: an 8-bit float with its scale is a bf16 number.
_CACHE = {"fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.bfloat16, "e5m2": torch.bfloat16}
# These read their weight as (in, out); everywhere else the output channel comes first.
_IN_OUT = re.compile(r"aten\.(addmm|mm|matmul|baddbmm)\.")


def run(
    captured: Captured,
    inputs: Any,
    dtype: torch.dtype = torch.float32,
    store: Store | None = None,
) -> tuple[torch.Tensor, ...]:
    """The outputs for one call; `store(vertex, value)` may replace every vertex value as it is produced.

    float32 without a store replays the module bit for bit; float64 is the reference. Values are freed after their last
    use, weights enter when they are first read.

    Raises:
        UsageError: `dtype` is another one, or the inputs differ from the example's structure and shapes.
    """
    return run_many(captured, [inputs], dtype, store)[0]


def run_many(
    captured: Captured, inputs: Sequence[Any], dtype: torch.dtype = torch.float32, store: Store | None = None
) -> list[tuple[torch.Tensor, ...]]:
    """`run` for several calls, op by op side by side: a weight is stored once for all of them.

    Raises:
        UsageError: as `run`.
    """
    if dtype not in (torch.float32, torch.float64):
        raise UsageError(f"programs run in float32 or float64, not {dtype}")
    program, layout = captured.program, captured.layout
    keep = store or (lambda _, value: value)
    held = {h.slot: layout.held[layout.root[h.slot]] for h in program.held}
    stored: dict[int, torch.Tensor] = {}  # tied slots share one stored weight

    def bound(given: Any) -> dict[int, Any]:
        tensors = captured.bind(given).items()
        return {slot: keep(layout.root[slot], _as_dtype(tensor, dtype)) for slot, tensor in tensors}

    def enter(slot: int) -> None:
        vertex = layout.root[slot]
        if vertex not in stored:
            stored[vertex] = keep(vertex, _as_dtype(held[slot], dtype))
        for values in calls:
            values[slot] = stored[vertex]

    with torch.no_grad():
        calls = [bound(given) for given in inputs]
        known: set[int] = set()
        for instruction, dead in zip(program.instructions, last_uses(program), strict=True):
            for slot in instruction.reads:
                if slot in held and slot not in known:
                    enter(slot)
                    known.add(slot)
            vertex = layout.vertex.get(instruction.result)
            for values in calls:
                result = call(instruction, values, dtype)
                values[instruction.result] = result if vertex is None else keep(vertex, result)
                for slot in dead:
                    values.pop(slot, None)
            for slot in dead:
                if slot in held:
                    stored.pop(layout.root[slot], None)
        for _, slot in program.outputs:
            if slot in held and slot not in known:
                enter(slot)
    return [tuple(values[slot] for _, slot in program.outputs) for values in calls]


def _as_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


# --- stores -----------------------------------------------------------------------------------------------------------


def store_value(vertex: Vertex, value: torch.Tensor, fmt: str, axis: int = 0) -> torch.Tensor:
    """`value` (float32 or float64) as vertex `vertex` stores it in format `fmt`; entries of an additive mask saturate.

    `axis` is the output channel of an int8 weight.
    """
    scale = scale_of(vertex, value, fmt)
    if vertex.mask_level:
        lowest = -get_format(fmt).max * (scale or 1.0)
        value = torch.where(masked_entries(vertex, value), value.clamp(min=lowest), value)
    return round_to(value, fmt, scale, axis)


def scale_of(vertex: Vertex, value: torch.Tensor, fmt: str) -> float | None:
    """The power-of-two scale of an eight-bit float store, from the entries that are no mask; None for other formats."""
    target = get_format(fmt)
    if target.n_bytes != 1 or target.per_channel:
        return None
    visible = value.masked_fill(masked_entries(vertex, value), 0.0) if vertex.mask_level else value
    return choose_scale(visible, fmt)


def masked_entries(vertex: Vertex, value: torch.Tensor) -> torch.Tensor:
    """Where an entry carries the value of an additive attention mask (bool, the shape of `value`)."""
    return value <= vertex.mask_level / 2 if vertex.mask_level else torch.zeros_like(value, dtype=torch.bool)


def leaves_range(vertex: Vertex, value: torch.Tensor, fmt: str) -> float:
    """Largest magnitude among the finite entries, masks apart, that leave the range of `fmt`; 0.0 when all fit."""
    target = get_format(fmt)
    if target.n_bytes == 1 or not value.numel():  # scaled, never out of range
        return 0.0
    low, high = (float(end) for end in torch.aminmax(value))
    if max(-low, high) <= target.max:
        return 0.0
    beyond = overflows(value, fmt) & ~masked_entries(vertex, value)
    return float(value[beyond].abs().max()) if bool(beyond.any()) else 0.0


def weight_axes(captured: Captured) -> dict[int, int]:
    """The output-channel axis of every weight that a linear map, convolution or embedding reads."""
    axes: dict[int, int] = {}
    for vertex in captured.graph.vertices:
        for operand in vertex.operands:
            if captured.graph.vertices[operand].kind == "weight":
                axes.setdefault(operand, 1 if _IN_OUT.match(vertex.target) else 0)
    return axes


# --- emulation --------------------------------------------------------------------------------------------------------


@dataclass
class Emulation:
    """What a run under a plan produced.

    `overflow` maps a vertex to the largest magnitude that left its format's range, found before the store could hide
    it; `non_finite` lists, in order, the vertices whose stored value has an infinity or NaN that is no mask.
    """

    outputs: tuple[torch.Tensor, ...]
    overflow: dict[int, float] = field(default_factory=dict)
    non_finite: list[int] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        """Whether every output is free of infinities and NaN."""
        return all(bool(torch.isfinite(output).all()) for output in self.outputs)


class Emulator:
    """Runs plans on one captured model; keeps every weight it has rounded, once per format, in its storage dtype.

    >>> outputs = Emulator(captured)(plan, inputs).outputs        # doctest: +SKIP
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self._axes = weight_axes(captured)
        self._weights: dict[tuple[int, str], tuple[torch.Tensor, Emulation]] = {}

    def __call__(self, plan: Plan, inputs: Any) -> Emulation:
        """Outputs of one call in float32 (float64 under fp64) with the plan's overflows and non-finite vertices.

        Raises:
            UsageError: the plan has not one format per vertex, or "" for a vertex that is not fixed.
        """
        emulation = Emulation(())
        emulation.outputs = run(self.captured, inputs, _compute_dtype(plan), self._store(plan, emulation))
        return emulation

    def outputs(self, plan: Plan, inputs: Sequence[Any]) -> list[tuple[torch.Tensor, ...]]:
        """The outputs alone, of several calls side by side: every weight is converted once, not once per call.

        Raises:
            UsageError: as a single call.
        """
        return run_many(self.captured, inputs, _compute_dtype(plan), self._store(plan, Emulation(())))

    def _store(self, plan: Plan, emulation: Emulation) -> Store:
        vertices = self.captured.graph.vertices
        if len(plan.formats) != len(vertices):
            raise UsageError(f"the plan has {len(plan.formats)} formats for {len(vertices)} vertices")

        def store(index: int, value: torch.Tensor) -> torch.Tensor:
            vertex, fmt = vertices[index], plan.formats[index]
            if vertex.fixed:
                return value
            get_format(fmt)
            if vertex.kind == "weight":
                return self._weight(vertex, value, fmt, emulation)
            return _checked_store(vertex, value, fmt, 0, emulation)

        return store

    def _weight(self, vertex: Vertex, value: torch.Tensor, fmt: str, emulation: Emulation) -> torch.Tensor:
        if fmt in ("fp32", "fp64"):
            return store_value(vertex, value, fmt)
        key = (vertex.index, fmt)
        if key not in self._weights:
            found = Emulation(())
            stored = _checked_store(vertex, value, fmt, self._axes.get(vertex.index, 0), found)
            self._weights[key] = (stored.to(_CACHE.get(fmt, torch.float32)), found)
        stored, found = self._weights[key]
        emulation.overflow.update(found.overflow)
        emulation.non_finite += found.non_finite
        return stored.to(value.dtype)


def _checked_store(vertex: Vertex, value: torch.Tensor, fmt: str, axis: int, emulation: Emulation) -> torch.Tensor:
    beyond = leaves_range(vertex, value, fmt)
    if beyond:
        emulation.overflow[vertex.index] = beyond
    stored = store_value(vertex, value, fmt, axis)
    # A finite sum has finite terms: the second look is rarely needed.
    suspicious = not bool(torch.isfinite(stored.sum()))
    if suspicious and bool((~torch.isfinite(stored) & ~masked_entries(vertex, value)).any()):
        emulation.non_finite.append(vertex.index)
    return stored


def _compute_dtype(plan: Plan) -> torch.dtype:
    return torch.float64 if "fp64" in plan.formats else torch.float32


def uniform(captured: Captured, fmt: str, allowed: Mapping[int, bool] | None = None, otherwise: str = "fp32") -> Plan:
    """Every vertex in `fmt` where `allowed` (default: everywhere) and in `otherwise` elsewhere; "" where fixed."""
    formats = []
    for vertex in captured.graph.vertices:
        here = fmt if allowed is None or allowed.get(vertex.index, True) else otherwise
        formats.append("" if vertex.fixed else here)
    return Plan(tuple(formats))
