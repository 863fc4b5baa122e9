"""What pruning one block needs of the whole pass: the streams, the options, and the maps done so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.models.memory import give_back
from cohomcli.pruning.moments import Moments
from cohomcli.pruning.options import CHAINED, SHRUNK, PruneOptions
from cohomcli.pruning.parts import Group, at
from cohomcli.pruning.pattern import Pattern
from cohomcli.pruning.results import PrunedMap
from cohomcli.pruning.shrinkage import ROWS, Held, Solver, choose_shrinks
from cohomcli.pruning.slicing import matrix
from cohomcli.pruning.solve import CHUNK, Factor, Problem
from cohomcli.pruning.stream import Flow

DEFAULT_SHRINK = 0.0
View = Callable[[str, Problem, Moments], Problem]


def as_it_is(path: str, problem: Problem, moments: Moments) -> Problem:
    """`problem`."""
    return problem


class Context:
    """The state of one pass. `pattern` is that of the block at hand."""

    def __init__(self, model: nn.Module, flow: Flow, options: PruneOptions) -> None:
        self.model, self.flow, self.options = model, flow, options
        self.pattern: Pattern = options.pattern
        # channels and heads fit their own output: aiming at the dense state costs more out of domain than it gains
        self.chained = options.method in CHAINED and options.pattern.kind not in ("mlp", "heads")
        flow.keeps_goals = self.chained
        self.maps: list[PrunedMap] = []

    def moments(
        self, block: nn.Module, group: Group, solver: Solver, rows: int = ROWS, view: View = as_it_is
    ) -> tuple[Moments, list[float]]:
        """Moments of all batches at `group`, and lambda of each of its maps, chosen (on so many rows of the matrix, 0:
        on all) before the second half of the batches is added. `view` is how the choice sees the problem of a path.
        """
        self.flow.gather(group)
        give_back()
        every = range(self.flow.n_batches)
        moments = Moments(group, self.flow, self.chained)
        if self.options.shrink is not None or self.options.method not in SHRUNK:
            shrink = DEFAULT_SHRINK if self.options.shrink is None else self.options.shrink
            return moments.add(every), [shrink] * len(group.paths)
        moments.add(every[::2])
        give_back()
        factor = Factor()
        fits = [view(path, self.problem(at(block, path), moments, factor), moments) for path in group.paths]
        held = Held(lambda: self.pairs(group, every[1::2]), group.role == "reader")
        shrinks = choose_shrinks(fits, solver, held, rows)
        del fits, factor
        give_back()
        moments.add(every[1::2])
        give_back()
        return moments, shrinks

    def pairs(self, group: Group, batches: Sequence[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What `group` reads on the pruned stream, and what it is to put out for the dense state (None: as it does)."""
        for batch in batches:
            yield self.flow.inputs(group, batch), self.flow.goal(group, batch) if self.chained else None

    def problem(self, module: Any, moments: Moments, factor: Factor) -> Problem:
        """The problem of one map of the group that `moments` belong to."""
        weight, gram, cross = matrix(module).float(), moments.gram, moments.cross
        if cross is None:
            target = weight @ gram
        elif moments.group.role == "reader":
            target = weight @ cross
        else:
            target = cross
        seed = self.options.seed + len(self.maps)
        allowed = weight != 0 if self.options.nested else None
        return Problem(weight, gram, target, self.pattern, seed=seed, factor=factor, allowed=allowed)

    def note(self, name: str, problem: Problem, solution: Tensor, rank: int | None = None) -> None:
        """Remember what became of the map `name`; with `rank` it is a product of two maps."""
        total = lost = 0.0
        for old, new in zip(torch.split(problem.weight, CHUNK), torch.split(solution, CHUNK), strict=True):
            change = old - new
            total += float(((old @ problem.gram) * old).sum())
            lost += float(((change @ problem.gram) * change).sum())
        sparsity = 1 - int(solution.count_nonzero()) / solution.numel()
        shape = (problem.weight.shape[0], problem.weight.shape[1])
        if rank is not None:
            sparsity = 1 - rank * sum(shape) / (shape[0] * shape[1])
        self.maps.append(PrunedMap(name, shape, sparsity, problem.shrink, lost / max(total, 1e-300), rank))


def widened(weight: Tensor, kept: Tensor, width: int) -> Tensor:
    """`weight` (out, k) on the columns `kept` of an (out, width) matrix of zeros."""
    whole = torch.zeros(weight.shape[0], width, dtype=weight.dtype)
    whole[:, kept] = weight
    return whole
