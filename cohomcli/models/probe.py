"""Confirm a model's layout by running a few tokens: what a run can tell is never guessed from names.

How often blocks are called and whether each feeds the next; which norm receives the last block's output; whether a
later token changes an earlier position; whether padding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import CohomError, InputRefused
from cohomcli.models.layout import Layout, Stack, block_input, find_stacks, first_tensor, run_stack, vocabulary
from cohomcli.models.spec import ModelKind
from cohomcli.models.wording import first_line

_UNSUPPORTED = "the architecture is not supported"
_TOLERANCE = 1e-4  # relative; float32 noise between two ways of running one text is below 1e-5


@torch.inference_mode()
def find_layout(model: nn.Module) -> Layout:
    """The confirmed layout of `model`.

    Raises:
        InputRefused: the blocks cannot be found, do not run once per configured layer, or do not feed each other;
            or the model does not run on text alone.
    """
    layout = find_stacks(model)
    ids = _probe_ids(model)
    try:
        stacks = _run_traced(layout, ids)
        sees_padding = _sees_padding(layout, ids)
    except CohomError:
        raise
    except Exception as error:  # models of images or sound fail wherever they miss their input
        raise InputRefused(
            f"{type(model).__name__} cannot be run on text: {first_line(error)}", "only language models are read"
        ) from error
    return Layout(tuple(stacks), sees_padding)


def kind_of(layout: Layout, claims_causal: bool) -> ModelKind:
    """Encoder-decoder by structure; a stack that sees later tokens is an encoder; else what its class claims.

    A model can fail to leak by accident (all-zero attention), so 'decoder' also needs the claim.
    """
    if layout.is_encoder_decoder:
        return "encoder-decoder"
    return "decoder" if layout.stacks[0].causal and claims_causal else "encoder"


def _probe_ids(model: nn.Module) -> Tensor:
    """(2, 3) int64: two rows that differ only in their last token, away from the special tokens at the low ids."""
    vocab = vocabulary(model)
    base = vocab // 2
    rows = [[base, base + 1, base + 2], [base, base + 1, base + 3]]
    return torch.tensor(rows, dtype=torch.int64, device=next(model.parameters()).device) % vocab


def _run_traced(layout: Layout, ids: Tensor) -> list[Stack]:
    """Every stack with its final norm and its direction, learnt from one run."""
    mask = torch.ones_like(ids)
    states: Tensor | None = None
    stacks = []
    for stack in layout.stacks:
        trace = _Trace(stack)
        with trace.attached():
            states = run_stack(stack, ids, mask, states, mask)
        trace.check(ids)
        stacks.append(replace(stack, final_norm=trace.final_norm, causal=_is_causal(trace.outputs[-1])))
    return stacks


def _sees_padding(layout: Layout, ids: Tensor) -> bool:
    """Whether two masked tokens of padding change the vectors of the text before them."""
    plain, padded = ids[:1], torch.cat([ids[:1], ids[:1, :2]], dim=1)
    results = []
    for row in (plain, padded):
        mask = (torch.arange(row.shape[1], device=row.device) < plain.shape[1]).to(torch.int64).unsqueeze(0)
        states: Tensor | None = None
        for stack in layout.stacks:
            states = run_stack(stack, row, mask, states, mask)
        results.append(states)
    alone, together = results
    assert alone is not None
    assert together is not None
    return _differs(alone, together[:, : plain.shape[1]])


def _is_causal(states: Tensor) -> bool:
    """Whether positions 0 and 1 of the two probe rows agree although their last tokens differ; states (2, >= 3, d)."""
    return not _differs(states[0, :2], states[1, :2])


def _differs(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > _TOLERANCE * first.abs().max().clamp_min(1e-12))


class _Trace:
    """Records what goes in and out of a stack's blocks, and the norm that receives the last output."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.final_norm: nn.Module | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        inside = {id(part) for block in self.stack.blocks for part in block.modules()}
        handles = []
        for block in self.stack.blocks:
            handles.append(block.register_forward_pre_hook(self._before_block, with_kwargs=True))
            handles.append(block.register_forward_hook(self._after_block))
        for part in self.stack.module.modules():
            if id(part) not in inside and "norm" in type(part).__name__.lower():
                handles.append(part.register_forward_pre_hook(self._before_norm))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, ids: Tensor) -> None:
        """Refuse what does not look like a stack of blocks on `ids` (B, T).

        Raises:
            InputRefused: another number of calls, outputs that are not (B, >= T, d), or no block fed by the one before.
        """
        if len(self.outputs) != self.stack.n_layer:
            raise InputRefused(
                f"the configuration promises {self.stack.n_layer} layers but the model ran {len(self.outputs)} blocks",
                _UNSUPPORTED,
            )
        for output in self.outputs:
            if output.ndim != 3 or output.shape[0] != ids.shape[0] or output.shape[1] < ids.shape[1]:
                raise InputRefused(f"blocks put out tensors of the shape {tuple(output.shape)}", _UNSUPPORTED)
        pairs = list(zip(self.outputs[:-1], self.inputs[1:], strict=True))
        if pairs and not any(before is after or torch.equal(before, after) for before, after in pairs):
            raise InputRefused(f"the blocks of {type(self.stack.module).__name__} do not feed each other", _UNSUPPORTED)

    def _before_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs.append(block_input(args, kwargs))

    def _after_block(self, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs.append(first_tensor(output))

    def _before_norm(self, module: nn.Module, args: Any) -> None:
        follows = len(self.outputs) == self.stack.n_layer and args and args[0] is self.outputs[-1]
        if follows and self.final_norm is None:
            self.final_norm = module
