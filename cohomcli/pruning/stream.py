"""Calibration data flowing through a model block by block, twice: as it was, and as pruned so far.

A block runs once on the dense stream, before anything of it is pruned. On the pruned stream it runs up to each group of
maps in turn; what the attention gave is put in its place again, so that the pruned pass costs little more than one run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.calls import uncached
from cohomcli.models.layout import Stack, block_input, first_tensor
from cohomcli.models.memory import give_back
from cohomcli.pruning.parts import Anatomy, Group, at
from cohomcli.pruning.shelf import Shelf

DENSE, PRUNED = "dense", "pruned"


class _Enough(Exception):
    """Everything that was asked of a forward pass has been seen."""


@dataclass(frozen=True)
class Call:
    """What one block is called with besides the hidden states; the same for all batches, which have one shape."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Resident(Protocol):
    """Who has the weights of blocks that are not in memory all the time."""

    def bring(self, index: int) -> None:
        """The block `index` is about to be pruned."""

    def take_away(self, index: int) -> None:
        """The block `index` is pruned, and no longer needed."""

    def counts(self) -> tuple[int, int]:
        """Parameters of the model, and how many are not zero."""


class InMemory:
    """All blocks of `model` are in memory."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def bring(self, index: int) -> None:
        """It is there."""

    def take_away(self, index: int) -> None:
        """It stays."""

    def counts(self) -> tuple[int, int]:
        """Parameters of the model, and how many are not zero."""
        parameters = list(self.model.parameters())
        return sum(p.numel() for p in parameters), sum(int(p.count_nonzero()) for p in parameters)


class Flow:
    """Both streams at the door of one block after another; tensors on the shelf are (tokens, width)."""

    def __init__(
        self,
        model: nn.Module,
        stack: Stack,
        batches: Sequence[dict[str, Tensor]],
        shelf: Shelf,
        resident: Resident | None = None,
    ) -> None:
        self.shelf, self.resident, self.index = shelf, resident or InMemory(model), 0
        self.keeps_goals = True
        self.n_batches = len(batches)
        self.shape, self.calls = first_calls(stack, batches, shelf)
        self.block: nn.Module
        self.call: Call
        self.anatomy: Anatomy
        self.adds = True  # the block's output is what its attention and its MLP add to its input
        self.gathered: set[str] = set()

    @property
    def n_tokens(self) -> int:
        """Tokens of all batches."""
        return self.n_batches * self.shape[0] * self.shape[1]

    @torch.inference_mode()
    def enter(self, index: int, block: nn.Module, anatomy: Anatomy) -> None:
        """Run the still dense `block` on the dense stream and keep what its maps read and write."""
        self.resident.bring(index)
        self.index, self.block, self.anatomy, self.call = index, block, anatomy, self.calls[index]
        self.gathered.clear()
        for batch in range(self.n_batches):
            give_back()  # an MLP leaves a dozen buffers of its width behind
            self.shelf.drop(f"{self._attention.key}.x", batch)  # the block's before
            hidden = self.hidden(DENSE, batch)
            seen: dict[str, Tensor] = {}
            with _hooks() as handles:
                for group in anatomy.groups:
                    handles += _listen(at(block, group.paths[0]), group, seen)
                output = run_block(block, hidden, self.call).flatten(0, -2)
            _refuse_non_finite(output)
            self._keep_dense(batch, hidden.flatten(0, -2), seen, output)
        give_back()

    def _keep_dense(self, batch: int, hidden: Tensor, seen: dict[str, Tensor], output: Tensor) -> None:
        middle = hidden + seen[f"{self._attention.key}.out"]
        base = seen[f"{self._channel_reader.key}.in"] if self.anatomy.post_norm else middle
        last = base + seen[f"{self._mlp.key}.out"]
        if batch == 0 and not self.anatomy.post_norm:
            self.adds = bool(torch.allclose(last, output, rtol=1e-3, atol=1e-3 * float(output.abs().mean())))
        for group in self.anatomy.groups if self.keeps_goals else ():
            if group.role == "reader":
                goal = seen[f"{group.key}.in"]
            elif self.restores:
                goal = middle if group.role == "attention" else last
            else:
                goal = seen[f"{group.key}.out"]
            self.shelf.put(f"{group.key}.dense", batch, goal)
        self.shelf.put(f"{DENSE}.next", batch, output)

    @property
    def restores(self) -> bool:
        """Whether a writer can aim at the dense residual state: what it writes is added to the stream as it is."""
        return self.adds or self.anatomy.post_norm

    @property
    def _channel_reader(self) -> Group:
        return next(group for group in self.anatomy.groups if self.anatomy.channels[0] in group.paths)

    @property
    def _attention(self) -> Group:
        return next(group for group in self.anatomy.groups if group.role == "attention")

    @property
    def _mlp(self) -> Group:
        return self.anatomy.mlp

    @torch.inference_mode()
    def gather(self, group: Group) -> None:
        """Run the block, pruned as far as it is, on the pruned stream up to `group`; its inputs go onto the shelf."""
        self.gathered.add(group.key)
        for batch in range(self.n_batches):
            give_back()
            hidden = self.hidden(PRUNED, batch)
            seen: dict[str, Tensor] = {}

            def catch(module: nn.Module, args: tuple[Any, ...], seen: dict[str, Tensor] = seen) -> None:
                seen["x"] = args[0].flatten(0, -2)
                raise _Enough

            def reads(module: nn.Module, args: tuple[Any, ...], seen: dict[str, Tensor] = seen) -> None:
                seen["mlp"] = args[0].flatten(0, -2)

            def attends(module: nn.Module, args: tuple[Any, ...], batch: int = batch) -> None:
                self.shelf.put(f"{self._attention.key}.x", batch, args[0].flatten(0, -2))

            with _hooks() as handles, suppress(_Enough), self._attention_again(group, batch):
                handles.append(at(self.block, self.anatomy.channels[0]).register_forward_pre_hook(reads))
                if not self._attention_seen(batch):
                    handles.append(at(self.block, self._attention.paths[0]).register_forward_pre_hook(attends))
                handles.append(at(self.block, group.paths[0]).register_forward_pre_hook(catch))
                run_block(self.block, hidden, self.call)
            _refuse_non_finite(seen["x"])
            if group.role != "attention":
                self.shelf.put(f"{group.key}.x", batch, seen["x"])
            if group.role == "mlp" and self.anatomy.post_norm:
                self.shelf.put("middle", batch, seen["mlp"])

    @torch.inference_mode()
    def cross(self, index: int, block: nn.Module) -> None:
        """Let the dense stream pass a further block, one that is not there on the pruned side; the MLP's last map of
        the block that was entered now aims at the state behind it.
        """
        for batch in range(self.n_batches):
            output = run_block(block, self.hidden(f"{DENSE}.next", batch), self.calls[index]).flatten(0, -2)
            self.shelf.put(f"{DENSE}.next", batch, output)
            if self.keeps_goals and self.adds:
                self.shelf.put(f"{self._mlp.key}.dense", batch, output)

    def goal(self, group: Group, batch: int) -> Tensor:
        """What `group` is to put out (tokens, out) so that the square with the dense model commutes; of a reader what
        it is to read (tokens, in).
        """
        goal = self.shelf.get(f"{group.key}.dense", batch)
        if group.role == "reader":
            return goal
        if self.restores:
            goal = goal - self._residual(group, batch)
        bias = getattr(at(self.block, group.paths[0]), "bias", None)
        return goal if bias is None else goal - bias.detach()

    def inputs(self, group: Group, batch: int) -> Tensor:
        """What `group` reads on the pruned stream, (tokens, in)."""
        return self.shelf.get(f"{group.key}.x", batch)

    @torch.inference_mode()
    def leave(self, kept: Tensor | None = None) -> float:
        """Let both streams pass the pruned block; returns E|h - h'|^2 / E|h|^2 behind it. `kept` are the inputs of the
        MLP's last map that are left of those that were gathered.
        """
        moved = total = 0.0
        last = self._mlp
        known = self.adds and not self.anatomy.post_norm and last.key in self.gathered
        give_back()
        for batch in range(self.n_batches):
            if known:
                x = self.inputs(last, batch)
                output = self._residual(last, batch) + self._written(last, x if kept is None else x[:, kept])
            else:
                output = run_block(self.block, self.hidden(PRUNED, batch), self.call).flatten(0, -2)
            _refuse_non_finite(output)
            self.shelf.put(PRUNED, batch, output)
            self.shelf.move(f"{DENSE}.next", DENSE, batch)
            dense = self.shelf.get(DENSE, batch)
            moved += float((dense - output).double().pow(2).sum())
            total += float(dense.double().pow(2).sum())
        self.resident.take_away(self.index)
        return moved / max(total, 1e-300)

    def _residual(self, group: Group, batch: int) -> Tensor:
        """The stream that a writer adds to, (tokens, d)."""
        if group.role == "attention":
            return self.shelf.get(PRUNED, batch)
        if self.anatomy.post_norm:
            return self.shelf.get("middle", batch)
        return self.shelf.get(PRUNED, batch) + self._attended(batch)

    def _written(self, group: Group, x: Tensor) -> Tensor:
        """What a writer makes of its inputs (tokens, in)."""
        module = at(self.block, group.paths[0])
        if group.paths[0] == self.anatomy.experts:  # a mixture takes batches
            x = x.reshape(self.shape)
        return first_tensor(module(x)).flatten(0, -2)

    def _attended(self, batch: int) -> Tensor:
        """What the attention of the pruned block adds, from the inputs of its last map."""
        return self._written(self._attention, self.inputs(self._attention, batch))

    @contextmanager
    def _attention_again(self, group: Group, batch: int) -> Iterator[None]:
        """Behind the attention: inside, its module gives what is known already and computes nothing."""
        path = self.anatomy.attention
        behind = self.anatomy.groups.index(group) > self.anatomy.groups.index(self._attention)
        if path is None or not self.adds or not behind or not self._attention_seen(batch):
            yield
            return
        module = at(self.block, path)
        known = self._attended(batch).reshape(self.shape)
        module.forward = lambda *args, **kwargs: (known, None)
        try:
            yield
        finally:
            del module.forward

    def _attention_seen(self, batch: int) -> bool:
        return self.shelf.has(f"{self._attention.key}.x", batch)

    def hidden(self, name: str, batch: int) -> Tensor:
        """A stream at the door of the block, (B, T, d)."""
        return self.shelf.get(name, batch).reshape(self.shape)


@torch.inference_mode()
def first_calls(stack: Stack, batches: Sequence[dict[str, Tensor]], shelf: Shelf) -> tuple[tuple[int, ...], list[Call]]:
    """Shape (B, T, d) of the hidden states and what every block is called with. Only what comes before the blocks is
    computed, and the first block once, whose output stands for that of all others: no call depends on its values.
    """
    shapes: list[tuple[int, ...]] = []
    calls: list[Call] = []
    options = uncached(stack.module)

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = block_input(args, kwargs)
        for stream in (DENSE, PRUNED):
            shelf.put(stream, len(shapes), hidden.flatten(0, -2))
        shapes.append(tuple(hidden.shape))

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(calls) < len(stack.blocks):
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append(Call(args[1:], rest))
        if len(calls) == len(stack.blocks):
            raise _Enough

    with _hooks() as handles, _answering(stack.blocks):
        handles.append(stack.blocks[0].register_forward_pre_hook(enters, with_kwargs=True))
        handles += [block.register_forward_pre_hook(note, with_kwargs=True) for block in stack.blocks]
        for batch in batches:
            with suppress(_Enough):
                stack.module(**batch, **options)
    give_back()
    return shapes[0], calls


@contextmanager
def _answering(blocks: Sequence[Any]) -> Iterator[None]:
    """Inside, all blocks but the first compute nothing and give what the first gave."""
    found: list[Any] = []
    handle = blocks[0].register_forward_hook(lambda module, args, output: found.append(output))
    for block in blocks[1:]:
        block.forward = lambda *args, **kwargs: found[0]
    try:
        yield
    finally:
        handle.remove()
        for block in blocks[1:]:
            del block.forward


def run_block(block: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """One call of `block` on `hidden` (B, T, d)."""
    return first_tensor(block(hidden, *call.args, **call.kwargs))


def _listen(module: nn.Module, group: Group, seen: dict[str, Tensor]) -> list[Any]:
    """Hooks that note what goes into the group (of readers) or comes out of it (of writers)."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[f"{group.key}.in"] = args[0].flatten(0, -2)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen[f"{group.key}.out"] = first_tensor(output).flatten(0, -2)

    if group.role == "reader":
        return [module.register_forward_pre_hook(before)]
    return [module.register_forward_hook(after)]


def _refuse_non_finite(tensor: Tensor) -> None:
    if not math.isfinite(float(tensor.sum())):  # one NaN or infinity makes the sum one, far cheaper than a mask
        raise AnalysisIncomplete("activations on the calibration texts are not finite", "check the model and its texts")


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
