"""A plan as a module that other tools can trace: plain tensor operations, every conversion written out.

`StoreModel` has the arithmetic of `precision.execute`, bit for bit: every op reads its operands into float32, computes
there, and its result is rounded once. `NativeModel` runs every op in its planned dtype and converts exactly what the
plan converts, one copy per (producer, format): the graph that engines with kernels for 16 bits want. Every op and every
conversion is a module of its own under `steps`, so that the metadata of a traced graph names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured, Example
from cohomcli.precision.execute import masked_entries, weight_axes
from cohomcli.precision.formats import get_format
from cohomcli.precision.held import HeldTensor, hold, hold_weight
from cohomcli.precision.program import Instruction, map_leaves
from cohomcli.precision.rounding import SCALE_EXPONENTS
from cohomcli.precision.spec import Plan, Vertex
from cohomcli.precision.stepping import Step, evaluate, shown, steps
from cohomcli.precision.traffic import plan_flow

_CASTS = re.compile(r"aten\.(to|_to_copy|type_as)\.")
_REDUCTIONS = re.compile(r"aten\.(softmax|log_softmax|sum|mean|prod|cumsum|linalg_vector_norm)\.")
_REAL = (torch.float32, torch.float64)
SCALE = "_scale"
Values = dict[int, HeldTensor]


class Traced(nn.Module):
    """What both arithmetics share: weights in their planned dtypes, the walk over the ops, arguments and results.

    Weights have the captured names under `weights`; the scale of an 8-bit one stands beside it and ends in "_scale".
    """

    def __init__(self, plan: Plan, captured: Captured) -> None:
        super().__init__()
        self._captured, self._plan = captured, plan
        self._shown = shown(captured)
        self.weights, self.steps = nn.Module(), nn.Module()
        self._kept: dict[int, tuple[str, int]] = {}  # a weight's name and its output channels' axis
        self._walk: list[tuple[Step, str]] = []
        axes = weight_axes(captured)
        for held in captured.program.held:
            root = captured.layout.root[held.slot]
            if root not in self._kept:
                self._keep(root, held.name, axes.get(root, 0))

    def _keep(self, root: int, name: str, axis: int) -> None:
        vertex, tensor = self._captured.graph.vertices[root], self._captured.layout.held[root]
        kept = _held(vertex, tensor, self._plan.formats[root], axis)
        self._kept[root] = (name, kept.axis)
        path, _, last = name.rpartition(".")
        owner = _submodule(self.weights, path)
        owner.register_parameter(last, nn.Parameter(kept.data.contiguous(), requires_grad=False))
        if kept.scale is not None:
            owner.register_buffer(f"{last}{SCALE}", kept.scale)

    def _add_operation(self, step: Step, dtype: torch.dtype, native: bool = False) -> None:
        """A module for one step, under its first vertex's name."""
        key = op_name(self._captured.graph.vertices[step.vertices[0]])
        self.steps.add_module(key, Operation(self._captured, step, dtype, native))
        self._walk.append((step, key))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One call with the captured tensors, of the same shapes; non-tensor keywords need not be repeated.

        Returns results as the captured model does: by name, as a tuple, or a bare tensor.
        """
        captured, call = self._captured, Example(args, {**constants(self._captured.example), **kwargs})
        values = {captured.layout.root[slot]: HeldTensor(tensor) for slot, tensor in captured.bind(call).items()}
        for step, key in self._walk:
            operands = [self._read(u, step.vertices[0], values) for u in step.operands]
            for v, value in zip(step.vertices, self.steps.get_submodule(key)(operands), strict=True):
                values[v] = self._store(captured.graph.vertices[v], value)
        results = [self._result(output, values) for output in self._shown]
        return named([output.name for output in self._shown], results)

    def _value(self, vertex: int, values: Values) -> HeldTensor:
        """A result or an argument, or a weight as it is held."""
        if vertex in values:
            return values[vertex]
        name, axis = self._kept[vertex]
        path, _, last = name.rpartition(".")
        scale = getattr(self.weights.get_submodule(path), f"{last}{SCALE}", None)
        return HeldTensor(self.weights.get_parameter(name), scale, axis)

    def _result(self, output: Any, values: Values) -> torch.Tensor:
        operand = {output.vertex: self._output(self._value(output.vertex, values))}
        found = evaluate(self._captured, output.instructions, operand, operand[output.vertex].dtype)
        result: torch.Tensor = found.get(output.slot, operand[output.vertex])
        return result

    def _read(self, vertex: int, reader: int, values: Values) -> torch.Tensor:
        """The value of `vertex` as the op `reader` wants it."""
        raise NotImplementedError

    def _store(self, vertex: Vertex, value: torch.Tensor) -> HeldTensor:
        """The result of an op as the plan keeps it."""
        raise NotImplementedError

    def _output(self, value: HeldTensor) -> torch.Tensor:
        """A result of the model as it is returned."""
        raise NotImplementedError


class Operation(nn.Module):
    """One op of the graph with the views before it, computed in one dtype.

    `native` says that all floating-point operands come in that dtype.
    """

    def __init__(self, captured: Captured, step: Step, dtype: torch.dtype, native: bool) -> None:
        super().__init__()
        self._captured, self._step, self._dtype = captured, step, dtype
        self._instructions = [_in_dtype(captured, i, dtype) if native else i for i in step.instructions]

    def forward(self, operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The values of the step's vertices."""
        given = dict(zip(self._step.operands, operands, strict=True))
        found = evaluate(self._captured, self._instructions, given, self._dtype)
        return [found[self._captured.layout.slot[v]] for v in self._step.vertices]


class Cast(nn.Module):
    """One conversion that the plan makes; the hugely negative entries of a mask saturate."""

    def __init__(self, vertex: Vertex, source: str, target: str) -> None:
        super().__init__()
        self._dtype = get_format(target).torch_dtype
        masks, narrower = vertex.fixed == "mask constant" or vertex.mask_level, get_format(target).max
        self._saturates = bool(masks) and narrower < get_format(source).max
        if self._saturates:
            self.register_buffer("lowest", torch.tensor(-narrower, dtype=get_format(source).torch_dtype))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`value` in the format's dtype."""
        return (torch.maximum(value, self.get_buffer("lowest")) if self._saturates else value).to(self._dtype)


class StoreModel(Traced):
    """The plan under the semantics `store`: what `precision.explicit.apply` computes, bit for bit, in float32 outputs.

    Raises:
        UsageError: a plan with fp64, or int8 for something else than a weight.
    """

    def __init__(self, plan: Plan, captured: Captured) -> None:
        if "fp64" in plan.formats:
            raise UsageError("this graph computes in float32, and the plan has fp64", "plan without fp64")
        super().__init__(plan, captured)
        for step in steps(captured):
            self._add_operation(step, torch.float32)
        self.eval()

    def _read(self, vertex: int, reader: int, values: Values) -> torch.Tensor:
        return self._value(vertex, values).read(torch.float32)

    def _store(self, vertex: Vertex, value: torch.Tensor) -> HeldTensor:
        return HeldTensor(value) if vertex.fixed else _rounded(vertex, value, self._plan.formats[vertex.index])

    def _output(self, value: HeldTensor) -> torch.Tensor:
        return value.read(torch.float32)


class NativeModel(Traced):
    """The plan with every op in its own dtype, and the plan's conversions and no others between them.

    Results are returned as they are stored.

    Raises:
        UsageError: a plan with 8-bit formats, which have scales.
    """

    def __init__(self, plan: Plan, captured: Captured) -> None:
        if scaled := sorted(f for f in set(plan.formats) if f and get_format(f).n_bytes == 1):
            raise UsageError(
                f"this graph has fp64, fp32, bf16 and fp16, and the plan {', '.join(scaled)}", "plan without 8 bits"
            )
        super().__init__(plan, captured)
        flow = plan_flow(captured.graph, plan)
        self._stored, self._asked = flow.stored, flow.asked
        for step in steps(captured):
            for part in self._by_format(step):
                fmt = self._plan.formats[part.vertices[0]]
                if captured.graph.vertices[part.vertices[0]].fixed:
                    self._add_operation(part, torch.float32)
                else:
                    self._add_operation(part, get_format(fmt).torch_dtype, native=True)
        self._add_casts()
        self._copies: dict[tuple[int, str], torch.Tensor] = {}
        self.eval()

    def _by_format(self, step: Step) -> list[Step]:
        """An op whose results have several formats is computed in each of them."""
        parts: dict[str, list[int]] = {}
        for v in step.vertices:
            parts.setdefault(self._plan.formats[v], []).append(v)
        return [replace(step, vertices=tuple(part)) for part in parts.values()]

    def _add_casts(self) -> None:
        vertices = self._captured.graph.vertices
        for v in vertices:
            for u, fmt in zip(v.operands, self._asked[v.index], strict=True):
                if fmt and fmt != self._stored[u]:
                    self.steps.add_module(cast_name(vertices[u], fmt), Cast(vertices[u], self._stored[u], fmt))

    @property
    def n_casts(self) -> int:
        """The conversions between formats, which are those that the plan counts."""
        return sum(isinstance(step, Cast) for step in self.steps.children())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `Traced.forward`."""
        self._copies = {}
        return super().forward(*args, **kwargs)

    def _read(self, vertex: int, reader: int, values: Values) -> torch.Tensor:
        graph, stored = self._captured.graph, self._value(vertex, values).data
        fmt = self._asked[reader][graph.vertices[reader].operands.index(vertex)]
        if not fmt or fmt == self._stored[vertex]:
            return stored
        if (vertex, fmt) not in self._copies:
            self._copies[vertex, fmt] = self.steps.get_submodule(cast_name(graph.vertices[vertex], fmt))(stored)
        return self._copies[vertex, fmt]

    def _store(self, vertex: Vertex, value: torch.Tensor) -> HeldTensor:
        if not value.is_floating_point():
            return HeldTensor(value)
        dtype = (
            getattr(torch, vertex.dtype) if vertex.fixed else get_format(self._plan.formats[vertex.index]).torch_dtype
        )
        kept = value if value.dtype == dtype else value.to(dtype)
        return HeldTensor(kept.clamp(min=-torch.finfo(dtype).max) if vertex.mask_level else kept)

    def _output(self, value: HeldTensor) -> torch.Tensor:
        return value.data


# --- helpers ----------------------------------------------------------------------------------------------------------


def op_name(vertex: Vertex) -> str:
    """The name of an op's module under `steps`."""
    return f"op_{vertex.name.replace('.', '__')}"


def cast_name(vertex: Vertex, fmt: str) -> str:
    """The name of a conversion's module under `steps`."""
    return f"cast_{vertex.name.replace('.', '__')}_to_{fmt}"


def _submodule(module: nn.Module, path: str) -> nn.Module:
    """The module at `path`, made where there is none."""
    for name in filter(None, path.split(".")):
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module


def constants(example: Example) -> dict[str, Any]:
    """The captured call's keywords that hold no tensor: they are part of the program."""
    return {
        key: value
        for key, value in (example.kwargs or {}).items()
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
    }


def tensor_call(example: Example) -> Example:
    """The captured call without the keywords that hold no tensor: how the traced module is called."""
    dropped = constants(example)
    return Example(example.args, {k: v for k, v in (example.kwargs or {}).items() if k not in dropped})


def named(names: Sequence[str], results: Sequence[torch.Tensor]) -> Any:
    """Results as the captured model returns them: a bare tensor, a tuple, or a dict by name."""
    if list(names) == ["output"]:
        return results[0]
    return tuple(results) if all(name.isdigit() for name in names) else dict(zip(names, results, strict=True))


def _held(vertex: Vertex, tensor: torch.Tensor, fmt: str, axis: int) -> HeldTensor:
    if vertex.fixed:
        return HeldTensor(tensor)
    wide = tensor.to(torch.float64 if fmt == "fp64" else torch.float32)
    return hold(vertex, wide, fmt) if vertex.mask_level else hold_weight(wide, fmt, axis)


def _rounded(vertex: Vertex, value: torch.Tensor, fmt: str) -> HeldTensor:
    """`held.hold` in tensor operations alone, so that a trace holds for every input."""
    target = get_format(fmt)
    scale = _scale(vertex, value, fmt) if target.n_bytes == 1 else None
    if vertex.mask_level:
        lowest = torch.tensor(-target.max) if scale is None else -target.max * scale
        value = torch.where(masked_entries(vertex, value), torch.maximum(value, lowest), value)
    if value.dtype == target.torch_dtype:
        return HeldTensor(value)
    return HeldTensor((value if scale is None else value / scale).to(target.torch_dtype), scale)


def _scale(vertex: Vertex, value: torch.Tensor, fmt: str) -> torch.Tensor:
    """`rounding.choose_scale` as a tensor: a power of two from its exponent's bits."""
    visible = value.masked_fill(masked_entries(vertex, value), 0.0) if vertex.mask_level else value
    largest = torch.nan_to_num(visible, nan=0.0, posinf=0.0, neginf=0.0).abs().amax()
    top, top_exponent = torch.frexp(torch.tensor(get_format(fmt).max))
    mantissa, exponent = torch.frexp(largest)
    low, high = SCALE_EXPONENTS
    power = (exponent - int(top_exponent) + (mantissa > float(top))).clamp(low, high)
    scale = ((power + 127).to(torch.int32) << 23).view(torch.float32)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def _in_dtype(captured: Captured, instruction: Instruction, dtype: torch.dtype) -> Instruction:
    """An instruction of a float32 program as it runs on operands of `dtype`.

    Casts between floats become nothing, and so does a result's dtype where the operand has it already.
    """
    layout, result = captured.layout, instruction.result
    is_view = result not in layout.vertex and _CASTS.match(instruction.op)
    if is_view and instruction.dtype is not None and instruction.dtype.is_floating_point:
        return replace(instruction, target=_same)

    real = bool(instruction.reads) and captured.graph.vertices[layout.root[instruction.reads[0]]].dtype == "float32"
    wanted = None if real and _REDUCTIONS.match(instruction.op) else dtype

    def leaf(item: Any) -> Any:
        return wanted if isinstance(item, torch.dtype) and item in _REAL else item

    args, kwargs = map_leaves(leaf, instruction.args), map_leaves(leaf, instruction.kwargs)
    return replace(instruction, args=args, kwargs=dict(kwargs))


def _same(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return value
