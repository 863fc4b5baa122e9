"""Collects the entries that `precision.streams` follows, with their adjoints, over all inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.precision.capture import Captured
from cohomcli.precision.spec import Followed, Step
from cohomcli.precision.streams import MAX_ENTRIES, Formula, decided, dominant_entries, find_streams, formula


@dataclass(frozen=True)
class _Block:
    """Entries of one vertex on one input: positions, recorded values, the largest magnitude of their whole tensor.

    `op` says how they come from others and `gradients` are theirs; both are None for entries that are only read.
    """

    positions: torch.Tensor
    values: NDArray[np.float64]
    largest: float
    op: Formula | None = None
    gradients: NDArray[np.float64] | None = None


class Follower:
    """Finds the entries to follow on each input, takes their adjoints, and lays all out in one row."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.vertices = captured.graph.vertices
        self.streams = find_streams(captured)
        self._steps: list[dict[int, _Block]] = []  # per input
        self._leaves: list[dict[int, _Block]] = []

    def begin(self, values: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Flat positions (M,) to follow per vertex, on a new input with these recorded values."""
        positions: dict[int, torch.Tensor] = {}
        for stream in self.streams:
            if len(found := dominant_entries(values, stream)):
                positions.update(dict.fromkeys(stream, found))
        steps: dict[int, _Block] = {}
        for v in self.vertices:
            if v.index not in positions and not any(u in positions for u in v.operands):
                continue
            if (op := formula(self.captured, v.index)) is None:
                continue
            if v.index not in positions:
                held = [self.vertices[u].kind == "weight" for u in op.operands]
                positions[v.index] = decided(op, values, positions, held)
            if 0 < len(positions[v.index]) <= MAX_ENTRIES:
                steps[v.index] = _block(values[v.index], positions[v.index], op.at(positions[v.index]))
            else:
                del positions[v.index]
        self._steps.append(steps)
        self._leaves.append(_leaves(steps, values))
        return positions

    def take(self, vertex: int, gradients: torch.Tensor) -> None:
        """The adjoints (K, M) of the entries followed at `vertex` on the input begun last."""
        blocks = self._steps[-1]
        blocks[vertex] = replace(blocks[vertex], gradients=gradients.double().numpy())

    def result(self, n_probes: int) -> Followed | None:
        """All that is followed, inputs together; None when nothing is."""
        return _Row(self._leaves, self._steps, n_probes).followed() if any(self._steps) else None


def _block(value: torch.Tensor, positions: torch.Tensor, op: Formula | None = None) -> _Block:
    return _Block(positions, value.flatten()[positions].double().numpy(), float(value.abs().max()), op)


def _leaves(steps: Mapping[int, _Block], values: Mapping[int, torch.Tensor]) -> dict[int, _Block]:
    """The entries that steps read and that are not followed; those of a mean stay as recorded and are left out."""
    wanted: dict[int, set[int]] = {}
    for block in steps.values():
        if block.op is None or block.op.rule == "mean":
            continue
        for u, read in zip(block.op.operands, block.op.reads, strict=True):
            followed = set(steps[u].positions.tolist()) if u in steps else set()
            wanted.setdefault(u, set()).update(set(read.tolist()) - followed)
    return {u: _block(values[u], torch.tensor(sorted(found))) for u, found in sorted(wanted.items()) if found}


class _Row:
    """Lays out the blocks of all inputs, leaves first, then vertex by vertex: a step handles all inputs at once."""

    def __init__(self, leaves: list[dict[int, _Block]], steps: list[dict[int, _Block]], n_probes: int) -> None:
        self.n_probes = n_probes
        self.blocks: list[tuple[int, int, _Block]] = []  # (vertex, input, block)
        for kind in (leaves, steps):
            for vertex in sorted({v for blocks in kind for v in blocks}):
                self.blocks += [(vertex, n, blocks[vertex]) for n, blocks in enumerate(kind) if vertex in blocks]
        self.place: dict[tuple[int, int, int], int] = {}  # (input, vertex, position) to its place in the row
        for vertex, n, block in self.blocks:
            for position in block.positions.tolist():
                self.place[n, vertex, position] = len(self.place)

    def followed(self) -> Followed:
        sizes = [len(block.values) for *_, block in self.blocks]
        return Followed(
            vertex=np.repeat([vertex for vertex, *_ in self.blocks], sizes),
            example=np.repeat([n for _, n, _ in self.blocks], sizes),
            values=np.concatenate([block.values for *_, block in self.blocks]),
            largest=np.repeat([block.largest for *_, block in self.blocks], sizes),
            gradients=np.concatenate([self._gradients(block) for *_, block in self.blocks], axis=1),
            steps=self._steps(),
        )

    def _gradients(self, block: _Block) -> NDArray[np.float64]:
        return np.zeros((self.n_probes, len(block.values))) if block.gradients is None else block.gradients

    def _steps(self) -> tuple[Step, ...]:
        """One step per vertex; leaves are steps that read nothing."""
        steps: list[Step] = []
        start = 0
        for (vertex, _), group in groupby(self.blocks, key=lambda entry: (entry[0], entry[2].op is None)):
            members = list(group)
            stop = start + sum(len(block.values) for *_, block in members)
            op = members[0][2].op
            if op is None:
                steps.append(Step(vertex, "", start, stop))
            else:
                picks, rows = self._picks(members, len(op.operands))
                steps.append(Step(vertex, op.rule, start, stop, picks, rows, op.constant))
            start = stop
        return tuple(steps)

    def _picks(
        self, members: Sequence[tuple[int, int, _Block]], n_operands: int
    ) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.int64]]:
        """Places that a vertex's entries read, per operand, and the number of the entry that each belongs to."""
        picks: list[list[int]] = [[] for _ in range(n_operands)]
        rows: list[int] = []
        before = 0
        for _, n, block in members:
            assert block.op is not None
            reads = [read.reshape(len(read), -1).tolist() for read in block.op.reads]
            for m in range(len(block.values)):
                found: list[int] = []
                for pick, u, read in zip(picks, block.op.operands, reads, strict=True):
                    found = [self.place[n, u, p] for p in read[m] if (n, u, p) in self.place]
                    pick += found
                rows += [before + m] * len(found)
            before += len(block.values)
        return tuple(np.array(pick, dtype=np.int64) for pick in picks), np.array(rows, dtype=np.int64)
