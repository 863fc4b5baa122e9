"""Point clouds: what is refused, distinct rows, PCA against a full SVD, scale and metrics against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import pdist

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology.pointcloud import distinct_rows, make_cloud, pairwise_distances, scale, validate


def test_non_finite_rows_are_counted_and_the_layer_is_named():
    x = np.zeros((10, 3), np.float32)
    x[2, 1], x[7, 0] = np.nan, np.inf
    with pytest.raises(AnalysisIncomplete, match=r"'layer_4': 2 of 10 activation rows are not finite"):
        validate("layer_4", x)


def test_opposite_infinities_do_not_hide_in_the_sum():
    x = np.zeros((4, 2))
    x[0, 0], x[1, 0] = np.inf, -np.inf
    with pytest.raises(AnalysisIncomplete, match="2 of 4"):
        validate("a", x)


def test_finite_values_whose_sum_overflows_are_accepted():
    validate("a", np.full((3, 3), 1.7e308))


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(AnalysisIncomplete, match="not a point cloud"):
        validate("a", np.zeros(shape))


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 3)), elements=st.sampled_from([-0.0, 0.0, 1.0]))
)
@settings(max_examples=60, deadline=None)
def test_distinct_rows_and_their_counts(x):
    first, counts = distinct_rows(x)
    rows = x[first] + 0.0
    expected, expected_counts = np.unique(x + 0.0, axis=0, return_counts=True)
    order = np.lexsort(rows.T[::-1])
    np.testing.assert_array_equal(rows[order], expected)
    np.testing.assert_array_equal(counts[order], expected_counts)


def svd_scores(x, k):
    centred = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :k] * s[:k], (s[:k] ** 2).sum() / (s**2).sum()


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_pca_keeps_the_distances_of_a_full_svd(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * np.logspace(0, -4, shape[1]) + 3.0  # four decades of standard deviations
    cloud = make_cloud(x, pca=10)
    scores, explained = svd_scores(x, 10)
    np.testing.assert_allclose(pdist(cloud.points), pdist(scores), rtol=1e-9)
    assert cloud.explained_variance == pytest.approx(explained, rel=1e-12)
    assert (cloud.pca_dim, cloud.ambient_dim, cloud.n_points) == (10, shape[1], shape[0])


def test_pca_counts_repeated_points_as_often_as_they_occur():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 60))
    repeated = np.concatenate([x, x[:10], x[:10]])
    cloud = make_cloud(repeated, pca=5)
    scores, explained = svd_scores(repeated, 5)
    assert cloud.n_distinct == 30
    np.testing.assert_allclose(pdist(cloud.points), pdist(scores[:30]), rtol=1e-9)
    assert cloud.explained_variance == pytest.approx(explained, rel=1e-12)


def test_pca_that_cannot_lose_anything_is_skipped():
    x = np.random.default_rng(2).normal(size=(20, 100)).astype(np.float32)
    cloud = make_cloud(x, pca=50)
    np.testing.assert_array_equal(cloud.points, x.astype(np.float64))
    assert (cloud.pca_dim, cloud.explained_variance) == (19, 1.0)


@pytest.mark.parametrize(
    ("n", "pca", "pca_dim"), [(1, 50, 8), (1, 3, 0), (1, 0, 8), (2, 1, 1), (30, 0, 8), (30, 8, 8), (30, 3, 3)]
)
def test_reported_dimension(n, pca, pca_dim):
    assert make_cloud(np.random.default_rng(3).normal(size=(n, 8)), pca).pca_dim == pca_dim


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 15), st.integers(1, 3)), elements=st.integers(0, 3)))
@settings(max_examples=60, deadline=None)
def test_scale_is_the_mean_over_all_pairs(x):
    cloud = make_cloud(x, pca=0)
    expected = pdist(x).mean() if len(x) > 1 else 0.0
    assert scale(pdist(cloud.points), cloud.multiplicity) == pytest.approx(expected, rel=1e-12)


def test_mean_norm_is_over_all_raw_rows():
    x = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    assert make_cloud(x, pca=1).mean_norm == pytest.approx(11 / 3)


SCIPY_NAMES = {"euclidean": "euclidean", "manhattan": "cityblock", "chebyshev": "chebyshev"}
SCIPY_NAMES |= {"cosine": "cosine", "correlation": "correlation"}


@pytest.mark.parametrize("metric", SCIPY_NAMES)
def test_metrics_agree_with_scipy(metric):
    x = np.random.default_rng(4).normal(size=(25, 7))
    np.testing.assert_allclose(
        pairwise_distances("a", x, metric), pdist(x, SCIPY_NAMES[metric]), rtol=1e-12, atol=1e-15
    )


def test_cosine_of_parallel_rows_is_exactly_zero_and_survives_extreme_norms():
    rng = np.random.default_rng(7)
    parallel = rng.normal(size=50) * rng.uniform(0.1, 10, size=(40, 1))
    assert not pairwise_distances("a", parallel, "cosine").any()
    extreme = np.array([[3e-200, 4e-200], [1e200, 0.0]])
    assert pairwise_distances("a", extreme, "cosine")[0] == pytest.approx(1 - 0.6)


@pytest.mark.parametrize(("metric", "row", "what"), [("cosine", 0.0, "zero"), ("correlation", 0.1, "constant")])
def test_rows_without_an_angle_are_refused(metric, row, what):
    x = np.random.default_rng(5).normal(size=(6, 4))
    x[1] = row
    with pytest.raises(AnalysisIncomplete, match=f"'layer_0': 1 of 6 distinct rows are {what}.*--metric euclidean"):
        pairwise_distances("layer_0", x, metric)


def test_unknown_metric_suggests_the_nearest():
    with pytest.raises(UsageError, match="did you mean euclidean"):
        pairwise_distances("a", np.zeros((2, 2)), "euclidian")


def test_overflowing_distances_are_refused():
    with pytest.raises(AnalysisIncomplete, match="overflow"):
        pairwise_distances("a", np.array([[1e300], [-1e300]]), "euclidean")


@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_only_the_euclidean_metric_is_projected(metric):
    x = np.random.default_rng(6).normal(size=(30, 12))
    cloud = make_cloud(x, pca=3, metric=metric)
    np.testing.assert_array_equal(cloud.points, x)
    assert (cloud.pca_dim, cloud.explained_variance) == (12, 1.0)
