"""Find the smallest circuit: score components on half of the pairs, grow the set by effect, drop what is not needed,
and measure what it keeps on the other half.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from cohomcli.circuits import scores
from cohomcli.circuits.batches import PairBatch, Side, Tokens, batches_of, plain
from cohomcli.circuits.channels import ChannelGraph, frozen
from cohomcli.circuits.edges import EdgeGraph
from cohomcli.circuits.faithfulness import ABLATIONS, Bench, Graph, faithfulness, kept_metrics, limits
from cohomcli.circuits.results import Agreement, CircuitOptions, CircuitResult, Component, CurvePoint
from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.layout import Stack
from cohomcli.models.wiring import WiredBlock, wire
from cohomcli.progress import Progress, silent

LEVELS = ("heads", "neurons", "edges")
SIDES, METRICS = ("clean", "corrupt"), ("logit", "probability")
STEP = "circuit"
LEAST_PAIRS = 4
_POINTS = 14  # of the faithfulness curve
_LISTED = 2000  # components that a result names
_WAYS = 8  # sizes tried at once between two sizes


def discover(
    model: nn.Module,
    stack: Stack,
    pairs: Sequence[Tokens],
    options: CircuitOptions,
    task: str = "",
    progress: Progress = silent,
) -> CircuitResult:
    """The circuit of a decoder `model` for the behaviour that `pairs` show; `stack` is its only stack.

    Raises:
        UsageError: an unknown option.
        InputRefused: fewer than four pairs; an architecture whose heads are not known; edges where the residual stream
            is no plain sum.
        AnalysisIncomplete: the model does no better on clean prompts than on corrupt ones; numbers that are not finite.
    """
    begun = time.monotonic()
    check_options(options)
    if len(pairs) < LEAST_PAIRS:
        raise InputRefused(f"{len(pairs)} pairs are too few: half find the circuit, half judge it", "give at least 4")
    blocks = wire(model, stack)
    with frozen(model):
        graph = graph_of(model, stack, blocks, options)
        search, held = (bench_of(model, graph, part, options) for part in _halves(pairs, options))
        per_pair = scores.METHODS.get(options.method)(search, options, progress)
        found = _Search(search, per_pair.mean(0), options, progress).run()
        agreement, exact = _agreement(search, per_pair.mean(0), options, progress)
        metrics = kept_metrics(held, found.kept[None], options.ablation, options.draws, options.seed)
        low, high = limits(held, metrics, options.seed)
        curve = _curve(held, found.order, options)
    return CircuitResult(
        task=task,
        options=options,
        n_search=len(search.clean),
        n_heldout=len(held.clean),
        clean=float(held.clean.mean()),
        corrupt=float(held.corrupt.mean()),
        accuracy=float((held.clean > 0).float().mean()),
        n_components=len(graph.components),
        components=tuple(_listed(graph, per_pair.mean(0), found, exact)),
        circuit=tuple(name for name, kept in zip(graph.components, found.kept.tolist(), strict=True) if kept),
        faithfulness=float(faithfulness(held, metrics)[0]),
        low=float(low[0]),
        high=float(high[0]),
        searched=found.faithfulness,
        minimal=found.minimal,
        stability=_stability(per_pair, int(found.kept.sum()), options.seed),
        curve=curve,
        agreement=agreement,
        n_heads=blocks[0].n_heads,
        n_groups=blocks[0].n_groups,
        n_layer=len(blocks),
        seconds=time.monotonic() - begun,
    )


def graph_of(model: nn.Module, stack: Stack, blocks: Sequence[WiredBlock], options: CircuitOptions) -> Graph:
    """The model as the components of `options.level`."""
    metric = cast(Literal["logit", "probability"], options.metric)
    if options.level == "edges":
        return EdgeGraph(model, blocks, stack.final_norm, metric)
    return ChannelGraph(model, blocks, cast(Literal["heads", "neurons"], options.level), metric)


def bench_of(model: nn.Module, graph: Graph, pairs: Sequence[Tokens], options: CircuitOptions) -> Bench:
    """`pairs` recorded, with the metric of the whole model.

    Raises:
        AnalysisIncomplete: the model does no better on clean prompts than on corrupt ones.
    """
    batches: list[PairBatch] = batches_of(pairs, next(model.parameters()).device)
    metric = cast(Literal["logit", "probability"], options.metric)
    clean, corrupt = (plain(model, batches, cast(Side, side), metric) for side in SIDES)
    bench = Bench(graph, tuple(graph.record(batch) for batch in batches), clean, corrupt)
    if not bench.gap > 1e-6:
        raise AnalysisIncomplete(
            f"the model does not do this task: {options.metric} difference {float(clean.mean()):.3g} on clean prompts "
            f"and {float(corrupt.mean()):.3g} on corrupt ones",
            "choose another task or model",
        )
    return bench


def check_options(options: CircuitOptions) -> None:
    """Refuse what no search can do.

    Raises:
        UsageError: an unknown name, or a number out of its range.
    """
    scores.METHODS.get(options.method)
    for what, value, known in (
        ("level", options.level, LEVELS),
        ("base", options.base, SIDES),
        ("metric", options.metric, METRICS),
        ("ablation", options.ablation, ABLATIONS),
    ):
        if value not in known:
            raise UsageError(f"unknown {what} {value!r}", f"known: {', '.join(known)}")
    if not 0 < options.tolerance < 1:
        raise UsageError(f"--tolerance {options.tolerance} must lie between 0 and 1")
    if options.steps < 1 or options.draws < 1 or options.check < 0:
        raise UsageError("--steps and --draws are at least 1, --check at least 0")


def _halves(pairs: Sequence[Tokens], options: CircuitOptions) -> tuple[list[Tokens], list[Tokens]]:
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    return [pairs[at] for at in order[0::2]], [pairs[at] for at in order[1::2]]


# ---- the smallest set --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    order: Tensor
    kept: Tensor
    faithfulness: float
    minimal: bool


class _Search:
    """Sets of components in order of effect, judged on the search pairs."""

    def __init__(self, bench: Bench, effects: Tensor, options: CircuitOptions, progress: Progress) -> None:
        self.bench, self.options, self.progress = bench, options, progress
        self.order = effects.abs().argsort(descending=True, stable=True)

    def run(self) -> _Found:
        size = self._smallest()
        kept = top(self.order, size)
        minimal = False
        if self.options.minimise:
            kept, minimal = self._without_spare(kept)
        return _Found(self.order, kept, float(self._judge(kept[None])[0]), minimal)

    def _judge(self, kept: Tensor) -> Tensor:
        metrics = kept_metrics(self.bench, kept, self.options.ablation, self.options.draws, self.options.seed)
        return faithfulness(self.bench, metrics)

    def _accepted(self, kept: Tensor) -> list[bool]:
        return ((1 - self._judge(kept)).abs() <= self.options.tolerance).tolist()

    def _smallest(self) -> int:
        """The least size that is accepted among those tried, sizes between being tried finer and finer."""
        sizes = grid(len(self.order))
        low, high = 0, len(self.order)
        while True:
            accepted = self._accepted(torch.stack([top(self.order, size) for size in sizes]))
            good = [size for size, fine in zip(sizes, accepted, strict=True) if fine]
            high = min([high, *good])
            low = max([low, *(size for size in sizes if size < high)])
            if high - low <= 1:
                return high
            sizes = sorted({int(size) for size in np.linspace(low, high, _WAYS + 2)[1:-1].round()} - {low, high})

    def _without_spare(self, kept: Tensor) -> tuple[Tensor, bool]:
        """Leave out one component after another, least effect first, as long as the rest is accepted."""
        changed = True
        while changed:
            changed = False
            members = [at for at in self.order.flip(0).tolist() if kept[at]]
            for done, at in enumerate(members, start=1):
                fewer = kept.clone()
                fewer[at] = False
                if self._accepted(fewer[None])[0]:
                    kept, changed = fewer, True
                self.progress(STEP, done, len(members))
        return kept, True


def top(order: Tensor, size: int) -> Tensor:
    """(n,) boolean: the first `size` of `order` (n,)."""
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order[:size]] = True
    return kept


def grid(n: int) -> list[int]:
    """Sizes from 1 to n, denser at the small end."""
    return sorted({round(float(size)) for size in np.geomspace(1, n, _POINTS)})


# ---- what is reported --------------------------------------------------------------------------------------------


def _curve(bench: Bench, order: Tensor, options: CircuitOptions) -> tuple[CurvePoint, ...]:
    sizes = [0, *grid(len(order))]
    kept = torch.stack([top(order, size) for size in sizes])
    metrics = kept_metrics(bench, kept, options.ablation, options.draws, options.seed)
    values, (low, high) = faithfulness(bench, metrics).tolist(), limits(bench, metrics, options.seed)
    return tuple(
        CurvePoint(size, size / len(order), value, float(a), float(b))
        for size, value, a, b in zip(sizes, values, low, high, strict=True)
    )


def _agreement(
    bench: Bench, effects: Tensor, options: CircuitOptions, progress: Progress
) -> tuple[Agreement | None, dict[int, float]]:
    if not options.check or options.method == "exact":
        return None, {}
    chosen = scores.to_check(effects, options.check, options.seed)
    exact = scores.exact_effects(bench, options, chosen, progress).mean(0)
    return scores.agreement(effects, exact, chosen), dict(zip(chosen, exact.tolist(), strict=True))


def _listed(graph: Graph, effects: Tensor, found: _Found, exact: dict[int, float]) -> list[Component]:
    """All components in their order, or the circuit, what was checked, and those of largest effect."""
    numbers = set(found.order[:_LISTED].tolist()) | set(found.kept.nonzero().flatten().tolist()) | set(exact)
    values, kept = effects.tolist(), found.kept.tolist()
    return [Component(graph.components[at], values[at], exact.get(at), kept[at]) for at in sorted(numbers)]


def _stability(per_pair: Tensor, size: int, seed: int, resamples: int = 20) -> float:
    """Mean Jaccard index of the `size` components of largest effect between all and resampled pairs."""
    whole = _top_set(per_pair.mean(0), size)
    rng = np.random.default_rng(seed)
    drawn = (torch.from_numpy(rng.integers(len(per_pair), size=len(per_pair))) for _ in range(resamples))
    sets = [_top_set(per_pair[rows.to(per_pair.device)].mean(0), size) for rows in drawn]
    return float(np.mean([len(whole & other) / max(1, len(whole | other)) for other in sets]))


def _top_set(effects: Tensor, size: int) -> set[int]:
    return set(effects.abs().argsort(descending=True, stable=True)[:size].tolist())
