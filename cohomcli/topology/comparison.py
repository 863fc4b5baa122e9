"""Comparison of analysed models: figures, rankings, profiles over depth, data sets, correlations with loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from cohomcli.results import Entry
from cohomcli.topology.correlation import Correlation, correlate, holm
from cohomcli.topology.results import LayerTopology, TopologyResult
from cohomcli.topology.stack import Stack, stack_of

if TYPE_CHECKING:
    from cohomcli.topology.crosslayers import CrossLayers
    from cohomcli.topology.drift import DriftReport
    from cohomcli.topology.exchanges import PermutationReport
    from cohomcli.topology.maps import ModelMap

DEPTH_GRID = tuple(float(depth) for depth in np.linspace(0.0, 1.0, 21))
TOPOLOGY_FIGURES = (
    "expansion_raw",
    "expansion_scale_free",
    "mean_h0_total",
    "mean_h0_over_scale",
    "mean_h1_over_scale",
    "total_h1",
)
LOSS = "loss"


@dataclass(frozen=True)
class ComparisonRow:
    """The figures of one entry; means and totals are over its analysed blocks, None where there is nothing to measure.

    `h0` and `h1` are total persistences, in units of the metric or, `_over_scale`, of the mean pairwise distance.
    `loss` is in nats per predicted token; with `perplexity` it is comparable only inside one `CorrelationGroup`.
    """

    model: str
    dataset: str
    n_points: int
    n_blocks: int
    perplexity: float | None
    loss: float | None
    metric_kind: str | None
    metrics_reason: str
    expansion_raw: float | None
    expansion_scale_free: float | None
    peak_raw: str | None
    peak_scale_free: str | None
    mean_h0_total: float | None
    mean_h0_over_scale: float | None
    mean_h1_over_scale: float | None
    total_h1: float | None


@dataclass(frozen=True)
class Ranking:
    """Row numbers ordered by `figure`, largest first (perplexity: smallest first); rows without it are left out."""

    figure: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class LayerProfile:
    """One figure of one row over relative depth: 0 is the embedding, (i + 1) / L block i of L.

    `depth` and `values` are as measured; `resampled` interpolates linearly on DEPTH_GRID, None outside what was
    measured.
    """

    row: int
    figure: str
    layers: tuple[str, ...]
    depth: tuple[float, ...]
    values: tuple[float, ...]
    resampled: tuple[float | None, ...]


@dataclass(frozen=True)
class DatasetContrast:
    """One model on two data sets, rows `first` and `second`: figure -> (first, second, second / first).

    `largest_layer` is where H0 over scale differs most, by `largest_difference` (second - first); None without a
    common layer.
    """

    model: str
    first: int
    second: int
    figures: dict[str, tuple[float | None, float | None, float | None]]
    largest_layer: str | None
    largest_difference: float | None


@dataclass(frozen=True)
class CorrelationGroup:
    """Rows whose losses are comparable: same texts, same token count, same vocabulary size, same kind of loss.

    `rows` holds one row per distinct model (by weights), so len(rows) is the honest n of every correlation.
    """

    dataset: str
    metric_kind: str
    vocab_size: int
    rows: tuple[int, ...]
    correlations: tuple[Correlation, ...]


@dataclass(frozen=True)
class Comparison:
    """What `compare` shows. `groups` is empty, with `no_groups` saying why, when no losses can be compared at all.

    `drift`, `map`, `permutations` and `cross` (layers of one against layers of another) need more than the entries:
    they are measured by `drift_report`, `model_map`, `permutation_report` and `cross_layers`.
    """

    rows: tuple[ComparisonRow, ...]
    rankings: tuple[Ranking, ...]
    profiles: tuple[LayerProfile, ...]
    contrasts: tuple[DatasetContrast, ...]
    groups: tuple[CorrelationGroup, ...]
    no_groups: str
    notes: tuple[str, ...]
    drift: DriftReport | None = None
    map: ModelMap | None = None
    permutations: PermutationReport | None = None
    cross: tuple[CrossLayers, ...] = ()


def compare(entries: Sequence[Entry], seed: int = 0) -> Comparison:
    """Compare the entries that have a topology; failed ones are named in `notes`."""
    good = [entry for entry in entries if entry.topology is not None]
    rows = [_row(entry, entry.topology) for entry in good if entry.topology is not None]
    groups = _correlate_groups(rows, _groups(good), seed)
    without = "no entry has a measured loss" if all(row.loss is None for row in rows) else ""
    return Comparison(
        rows=tuple(rows),
        rankings=tuple(_ranking(rows, figure) for figure in ("perplexity", *TOPOLOGY_FIGURES)),
        profiles=tuple(profile for i, entry in enumerate(good) for profile in _profiles(i, entry)),
        contrasts=tuple(_contrasts(good, rows)),
        groups=groups,
        no_groups="" if groups else without,
        notes=tuple(_notes(entries, rows, groups)),
    )


def _row(entry: Entry, topology: TopologyResult) -> ComparisonRow:
    blocks = stack_of(topology.layers).blocks
    h1 = [_h1(layer) for layer in blocks]
    metrics = entry.metrics
    return ComparisonRow(
        model=entry.model,
        dataset=entry.dataset,
        n_points=max((layer.n_points for layer in topology.layers), default=0),
        n_blocks=len(blocks),
        perplexity=metrics.perplexity if metrics else None,
        loss=metrics.loss if metrics else None,
        metric_kind=metrics.kind if metrics else None,
        metrics_reason=entry.metrics_reason,
        expansion_raw=topology.expansion.raw,
        expansion_scale_free=topology.expansion.scale_free,
        peak_raw=topology.expansion.peak_raw,
        peak_scale_free=topology.expansion.peak_scale_free,
        mean_h0_total=_mean([layer.summaries[0].total_persistence for layer in blocks]),
        mean_h0_over_scale=_mean([layer.summaries[0].total_over_scale for layer in blocks]),
        mean_h1_over_scale=_mean([pair[1] for pair in h1 if pair]),
        total_h1=sum(pair[0] for pair in h1 if pair) if any(h1) else None,
    )


def _h1(layer: LayerTopology) -> tuple[float, float] | None:
    """H1 total persistence and the same over scale; None when only H0 was computed."""
    if len(layer.summaries) < 2:
        return None
    return layer.summaries[1].total_persistence, layer.summaries[1].total_over_scale


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _figure(row: ComparisonRow, name: str) -> float | None:
    value: float | None = getattr(row, name)
    return value


def _ranking(rows: list[ComparisonRow], figure: str) -> Ranking:
    sign = 1.0 if figure == "perplexity" else -1.0
    known = [(sign * value, i) for i, row in enumerate(rows) if (value := _figure(row, figure)) is not None]
    return Ranking(figure, tuple(i for _, i in sorted(known)))


def _profiles(row: int, entry: Entry) -> list[LayerProfile]:
    assert entry.topology is not None
    stack = stack_of(entry.topology.layers)
    layers = ((stack.embedding,) if stack.embedding else ()) + stack.blocks
    depth = _depths(stack, entry.info.n_layer if entry.info else 0)
    if not layers:
        return []
    figures: dict[str, Callable[[LayerTopology], float]] = {
        "h0_total": lambda layer: layer.summaries[0].total_persistence,
        "h0_over_scale": lambda layer: layer.summaries[0].total_over_scale,
        "scale": lambda layer: layer.scale,
    }
    if all(len(layer.summaries) > 1 for layer in layers):
        figures["h1_over_scale"] = lambda layer: layer.summaries[1].total_over_scale
    names = tuple(layer.name for layer in layers)
    measured = {figure: tuple(value(layer) for layer in layers) for figure, value in figures.items()}
    return [
        LayerProfile(row, figure, names, depth, values, resample(depth, values)) for figure, values in measured.items()
    ]


def _depths(stack: Stack, n_layer: int) -> tuple[float, ...]:
    """Relative depths; L is the model's block count, or the analysed ones' where that is larger or unknown."""
    total = max(n_layer, max(stack.indices, default=-1) + 1, 1)
    start = (0.0,) if stack.embedding else ()
    return start + tuple((index + 1) / total for index in stack.indices)


def resample(depth: Sequence[float], values: Sequence[float]) -> tuple[float | None, ...]:
    """`values` at increasing `depth`, linearly interpolated on DEPTH_GRID; None outside the measured range."""
    inside = np.interp(DEPTH_GRID, depth, values)
    return tuple(float(v) if depth[0] <= at <= depth[-1] else None for at, v in zip(DEPTH_GRID, inside, strict=True))


def _contrasts(entries: list[Entry], rows: list[ComparisonRow]) -> list[DatasetContrast]:
    pairs = combinations(range(len(rows)), 2)
    return [
        _contrast(entries, rows, i, j)
        for i, j in pairs
        if _identity(entries[i]) == _identity(entries[j]) and rows[i].dataset != rows[j].dataset
    ]


def _contrast(entries: list[Entry], rows: list[ComparisonRow], i: int, j: int) -> DatasetContrast:
    figures = {}
    for name in ("perplexity", *TOPOLOGY_FIGURES):
        a, b = _figure(rows[i], name), _figure(rows[j], name)
        figures[name] = (a, b, b / a if a and b is not None else None)
    first, second = (_h0_over_scale(entries[k]) for k in (i, j))
    differences = {name: second[name] - first[name] for name in first if name in second}
    largest = max(differences, key=lambda name: abs(differences[name]), default=None)
    difference = differences[largest] if largest is not None else None
    return DatasetContrast(rows[i].model, i, j, figures, largest, difference)


def _h0_over_scale(entry: Entry) -> dict[str, float]:
    layers = entry.topology.layers if entry.topology else ()
    return {layer.name: layer.summaries[0].total_over_scale for layer in layers}


def _identity(entry: Entry) -> str:
    """What makes two entries the same model: equal weights, or equal names where the weights were not hashed."""
    return entry.info.weights_sha256 if entry.info and entry.info.weights_sha256 else entry.model


def _groups(entries: list[Entry]) -> dict[tuple[str, str, int, int], list[int]]:
    """Rows whose per-token losses mean the same, one per distinct model.

    A loss per token depends on the tokens. Equal vocabulary sizes are necessary, not sufficient; the same texts cut
    into equally many tokens besides leave no room for another tokenizer in practice.
    """
    groups: dict[tuple[str, str, int, int], dict[str, int]] = {}
    for i, entry in enumerate(entries):
        if entry.metrics is None or entry.info is None:
            continue
        texts = entry.sample.sha256 if entry.sample else entry.dataset
        key = (texts, entry.metrics.kind, entry.info.vocab_size, entry.n_tokens)
        groups.setdefault(key, {}).setdefault(_identity(entry), i)
    return {key: list(members.values()) for key, members in groups.items()}


def _correlate_groups(
    rows: list[ComparisonRow], groups: dict[tuple[str, str, int, int], list[int]], seed: int
) -> tuple[CorrelationGroup, ...]:
    """Correlate inside every group and correct all p-values together."""
    raw = []
    for (_, kind, vocab_size, _), members in groups.items():
        losses = [loss for i in members if (loss := rows[i].loss) is not None]
        found = [
            correlate(figure, [_figure(rows[i], figure) for i in members], LOSS, losses, seed)
            for figure in TOPOLOGY_FIGURES
        ]
        raw.append(CorrelationGroup(rows[members[0]].dataset, kind, vocab_size, tuple(members), tuple(found)))
    tested = [c.p_value for group in raw for c in group.correlations if c.p_value is not None]
    adjusted = iter(holm(tested))
    return tuple(
        replace(
            group,
            correlations=tuple(
                c if c.p_value is None else replace(c, p_holm=next(adjusted)) for c in group.correlations
            ),
        )
        for group in raw
    )


def _notes(entries: Sequence[Entry], rows: list[ComparisonRow], groups: tuple[CorrelationGroup, ...]) -> list[str]:
    notes = [
        f"{entry.model} on {entry.dataset} is left out: {entry.error or 'its topology was not computed'}"
        for entry in entries
        if entry.topology is None
    ]
    sizes = sorted({row.n_points for row in rows})
    if len(sizes) > 1:
        counts = ", ".join(map(str, sizes))
        notes.append(f"entries have different numbers of points ({counts}): totals grow with n, compare them with care")
    for what, found in (("poolings", _poolings(entries)), ("metrics", _metrics(entries))):
        if len(found) > 1:
            notes.append(f"entries were analysed under different {what} ({', '.join(found)}): they are not alike")
    if len(groups) > 1:
        notes.append(
            "losses per token are comparable only between models with the same texts, tokens and vocabulary; "
            f"correlations are computed inside each of {len(groups)} such groups"
        )
    return notes


def _poolings(entries: Sequence[Entry]) -> list[str]:
    return sorted({entry.pooling for entry in entries if entry.topology and entry.pooling})


def _metrics(entries: Sequence[Entry]) -> list[str]:
    return sorted({layer.metric for entry in entries if entry.topology for layer in entry.topology.layers[:1]})
