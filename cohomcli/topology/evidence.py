"""The evidence of one layer: p-values of its longest bars, and confidence limits of its figures and Betti curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cohomcli.errors import UsageError
from cohomcli.topology.bands import Limits, Texts, limits
from cohomcli.topology.engines import H0_ENGINE, choose_engine
from cohomcli.topology.metrics import Space
from cohomcli.topology.nulls import NO_NULL, NULLS
from cohomcli.topology.pointcloud import PointCloud
from cohomcli.topology.replicates import TESTED_UP_TO
from cohomcli.topology.results import (
    DimensionSummary,
    EvidenceOptions,
    LayerEvidence,
    LayerTopology,
    NullDraws,
    TopologyOptions,
)
from cohomcli.topology.significance import NullTest, draw_test, p_values

MIN_POINTS = 3


def check_evidence(options: EvidenceOptions) -> None:
    """Raise UsageError for an unknown null model or counts that mean nothing."""
    if options.null != NO_NULL:
        NULLS.get(options.null)
    if options.replicates < 1 or options.subsamples < 0 or options.max_points < 1:
        raise UsageError(
            f"{options.replicates} replicates, {options.subsamples} subsamples and {options.max_points} points are no "
            "evidence",
            "replicates and points must be at least 1, subsamples at least 0",
        )


def with_evidence(layer: LayerTopology, cloud: PointCloud, space: Space, options: TopologyOptions) -> LayerTopology:
    """`layer` with what `options.evidence` asks for; p-values are corrected later, over all layers (`corrected`).

    The test completes the filtration, whatever the threshold, and takes points instead of landmarks. Limits are about
    the layer's own figures, so there are none where these are of landmarks or end at a threshold.
    """
    wanted = options.evidence
    if wanted is None:
        return layer
    draws, n_tested = None, 0
    if wanted.null != NO_NULL and len(cloud.points) >= MIN_POINTS:
        draws, n_tested = _test(layer, cloud, options, wanted)
    whole = layer.threshold is None and layer.n_landmarks is None
    found = _limits(layer, cloud, space, options, wanted) if whole and len(space) <= wanted.max_points else None
    evidence = LayerEvidence(
        null=None if draws is None else wanted.null,
        replicates=0 if draws is None else wanted.replicates,
        n_tested=n_tested,
        subsamples=2 * (wanted.subsamples // 2) if found else 0,
        draws=draws,
    )
    betti = replace(layer.betti, low=found.low, high=found.high) if found else layer.betti
    return replace(layer, summaries=_summaries(layer.summaries, draws, found), betti=betti, evidence=evidence)


def _test(
    layer: LayerTopology, cloud: PointCloud, options: TopologyOptions, wanted: EvidenceOptions
) -> tuple[NullDraws, int]:
    points = cloud.points
    if len(points) > wanted.max_points:
        chosen = np.random.default_rng(options.seed).choice(len(points), wanted.max_points, replace=False)
        points = points[np.sort(chosen)]
    test = NullTest(
        name=layer.name,
        metric=options.metric,
        engine=_engine(options),
        maxdim=min(options.maxdim, TESTED_UP_TO),
        null=wanted.null,
        replicates=wanted.replicates,
        seed=options.seed,
    )
    return draw_test(points, test), len(points)


def _limits(
    layer: LayerTopology, cloud: PointCloud, space: Space, options: TopologyOptions, wanted: EvidenceOptions
) -> Limits | None:
    owner = np.repeat(np.arange(len(space)), cloud.multiplicity)
    texts = Texts(space.condensed(), owner, _engine(options), min(options.maxdim, TESTED_UP_TO))
    return limits(texts, layer.summaries, layer.betti, wanted.subsamples, options.seed)


def _engine(options: TopologyOptions) -> str:
    """The name of the engine for H1; H0 alone needs none."""
    name = choose_engine(options.engine, min(options.maxdim, TESTED_UP_TO)).name
    return "redzed" if name == H0_ENGINE else name


def _summaries(
    summaries: Sequence[DimensionSummary], draws: NullDraws | None, found: Limits | None
) -> tuple[DimensionSummary, ...]:
    result = []
    p = None if draws is None else p_values(draws)
    for k, summary in enumerate(summaries):
        if draws is not None and p is not None and k < len(p):
            median, high = np.quantile(draws.replicates[:, k], [0.5, 0.95])
            summary = replace(
                summary,
                statistic=float(draws.observed[k]),
                null_median=float(median),
                null_95=float(high),
                p_value=float(p[k]),
            )
        if found is not None and k < len(found.intervals):
            summary = replace(summary, intervals=found.intervals[k])
        result.append(summary)
    return tuple(result)
