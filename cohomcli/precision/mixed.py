"""A float32 model with every weight held in its planned format and read into float32 wherever the model uses it.

Only the weights are planned here: all else computes in float32, and inputs may have any shape. (The whole plan, results
too, runs as `explicit.apply`, at the captured shapes.)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from cohomcli.errors import UsageError
from cohomcli.precision.held import HeldTensor, hold_weight
from cohomcli.precision.planfile import PlanFile


class _Read(nn.Module):
    """The float32 value of a held tensor: what the model sees of a weight."""

    def __init__(self, scale: torch.Tensor | None, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.scale: torch.Tensor | None
        self.register_buffer("scale", scale)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """`data` as float32."""
        return HeldTensor(data, self.scale, self.axis).read(torch.float32)


def with_planned_weights(model: nn.Module, planned: PlanFile) -> nn.Module:
    """A copy of a float32 `model` whose weights are held as `planned` says and read into float32 where they are used.

    The copy shares no weight with the model; tied weights stay tied. Parameters that the plan does not name stay as
    they are. `parametrizations.<weight>.original` is the held tensor, `<weight>` what is read.

    Raises:
        UsageError: the plan names a weight that the model has not.
    """
    held = {name: _contiguous(value) for name, value in hold_all(model, planned).items()}
    tensors = all_tensors(model)
    memo: dict[int, Any] = {id(tensors[name]): _placeholder(tensors[name], value) for name, value in held.items()}
    copied: nn.Module = copy.deepcopy(model, memo)
    install(copied, held)
    return copied.eval()


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name that it has."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def hold_all(model: nn.Module, planned: PlanFile) -> dict[str, HeldTensor]:
    """The planned weights of a float32 `model` in their formats, by the plan's names.

    Raises:
        UsageError: the plan names a weight that the model has not, or one that is not float32.
    """
    tensors = all_tensors(model)
    if missing := [name for name in planned.weights if name not in tensors]:
        raise UsageError(f"the plan names {missing[0]!r}, which the model has not", "use the plan's own model")
    if wrong := [name for name in planned.weights if tensors[name].dtype != torch.float32]:
        raise UsageError(f"{wrong[0]!r} is {tensors[wrong[0]].dtype}", "give the float32 model: model.float()")
    return {name: hold_weight(tensors[name].detach(), w.format, w.axis) for name, w in planned.weights.items()}


def _contiguous(value: HeldTensor) -> HeldTensor:
    """In the layout of a file, so that a loaded model computes on the same strides."""
    return HeldTensor(value.data.contiguous().clone(), value.scale, value.axis)


def _placeholder(tensor: torch.Tensor, value: HeldTensor) -> torch.Tensor:
    return nn.Parameter(value.data, requires_grad=False) if isinstance(tensor, nn.Parameter) else value.data


def install(model: nn.Module, held: Mapping[str, HeldTensor]) -> None:
    """Put held tensors under all names that their weights have and have them read into float32."""
    known = all_tensors(model)
    names = names_of(known)
    for name, value in held.items():
        shared = _placeholder(known[name], value)
        for each in names[id(known[name])]:
            path, _, last = each.rpartition(".")
            owner = model.get_submodule(path)
            store: dict[str, Any] = owner._parameters if last in owner._parameters else owner._buffers
            store[last] = shared
            if value.data.dtype != torch.float32:
                parametrize.register_parametrization(owner, last, _Read(value.scale, value.axis), unsafe=True)


def names_of(tensors: Mapping[str, torch.Tensor]) -> dict[int, list[str]]:
    """The names of each tensor, by its identity; in the order of `tensors`."""
    found: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        found.setdefault(id(tensor), []).append(name)
    return found
