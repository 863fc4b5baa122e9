"""Pruning in several passes: how much goes in each, and how far the model has come from the dense one in the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.models.layout import Stack, first_tensor
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import with_sparsity
from cohomcli.pruning.shelf import Shelf

GRADUAL = ("rows", "layer")  # patterns of which a part can go


def passes(options: PruneOptions, rounds: int) -> tuple[PruneOptions, ...]:
    """The options of every pass: after pass k of N a share s (1 - (1 - k / N)^3) is gone, and it stays gone (the cubic
    schedule of Zhu, Gupta 2018, arXiv:1710.01878).

    Raises:
        UsageError: several passes of a pattern or an allocation that has no such steps.
    """
    if rounds == 1:
        return (options,)
    if options.pattern.kind not in GRADUAL:
        raise UsageError(f"--rounds {rounds}: {options.pattern} goes in one pass", "0.5 and layer:0.5 go by steps")
    if options.allocation != "uniform":
        raise UsageError("--rounds does not go with --allocation owl", "leave one of them out")
    shares = [options.pattern.sparsity * (1 - (1 - number / rounds) ** 3) for number in range(1, rounds)]
    patterns = [*(with_sparsity(options.pattern, share) for share in shares), options.pattern]
    return tuple(replace(options, pattern=pattern, nested=number > 0) for number, pattern in enumerate(patterns))


def zeros_of(model: nn.Module, weights: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Where each of `weights` is not zero, boolean, by its name in `model`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(weight)]: weight.detach() != 0 for weight in weights}


class DenseStates:
    """What every block of the dense model puts out on some batches, kept in files, to measure drift from later."""

    def __init__(self, model: nn.Module, stack: Stack, batches: Sequence[dict[str, Tensor]], shelf: Shelf) -> None:
        self.batches, self.shelf, self.n_layer = batches, shelf, len(stack.blocks)
        for batch, states in enumerate(self._states(model, stack)):
            for block, state in enumerate(states):
                shelf.put(str(block), batch, state)

    def drift(self, model: nn.Module, stack: Stack, gone: Sequence[int] = ()) -> tuple[float, ...]:
        """E|h - h'|^2 / E|h|^2 behind every block of `model` that is left, when the blocks `gone` have been taken out:
        h is the dense state behind the block and the gap that follows it.
        """
        kept = [number for number in range(self.n_layer) if number not in gone]
        behind = [following - 1 for following in [*kept[1:], self.n_layer]]
        moved, total = [0.0] * len(kept), [0.0] * len(kept)
        for batch, states in enumerate(self._states(model, stack)):
            for at, (number, state) in enumerate(zip(behind, states, strict=True)):
                dense = self.shelf.get(str(number), batch)
                moved[at] += float((dense - state).double().pow(2).sum())
                total[at] += float(dense.double().pow(2).sum())
        return tuple(one / max(all_, 1e-300) for one, all_ in zip(moved, total, strict=True))

    @torch.inference_mode()
    def _states(self, model: nn.Module, stack: Stack) -> Iterator[list[Tensor]]:
        """(tokens, d) behind every block, batch by batch."""
        found: list[Tensor] = []

        def note(module: nn.Module, args: object, output: object) -> None:
            found.append(first_tensor(output).flatten(0, -2))

        handles = [block.register_forward_hook(note) for block in stack.blocks]
        try:
            for batch in self.batches:
                found.clear()
                model(**batch)
                yield list(found)
        finally:
            for handle in handles:
                handle.remove()
