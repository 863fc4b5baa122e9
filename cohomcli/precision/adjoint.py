"""K adjoints of a captured program in one backward sweep, vertex by vertex, without a graph of the whole model.

For output directions lambda_1..lambda_K the sweep hands out, at every vertex v, the cotangents J_v^T lambda_k, where
J_v is the Jacobian of the outputs with respect to the stored value of v. All K advance together: at each op the local
Jacobian is applied K times, so only the cotangents of values still to be read are alive, whatever the model's depth.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import run
from cohomcli.precision.program import Instruction, Slot, call
from cohomcli.precision.ranges import describe

# visit(vertex, cotangents): cotangents (K, *shape) of an op vertex or weight that an output depends on.
Visit = Callable[[int, torch.Tensor], None]
_EMBEDDING = re.compile(r"aten\.embedding\.")
_BATCH_NORM = re.compile(r"aten\.(batch_norm|native_batch_norm|_native_batch_norm_legit_no_training)\.")


@dataclass(frozen=True)
class Recording:
    """One forward run with every vertex value kept; `values[v]` in the run's dtype, `outputs` in program order."""

    captured: Captured
    values: Mapping[int, torch.Tensor]
    outputs: tuple[torch.Tensor, ...]
    dtype: torch.dtype


def record(captured: Captured, inputs: Any, dtype: torch.dtype = torch.float32) -> Recording:
    """Run once and keep the value of every vertex; weights are kept by reference in float32."""
    values: dict[int, torch.Tensor] = {}

    def keep(vertex: int, value: torch.Tensor) -> torch.Tensor:
        values[vertex] = value
        return value

    outputs = run(captured, inputs, dtype, keep)
    return Recording(captured, values, outputs, dtype)


class Sweep:
    """The backward sweep over one recording for the output directions `seeds`: per output a tensor (K, *shape)."""

    def __init__(self, recording: Recording, seeds: Sequence[torch.Tensor]) -> None:
        self.recording = recording
        self.captured = recording.captured
        self.seeds = seeds
        self.active = _active(self.captured)
        self._cotangents: dict[int, torch.Tensor] = {}

    def run(self, visit: Visit, weights: Collection[int] = ()) -> None:
        """Hand the cotangents of every op vertex, outputs first, to `visit`, and the K gradients of `weights`.

        Each is complete when it is handed over, and dropped afterwards: a weight's gradients live from its last reader
        to its first.
        """
        wanted = self.active | set(weights)
        complete = self._first_readers(weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*batching rule.*")  # slower, not wrong
            self._seed()
            for vertex in reversed(self.captured.graph.vertices):
                if vertex.kind == "op" and vertex.index in self._cotangents:
                    cotangents = self._cotangents.pop(vertex.index)
                    visit(vertex.index, cotangents)
                    self._pull_back(vertex.index, [u for u in vertex.operands if u in wanted], cotangents)
                for weight in complete.get(vertex.index, ()):
                    if weight in self._cotangents:
                        visit(weight, self._cotangents.pop(weight))

    def _first_readers(self, weights: Collection[int]) -> dict[int, list[int]]:
        """For op vertices the weights among `weights` that no earlier op reads."""
        first: dict[int, list[int]] = defaultdict(list)
        seen: set[int] = set()
        for vertex in self.captured.graph.vertices:
            fresh = [u for u in vertex.operands if u in weights and u not in seen]
            first[vertex.index] += fresh
            seen.update(fresh)
        return first

    def _seed(self) -> None:
        """Cotangents of the output vertices, through the views between them and what is returned."""
        program, layout = self.captured.program, self.captured.layout
        for (_, slot), seed in zip(program.outputs, self.seeds, strict=True):
            vertex = layout.root[slot]
            leaf = self.recording.values[vertex].detach().requires_grad_()
            with torch.enable_grad():
                shown = self._evaluate({layout.slot[vertex]: leaf}, _views(self.captured, slot), slot)
                self._add(vertex, _vjp(shown, [leaf], seed)[0])

    def _add(self, vertex: int, cotangents: torch.Tensor | None) -> None:
        if cotangents is not None:
            # Not in place: the derivative of a sum hands the same memory to both operands.
            known = self._cotangents.get(vertex)
            self._cotangents[vertex] = cotangents if known is None else known + cotangents

    def _pull_back(self, vertex: int, operands: Sequence[int], cotangents: torch.Tensor) -> None:
        for operand, pulled in zip(operands, self.local(vertex, operands, cotangents), strict=True):
            self._add(operand, pulled)

    def local(self, vertex: int, operands: Sequence[int], cotangents: torch.Tensor) -> list[torch.Tensor | None]:
        """J^T c for the op at `vertex` with respect to each of `operands`: tensors (K, *operand shape) or None.

        Raises:
            AnalysisIncomplete: torch knows no derivative of the op.
        """
        if not operands:
            return []
        leaves = {u: self.recording.values[u].detach().requires_grad_() for u in operands}
        try:
            with torch.enable_grad():
                return _vjp(self.evaluate(vertex, leaves), list(leaves.values()), cotangents)
        except (RuntimeError, NotImplementedError) as error:  # what autograd raises for an op without a derivative
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AnalysisIncomplete(
                f"no derivative of {describe(self.captured.graph.vertices[vertex])}: {first[:160]}",
                "only its ranges can be analysed, or rewrite that operation",
            ) from error

    def evaluate(self, vertex: int, replaced: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The op at `vertex` on the recorded operands, with some of them replaced."""
        layout = self.captured.layout
        operands = self.captured.graph.vertices[vertex].operands
        values = {layout.slot[u]: replaced.get(u, self.recording.values[u]) for u in operands}
        return self._evaluate(values, layout.cone[vertex], layout.slot[vertex])

    def kernel_error(self, vertex: int) -> torch.Tensor:
        """What float32 arithmetic adds to the op at `vertex` on its recorded operands: value - exact, to float64."""
        layout, recorded = self.captured.layout, self.recording.values
        values: dict[int, Any] = {}
        for u in self.captured.graph.vertices[vertex].operands:
            values[layout.slot[u]] = recorded[u].double() if recorded[u].is_floating_point() else recorded[u]
        exact = self._evaluate(values, layout.cone[vertex], layout.slot[vertex], torch.float64)
        return (recorded[vertex] - exact).to(self.recording.dtype)

    def shown(self, vertex: int, instruction: int) -> dict[int, Any]:
        """What an instruction of the op at `vertex` reads: recorded values by slot, with the views before it applied.

        `instruction` is its number in the program.
        """
        cone = self.captured.layout.cone[vertex]
        values: dict[int, Any] = {}
        self._execute(values, cone[: cone.index(instruction)], self.recording.dtype)
        self._fill(values, self.captured.program.instructions[instruction], self.recording.dtype)
        return values

    def _evaluate(
        self, values: dict[int, Any], cone: Sequence[int], slot: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        self._execute(values, cone, dtype or self.recording.dtype)
        result: torch.Tensor = values[slot]
        return result

    def _execute(self, values: dict[int, Any], cone: Sequence[int], dtype: torch.dtype) -> None:
        for n in cone:
            instruction = self.captured.program.instructions[n]
            self._fill(values, instruction, dtype)
            values[instruction.result] = differentiable(instruction, values, dtype)

    def _fill(self, values: dict[int, Any], instruction: Instruction, dtype: torch.dtype) -> None:
        """Recorded values for what `instruction` reads and nobody gave: `type_as(x, y)` reads y for its dtype alone."""
        layout = self.captured.layout
        for read in instruction.reads:
            root = layout.root.get(read)
            if read in values or root is None:
                continue
            origin = layout.slot[root]
            if origin not in values:
                recorded = self.recording.values[root]
                values[origin] = recorded.to(dtype) if recorded.is_floating_point() else recorded
            values[read] = values[origin]  # a tied weight under its other name


def _active(captured: Captured) -> set[int]:
    """Vertices whose cotangent is wanted or passed on: real or complex values that depend on a format to choose."""
    active: set[int] = set()
    for vertex in captured.graph.vertices:
        real = vertex.dtype.startswith(("float", "complex", "bfloat"))
        if vertex.kind == "op" and real and (not vertex.fixed or any(u in active for u in vertex.operands)):
            active.add(vertex.index)
    return active


def _views(captured: Captured, slot: int) -> tuple[int, ...]:
    """Instructions that lead from the root vertex of `slot` to it."""
    layout, instructions = captured.layout, captured.program.instructions
    producer = {i.result: n for n, i in enumerate(instructions)}
    chain: list[int] = []
    pending = [slot]
    while pending:
        current = pending.pop()
        if current != layout.slot[layout.root[slot]] and current in producer:
            chain.append(producer[current])
            pending += [s for s in instructions[producer[current]].reads if layout.root.get(s) == layout.root[slot]]
    return tuple(sorted(set(chain)))


def _vjp(output: torch.Tensor, leaves: list[torch.Tensor], cotangents: torch.Tensor) -> list[torch.Tensor | None]:
    """K vector-Jacobian products of one local graph; None for a leaf that the output does not depend on."""
    if not output.requires_grad:
        return [None] * len(leaves)
    try:
        return list(
            torch.autograd.grad(output, leaves, cotangents, is_grads_batched=True, allow_unused=True, retain_graph=True)
        )
    except RuntimeError:  # an op whose derivative torch cannot batch: one probe after the other
        return _vjp_one_by_one(output, leaves, cotangents)


def _vjp_one_by_one(
    output: torch.Tensor, leaves: list[torch.Tensor], cotangents: torch.Tensor
) -> list[torch.Tensor | None]:
    rows = [torch.autograd.grad(output, leaves, c, retain_graph=True, allow_unused=True) for c in cotangents]
    return [None if column[0] is None else torch.stack(list(column)) for column in zip(*rows, strict=True)]


def differentiable(instruction: Instruction, values: Mapping[int, Any], dtype: torch.dtype) -> Any:
    """`call`, with the derivatives that training leaves out: embeddings' padding row, frozen running statistics."""
    special = _special(instruction.target)
    if special == "embedding":
        weight, ids = (values[a.index] for a in instruction.args[:2])
        return torch.nn.functional.embedding(ids, weight)
    if special == "batch norm":
        return _frozen_batch_norm(instruction, values)
    return call(instruction, values, dtype)


@cache
def _special(target: Callable[..., Any]) -> str:
    if _EMBEDDING.match(str(target)):
        return "embedding"
    return "batch norm" if _BATCH_NORM.match(str(target)) else ""


def _frozen_batch_norm(instruction: Instruction, values: Mapping[int, Any]) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over channels at axis 1 (Ioffe and Szegedy 2015, inference)."""
    x, weight, bias, mean, var = (values[a.index] if isinstance(a, Slot) else a for a in instruction.args[:5])
    eps = instruction.args[7] if len(instruction.args) > 7 else instruction.args[6]
    shape = (1, -1, *([1] * (x.dim() - 2)))
    y = (x - mean.view(shape)) * torch.rsqrt(var + eps).view(shape)
    y = y if weight is None else y * weight.view(shape)
    y = y if bias is None else y + bias.view(shape)
    one_output = instruction.op.startswith("aten.batch_norm")
    return y if one_output else (y, x.new_empty(0), x.new_empty(0))
