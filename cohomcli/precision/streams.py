"""Dominant entries of residual streams, whose roundings do not average out but follow from the plan.

A trained decoder's residual stream carries a few entries thousands of times larger than the rest (massive activations:
Sun et al. 2024). Layer after layer adds updates to them that are below half an ulp, alike for every text: in a narrow
format they are lost again and again, and the losses add up instead of cancelling. So these entries are followed through
the stream's sums under the plan, with the recorded updates, which costs some hundred roundings of a few numbers; all
other entries are many, and random enough.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.precision.capture import Captured
from cohomcli.precision.formats import get_format
from cohomcli.precision.rounding import choose_scale, round_to
from cohomcli.precision.spec import Plan, Stream

MIN_SUMS = 3  # fewer linked sums are a shortcut, not a stream
DOMINANT = 64.0  # an entry dominates when its mean square is this many times the tensor's
MAX_ENTRIES = 256  # per input
_SAME_ORDER = re.compile(
    r"aten\.(view|_unsafe_view|reshape|contiguous|clone|to|dropout|alias|detach|unsqueeze|squeeze)\."
)
Array = NDArray[np.float64]


def find_streams(captured: Captured) -> tuple[tuple[int, ...], ...]:
    """Chains of additions of one size, each an operand of a later one: the residual streams, vertices in order."""
    graph = captured.graph
    first: dict[int, int] = {}  # a sum to the first sum of its stream
    for v in graph.vertices:
        operands = [graph.vertices[u] for u in v.operands]
        alike = len(operands) == 2 and all(not u.fixed and u.numel == v.numel for u in operands)
        if v.target != "aten.add.Tensor" or v.fixed or v.mask_level or not alike or not _entrywise(captured, v.index):
            continue
        before = [first[u] for u in v.operands if u in first]
        first[v.index] = before[0] if before else v.index
    chains = (tuple(v for v, start in first.items() if start == head) for head in dict.fromkeys(first.values()))
    return tuple(chain for chain in chains if len(chain) >= MIN_SUMS)


def _entrywise(captured: Captured, vertex: int) -> bool:
    """Whether a sum adds the entries of its operands in their stored order, without a factor."""
    *views, addition = (captured.program.instructions[n] for n in captured.layout.cone[vertex])
    return not addition.kwargs and all(_SAME_ORDER.match(view.op) for view in views)


def dominant_entries(values: Mapping[int, torch.Tensor], stream: Sequence[int]) -> torch.Tensor:
    """Flat positions (M,) of the entries that dominate the stream's tensors, by their share of the sum of squares."""
    shares = torch.stack([_share(values[v]) for v in stream]).mean(dim=0)
    found = shares.topk(min(MAX_ENTRIES, shares.numel())).indices
    return found[shares[found] * shares.numel() > DOMINANT].sort().values


def _share(value: torch.Tensor) -> torch.Tensor:
    squares = value.flatten().double().square()
    return squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)


# --- collecting -------------------------------------------------------------------------------------------------------


@dataclass
class _Entries:
    """The dominant entries of one stream on one input: values per vertex, its largest magnitude, adjoints per sum."""

    positions: torch.Tensor
    values: dict[int, Array]
    largest: dict[int, float]
    gradients: dict[int, Array]


class Follower:
    """Finds the dominant entries of every stream on each input, and takes their adjoints."""

    def __init__(self, captured: Captured) -> None:
        self.streams = find_streams(captured)
        self.sums = [tuple((v, *captured.graph.vertices[v].operands) for v in stream) for stream in self.streams]
        self._found: list[list[_Entries]] = [[] for _ in self.streams]  # per stream and input

    def begin(self, values: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Flat positions (M,) of the dominant entries per sum that has any, on a new input's recorded values."""
        positions: dict[int, torch.Tensor] = {}
        for stream, sums, found in zip(self.streams, self.sums, self._found, strict=True):
            entries = dominant_entries(values, stream)
            involved = dict.fromkeys(u for line in sums for u in line)
            found.append(
                _Entries(
                    positions=entries,
                    values={u: values[u].flatten()[entries].double().numpy() for u in involved},
                    largest={u: float(values[u].abs().max()) for u in involved},
                    gradients={},
                )
            )
            positions.update(dict.fromkeys(stream, entries) if len(entries) else {})
        return positions

    def take(self, vertex: int, gradients: torch.Tensor) -> None:
        """The adjoints (K, M) of the entries at a sum, on the input begun last."""
        for stream, found in zip(self.streams, self._found, strict=True):
            if vertex in stream:
                found[-1].gradients[vertex] = gradients.double().numpy()

    def result(self, n_probes: int) -> tuple[Stream, ...]:
        """The streams that have dominant entries, those of all inputs in one row."""
        return tuple(
            _joined(sums, found, n_probes)
            for sums, found in zip(self.sums, self._found, strict=True)
            if any(len(entries.positions) for entries in found)
        )


def _joined(sums: tuple[tuple[int, ...], ...], found: Sequence[_Entries], n_probes: int) -> Stream:
    sizes = [len(entries.positions) for entries in found]
    none = [np.zeros((n_probes, size)) for size in sizes]
    return Stream(
        sums=sums,
        example=np.repeat(np.arange(len(found)), sizes),
        values={u: np.concatenate([entries.values[u] for entries in found]) for u in found[0].values},
        largest={u: np.repeat([entries.largest[u] for entries in found], sizes) for u in found[0].largest},
        gradients=np.stack(
            [
                np.concatenate([e.gradients.get(v, zero) for e, zero in zip(found, none, strict=True)], axis=1)
                for v, *_ in sums
            ]
        ),
    )


# --- following --------------------------------------------------------------------------------------------------------


def projections(stream: Stream, plan: Plan, n_inputs: int) -> Array:
    """<g_k, d> (n_sums, n_inputs, K) of the plan's roundings d of each sum's dominant entries, input by input."""
    inputs = np.eye(n_inputs)[stream.example]  # (T, n_inputs)
    found: Array = ((stream.gradients * roundings(stream, plan)[:, None, :]) @ inputs).swapaxes(1, 2)
    return found


def roundings(stream: Stream, plan: Plan) -> Array:
    """What storing each sum under the plan adds to its entries, (n_sums, T), one sum after the other."""
    stored: dict[int, Array] = {}
    added = []
    with np.errstate(over="ignore", invalid="ignore"):  # a plan may leave the range
        for v, *operands in stream.sums:
            for u in operands:
                if u not in stored:
                    stored[u] = _store(stream.values[u], stream.largest[u], plan.formats[u])
            exact = np.sum([stored[u] for u in operands], axis=0)
            stored[v] = _store(exact, stream.largest[v], plan.formats[v])
            added.append(np.nan_to_num(stored[v] - exact, nan=0.0, posinf=0.0, neginf=0.0))
    return np.stack(added)


def _store(value: Array, largest: Array, fmt: str) -> Array:
    """`value` rounded to a format; eight-bit floats with the scale that the largest entry of the whole tensor asks for.

    Weights in int8 and what has no format to choose are taken as exact.
    """
    if not fmt or get_format(fmt).per_channel:
        return value
    if get_format(fmt).n_bytes > 1:
        return np.asarray(round_to(torch.from_numpy(value), fmt).numpy())
    scale: Array = np.array([choose_scale(torch.tensor(x), fmt) for x in largest])
    return np.asarray(round_to(torch.from_numpy(value / scale), fmt).numpy() * scale)
