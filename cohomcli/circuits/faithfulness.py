"""How much of a behaviour a set of components keeps when all others are replaced, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cohomcli.circuits.batches import PairBatch, Side
from cohomcli.errors import UsageError

ABLATIONS = ("pair", "resample", "mean")
_TOKENS = 4096  # tokens that run together
_RESAMPLES = 1000  # bootstrap resamples behind a confidence limit


class Recorded(Protocol):
    """A batch of pairs with what the model computes on both sides."""

    @property
    def batch(self) -> PairBatch:
        """The pairs."""

    def side(self, side: Side) -> Sequence[Tensor]:
        """Values of one side."""


class Graph(Protocol):
    """A model as components that can be exchanged: `ChannelGraph` or `EdgeGraph`."""

    components: tuple[str, ...]

    def record(self, batch: PairBatch) -> Any:
        """Run both sides."""

    def exchanged(self, recorded: Any, base: Side, values: Sequence[Tensor], masks: Tensor) -> Tensor:
        """(P, B) metrics with the components of `masks` (P, n) replaced by `values`."""

    def attribution(self, recorded: Any, base: Side, steps: int) -> Tensor:
        """(B, n) first-order effects."""


@dataclass(frozen=True)
class Bench:
    """A graph, recorded pairs, and the metric (N,) of the whole model on either side."""

    graph: Graph
    recorded: tuple[Any, ...]
    clean: Tensor
    corrupt: Tensor

    @property
    def gap(self) -> float:
        """Mean metric on clean prompts less that on corrupt ones."""
        return float(self.clean.mean() - self.corrupt.mean())


def replacements(recorded: Any, ablation: str, draw: int, seed: int) -> list[Tensor]:
    """What replaces components: values (as a side's) of the corrupt prompts under `ablation`; `draw` counts resamples.

    Raises:
        UsageError: an unknown ablation.
    """
    if ablation not in ABLATIONS:
        raise UsageError(f"unknown ablation {ablation!r}", f"known: {', '.join(ABLATIONS)}")
    values, size = recorded.side("corrupt"), len(recorded.batch)
    if ablation == "pair" or size == 1:
        return list(values)
    at = [value.dim() - 3 for value in values]  # pairs are the third axis from the end
    if ablation == "mean":
        return [v.mean(a, keepdim=True).expand_as(v) for v, a in zip(values, at, strict=True)]
    shift = 1 + int(np.random.default_rng([seed, draw]).integers(size - 1))  # nobody keeps its own
    return [v.roll(shift, a) for v, a in zip(values, at, strict=True)]


def kept_metrics(bench: Bench, kept: Tensor, ablation: str, draws: int, seed: int) -> Tensor:
    """(D, P, N): the metric of every pair under every draw when only `kept` (P, n) stays; D is 1 unless resampled."""
    count = draws if ablation == "resample" else 1
    return torch.stack([_one_draw(bench, kept, ablation, draw, seed) for draw in range(count)])


def _one_draw(bench: Bench, kept: Tensor, ablation: str, draw: int, seed: int) -> Tensor:
    columns = []
    for recorded in bench.recorded:
        values = replacements(recorded, ablation, draw, seed)
        runs = max(1, _TOKENS // recorded.batch.clean.numel())
        parts = [
            bench.graph.exchanged(recorded, "clean", values, ~kept[at : at + runs]) for at in range(0, len(kept), runs)
        ]
        columns.append(torch.cat(parts))
    return torch.cat(columns, dim=1)


def faithfulness(bench: Bench, metrics: Tensor) -> Tensor:
    """(m - corrupt) / (clean - corrupt) per run, (P,), of `metrics` (D, P, N); means over draws and pairs first."""
    return (metrics.mean((0, 2)) - bench.corrupt.mean()) / bench.gap


def limits(bench: Bench, metrics: Tensor, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95% limits of `faithfulness`, (P,) each: percentiles over resamples of pairs and draws (Efron 1979)."""
    clean, corrupt = (side.double().cpu().numpy() for side in (bench.clean, bench.corrupt))
    found = metrics.double().cpu().numpy()
    draws, _, pairs = found.shape
    rng = np.random.default_rng(seed)
    rows = rng.integers(pairs, size=(_RESAMPLES, pairs))
    which = rng.integers(draws, size=(_RESAMPLES, pairs))
    base = corrupt[rows].mean(1)
    gap = clean[rows].mean(1) - base
    values = found[which, :, rows].mean(1)  # (resamples, P)
    ratios = (values - base[:, None]) / np.where(np.abs(gap) < 1e-12, np.nan, gap)[:, None]
    low, high = np.nanpercentile(ratios, [2.5, 97.5], axis=0)
    return low, high
