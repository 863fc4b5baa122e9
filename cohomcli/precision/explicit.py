"""A plan as a model that runs: every weight and result held in its planned dtype, every cast written out.

The arithmetic is that of `execute.Emulator`, bit for bit: an op reads its operands as they are held, computes in
float32 (float64 when the plan uses fp64 anywhere) and is rounded once. Unlike there, what lies between the ops really
takes the bytes that the plan says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured, Example
from cohomcli.precision.execute import weight_axes
from cohomcli.precision.formats import get_format
from cohomcli.precision.held import HeldTensor, hold, hold_weight
from cohomcli.precision.program import Held
from cohomcli.precision.spec import Plan
from cohomcli.precision.stepping import evaluate, shown, steps


class Outputs(dict[str, torch.Tensor]):
    """Results by name, also as attributes: `outputs.logits` is `outputs["logits"]`."""

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no output {name!r}; there are {', '.join(self)}") from None


def apply(model: nn.Module, plan: Plan, captured: Captured) -> ExplicitModel:
    """The captured `model` under `plan`, as a module of its own that shares no rounded tensor with it.

    Call it as the model was called for the capture: the same arguments, of the same shapes. It returns what the model
    returns among the captured outputs, by name (a bare tensor if that is what the model returns), in float32: the
    values are those that the plan's formats hold.

    Raises:
        UsageError: the plan is for another graph or stores an op's result as int8, or the capture is of another model.
        AnalysisIncomplete: int8 of non-finite weights.
    """
    _check_model(model, captured)
    _check_plan(plan, captured)
    return ExplicitModel(plan, captured)


def _check_model(model: nn.Module, captured: Captured) -> None:
    tensors = dict(_named_tensors(model))
    for held in captured.program.held:
        if not held.constant and (held.name not in tensors or tensors[held.name].shape != held.tensor.shape):
            raise UsageError(
                f"the capture holds {held.name!r}, which the model has not in that shape", "capture this very model"
            )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _check_plan(plan: Plan, captured: Captured) -> None:
    vertices = captured.graph.vertices
    if len(plan.formats) != len(vertices):
        raise UsageError(f"the plan has {len(plan.formats)} formats for {len(vertices)} vertices")
    for vertex, fmt in zip(vertices, plan.formats, strict=True):
        if vertex.fixed:
            continue
        if get_format(fmt).per_channel and (vertex.kind != "weight" or len(vertex.shape) < 2):
            raise UsageError(
                f"the plan stores {vertex.name!r} as {fmt}", "int8 is for weights of two dimensions or more"
            )


class ExplicitModel(nn.Module):
    """What `apply` returns. Its parameters have the model's names and their planned dtypes; int8 codes and fp8 numbers
    have their float32 scale beside them, named with the suffix `_scale`. Tied weights are one parameter.
    """

    def __init__(self, plan: Plan, captured: Captured) -> None:
        super().__init__()
        self._plan = plan
        self._dtype = torch.float64 if "fp64" in plan.formats else torch.float32
        self._steps, self._shown = steps(captured), shown(captured)
        self._weights: dict[int, HeldTensor] = {}
        self._hold_weights(captured)
        # Everything but the float32 weights, so that nothing keeps them alive.
        program = replace(captured.program, held=())
        self._captured = replace(captured, program=program, layout=replace(captured.layout, held={}))
        self.eval()

    def _hold_weights(self, captured: Captured) -> None:
        axes = weight_axes(captured)
        for held in captured.program.held:
            root = captured.layout.root[held.slot]
            if root not in self._weights:
                vertex = captured.graph.vertices[root]
                tensor = captured.layout.held[root]
                fmt = self._plan.formats[root]
                kept = HeldTensor(tensor) if vertex.fixed else hold_weight(self._wide(tensor), fmt, axes.get(root, 0))
                self._weights[root] = replace(kept, data=nn.Parameter(kept.data, requires_grad=False))
            self._register(held, self._weights[root])

    def _wide(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _register(self, held: Held, kept: HeldTensor) -> None:
        """Under the model's own name; constants of its code have none and stay out of the state dict."""
        if held.constant:
            return
        *path, last = held.name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        assert isinstance(kept.data, nn.Parameter)
        owner.register_parameter(last, kept.data)
        if kept.scale is not None:
            owner.register_buffer(f"{last}_scale", kept.scale)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One call, with the captured arguments' structure and shapes.

        Raises:
            UsageError: other arguments or shapes than those that were captured; the argument is named.
        """
        with torch.no_grad():
            values = self._bind(Example(args, kwargs))
            for step in self._steps:
                self._run(step.vertices, step, values)
            return self._named([self._result(output, values) for output in self._shown])

    def _bind(self, call: Example) -> dict[int, HeldTensor]:
        layout = self._captured.layout
        inputs = self._captured.bind(call)
        return {layout.root[slot]: HeldTensor(self._wide(tensor)) for slot, tensor in inputs.items()}

    def _run(self, vertices: Sequence[int], step: Any, values: dict[int, HeldTensor]) -> None:
        layout, graph = self._captured.layout, self._captured.graph
        operands = {u: self._read(u, values) for u in step.operands}
        found = evaluate(self._captured, step.instructions, operands, self._dtype)
        for v in vertices:
            vertex, value = graph.vertices[v], found[layout.slot[v]]
            values[v] = HeldTensor(value) if vertex.fixed else hold(vertex, value, self._plan.formats[v])
        for v in step.dead:
            values.pop(v, None)

    def _read(self, vertex: int, values: dict[int, HeldTensor]) -> torch.Tensor:
        return (values.get(vertex) or self._weights[vertex]).read(self._dtype)

    def _result(self, output: Any, values: dict[int, HeldTensor]) -> torch.Tensor:
        operand = {output.vertex: self._read(output.vertex, values)}
        found = evaluate(self._captured, output.instructions, operand, self._dtype)
        result: torch.Tensor = found.get(output.slot, operand[output.vertex])
        return result

    def _named(self, results: list[torch.Tensor]) -> Any:
        names = [output.name for output in self._shown]
        if names == ["output"]:
            return results[0]
        if all(name.isdigit() for name in names):
            return tuple(results)
        return Outputs(zip(names, results, strict=True))
