"""Which values of a program are vertices: views contracted, fixed vertices named, additive masks traced."""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch

from cohomcli.precision.program import Argument, Held, Instruction, Program, Slot, leaves
from cohomcli.precision.spec import ComputationGraph, Vertex

# A number this negative in the code of a model is an additive mask: no activation means it (fp16 cannot even hold it).
MASK_LEVEL = -65504.0
# Ops that hand the masked entries of an operand on, or that write them.
_MASKING = re.compile(r"aten\.(add|sub|masked_fill|where|maximum|minimum|clamp|clamp_min|cat|index|gather)\.")
# No gradient passes: what only feeds these decides something discrete.
_STEPS = re.compile(r"aten\.(floor|ceil|round|trunc|sign|heaviside|bernoulli)\.")
_COPIES = re.compile(
    r"aten\.(clone|_unsafe_view|contiguous|lift_fresh_copy|dropout|feature_dropout|alpha_dropout|detach_)\."
)
_LIST_VIEWS = re.compile(r"aten\.(split|split_with_sizes|chunk|unbind|tensor_split|unsafe_split|unsafe_chunk)\.")


@dataclass(frozen=True)
class Layout:
    """How vertices lie in a program.

    `slot[v]` is the slot where vertex v's value appears and `vertex[slot]` the inverse. `root[slot]` is the vertex
    whose value a slot shows (itself or a view). `cone[v]` lists the instructions that lead from the operands of an op
    vertex to it, views first. `held[v]` is the tensor of a weight vertex.
    """

    slot: tuple[int, ...]
    vertex: dict[int, int]
    root: dict[int, int]
    cone: dict[int, tuple[int, ...]]
    held: dict[int, torch.Tensor]


def build_graph(program: Program) -> tuple[ComputationGraph, Layout]:
    """Vertices and edges of a program without dead code."""
    builder = _Builder(program)
    builder.build()
    vertices = _mark_fixed(program, builder)
    outputs = tuple(dict.fromkeys(builder.root[slot] for _, slot in program.outputs))
    slots = tuple(builder.slots)
    layout = Layout(slots, {s: v for v, s in enumerate(slots)}, builder.root, builder.cones(), builder.tensors)
    return ComputationGraph(tuple(vertices), outputs), layout


class _Builder:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.vertices: list[Vertex] = []
        self.slots: list[int] = []
        self.root: dict[int, int] = {}
        self.tensors: dict[int, torch.Tensor] = {}
        self.dtypes: list[torch.dtype] = []
        self.instruction: dict[int, Instruction] = {}
        self.producer = {i.result: n for n, i in enumerate(program.instructions)}
        self.lists: dict[int, Instruction] = {}

    def build(self) -> None:
        """Held tensors, arguments, then instructions in order."""
        self._add_held()
        for argument in self.program.arguments:
            self._add(self._input_vertex(argument), argument.slot, argument.dtype)
        for instruction in self.program.instructions:
            self._add_instruction(instruction)

    def _add(self, vertex: Vertex, slot: int, dtype: torch.dtype) -> int:
        self.vertices.append(replace(vertex, index=len(self.vertices)))
        self.slots.append(slot)
        self.dtypes.append(dtype)
        self.root[slot] = len(self.vertices) - 1
        return self.root[slot]

    def _add_held(self) -> None:
        same: dict[tuple[Any, ...], int] = {}
        storages: dict[int, str] = {}
        for held in self.program.held:
            tensor = held.tensor
            storage = storages.setdefault(tensor.untyped_storage().data_ptr(), held.name)
            key = (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if key in same:  # tied: one tensor, one vertex
                self.root[held.slot] = same[key]
                continue
            same[key] = self._add(self._held_vertex(held, storage), held.slot, tensor.dtype)
            self.tensors[same[key]] = tensor

    def _held_vertex(self, held: Held, storage: str) -> Vertex:
        t = held.tensor
        fixed = "constant" if held.constant else ""
        shape = tuple(t.shape)
        return Vertex(0, held.name, "weight", "", held.module, shape, _dtype(t.dtype), t.numel(), (), storage, fixed)

    def _input_vertex(self, a: Argument) -> Vertex:
        return Vertex(0, a.name, "input", "", "", a.shape, _dtype(a.dtype), math.prod(a.shape), fixed="input")

    def _add_instruction(self, instruction: Instruction) -> None:
        parent = self._parent_list(instruction)
        if instruction.dtype is None:
            self.lists[instruction.result] = instruction
            if _LIST_VIEWS.match(instruction.op):
                self.root[instruction.result] = self.root[instruction.reads[0]]
        elif parent is not None and parent.result in self.root:
            self.root[instruction.result] = self.root[parent.result]
        elif self._is_view(instruction):
            self.root[instruction.result] = self.root[instruction.reads[0]]
        else:
            self._add_op(instruction, parent or instruction)

    def _parent_list(self, instruction: Instruction) -> Instruction | None:
        if instruction.target is operator.getitem and isinstance(instruction.args[0], Slot):
            return self.lists.get(instruction.args[0].index)
        return None

    def _is_view(self, instruction: Instruction) -> bool:
        """An alias, or a copy, of its first operand with the same kind of numbers."""
        if not instruction.reads or not isinstance(instruction.args[0] if instruction.args else None, Slot):
            return False
        source = self.dtypes[self.root[instruction.reads[0]]] if instruction.reads[0] in self.root else None
        if source is None or instruction.dtype is None or _kind(source) != _kind(instruction.dtype):
            return False
        if _COPIES.match(instruction.op):
            return True
        schema = getattr(instruction.target, "_schema", None)
        casts = re.match(r"aten\.(to|_to_copy|type_as)\.", instruction.op) is not None
        return casts or (schema is not None and bool(schema.arguments) and _aliases(schema))

    def _add_op(self, instruction: Instruction, source: Instruction) -> None:
        dtype = instruction.dtype
        assert dtype is not None
        operands = tuple(dict.fromkeys(self.root[slot] for slot in source.reads))
        shape = instruction.shape
        vertex = Vertex(
            0, instruction.name, "op", source.op, source.module, shape, _dtype(dtype), math.prod(shape), operands
        )
        self.instruction[self._add(vertex, instruction.result, dtype)] = source

    def cones(self) -> dict[int, tuple[int, ...]]:
        """For every op vertex the instructions between its operands' slots and its own, in execution order."""
        starts = set(self.slots) | {held.slot for held in self.program.held}
        cones: dict[int, tuple[int, ...]] = {}
        for vertex in self.vertices:
            if vertex.kind != "op":
                continue
            needed: set[int] = set()
            pending = [self.slots[vertex.index]]
            while pending:
                n = self.producer[pending.pop()]
                if n not in needed:
                    needed.add(n)
                    pending += [slot for slot in self.program.instructions[n].reads if slot not in starts]
            cones[vertex.index] = tuple(sorted(needed))
        return cones


def _aliases(schema: Any) -> bool:
    """Whether the first argument is declared to share memory with the result: Tensor(a) self -> Tensor(a)."""
    alias = schema.arguments[0].alias_info
    returns = schema.returns[0].alias_info if schema.returns else None
    return alias is not None and not alias.is_write and returns is not None


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else str(dtype)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- fixed vertices and masks -----------------------------------------------------------------------------------------


def _mark_fixed(program: Program, builder: _Builder) -> list[Vertex]:
    """Say why a vertex has no format to choose, and trace additive masks into the ops that add them."""
    levels = _mask_levels(builder)
    constant = _constants(builder)
    differentiable = _differentiable(program, builder)
    marked = []
    for vertex in builder.vertices:
        dtype, level = builder.dtypes[vertex.index], levels[vertex.index]
        fixed = vertex.fixed
        if not dtype.is_floating_point and vertex.kind != "input":
            fixed = {"bool": "bool", "complex": "complex"}.get(_kind(dtype), "integer")
        elif level and constant[vertex.index]:
            fixed = "mask constant"
        elif not fixed and vertex.index not in differentiable:
            fixed = "discrete"
        marked.append(replace(vertex, fixed=fixed, mask_level=0.0 if fixed else level))
    return _mask_parts(marked, constant)


def _mask_parts(vertices: list[Vertex], constant: list[bool]) -> list[Vertex]:
    """Real constants that only go into mask constants (the zero of where(seen, 0, -inf)) are mask constants too."""
    readers: dict[int, list[int]] = defaultdict(list)
    for vertex in reversed(vertices):
        masks = [vertices[c].fixed == "mask constant" for c in readers[vertex.index]]
        if constant[vertex.index] and not vertex.fixed and masks and all(masks):
            vertices[vertex.index] = replace(vertex, fixed="mask constant", mask_level=0.0)
        for operand in vertex.operands:
            readers[operand].append(vertex.index)
    return vertices


def _mask_levels(builder: _Builder) -> list[float]:
    """For every vertex the additive mask's value that its entries may carry (the least negative one), 0 for none."""
    constant, levels = _constants(builder), [0.0] * len(builder.vertices)
    for vertex in builder.vertices:
        found = [levels[u] for u in vertex.operands if levels[u]]
        if vertex.kind == "weight":
            found += _mask_values(builder.tensors[vertex.index])
        elif vertex.kind == "op":
            scalars = leaves((builder.instruction[vertex.index].args, builder.instruction[vertex.index].kwargs))
            found += [float(s) for s in scalars if isinstance(s, float) and s <= MASK_LEVEL]
        if found and builder.dtypes[vertex.index].is_floating_point:
            passes = constant[vertex.index] or _MASKING.match(vertex.target)
            levels[vertex.index] = max(found) if passes else 0.0
    return levels


def _mask_values(tensor: torch.Tensor) -> list[float]:
    """The mask value of a held tensor whose entries are zero or hugely negative, as a buffer for masking is."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or float(tensor.min()) > MASK_LEVEL:
        return []
    masked = tensor <= MASK_LEVEL
    return [float(tensor[masked].max())] if bool((masked | (tensor == 0)).all()) else []


def _constants(builder: _Builder) -> list[bool]:
    """Whether a vertex depends on integers, booleans and constants of the code alone: no weight, no real input."""
    constant: list[bool] = []
    for vertex in builder.vertices:
        if vertex.kind == "op":
            constant.append(all(constant[u] for u in vertex.operands))
        else:
            real = builder.dtypes[vertex.index].is_floating_point or builder.dtypes[vertex.index].is_complex
            mask = vertex.kind == "weight" and real and bool(_mask_values(builder.tensors[vertex.index]))
            constant.append(not real or vertex.fixed == "constant" or mask)
    return constant


def _differentiable(program: Program, builder: _Builder) -> set[int]:
    """Vertices from which a path of real values that no step function interrupts leads to an output."""
    reached = {builder.root[slot] for _, slot in program.outputs}
    for vertex in reversed(builder.vertices):
        dtype = builder.dtypes[vertex.index]
        real = dtype.is_floating_point or dtype.is_complex
        if vertex.index in reached and real and not _STEPS.match(vertex.target):
            reached.update(vertex.operands)
    return reached


def consumers(graph: ComputationGraph) -> dict[int, list[int]]:
    """For every vertex the vertices that read it, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for u, v in graph.edges:
        found[u].append(v)
    return found
