"""The effect of every component on the metric: by attribution, by integrated attribution, or exactly by patching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cohomcli.circuits.batches import Side
from cohomcli.circuits.faithfulness import Bench
from cohomcli.circuits.results import Agreement, CircuitOptions
from cohomcli.progress import Progress, silent
from cohomcli.registry import Registry

METHODS = Registry("attribution method")
Method = Callable[[Bench, CircuitOptions, Progress], Tensor]
"""Gives (N, n): the effect of every component on every pair."""
STEP = "patch"
_TOKENS = 4096


@METHODS.register("attribution")
def attribution(bench: Bench, options: CircuitOptions, progress: Progress) -> Tensor:
    """First order at side `base` (Nanda 2023, attribution patching; Syed, Rager, Conmy 2023, arXiv:2310.10348)."""
    return _first_order(bench, options, 0, progress)


@METHODS.register("integrated")
def integrated(bench: Bench, options: CircuitOptions, progress: Progress) -> Tensor:
    """Gradients averaged over `options.steps` points of the path between both sides (Hanna et al. 2024, 2403.17806)."""
    return _first_order(bench, options, options.steps, progress)


@METHODS.register("exact")
def exact(bench: Bench, options: CircuitOptions, progress: Progress) -> Tensor:
    """One forward pass with every component exchanged in turn (Vig et al. 2020, arXiv:2004.12265)."""
    return exact_effects(bench, options, range(len(bench.graph.components)), progress)


def _first_order(bench: Bench, options: CircuitOptions, steps: int, progress: Progress) -> Tensor:
    found = []
    for done, recorded in enumerate(bench.recorded, start=1):
        found.append(bench.graph.attribution(recorded, cast(Side, options.base), steps))
        progress(STEP, done, len(bench.recorded))
    return torch.cat(found)


def exact_effects(bench: Bench, options: CircuitOptions, chosen: Sequence[int], progress: Progress = silent) -> Tensor:
    """(N, len(chosen)): metric with one component of side `base` exchanged for the other side's, less without."""
    base = cast(Side, options.base)
    other: Side = "corrupt" if base == "clean" else "clean"
    without = bench.clean if base == "clean" else bench.corrupt
    columns, done = [], 0
    for recorded in bench.recorded:
        runs = max(1, _TOKENS // recorded.batch.clean.numel())
        parts = []
        for at in range(0, len(chosen), runs):
            part = list(chosen[at : at + runs])
            masks = torch.zeros(len(part), len(bench.graph.components), dtype=torch.bool, device=without.device)
            masks[torch.arange(len(part)), torch.tensor(part)] = True
            parts.append(bench.graph.exchanged(recorded, base, recorded.side(other), masks))
            done += len(part)
            progress(STEP, done, len(chosen) * len(bench.recorded))
        columns.append(torch.cat(parts))
    return torch.cat(columns, dim=1).T - without[:, None]


def to_check(effects: Tensor, count: int, seed: int) -> list[int]:
    """Numbers of at most `count` components of `effects` (n,): half of largest effect, half drawn from the others."""
    order = effects.abs().argsort(descending=True, stable=True).tolist()
    if count >= len(order):
        return order
    top, rest = order[: count // 2], order[count // 2 :]
    drawn = np.random.default_rng(seed).choice(len(rest), size=count - len(top), replace=False)
    return [*top, *(rest[at] for at in sorted(drawn))]


def agreement(effects: Tensor, exact_: Tensor, chosen: Sequence[int]) -> Agreement:
    """How `effects` (n,) of the components `chosen`, largest first, agree with their `exact_` effects (c,)."""
    ours, theirs = effects[list(chosen)].double().cpu().numpy(), exact_.double().cpu().numpy()
    flat = len(ours) < 2 or ours.std() == 0 or theirs.std() == 0
    pearson = None if flat else float(np.corrcoef(ours, theirs)[0, 1])
    half = max(1, len(chosen) // 2)
    same = float((np.sign(ours[:half]) == np.sign(theirs[:half])).mean())
    return Agreement(len(chosen), pearson, same, len(chosen) == len(effects))
