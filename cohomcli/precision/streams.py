"""Numbers whose roundings do not average out but follow from the plan: massive entries of residual streams.

A trained decoder's residual stream carries a few entries thousands of times larger than the rest (massive activations:
Sun et al. 2024). Layer after layer adds updates to them that are below half an ulp, alike for every text: in a narrow
format they are lost again and again, and the losses add up instead of cancelling. They also decide the norm of their
token. So these entries are followed through the sums of the stream and through the norms that they decide, under the
plan and with the recorded updates, which costs some hundred roundings of a few numbers. All other entries are many, and
random enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.precision.capture import Captured
from cohomcli.precision.formats import get_format
from cohomcli.precision.program import Slot, call
from cohomcli.precision.rounding import choose_scale, round_to
from cohomcli.precision.spec import Followed, Plan, Step

MIN_SUMS = 3  # fewer linked sums are a shortcut, not a stream
DOMINANT = 64.0  # an entry dominates when its mean square is this many times the tensor's
DECIDED = 0.5  # what is not followed may make up this part of a sum or a mean that is
MAX_ENTRIES = 256  # per tensor

Array = NDArray[np.float64]
_RULES = {
    "aten.add.Tensor": "add",
    "aten.mul.Tensor": "mul",
    "aten.pow.Tensor_Scalar": "pow",
    "aten.rsqrt.default": "rsqrt",
    "aten.mean.dim": "mean",
}


# --- single entries of an op ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formula:
    """Entries of an op's result as a function of single entries of its operands.

    Entry m reads position `reads[n][m]` of operand `operands[n]`; a mean reads the positions `reads[0][m, :]`.
    `constant` is the number among the arguments: addend, factor or exponent, and 1 / n for a mean.
    """

    rule: str
    operands: tuple[int, ...]
    reads: tuple[torch.Tensor, ...]
    constant: float

    def at(self, positions: torch.Tensor) -> Formula:
        """Of these entries alone."""
        return replace(self, reads=tuple(read[positions] for read in self.reads))


def formula(captured: Captured, vertex: int) -> Formula | None:
    """The op at `vertex` entry by entry, through whatever views lie before it; None for ops that are not followed."""
    v, layout = captured.graph.vertices[vertex], captured.layout
    rule = _RULES.get(v.target)
    if rule is None or v.fixed or v.mask_level:
        return None
    *views, last = (captured.program.instructions[n] for n in layout.cone[vertex])
    positions = {layout.slot[u]: _positions(captured.graph.vertices[u].shape) for u in v.operands}
    for view in views:
        if any(read not in positions for read in view.reads):
            return None
        positions[view.result] = call(view, positions, torch.float64)
    tensors = [a for a in last.args[:2] if isinstance(a, Slot) and a.index in positions]
    numbers = [float(a) for a in last.args[:2] if isinstance(a, (int, float))]
    roots = tuple(layout.root[a.index] for a in tensors)
    if rule == "mean":
        if list(last.args[1]) not in ([-1], [len(captured.graph.vertices[roots[0]].shape) - 1]):
            return None
        read = positions[tensors[0].index].long()
        return Formula(rule, roots, (read.reshape(-1, read.shape[-1]),), 1.0 / read.shape[-1])
    if last.kwargs or len(tensors) + len(numbers) != len(last.args):
        return None
    shown = torch.broadcast_tensors(*(positions[a.index] for a in tensors))
    neutral = 0.0 if rule == "add" else 1.0
    return Formula(rule, roots, tuple(s.long().flatten() for s in shown), numbers[0] if numbers else neutral)


def _positions(shape: Sequence[int]) -> torch.Tensor:
    """Every entry's flat position, as a tensor that views can be applied to."""
    return torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(tuple(shape))


def find_streams(captured: Captured) -> tuple[tuple[int, ...], ...]:
    """Chains of entrywise additions, each an operand of a later one: the residual streams, vertices in order."""
    graph = captured.graph
    first: dict[int, int] = {}  # a sum to the first sum of its stream
    for v in graph.vertices:
        operands = [graph.vertices[u] for u in v.operands]
        if v.target == "aten.add.Tensor" and len(operands) == 2 and all(u.numel == v.numel for u in operands):
            if any(u.fixed for u in operands) or not _entrywise(formula(captured, v.index)):
                continue
            before = [first[u] for u in v.operands if u in first]
            first[v.index] = before[0] if before else v.index
    chains = (tuple(v for v, start in first.items() if start == head) for head in dict.fromkeys(first.values()))
    return tuple(chain for chain in chains if len(chain) >= MIN_SUMS)


def _entrywise(found: Formula | None) -> bool:
    """Whether every result is of the same position in all operands."""
    return found is not None and all(bool((read == torch.arange(len(read))).all()) for read in found.reads)


# --- which entries ----------------------------------------------------------------------------------------------------


def dominant_entries(values: Mapping[int, torch.Tensor], stream: Sequence[int]) -> torch.Tensor:
    """Flat positions (M,) of the entries that dominate the stream's tensors, by their share of the sum of squares."""
    shares = torch.stack([_share(values[v]) for v in stream]).mean(dim=0)
    found = shares.topk(min(MAX_ENTRIES, shares.numel())).indices
    return found[shares[found] * shares.numel() > DOMINANT]


def _share(value: torch.Tensor) -> torch.Tensor:
    squares = value.flatten().double().square()
    return squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)


def decided(
    op: Formula, values: Mapping[int, torch.Tensor], known: Mapping[int, torch.Tensor], held: Sequence[bool]
) -> torch.Tensor:
    """Positions (M,) of the results that the entries `known` of the operands (and those `held`: weights) decide.

    A sum or mean may have up to half of its value from elsewhere; a product may not.
    """
    masks = []
    for u, read in zip(op.operands, op.reads, strict=True):
        mask = torch.zeros(values[u].numel(), dtype=torch.bool)
        mask[known.get(u, torch.zeros(0, dtype=torch.long))] = True
        masks.append(mask[read].reshape(len(read), -1))
    touched = torch.stack([mask.any(1) for mask in masks]).any(0)
    certain = [mask | held_here for mask, held_here in zip(masks, held, strict=True)]
    if op.rule not in ("add", "mean"):
        return (touched & torch.stack([c.all(1) for c in certain]).all(0)).nonzero().flatten()
    terms = [
        values[u].flatten()[read].double().reshape(len(read), -1) for u, read in zip(op.operands, op.reads, strict=True)
    ]
    whole = torch.stack([t.sum(1) for t in terms]).sum(0) + (op.constant if op.rule == "add" else 0.0)
    other = torch.stack([t.masked_fill(c, 0.0).sum(1) for t, c in zip(terms, certain, strict=True)]).sum(0)
    return (touched & (other.abs() <= DECIDED * whole.abs())).nonzero().flatten()


@dataclass
class _Example:
    """What is followed on one input: formulas of single entries, their values and adjoints, and what they read."""

    positions: dict[int, torch.Tensor]
    formulas: dict[int, Formula]
    values: Mapping[int, torch.Tensor]
    gradients: dict[int, torch.Tensor]
    leaves: dict[int, list[int]]


class Follower:
    """Finds the entries to follow on each input, collects their adjoints, and hands out what `follow` needs."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.vertices = captured.graph.vertices
        self.streams = find_streams(captured)
        self._examples: list[_Example] = []

    def begin(self, values: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Flat positions (M,) to follow per vertex, on an input with these recorded values."""
        positions: dict[int, torch.Tensor] = {}
        for stream in self.streams:
            if len(found := dominant_entries(values, stream)):
                positions.update(dict.fromkeys(stream, found))
        formulas: dict[int, Formula] = {}
        for v in self.vertices:
            if any(u in positions for u in v.operands) and (op := formula(self.captured, v.index)) is not None:
                if v.index not in positions:
                    held = [self.vertices[u].kind == "weight" for u in op.operands]
                    found = decided(op, values, positions, held)
                    if not 0 < len(found) <= MAX_ENTRIES:
                        continue
                    positions[v.index] = found
                formulas[v.index] = op.at(positions[v.index])
            elif v.index in positions and (op := formula(self.captured, v.index)) is not None:  # a stream's first sum
                formulas[v.index] = op.at(positions[v.index])
        self._examples.append(_Example(positions, formulas, {}, {}, {}))
        return positions
