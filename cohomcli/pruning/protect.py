"""Weights that must stay: their maps are pruned around them, and the rest gives up more so that the total is met.

Protected rows are left out of the problem; they have no part in the other rows' losses. Protected columns W_p stay as
they are, and the loss tr(V H V^T) - 2 tr(T V^T) of the others V_u is, up to a constant, that of the smaller problem
with Gram H_uu and target T_u - W_p H_pu: every method solves it as it solves any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cohomcli.errors import UsageError
from cohomcli.pruning.pattern import Pattern
from cohomcli.pruning.solve import Factor, Problem

Shape = tuple[int, int]


@dataclass(frozen=True)
class Kept:
    """Rows (outputs) and columns (inputs) of one map that stay dense and unchanged, sorted indices."""

    rows: Tensor
    columns: Tensor

    def count(self, shape: Shape) -> int:
        """Weights that stay, of a map of this shape."""
        r, c = len(self.rows), len(self.columns)
        return r * shape[1] + c * shape[0] - r * c


class Guard:
    """Prunes maps around what is kept; one for a pass, since it carries what rounding left over to the next map."""

    def __init__(self, kept: Mapping[str, Kept], shapes: Mapping[str, Shape], pattern: Pattern) -> None:
        """`kept` and `shapes` (out, in) by name, `shapes` of all maps that are pruned.

        Raises:
            UsageError: a pattern without room for exceptions, or so much is kept that the sparsity cannot be met.
        """
        self.kept = {name: kept[name] for name in kept if name in shapes}
        if not self.kept:
            return
        if pattern.kind not in ("rows", "layer"):
            raise UsageError(f"--protect cannot be combined with the pattern {pattern}", "use 0.5 or layer:0.5")
        total = sum(out * n_in for out, n_in in shapes.values())
        spared = sum(one.count(shapes[name]) for name, one in self.kept.items())
        self.rate = pattern.sparsity * total / max(total - spared, 1)
        self.owed = 0.0
        if not self.rate < 1:
            raise UsageError(
                f"the circuit holds {spared / total:.1%} of the weights: {pattern.sparsity:.1%} cannot go outside it",
                "choose a lower sparsity or a smaller circuit",
            )

    def solve(self, name: str, problem: Problem, solver: Callable[[Problem], Tensor]) -> Tensor:
        """(out, in): the solution of `problem` for the map `name`, in which what is kept is as it was."""
        if not self.kept:
            return solver(problem)
        out, n_in = problem.weight.shape
        one = self.kept.get(name)
        rows = _others(out, one.rows if one else ())
        columns = _others(n_in, one.columns if one else ())
        solution = problem.weight.clone()
        if not len(rows) or not len(columns):
            return solution
        smaller = reduced(problem, rows, columns)
        wanted = self.rate * smaller.weight.numel() + self.owed
        groups, size = _rows_and_width(smaller)
        count = min(max(round(wanted / groups), 0), size - 1)
        self.owed = wanted - count * groups
        # patterns round down: a little more than the whole number of weights that is meant
        solution[rows[:, None], columns] = solver(replace(smaller, pattern=_exactly(smaller.pattern, count, size)))
        return solution


def _rows_and_width(problem: Problem) -> tuple[int, int]:
    """How many groups of weights are compared among themselves, and how many weights each has."""
    out, n_in = problem.weight.shape
    return (out, n_in) if problem.pattern.kind == "rows" else (1, out * n_in)


def _exactly(pattern: Pattern, count: int, size: int) -> Pattern:
    return replace(pattern, sparsity=(count + 1e-6) / size)


def reduced(problem: Problem, rows: Tensor, columns: Tensor) -> Problem:
    """The problem of the weights in `rows` and `columns` when all others keep their values."""
    if len(columns) == problem.weight.shape[1]:  # the same inputs, so what was factorised of their Gram still holds
        return problem.part(rows)
    fixed = torch.ones(problem.weight.shape[1], dtype=torch.bool, device=problem.weight.device)
    fixed[columns] = False
    weight = problem.weight[rows]
    target = problem.target[rows][:, columns] - weight[:, fixed] @ problem.gram[fixed][:, columns]
    gram = problem.gram[columns][:, columns]
    allowed = None if problem.allowed is None else problem.allowed[rows][:, columns]
    return replace(problem, weight=weight[:, columns], gram=gram, target=target, factor=Factor(), allowed=allowed)


def kept_of(slices: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, Kept]:
    """`Kept` by name from (name, rows, columns)."""
    return {name: Kept(rows, columns) for name, rows, columns in slices}


def _others(size: int, indices: Tensor | tuple[()]) -> Tensor:
    free = torch.ones(size, dtype=torch.bool)
    if len(indices):
        free[indices] = False
    return free.nonzero().flatten()
