"""Prune a model whose blocks are in memory only while they are worked on; held-out text flows along, block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.models.layout import Stack, first_tensor
from cohomcli.models.memory import give_back
from cohomcli.models.streamed import BlockStore
from cohomcli.progress import Progress, silent
from cohomcli.pruning.context import Context
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.prune import check, prune_flow
from cohomcli.pruning.results import PruningResult
from cohomcli.pruning.shelf import Shelf
from cohomcli.pruning.stream import DENSE, PRUNED, Call, Flow, first_calls

KINDS = ("rows", "layer", "nm", "mlp")  # patterns that need no more than one block at a time
Batches = Sequence[dict[str, Tensor]]
Saved = Callable[[int], None]


def refuse_unstreamable(options: PruneOptions) -> None:
    """Refuse what needs more than one block at a time.

    Raises:
        UsageError: naming it.
    """
    if options.pattern.kind not in KINDS:
        raise UsageError(f"--stream cannot prune {options.pattern}", "0.5, layer:0.5, 2:4 and mlp:0.25 can be streamed")
    if options.allocation != "uniform":
        raise UsageError("--allocation owl needs all blocks first: not with --stream", "leave --allocation out")
    if options.protect:
        raise UsageError("--protect is not possible with --stream", "leave one of them out")


@dataclass(frozen=True)
class _Group:
    """Batches of one shape (B, T, d): their hidden states on a shelf, and what every block is called with."""

    shelf: Shelf
    shape: tuple[int, ...]
    calls: list[Call]


class Passage:
    """Batches on their way through the blocks of a model, dense and pruned, with hidden states in files of `folder`."""

    def __init__(self, model: nn.Module, stack: Stack, batches: Batches, folder: Path) -> None:
        self.stack = stack
        self.tuples = False  # whether blocks give tuples
        self.places: dict[int, tuple[_Group, int]] = {}  # of every batch: its group, and its number in it
        for at, size in enumerate(dict.fromkeys(batch["input_ids"].shape for batch in batches)):
            numbers = [number for number, batch in enumerate(batches) if batch["input_ids"].shape == size]
            place = folder / str(at)
            place.mkdir(parents=True)
            shelf = Shelf(place)
            group = _Group(shelf, *first_calls(stack, [batches[number] for number in numbers], shelf))
            self.places |= {number: (group, position) for position, number in enumerate(numbers)}

    @torch.inference_mode()
    def advance(self, index: int, stream: str) -> None:
        """Let one stream pass the block `index`."""
        for group, position in self.places.values():
            call = group.calls[index]
            output = self.stack.blocks[index](_hidden(group, stream, position), *call.args, **call.kwargs)
            self.tuples = isinstance(output, tuple)
            group.shelf.put(stream, position, first_tensor(output))
            give_back()

    @contextmanager
    def answering(self, stream: str) -> Iterator[None]:
        """Inside, blocks compute nothing: the model's n-th call gets the states of the n-th batch behind them."""
        left = iter([self.places[number] for number in sorted(self.places)])
        hidden = torch.zeros(0)

        def first(*args: Any, **kwargs: Any) -> Any:
            nonlocal hidden
            group, position = next(left)
            hidden = _hidden(group, stream, position)
            return answer()

        def answer(*args: Any, **kwargs: Any) -> Any:
            return (hidden,) if self.tuples else hidden

        blocks: Sequence[Any] = self.stack.blocks
        for at, block in enumerate(blocks):
            block.forward = answer if at else first
        try:
            yield
        finally:
            for block in blocks:
                del block.forward


def _hidden(group: _Group, stream: str, position: int) -> Tensor:
    return group.shelf.get(stream, position).reshape(group.shape)


class Visitor:
    """Brings every block, lets `passage` pass it dense and pruned, has it saved and forgets it."""

    def __init__(self, store: BlockStore, passage: Passage, save: Saved) -> None:
        self.store, self.passage, self.save = store, passage, save
        self.n_nonzero = list(store.n_nonzero)

    def bring(self, index: int) -> None:
        """Load the block, unless it is there, and let the dense stream pass."""
        if not self.store.is_here(index):
            self.store.load(index)
        self.passage.advance(index, DENSE)

    def take_away(self, index: int) -> None:
        """Let the pruned stream pass, save the block, and forget it."""
        self.passage.advance(index, PRUNED)
        self.n_nonzero[index] = sum(int(p.count_nonzero()) for p in self.store.tensors(index).values())
        self.save(index)
        self.store.release(index)
        give_back()

    def counts(self) -> tuple[int, int]:
        """Parameters of the model as it is now, and how many are not zero."""
        return sum(p.numel() for p in self.store.model.parameters()), sum(self.n_nonzero)


@contextmanager
def prune_streamed(
    store: BlockStore, batches: Batches, held: Batches, options: PruneOptions, save: Saved, progress: Progress = silent
) -> Iterator[tuple[PruningResult, Passage]]:
    """Prune the model of `store` block by block; `save(index)` is called when a block is as it will be.

    Gives the result and the passage of the `held` batches, whose states are in files that are gone with the context.

    Raises:
        As `prune`, and UsageError for what needs several blocks at a time.
    """
    refuse_unstreamable(options)
    if len(batches) < 2:
        raise UsageError("pruning needs at least two calibration batches", "give more --calibration-tokens")
    model, stack = store.model, store.stack
    anatomies = check(model, stack, options)
    with tempfile.TemporaryDirectory(prefix="cohom-") as name:
        folder = Path(name)
        with torch.no_grad():
            store.load(0)
            passage = Passage(model, stack, held, folder / "held")
            flow = Flow(model, stack, batches, Shelf(folder), Visitor(store, passage, save))
            result = prune_flow(Context(model, flow, options), stack, anatomies, progress)
        yield result, passage
