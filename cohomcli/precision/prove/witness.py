"""The search for an input where a uniform format errs most: calibration inputs, and gradient steps from the worst one.

The surrogate that is climbed is sum_j (x_j dg/dx_j)^2 for one random combination g of the outputs: how strongly
relative errors of the input show in the outputs. It is only a guide; what counts is the error that is then measured.
Token ids have no gradient: the choice is then among the calibration texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cohomcli.precision.capture import Captured, Example
from cohomcli.precision.execute import Emulator, uniform
from cohomcli.precision.output_norm import Outputs, bind
from cohomcli.precision.program import call
from cohomcli.precision.spec import ErrorNorm

N_STEPS = 6  # of the climb
STEP = 0.15  # of the calibration range, per step


@dataclass(frozen=True)
class Witness:
    """An input, the recorded outputs of the uniform format there, and their measured error (inf if not finite)."""

    inputs: Any
    outputs: Outputs
    error: float


def worst(captured: Captured, fmt: str, inputs: Sequence[Any], norm: ErrorNorm, emulate: Emulator) -> Witness:
    """The input with the largest measured error under uniform `fmt` that the search found.

    Raises:
        CohomError: as `bind` for inputs where the reference is not finite.
    """
    found = max((_measured(captured, fmt, x, norm, emulate) for x in inputs), key=lambda w: w.error)
    if not _real_arguments(captured) or not math.isfinite(found.error):
        return found
    low, high = _ranges(captured, inputs)
    generator = torch.Generator().manual_seed(0)
    here = found.inputs
    for _ in range(N_STEPS):
        here = _climbed(captured, here, low, high, generator)
        tried = _measured(captured, fmt, here, norm, emulate)
        found = max(found, tried, key=lambda w: w.error)
    return found


def _measured(captured: Captured, fmt: str, x: Any, norm: ErrorNorm, emulate: Emulator) -> Witness:
    emulation = emulate(uniform(captured, fmt), x)
    error = bind(captured, [x], norm).error([emulation.outputs])
    return Witness(x, emulation.outputs, error if math.isfinite(error) else math.inf)


def _real_arguments(captured: Captured) -> list[int]:
    """Slots of the arguments that have a gradient."""
    return [a.slot for a in captured.program.arguments if a.dtype.is_floating_point]


def _ranges(captured: Captured, inputs: Sequence[Any]) -> tuple[dict[int, float], dict[int, float]]:
    """Smallest and largest entry of every real argument over the calibration inputs: the climb stays inside."""
    bound = [captured.bind(x) for x in inputs]
    slots = _real_arguments(captured)
    low = {slot: min(float(values[slot].min()) for values in bound) for slot in slots}
    return low, {slot: max(float(values[slot].max()) for values in bound) for slot in slots}


def _climbed(
    captured: Captured, x: Any, low: dict[int, float], high: dict[int, float], generator: torch.Generator
) -> Any:
    """One signed gradient step of the surrogate, inside the calibration ranges."""
    bound = captured.bind(x)
    leaves = {slot: bound[slot].double().requires_grad_() for slot in low}
    outputs = differentiable(captured, bound | leaves)
    parts = [(y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs]
    combined = torch.stack(parts).sum()
    first = torch.autograd.grad(combined, list(leaves.values()), create_graph=True, allow_unused=True)
    surrogate = sum(((value * g) ** 2).sum() for value, g in zip(leaves.values(), first, strict=True) if g is not None)
    if not isinstance(surrogate, torch.Tensor) or not surrogate.requires_grad:
        return x
    second = torch.autograd.grad(surrogate, list(leaves.values()), allow_unused=True)
    moved = {}
    for (slot, value), g in zip(leaves.items(), second, strict=True):
        step = torch.zeros_like(value) if g is None else STEP * (high[slot] - low[slot]) * torch.sign(g)
        moved[slot] = (value.detach() + step).clamp(low[slot], high[slot]).to(bound[slot].dtype)
    return with_arguments(captured, x, moved)


def differentiable(captured: Captured, values: dict[int, Any]) -> tuple[torch.Tensor, ...]:
    """The outputs in float64 as a differentiable function of the arguments' slots in `values`."""
    known = {h.slot: _double(h.tensor.detach()) for h in captured.program.held}
    known |= {slot: _double(value) for slot, value in values.items()}
    for instruction in captured.program.instructions:
        known[instruction.result] = call(instruction, known, torch.float64)
    return tuple(known[slot] for _, slot in captured.program.outputs)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def with_arguments(captured: Captured, x: Any, changed: dict[int, torch.Tensor]) -> Example:
    """The call `x` with the arguments at some slots replaced."""
    if not isinstance(x, Example):
        x = Example((), dict(x)) if hasattr(x, "keys") else Example(tuple(x))
    leaves, spec = pytree.tree_flatten((x.args, dict(x.kwargs or {})))
    for argument in captured.program.arguments:
        if argument.slot in changed:
            leaves[argument.position] = changed[argument.slot]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return Example(args, kwargs)
