"""Calibration data flowing through a model block by block, twice: as it was, and as pruned so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.layout import Stack, block_input, first_tensor
from cohomcli.pruning.parts import Anatomy, Group, at


class _Enough(Exception):
    """Everything that was asked of a forward pass has been seen."""


@dataclass(frozen=True)
class Call:
    """One batch at the door of the first block: hidden states (B, T, d) and the other arguments of the call."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@torch.inference_mode()
def first_calls(model: nn.Module, stack: Stack, batches: Sequence[dict[str, Tensor]]) -> list[Call]:
    """What the first block is called with for every batch; nothing behind it is computed."""
    calls: list[Call] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(block_input(args, kwargs).clone(), args[1:], _without_hidden(kwargs)))
        raise _Enough

    handle = stack.blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            try:
                stack.module(**batch, **({"use_cache": False} if getattr(model.config, "is_decoder", True) else {}))
            except _Enough:
                continue
    finally:
        handle.remove()
    return calls


def _without_hidden(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "hidden_states"}


@torch.inference_mode()
def advance(block: nn.Module, calls: Sequence[Call], hidden: list[Tensor]) -> None:
    """Replace every batch's hidden states by what `block` makes of them."""
    for index, call in enumerate(calls):
        hidden[index] = run_block(block, hidden[index], call)
        if not bool(torch.isfinite(hidden[index]).all()):
            raise AnalysisIncomplete("a block's output on the calibration texts is not finite", "check the model")


def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """One call of `block`."""
    return first_tensor(block(hidden, *call.args, **call.kwargs))


@dataclass
class Seen:
    """What flowed past one group of one block in one batch, rows being tokens: `inputs` (rows, in) of the group and
    `residual` (rows, d), the stream a writer adds to; `outputs` (rows, d) of a writer, its bias included.
    """

    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    residual: Tensor = field(default_factory=lambda: torch.empty(0))
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))


@torch.inference_mode()
def look(block: nn.Module, anatomy: Anatomy, group: Group, hidden: Tensor, call: Call, outputs: bool) -> Seen:
    """Run `block` on one batch up to `group` and say what flowed past it; with `outputs` also out of it."""
    seen = Seen()
    attention, mlp_in = (next(g for g in anatomy.groups if g.role == "attention"), anatomy.channels[0])
    stream = hidden.flatten(0, -2)
    added: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.inputs = args[0].flatten(0, -2)
        if not outputs:
            raise _Enough

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.outputs = output.flatten(0, -2)
        raise _Enough

    def attended(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        added.append(output.flatten(0, -2))

    def mlp_reads(module: nn.Module, args: tuple[Any, ...]) -> None:
        added.append(args[0].flatten(0, -2))

    target = at(block, group.paths[0])
    with _hooks() as handles:
        if group.role == "mlp" and not anatomy.post_norm:
            handles.append(at(block, attention.paths[0]).register_forward_hook(attended))
        elif group.role == "mlp":
            handles.append(at(block, mlp_in).register_forward_pre_hook(mlp_reads))
        handles.append(target.register_forward_pre_hook(before))
        handles.append(target.register_forward_hook(after))
        with suppress(_Enough):
            run_block(block, hidden, call)
    if group.role == "mlp":
        stream = added[0] if anatomy.post_norm else stream + added[0]
    seen.residual = stream
    return seen


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
