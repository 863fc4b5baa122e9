"""Numbers whose roundings do not average out but follow from the plan: massive entries of residual streams.

A trained decoder's residual stream carries a few entries thousands of times larger than the rest (massive activations:
Sun et al. 2024). Layer after layer adds updates to them that are below half an ulp, alike for every text: in a narrow
format they are lost again and again, and the losses add up instead of cancelling. They also decide the norm of their
token. So these entries are followed through the sums of the stream and through the norms that they decide, under the
plan and with the recorded updates, which costs some hundred roundings of a few numbers. All other entries are many, and
random enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    shape = captured.graph.vertices[vertex].shape
    shown = [positions[a.index].expand(shape) for a in tensors]
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


# --- following --------------------------------------------------------------------------------------------------------


def roundings(found: Followed, plan: Plan) -> tuple[Array, Array]:
    """Every entry as the plan stores it and what its store added, both (T,), step by step."""
    stored, added = found.values.copy(), np.zeros(len(found.values))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a plan may leave the range
        for step in found.steps:
            here = slice(step.start, step.stop)
            exact = _exact(step, found.values, stored)
            kept = _store(exact, found.largest[here], plan.formats[step.vertex])
            stored[here], added[here] = kept, np.nan_to_num(kept - exact, nan=0.0, posinf=0.0, neginf=0.0)
    return stored, added


def _exact(step: Step, recorded: Array, stored: Array) -> Array:
    """A step's entries before they are stored."""
    here, reads = slice(step.start, step.stop), [stored[pick] for pick in step.picks]
    exact = recorded[here]
    if step.rule == "add":
        exact = np.sum(reads, axis=0) + step.constant
    elif step.rule == "mul":
        exact = np.prod(reads, axis=0) * step.constant
    elif step.rule == "pow":
        exact = np.power(reads[0], step.constant)
    elif step.rule == "rsqrt":
        exact = 1.0 / np.sqrt(reads[0])
    elif step.rule == "mean":
        change = reads[0] - recorded[step.picks[0]]
        exact = exact + step.constant * np.bincount(step.rows, change, step.stop - step.start)
    return exact


def _store(value: Array, largest: Array, fmt: str) -> Array:
    """`value` rounded to a format; int8 codes and what has no format to choose are taken as exact."""
    if not fmt or get_format(fmt).per_channel:
        return value
    if get_format(fmt).n_bytes > 1:
        return np.asarray(round_to(torch.from_numpy(value), fmt).numpy())
    scale: Array = np.array([choose_scale(torch.tensor(x), fmt) for x in largest])
    return np.asarray(round_to(torch.from_numpy(value / scale), fmt).numpy() * scale)


def squared_errors(found: Followed, plan: Plan) -> dict[int, float]:
    """Each followed vertex's share of the squared output error that the plan's roundings of the entries cause together.

    The shares add up to sum_i mean_k (sum_t g_kt . d_t)^2, t the entries of input i; one may be negative, where a
    rounding takes back another's error.
    """
    _, added = roundings(found, plan)
    projections = found.gradients * added  # (K, T)
    inputs = np.eye(found.example.max() + 1)[found.example]  # (T, n_inputs)
    together = projections @ inputs  # (K, n_inputs)
    shares = (projections * together[:, found.example]).mean(axis=0)  # (T,)
    total = np.bincount(found.vertex, shares)
    return {step.vertex: float(total[step.vertex]) for step in found.steps if step.rule}
