"""Is the longest bar longer than in structureless clouds? Monte-Carlo p-values against a null model.

Each layer is tested in H0 and H1 with one scale-free statistic per dimension. A p-value is (hits + 1) / (replicates +
1) with hits the replicates whose statistic is at least the observed one: valid for exchangeable replicates, never zero
(Phipson, Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cohomcli.registry import Registry
from cohomcli.topology.correlation import holm
from cohomcli.topology.metrics import space_of
from cohomcli.topology.nulls import NULLS
from cohomcli.topology.replicates import bars_of, lifetimes_of
from cohomcli.topology.results import Array, LayerTopology, NullDraws

Statistic = Callable[[Array, float], float]
STATISTICS = Registry("test statistic")
"""Bars (k, 2) and the cloud's mean pairwise distance to a number, large for structure."""
TESTED = {0: "gap", 1: "ratio"}
JOINT_NULLS = ("rotation",)  # those whose replicates of all layers come from one draw


@STATISTICS.register("ratio")
def ratio(bars: Array, scale: float) -> float:
    """Largest death / birth, 1 without bars: the multiplicative persistence of Bobrowski and Skraba (2023).

    It does not change with the scale, and hardly with the density of the points: where they are sparse, bars are long
    but no longer in proportion to their birth.
    """
    return float((bars[:, 1] / bars[:, 0]).max(initial=1.0))


@STATISTICS.register("gap")
def gap(bars: Array, scale: float) -> float:
    """Largest lifetime over the mean pairwise distance, 0 without bars. In H0: the widest gap between two pieces."""
    return float(lifetimes_of(bars).max(initial=0.0)) / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class NullTest:
    """How a layer's cloud is tested: `points` (m, k) of the layer `name` under `metric`, against `null`."""

    name: str
    metric: str
    engine: str
    maxdim: int
    null: str
    replicates: int
    seed: int


def draw_test(points: Array, test: NullTest) -> NullDraws:
    """Observed and replicated statistics in H0 .. H_maxdim; `maxdim` is 0 or 1.

    Raises:
        UsageError: an unknown null model.
        AnalysisIncomplete: a replicate where the metric is undefined.
    """
    draw = NULLS.get(test.null)(points, np.random.default_rng(test.seed))
    observed = _statistics(points, test)
    replicates = [_statistics(draw(), test) for _ in range(test.replicates)]
    return NullDraws(observed, np.array(replicates).reshape(test.replicates, len(observed)))


def _statistics(points: Array, test: NullTest) -> Array:
    distances = space_of(test.name, points, test.metric).condensed()
    scale = float(distances.mean()) if len(distances) else 0.0
    bars = bars_of(distances, test.maxdim, test.engine)
    return np.array([STATISTICS.get(TESTED[k])(found, scale) for k, found in enumerate(bars)])


def p_values(draws: NullDraws) -> Array:
    """One p-value per dimension."""
    hits = np.count_nonzero(draws.replicates >= draws.observed, axis=0)
    p: Array = (hits + 1) / (len(draws.replicates) + 1)
    return p


def joint_p_values(draws: Sequence[NullDraws]) -> list[Array]:
    """p-values corrected for all layers and dimensions together by the largest statistic among them.

    Every statistic is centred and divided by its standard deviation over data and replicates together, and compared
    with the largest one of each replicate (Westfall, Young, "Resampling-based multiple testing", 1993). Exact when
    replicate r of all layers comes from the same rotation of the same texts (Solari, Finos, Goeman, Scandinavian
    Journal of Statistics 41, 2014). Unlike Holm's, it can be as small as 1 / (replicates + 1) however many layers
    there are. All `draws` need equally many replicates.
    """
    standard = [_standardised(np.vstack([d.observed, d.replicates])) for d in draws]
    highest = np.max(np.hstack([values[1:] for values in standard]), axis=1)
    return [
        (np.count_nonzero(highest[:, None] >= values[0] - 1e-12, axis=0) + 1) / (len(highest) + 1)
        for values in standard
    ]


def _standardised(values: Array) -> Array:
    spread = values.std(axis=0)
    return np.where(spread > 0, (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0), 0.0)


def corrected(layers: Sequence[LayerTopology]) -> tuple[LayerTopology, ...]:
    """The layers with `p_holm` and `p_joint` over all tested layers and dimensions, and without their draws."""
    draws = [layer.evidence.draws for layer in layers if layer.evidence and layer.evidence.draws]
    if not draws:
        return tuple(layers)
    nulls = {layer.evidence.null for layer in layers if layer.evidence and layer.evidence.draws}
    raw = [s.p_value for layer in layers for s in layer.summaries if s.p_value is not None]
    adjusted = iter(holm(raw))
    joint = iter(joint_p_values(draws)) if nulls <= set(JOINT_NULLS) else iter([])
    finished = []
    for layer in layers:
        if layer.evidence is None or layer.evidence.draws is None:
            finished.append(layer)
            continue
        together = next(joint, None)
        summaries = tuple(
            s if s.p_value is None else replace(s, p_holm=next(adjusted), p_joint=_at(together, s.dimension))
            for s in layer.summaries
        )
        finished.append(replace(layer, summaries=summaries, evidence=replace(layer.evidence, draws=None)))
    return tuple(finished)


def _at(values: Array | None, dimension: int) -> float | None:
    return None if values is None else float(values[dimension])
