"""Intrinsic dimension, hubness, anisotropy and ranks against closed forms and recorded values of other code."""

import numpy as np
import pytest
from scipy.stats import skew

from cohomcli.topology.geometry import MOST_POINTS, geometry_of
from cohomcli.topology.results import Array


def _sphere(rng: np.random.RandomState) -> Array:
    x = rng.randn(500, 6)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# skdim.id.TwoNN().fit(x).dimension_ and skdim.id.MLE().fit(x).dimension_ of scikit-dimension 0.5.0 (numpy 2.4.6,
# scikit-learn 1.9.1), for x drawn one after another from numpy.random.RandomState(3) as in `_clouds`.
SCIKIT_DIMENSION = {
    "sphere": (5.1270761844031565, 4.725196816521432),
    "gauss": (9.816039884166743, 8.231433054623627),
    "wide": (5.264334024094619, 4.795685967712675),
}


def _clouds() -> dict[str, Array]:
    rng = np.random.RandomState(3)
    sphere, gauss = _sphere(rng), rng.randn(400, 10)
    return {"sphere": sphere, "gauss": gauss, "wide": rng.randn(300, 5) @ rng.randn(5, 40) + 0.01 * rng.randn(300, 40)}


@pytest.mark.parametrize("name", SCIKIT_DIMENSION)
def test_twonn_and_mle_equal_scikit_dimension(name: str) -> None:
    found = geometry_of(_clouds()[name])
    assert (found.twonn, found.mle) == pytest.approx(SCIKIT_DIMENSION[name], rel=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_dimension_of_a_sphere_is_found_in_any_ambient_space(d: int) -> None:
    rng = np.random.default_rng(d)
    x = rng.normal(size=(1500, d + 1))
    turn, _ = np.linalg.qr(rng.normal(size=(30, d + 1)))
    found = geometry_of(x / np.linalg.norm(x, axis=1, keepdims=True) @ turn.T)
    assert (found.twonn, found.mle, found.ph_dimension) == pytest.approx((d, d, d), rel=0.1)


def test_figures_do_not_change_under_moving_turning_and_scaling() -> None:
    x = np.random.default_rng(0).normal(size=(200, 8))
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    one, other = geometry_of(x), geometry_of(1000 * x @ turn + 5)
    for name in ("twonn", "mle", "ph_dimension", "hubness", "participation_ratio", "effective_rank"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6)


def test_hubness_is_the_skewness_of_the_neighbour_counts() -> None:
    x = np.random.default_rng(2).normal(size=(120, 40))
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    counts = np.bincount(np.argsort(apart, axis=1)[:, :10].ravel(), minlength=120)
    assert geometry_of(x).hubness == pytest.approx(skew(counts), rel=1e-9)


def test_points_on_a_circle_have_no_hubs() -> None:
    angles = 2 * np.pi * np.arange(64) / 64 + 1e-4 * np.random.default_rng(0).uniform(size=64)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert abs(geometry_of(circle).hubness) < 1.5  # ties of the five-a-side neighbours only


def test_mean_cosine_is_the_mean_over_all_pairs() -> None:
    x = np.random.default_rng(3).normal(size=(50, 6)) + 1
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(50, 1)]
    assert geometry_of(x).mean_cosine == pytest.approx(cosines.mean(), rel=1e-12)
    assert geometry_of(np.outer(np.arange(1, 9), np.ones(3))).mean_cosine == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(400, 12), (9, 400)])
def test_k_equal_directions_count_as_k(shape: tuple[int, int]) -> None:
    """Rows of a scaled orthogonal frame, centred: the spectrum is flat on its support."""
    n, d = shape
    k = 5
    frame, _ = np.linalg.qr(np.concatenate([np.ones((n, 1)), np.random.default_rng(4).normal(size=(n, k))], axis=1))
    axes, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(d, k)))
    found = geometry_of(frame[:, 1:] @ axes.T * 1e3)
    assert (found.participation_ratio, found.effective_rank) == pytest.approx((k, k), rel=1e-9)


def test_ranks_of_a_known_spectrum() -> None:
    """Variances 1 and 4: participation 25 / 17, effective rank exp(H(1/3, 2/3))."""
    frame, _ = np.linalg.qr(np.concatenate([np.ones((50, 1)), np.random.default_rng(6).normal(size=(50, 2))], axis=1))
    found = geometry_of(frame[:, 1:] @ np.diag([1.0, 2.0]))
    assert found.participation_ratio == pytest.approx(25 / 17)
    assert found.effective_rank == pytest.approx(np.exp(np.log(3) / 3 + 2 / 3 * np.log(1.5)))


def test_coinciding_texts_count_once_for_neighbours_and_each_time_for_directions() -> None:
    x = np.random.default_rng(7).normal(size=(90, 5))
    once, twice = geometry_of(x), geometry_of(np.concatenate([x, x]))
    assert (twice.twonn, twice.mle, twice.ph_dimension, twice.hubness) == pytest.approx(
        (once.twonn, once.mle, once.ph_dimension, once.hubness), rel=1e-9
    )
    assert twice.mean_cosine > once.mean_cosine
    assert twice.participation_ratio == pytest.approx(once.participation_ratio)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_tiny_and_degenerate_layers_have_no_figures_instead_of_wrong_ones(n: int) -> None:
    with np.errstate(all="raise"):
        same = geometry_of(np.ones((n, 4)))
        some = geometry_of(np.arange(4.0 * n).reshape(n, 4) ** 2)
        none = geometry_of(np.zeros((n, 4)))
    assert (same.twonn, same.mle, same.ph_dimension, same.participation_ratio) == (None,) * 4
    assert some.ph_dimension is None
    assert some.mean_cosine is None or 0 < some.mean_cosine <= 1
    assert none.mean_cosine is None


def test_huge_and_small_activations_neither_overflow_nor_vanish() -> None:
    x = np.random.default_rng(8).normal(size=(60, 7))
    expected = geometry_of(x)
    for scale in (1e150, 1e-150):
        with np.errstate(over="raise"):
            found = geometry_of(x * scale)
        assert found.twonn == pytest.approx(expected.twonn, rel=1e-6)
        assert found.participation_ratio == pytest.approx(expected.participation_ratio, rel=1e-6)


def test_many_texts_are_sampled_with_the_seed() -> None:
    x = np.random.default_rng(9).normal(size=(MOST_POINTS + 500, 3)).astype(np.float32)
    first, again, other = geometry_of(x, 0), geometry_of(x, 0), geometry_of(x, 1)
    assert first == again
    assert first.n_points == MOST_POINTS
    assert first != other
