"""Null models, p-values and their corrections, on clouds whose structure is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import binom

from cohomcli.errors import UsageError
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.nulls import NULLS
from cohomcli.topology.persistence import rips
from cohomcli.topology.replicates import bars_of
from cohomcli.topology.results import Array, EvidenceOptions, NullDraws, TopologyOptions, TopologyResult
from cohomcli.topology.significance import STATISTICS, NullTest, draw_test, joint_p_values, p_values


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def circle(n: int, seed: int, noise: float = 0.1, width: int = 10) -> Array:
    angle = rng(seed).uniform(0, 2 * np.pi, n)
    points = noise * rng(seed + 1).standard_normal((n, width))
    points[:, :2] += np.column_stack([np.cos(angle), np.sin(angle)])
    return points


def torus(n: int, seed: int) -> Array:
    a, b = rng(seed).uniform(0, 2 * np.pi, (2, n))
    points = 0.1 * rng(seed + 1).standard_normal((n, 10))
    ring = 2 + 0.8 * np.cos(b)
    points[:, :3] += np.column_stack([ring * np.cos(a), ring * np.sin(a), 0.8 * np.sin(b)])
    return points


def p_of(points: Array, null: str = "rotation", replicates: int = 199, seed: int = 0) -> Array:
    return p_values(draw_test(points, NullTest("layer", "euclidean", "redzed", 1, null, replicates, seed)))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 3), (40, 10), (12, 30)])
def test_rotation_keeps_mean_and_covariance_and_moves_points(n: int, k: int) -> None:
    points = rng(1).standard_normal((n, k)) * np.arange(1, k + 1) + 5
    drawn = NULLS.get("rotation")(points, rng())()
    assert np.allclose(drawn.mean(axis=0), points.mean(axis=0))
    assert np.allclose(np.cov(drawn.T), np.cov(points.T))
    assert n == 2 or not np.allclose(pdist(drawn), pdist(points))


def test_layers_of_equally_many_points_are_rotated_alike() -> None:
    first, second = rng(1).standard_normal((30, 4)), rng(2).standard_normal((30, 9))
    together = NULLS.get("rotation")(np.hstack([first, second]), rng(3))()
    apart = [NULLS.get("rotation")(layer, rng(3))() for layer in (first, second)]
    assert np.allclose(together, np.hstack(apart))


def test_rotation_of_sorted_texts_leaves_no_curve() -> None:
    """In text order a circle is a smooth curve; without the shuffle its replicates would be Lissajous loops."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    assert p_of(np.column_stack([np.cos(angle), np.sin(angle)]), replicates=99)[1] == 0.01


def test_gaussian_null_has_the_covariance_on_average() -> None:
    points = rng(1).standard_normal((50, 3)) @ np.array([[2, 1, 0], [0, 1, 0], [0, 0, 3.0]]) + 7
    draw = NULLS.get("gaussian")(points, rng())
    drawn = np.concatenate([draw() for _ in range(2000)])
    assert np.allclose(drawn.mean(axis=0), points.mean(axis=0), atol=0.05)
    assert np.allclose(np.cov(drawn.T), np.cov(points.T), rtol=0.05, atol=0.1)


def test_column_null_permutes_every_column_on_its_own() -> None:
    points = rng(1).standard_normal((40, 3))
    drawn = NULLS.get("column")(points, rng())()
    assert np.array_equal(np.sort(drawn, axis=0), np.sort(points, axis=0))
    assert len({tuple(np.argsort(drawn[:, j])) for j in range(3)}) == 3
    orders = [[int(np.flatnonzero(points[:, j] == v)[0]) for v in drawn[:, j]] for j in range(3)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("spread", [np.ones(6), 1.0 / np.arange(1, 7)], ids=["isotropic", "anisotropic"])
def test_p_values_on_noise_are_uniform(spread: NDArray[np.float64]) -> None:
    """p of 20 exchangeable values is uniform on 1/20 .. 1: here 300 tests against the binomial law at five levels."""
    n_tests = 300
    p = np.array([p_of(spread * rng(s).standard_normal((16, 6)), replicates=19, seed=s) for s in range(n_tests)])
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        low, high = binom.interval(0.9999, n_tests, level)
        for dimension in (0, 1):
            assert low <= np.count_nonzero(p[:, dimension] <= level + 1e-9) <= high, (level, dimension)


@pytest.mark.parametrize("seed", range(3))
def test_loops_of_circle_and_torus_are_found(seed: int) -> None:
    assert p_of(circle(100, seed))[1] < 0.01
    assert p_of(torus(150, seed))[1] < 0.01


@pytest.mark.parametrize("null", ["gaussian", "column"])
def test_other_nulls_find_the_circle_too(null: str) -> None:
    assert p_of(circle(80, 0), null)[1] < 0.01


def test_heavy_tails_are_no_loops_but_gaps() -> None:
    tails = rng(1).standard_normal((100, 6)) / np.sqrt(rng(2).chisquare(2, (100, 1)) / 2)
    gap, loop = p_of(tails, replicates=99)
    assert gap == 0.01
    assert loop > 0.05


def test_statistics_of_a_square() -> None:
    bars = bars_of(pdist(np.array([[0, 0], [3, 0], [3, 3], [0, 3.0]])), 1, "redzed")
    assert STATISTICS.get("ratio")(bars[1], 1.0) == pytest.approx(math.sqrt(2), rel=1e-6)
    assert STATISTICS.get("gap")(bars[0], 2.0) == pytest.approx(1.5)
    assert STATISTICS.get("ratio")(np.zeros((0, 2)), 1.0) == 1.0
    assert STATISTICS.get("gap")(np.zeros((0, 2)), 0.0) == 0.0


def test_statistics_do_not_change_with_the_scale() -> None:
    points = circle(60, 4)
    one, large = (draw_test(c * points, NullTest("a", "euclidean", "redzed", 1, "rotation", 9, 0)) for c in (1, 1e9))
    assert np.allclose(one.observed, large.observed, rtol=1e-5)
    assert np.allclose(one.replicates, large.replicates, rtol=1e-5)


@pytest.mark.parametrize("engine", ["redzed", "ripser"])
def test_quick_bars_are_those_of_rips(engine: str) -> None:
    distances = pdist(circle(50, 2))
    quick, exact = bars_of(distances, 1, engine), rips(distances, 1)
    for bars, diagram in zip(quick, exact, strict=True):
        assert np.allclose(bars[np.lexsort((bars[:, 1], bars[:, 0]))], diagram.pairs, rtol=1e-6, atol=1e-6)


def test_p_counts_ties_and_the_data_themselves() -> None:
    draws = NullDraws(np.array([2.0, 5.0]), np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]))
    assert p_values(draws).tolist() == [3 / 4, 1 / 4]


def test_joint_p_by_hand() -> None:
    """Two layers with one dimension each. Standardised, the first is far out and the second is not."""
    first = NullDraws(np.array([9.0]), np.array([[0.0], [1.0], [0.0], [1.0]]))
    second = NullDraws(np.array([0.5]), np.array([[0.0], [1.0], [1.0], [0.0]]))
    one, two = joint_p_values([first, second])
    assert one.tolist() == [1 / 5]
    assert two.tolist() == [3 / 5]


def test_joint_p_keeps_its_level_over_dependent_layers() -> None:
    """The smallest of 5 joint p-values of noise is below 10% in about 10% of runs."""
    smallest = []
    for seed in range(120):
        shared = rng(seed).standard_normal((14, 5))
        layers = [shared + 0.5 * rng(1000 * seed + j).standard_normal((14, 5)) for j in range(5)]
        draws = [draw_test(x, NullTest("a", "euclidean", "redzed", 1, "rotation", 19, seed)) for x in layers]
        smallest.append(min(float(p.min()) for p in joint_p_values(draws)))
    low, high = binom.interval(0.9999, 120, 0.1)
    assert low <= sum(p <= 0.1 + 1e-9 for p in smallest) <= high


def analysed(evidence: EvidenceOptions | None, **options: object) -> TopologyResult:
    layers = {
        "embedding": rng(1).standard_normal((40, 12)).astype(np.float32),
        "layer_0": circle(40, 3).astype(np.float32),
        "layer_1": np.ones((40, 12), np.float32),
    }
    layers["embedding"][:5] = layers["embedding"][5]
    plain = TopologyOptions(evidence=evidence)
    return analyze_layers(layers, replace(plain, **options))  # type: ignore[arg-type]


def test_analysis_carries_p_values_and_limits_whatever_the_workers() -> None:
    options = EvidenceOptions(replicates=39, subsamples=20)
    one, two = analysed(options), analysed(options, workers=2)
    for a, b in zip(one.layers, two.layers, strict=True):
        assert a.summaries == b.summaries
        assert a.evidence == b.evidence
    embedding, ring, point = one.layers
    assert ring.summaries[1].p_value == 1 / 40
    assert ring.summaries[1].p_joint == 1 / 40
    assert ring.summaries[1].p_holm == 4 / 40  # of four tests: two layers in H0 and H1
    assert embedding.summaries[1].p_value is not None
    assert embedding.evidence is not None
    assert embedding.evidence.n_tested == embedding.n_distinct == 35
    assert point.summaries[1].p_value is None  # all points coincide: nothing to test
    assert point.evidence is not None
    assert point.evidence.null is None
    intervals = ring.summaries[1].intervals
    assert intervals is not None
    assert all(low <= getattr(ring.summaries[1], name) <= high for name, (low, high) in intervals.items())
    assert ring.betti.low is not None
    assert ring.betti.high is not None
    assert np.all(ring.betti.low <= ring.betti.values)
    assert np.all(ring.betti.values <= ring.betti.high)


def test_evidence_is_left_out_where_it_cannot_be_had() -> None:
    assert all(layer.evidence is None for layer in analysed(None).layers)
    few = EvidenceOptions(replicates=9, subsamples=20, max_points=30)
    ring = analysed(few).layers[1]
    assert ring.evidence is not None
    assert (ring.evidence.n_tested, ring.evidence.subsamples) == (30, 0)
    assert ring.summaries[1].intervals is None
    assert ring.summaries[1].p_value is not None
    many = replace(few, max_points=500)
    assert analysed(many, landmarks=20).layers[1].summaries[1].intervals is None
    assert analysed(many, threshold=1.0).layers[1].summaries[1].intervals is None
    voids = analysed(many, maxdim=2).layers[1].summaries
    assert voids[1].p_value is not None
    assert voids[2].p_value is None
    assert voids[2].intervals is None
    assert analysed(many, maxdim=0).layers[1].summaries[0].p_value is not None
    untested = analysed(replace(many, null="none")).layers[1].summaries[1]
    assert untested.p_value is None
    assert untested.intervals is not None
    assert analysed(replace(many, null="column")).layers[1].summaries[1].p_joint is None


@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_other_metrics_are_tested_at_full_width(metric: str) -> None:
    summaries = analyze_layers(
        {"a": circle(40, 3).astype(np.float32)},
        TopologyOptions(metric=metric, evidence=EvidenceOptions(replicates=39, subsamples=0)),
    ).layers[0].summaries  # fmt: skip
    assert summaries[1].p_value is not None
    assert 0 < summaries[1].p_value <= 1


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="rotation"):
        analysed(EvidenceOptions(null="rotatoin"))
    with pytest.raises(UsageError, match="evidence"):
        analysed(EvidenceOptions(replicates=0))
