"""From a captured program to the plain graph and tensors that the checker reads, and back to names."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.precision.capture import Captured
from cohomcli.precision.program import Instruction, Slot
from cohomcli.verify.graph import SCHEMA, PlainGraph, read_graph
from cohomcli.verify.table import find


def plain_graph(captured: Captured) -> dict[str, Any]:
    """The captured program as a document of schema `cohom.graph/1`.

    Raises:
        Unsupported: an operation that the ball interpreter has no mathematics for; names it.
    """
    program = captured.program
    document = {
        "schema": SCHEMA,
        "instructions": [_instruction(i) for i in program.instructions],
        "held": [{"slot": h.slot, "name": h.name} for h in program.held],
        "arguments": [{"slot": a.slot, "name": a.name} for a in program.arguments],
        "outputs": [{"name": name, "slot": slot} for name, slot in program.outputs],
    }
    for step in read_graph(document).steps:
        if step.op != "getitem":
            find(step.op)
    return document


def _instruction(i: Instruction) -> dict[str, Any]:
    return {
        "op": "getitem" if i.target is operator.getitem else i.op,
        "args": [_encode(a) for a in i.args],
        "kwargs": {key: _encode(value) for key, value in i.kwargs.items() if not _dropped(value)},
        "out": i.result,
        "shape": None if i.dtype is None else list(i.shape),
    }


def _dropped(value: Any) -> bool:
    return isinstance(value, torch.device | torch.layout | torch.memory_format)


def _encode(value: Any) -> Any:
    if isinstance(value, Slot):
        return {"slot": value.index}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    return None if _dropped(value) else value


def held_tensors(captured: Captured) -> dict[str, torch.Tensor]:
    """The weights, buffers and constants of the program by name."""
    return {h.name: h.tensor.detach() for h in captured.program.held}


def known_values(captured: Captured, inputs: Any) -> dict[int, NDArray[Any]]:
    """What the interpreter starts from: held tensors and the arguments of one call, by slot."""
    held = {h.slot: as_array(h.tensor) for h in captured.program.held}
    return held | {slot: as_array(value) for slot, value in captured.bind(inputs).items()}


def named_inputs(captured: Captured, inputs: Any) -> dict[str, torch.Tensor]:
    """The arguments of one call by name."""
    bound = captured.bind(inputs)
    return {a.name: bound[a.slot].detach() for a in captured.program.arguments}


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as an exact numpy array: bool, int64, float32 or float64; 16-bit floats are widened."""
    value = tensor.detach().cpu()
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    if not value.is_floating_point() and value.dtype != torch.bool:
        value = value.to(torch.int64)
    array: NDArray[Any] = value.contiguous().numpy()
    return array


def lowered(captured: Captured) -> PlainGraph:
    """The plain graph itself."""
    return read_graph(plain_graph(captured))


def slots_of(captured: Captured, values: Mapping[int, Any]) -> dict[str, NDArray[Any]]:
    """Values by slot as values by output name."""
    return {name: np.asarray(values[slot]) for name, slot in captured.program.outputs}
