"""Runs a captured program under a flow: results stored in one format, read by each op in the one it asks for.

This is what autocast does: weights and results stay as they are, and an op on its lists reads rounded copies of them.
"""

from __future__ import annotations

from typing import Any

import torch

from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import Emulation, leaves_range, masked_entries
from cohomcli.precision.formats import holds
from cohomcli.precision.rounding import round_to
from cohomcli.precision.stepping import Step, evaluate, shown, steps
from cohomcli.precision.traffic import Flow


def run_flow(captured: Captured, inputs: Any, flow: Flow) -> Emulation:
    """The float32 outputs of one call when every op computes in float32 from the copies that it asks for.

    Conversions round once, to nearest even, and overflow to infinity, masks too, as a cast does. `overflow` holds the
    vertices that leave the range of their own format, or of a copy of them.

    Raises:
        UsageError: the inputs differ from the example's structure and shapes.
    """
    return _FlowRun(captured, flow)(inputs)


class _FlowRun:
    def __init__(self, captured: Captured, flow: Flow) -> None:
        self.captured, self.flow = captured, flow
        self.found = Emulation(())

    def __call__(self, inputs: Any) -> Emulation:
        layout, values = self.captured.layout, dict(self.captured.layout.held)
        with torch.no_grad():
            values |= {layout.root[slot]: tensor for slot, tensor in self.captured.bind(inputs).items()}
            for step in steps(self.captured):
                operands = {u: self._read(step, u, values[u]) for u in step.operands}
                found = evaluate(self.captured, step.instructions, operands, torch.float32)
                for v in step.vertices:
                    values[v] = self._convert(v, found[layout.slot[v]], self.flow.stored[v])
                    self._note_non_finite(v, values[v])
                for v in step.dead:
                    values.pop(v, None)
            self.found.outputs = tuple(self._output(output, values) for output in shown(self.captured))
        return self.found

    def _read(self, step: Step, operand: int, value: torch.Tensor) -> torch.Tensor:
        reader = step.vertices[0]
        asked = self.flow.asked[reader][self.captured.graph.vertices[reader].operands.index(operand)]
        return self._convert(operand, value, asked)

    def _convert(self, index: int, value: torch.Tensor, fmt: str) -> torch.Tensor:
        if not fmt or not value.is_floating_point() or holds("fp32", fmt):
            return value
        vertex = self.captured.graph.vertices[index]
        beyond = leaves_range(vertex, value, fmt)
        if beyond:
            self.found.overflow[index] = max(beyond, self.found.overflow.get(index, 0.0))
        return round_to(value, fmt)

    def _note_non_finite(self, index: int, value: torch.Tensor) -> None:
        if not value.is_floating_point() or bool(torch.isfinite(value).all()):
            return
        vertex = self.captured.graph.vertices[index]
        if vertex.fixed != "mask constant" and bool((~torch.isfinite(value) & ~masked_entries(vertex, value)).any()):
            self.found.non_finite.append(index)

    def _output(self, output: Any, values: dict[int, torch.Tensor]) -> torch.Tensor:
        operand = {output.vertex: values[output.vertex]}
        found = evaluate(self.captured, output.instructions, operand, torch.float32)
        result: torch.Tensor = found.get(output.slot, operand[output.vertex])
        return result
