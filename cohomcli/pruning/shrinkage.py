"""How much the measured correlations are trusted: lambda of every map, chosen on calibration data held out for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cohomcli.pruning.solve import Problem

LAMBDAS = (0.1, 0.3, 0.6)  # what `--lambda auto` chooses from
ROWS = 64  # rows of a matrix that the choice is made on, evenly spaced
PROBE = (5, 2)  # ADMM steps of a choice

Solver = Callable[[Problem], Tensor]
Half = Callable[[], Iterable[tuple[Tensor, Tensor | None]]]


@dataclass(frozen=True)
class Held:
    """The half of the calibration data that no solution saw, as batches of (x, goal), each (tokens, width).

    `reads` says that the goal is what the map is to read, so that W applied to it is what it is to put out.
    """

    batches: Half
    reads: bool

    def losses(self, problems: Sequence[Problem], rows: Sequence[Tensor], solutions: Sequence[Tensor]) -> Tensor:
        """|goal - V x|^2 over the tokens of every batch, for every solution (rows, in) of its problem, of which `rows`
        were taken: (batches, solutions).
        """
        found = []
        for x, goal in self.batches():
            losses = []
            for problem, chosen, solution in zip(problems, rows, solutions, strict=True):
                if goal is None:
                    wanted = x @ problem.weight.T
                else:
                    wanted = goal @ problem.weight.T if self.reads else goal[:, chosen]
                losses.append(float((wanted - x @ solution.T).double().pow(2).sum()))
            found.append(losses)
        return torch.tensor(found, dtype=torch.float64)


@torch.inference_mode()
def choose_shrinks(fits: Sequence[Problem], solver: Solver, held: Held, rows: int = ROWS) -> list[float]:
    """The lambda of `LAMBDAS` for each of `fits`, problems of maps that read the same inputs on one half of the data,
    whose solution has the least loss on the `held` half, over so many rows of each (0: all).
    """
    chosen = [torch.arange(0, len(fit.weight), max(1, len(fit.weight) // rows) if rows else 1) for fit in fits]
    parts = [replace(fit.part(at), steps=PROBE) for fit, at in zip(fits, chosen, strict=True)]
    losses = []
    for shrink in LAMBDAS:  # outermost, because maps of one input share the factor of one lambda
        solutions = [solver(replace(part, shrink=shrink)) for part in parts]
        losses.append(held.losses(parts, chosen, solutions))
    return [most_shrunk(one) for one in torch.stack(losses).permute(2, 0, 1)]


def most_shrunk(losses: Tensor) -> float:
    """The largest lambda whose loss is within one standard error of the least (Breiman et al. 1984, section 3.4.3):
    what gains no more than chance on texts of this kind is not worth a risk on others. `losses` are (lambdas, batches).
    """
    means = losses.mean(1)
    best = int(means.argmin())
    error = float(losses[best].std(correction=1)) / losses.shape[1] ** 0.5 if losses.shape[1] > 1 else 0.0
    limit = float(means[best]) + error
    return max(shrink for shrink, loss in zip(LAMBDAS, means.tolist(), strict=True) if loss <= limit)
