"""Clouds that are large: the O(n)-memory tree, blocks of rows, restored lengths, landmarks, forecasts and refusals."""

import gudhi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ripser import ripser
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import cdist, pdist

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology import pca
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.forecast import check_memory, check_time, duration, forecast, forecast_bytes
from cohomcli.topology.landmarks import maxmin
from cohomcli.topology.metrics import METRICS, space_of
from cohomcli.topology.persistence import rips
from cohomcli.topology.pointcloud import make_cloud, pairwise_distances, scale
from cohomcli.topology.restore import restore_lengths
from cohomcli.topology.results import TopologyOptions
from cohomcli.topology.tree import mean_distance, spanning_tree


def gaussian(seed, n, d, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


clouds = hnp.arrays(np.float64, st.tuples(st.integers(1, 14), st.integers(1, 3)), elements=st.integers(-2, 2))


@given(clouds)
@settings(max_examples=60, deadline=None)
def test_tree_lengths_are_single_linkage_heights_bit_for_bit_with_ties_and_duplicates(points):
    ones = np.ones(len(points), dtype=np.int64)
    expected = linkage(pdist(points), "single")[:, 2] if len(points) > 1 else np.zeros(0)
    np.testing.assert_array_equal(spanning_tree(space_of("a", points, "euclidean"), ones).lengths, expected)
    for a, b in zip(rips(points, 0), rips(pdist(points) if len(points) > 1 else np.zeros(0), 0), strict=True):
        np.testing.assert_array_equal(a.pairs, b.pairs)


@pytest.mark.parametrize("metric", list(METRICS))
def test_tree_and_mean_distance_in_every_metric(metric):
    points, counts = gaussian(1, 90, 6, np.float64), np.random.default_rng(2).integers(1, 4, size=90)
    space, distances = space_of("a", points, metric), pairwise_distances("a", points, metric)
    tree = spanning_tree(space, counts)
    np.testing.assert_array_equal(tree.lengths, linkage(distances, "single")[:, 2])
    assert tree.mean_distance == pytest.approx(scale(distances, counts), rel=1e-13)
    assert mean_distance(space, counts) == pytest.approx(scale(distances, counts), rel=1e-13)


def test_mean_distance_does_not_depend_on_the_blocks(monkeypatch):
    space, counts = space_of("a", gaussian(3, 50, 4, np.float64), "euclidean"), np.arange(1, 51)
    whole = mean_distance(space, counts)
    monkeypatch.setattr("cohomcli.topology.tree.BLOCK_CELLS", 150)
    assert mean_distance(space, counts) == pytest.approx(whole, rel=1e-13)


def test_h0_alone_takes_no_distance_matrix(monkeypatch):
    layers = {"embedding": gaussian(4, 80, 5)}
    with_distances = analyze_layers(layers, TopologyOptions(maxdim=1)).layers[0]
    monkeypatch.setattr("cohomcli.topology.metrics.pdist", lambda *_: pytest.fail("all distances were computed"))
    alone = analyze_layers(layers, TopologyOptions(maxdim=0)).layers[0]
    np.testing.assert_array_equal(alone.diagrams[0].pairs, with_distances.diagrams[0].pairs)
    assert alone.scale == pytest.approx(with_distances.scale, rel=1e-13)


def test_overflow_is_refused_without_a_distance_matrix():
    with pytest.raises(AnalysisIncomplete, match="overflow"):
        rips(np.array([[1e300], [-1e300], [0.0]]), 0)


@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e30)), st.integers(0, 2**32 - 1), st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_lengths_are_restored_as_a_sorted_search_would(lengths, seed, tied):
    rng = np.random.default_rng(seed)
    if tied:  # lengths that one float32 stands for
        lengths = np.concatenate([lengths, np.nextafter(lengths, np.inf), lengths * (1 + 1e-9)])
    bars = rng.choice(lengths, size=(7, 2)).astype(np.float32).astype(np.float64)
    bars[0, 1] = np.inf
    ordered = np.sort(lengths)
    rounded = ordered.astype(np.float32)
    expected = [[v if np.isinf(v) else ordered[np.flatnonzero(rounded == np.float32(v))[0]] for v in b] for b in bars]
    np.testing.assert_array_equal(restore_lengths(bars, rng.permutation(lengths)), expected)


def test_lengths_are_restored_across_blocks(monkeypatch):
    monkeypatch.setattr("cohomcli.topology.restore.BLOCK", 64)
    monkeypatch.setattr("cohomcli.topology.restore.TABLE_BITS", 6)  # every slot of the table is shared
    lengths = pdist(gaussian(5, 60, 3, np.float64))
    bars = lengths[:50].reshape(-1, 2).astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(restore_lengths(bars, lengths), lengths[:50].reshape(-1, 2))


@pytest.mark.parametrize("shape", [(300, 40), (60, 90)])
def test_pca_by_blocks_of_rows_equals_pca_in_memory(monkeypatch, tmp_path, shape):
    x = gaussian(6, *shape) * np.logspace(0, -3, shape[1], dtype=np.float32) + 5
    x[3] = x[7]
    whole = make_cloud(x, 10)
    path = tmp_path / "x"
    x.tofile(path)
    monkeypatch.setattr(pca, "BLOCK_CELLS", 17 * shape[1])
    mapped = make_cloud(np.memmap(path, dtype=np.float32, mode="r", shape=shape), 10)
    np.testing.assert_allclose(pdist(mapped.points), pdist(whole.points), rtol=1e-6)
    assert mapped.explained_variance == pytest.approx(whole.explained_variance, rel=1e-12)
    assert (mapped.n_distinct, mapped.mean_norm) == (shape[0] - 1, pytest.approx(whole.mean_norm, rel=1e-12))


def test_mapped_activations_give_the_numbers_of_the_same_ones_in_memory(tmp_path):
    x = gaussian(7, 200, 60)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, mode="r", shape=x.shape)
    a, b = (analyze_layers({"layer_0": v}, TopologyOptions()).layers[0] for v in (x, mapped))
    assert (a.scale, a.explained_variance) == (b.scale, b.explained_variance)
    for one, two in zip(a.diagrams, b.diagrams, strict=True):
        np.testing.assert_array_equal(one.pairs, two.pairs)


def test_landmarks_are_the_greedy_permutation_of_ripser():
    x = gaussian(8, 120, 3, np.float64)
    chosen = maxmin(space_of("a", x, "euclidean"), 20)
    reference = ripser(x, n_perm=20)
    np.testing.assert_array_equal(chosen.indices, reference["idx_perm"])
    assert chosen.radius == pytest.approx(reference["r_cover"], rel=1e-6)
    assert chosen.radius == pytest.approx(cdist(x, x[chosen.indices]).min(axis=1).max(), rel=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_the_error_of_landmarks_is_within_its_guarantee(seed):
    angles = np.random.default_rng(seed).random(150) * 2 * np.pi
    x = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32) + 0.05 * gaussian(seed, 150, 2)
    full = analyze_layers({"a": x}, TopologyOptions(pca=0)).layers[0]
    thin = analyze_layers({"a": x}, TopologyOptions(pca=0, landmarks=40)).layers[0]
    assert (thin.n_landmarks, thin.n_points, full.n_landmarks, full.diagram_error) == (40, 150, None, None)
    assert thin.diagram_error == 2 * thin.covering_radius
    assert thin.scale == pytest.approx(full.scale, rel=1e-12)
    for a, b in zip(full.diagrams, thin.diagrams, strict=True):
        assert gudhi.bottleneck_distance(a.pairs, b.pairs) <= thin.diagram_error


def test_as_many_landmarks_as_points_change_nothing_and_are_not_claimed():
    x = gaussian(9, 30, 3)
    a = analyze_layers({"a": x}, TopologyOptions(landmarks=30)).layers[0]
    assert a.n_landmarks is None
    np.testing.assert_array_equal(a.diagrams[1].pairs, rips(make_cloud(x, 50).points)[1].pairs)


def test_landmarks_are_noted_with_their_error_and_the_bars_that_are_certain():
    angles = 2 * np.pi * np.arange(400) / 400
    circle = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    result = analyze_layers({"a": circle}, TopologyOptions(pca=0, landmarks=60))
    (note,) = result.notes
    assert note.startswith("60 landmarks stand for up to 400 points in 1 layers: diagrams are within 0.1")
    assert note.endswith("bars that live longer than twice their layer's error: 1 of H1")


def test_landmarks_need_a_metric():
    with pytest.raises(UsageError, match=r"cosine.*triangle inequality.*--metric euclidean"):
        analyze_layers({"a": gaussian(0, 9, 3)}, TopologyOptions(landmarks=3, metric="cosine"))


@pytest.mark.parametrize("maxdim", [0, 1])
def test_a_threshold_ends_the_filtration_and_is_recorded(maxdim):
    x = gaussian(10, 100, 5)
    full = analyze_layers({"a": x}, TopologyOptions(maxdim=maxdim)).layers[0]
    limit = 0.7
    cut = analyze_layers({"a": x}, TopologyOptions(maxdim=maxdim, threshold=limit, threshold_unit="scale"))
    layer = cut.layers[0]
    assert layer.threshold == pytest.approx(limit * full.scale)
    for a, b in zip(full.diagrams, layer.diagrams, strict=True):
        below = a.pairs[a.pairs[:, 1] <= layer.threshold]
        np.testing.assert_array_equal(b.pairs, below)
        born = (a.pairs[:, 0] <= layer.threshold).sum()
        assert (len(b.censored), len(b.essential)) == (born - len(below), len(a.essential))
    assert layer.summaries[0].censored > 0
    assert cut.notes[-1].startswith(f"the filtration ends at {layer.threshold:.4g}: ")
    with pytest.raises(UsageError, match="threshold -1"):
        analyze_layers({"a": x}, TopologyOptions(threshold=-1.0))


def test_memory_forecast_grows_and_refuses_with_numbers_and_advice():
    for engine in ("redzed", "ripser"):
        for maxdim in (0, 1, 2):
            sizes = [forecast_bytes(n, maxdim, engine) for n in (10, 100, 1000)]
            assert sizes == sorted(sizes)
    assert forecast_bytes(50_000, 0) < 2**30 < forecast_bytes(10_000, 1) < forecast_bytes(16_000, 1) < 4 * 2**30
    needed = forecast_bytes(4000, 1, "redzed")
    assert check_memory(4000, 1, "redzed", needed) == needed
    with pytest.raises(AnalysisIncomplete, match=r"up to H1 of 4000 points needs about 198 MiB, 197 MiB are free") as e:
        check_memory(4000, 1, "redzed", needed - 2**20)
    fitting = int(e.value.hint.split()[1])
    assert forecast_bytes(fitting, 1, "redzed") <= needed - 2**20 < forecast_bytes(fitting + 1, 1, "redzed")
    assert "--maxdim 0" in e.value.hint
    assert f"--landmarks {fitting}" in e.value.hint


def test_time_is_forecast_before_anything_is_computed(monkeypatch):
    one = forecast(3000, 2).seconds
    assert check_time(3000, 5, 2, "auto", 6 * one) == pytest.approx(5 * one)
    monkeypatch.setattr("cohomcli.topology.analysis.analyze_layer", lambda *_: pytest.fail("computed"))
    layers = {f"layer_{i}": gaussian(i, 3000, 2) for i in range(2)}
    message = r"up to H2 of 3000 points in 2 layers needs about 2\.\d hours of one core, the limit is 5.0 minutes"
    with pytest.raises(AnalysisIncomplete, match=message) as error:
        analyze_layers(layers, TopologyOptions(maxdim=2, time_limit=300.0))
    fitting = int(error.value.hint.split()[1])
    assert 2 * forecast(fitting, 2).seconds <= 300 < 2 * forecast(fitting + 1, 2).seconds * 1.01
    assert error.value.hint.endswith("or --max-seconds")


def test_durations_read_well():
    assert [duration(s) for s in (0.21, 41.0, 150.0, 9000.0)] == ["0.2 s", "41 s", "2.5 minutes", "2.5 hours"]
