"""Diagram distances against brute force over matchings, closed forms, persim and GUDHI."""

import warnings
from itertools import permutations

import gudhi.hera
import numpy as np
import persim
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology import distances
from cohomcli.topology.distances import DIAGRAM_DISTANCES, bottleneck, sliced_wasserstein, wasserstein
from cohomcli.topology.results import Array, Diagram

Points = list[tuple[int, int]]
POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), max_size=7)


def _diagram(pairs: object, essential: tuple[float, ...] = (), censored: tuple[float, ...] = ()) -> Diagram:
    array = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return Diagram(1, array, np.array(essential, dtype=np.float64), np.array(censored, dtype=np.float64))


def _of(points: Points) -> Diagram:
    return _diagram([(birth, birth + life) for birth, life in points])


def _random(seed: int, n: int) -> Array:
    rng = np.random.default_rng(seed)
    births = rng.uniform(5, 9, n)
    return np.stack([births, births + rng.exponential(0.2, n)], axis=1)


def _full_costs(a: Array, b: Array, ground: float) -> Array:
    """The (n + m) x (n + m) costs of the definition: points to points, points to their own places on the diagonal."""
    n, m = len(a), len(b)
    costs = np.zeros((n + m, n + m))
    costs[:n, :m] = np.linalg.norm(a[:, None] - b[None], ord=ground, axis=2)
    nearest = [np.stack([p.mean(axis=1)] * 2, axis=1) for p in (a, b)]
    costs[:n, m:] = np.linalg.norm(a - nearest[0], ord=ground, axis=1)[:, None]
    costs[n:, :m] = np.linalg.norm(b - nearest[1], ord=ground, axis=1)
    return costs


@given(POINTS, POINTS)
def test_bottleneck_equals_a_search_over_all_thresholds(first: Points, second: Points) -> None:
    a, b = _of(first), _of(second)
    costs = _full_costs(a.pairs, b.pairs, np.inf)

    def enough(t: float) -> bool:
        too_far = (costs > t).astype(np.float64)
        return bool(too_far[linear_sum_assignment(too_far)].sum() == 0)

    expected = next((t for t in np.unique(costs) if enough(t)), 0.0)
    assert bottleneck(a, b) == expected


@given(POINTS, POINTS, st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0, np.inf]))
def test_wasserstein_equals_the_full_assignment(first: Points, second: Points, order: float, ground: float) -> None:
    a, b = _of(first), _of(second)
    costs = _full_costs(a.pairs, b.pairs, ground) ** order
    expected = costs[linear_sum_assignment(costs)].sum() ** (1 / order)
    assert wasserstein(a, b, order, ground) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_large_diagrams_against_persim_and_hera(seed: int) -> None:
    a, b = _random(seed, 150), _random(seed + 9, 120)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bottleneck(_diagram(a), _diagram(b)) == pytest.approx(persim.bottleneck(a, b), rel=1e-12)
        assert wasserstein(_diagram(a), _diagram(b)) == pytest.approx(persim.wasserstein(a, b), rel=1e-9)
        assert sliced_wasserstein(_diagram(a), _diagram(b)) == pytest.approx(persim.sliced_wasserstein(a, b), rel=1e-6)
    hera = gudhi.hera.wasserstein_distance(a, b, order=2, internal_p=np.inf, delta=1e-6)
    assert wasserstein(_diagram(a), _diagram(b), 2.0, np.inf) == pytest.approx(hera, rel=1e-5)


def test_sliced_wasserstein_of_one_point_is_the_integral_of_its_projections() -> None:
    """Against nothing, (b, d) is compared with its foot on the diagonal: l/sqrt 2 away, mean cosine 2/pi."""
    life = 3.0
    expected = life / np.sqrt(2) * 2 / np.pi
    assert sliced_wasserstein(_diagram([(1, 1 + life)]), _diagram([]), 20_000) == pytest.approx(expected, rel=1e-6)


def test_matching_is_better_than_the_sorted_order_where_it_must_be() -> None:
    """Brute force over all bijections of small equal-sized diagrams far from the diagonal."""
    a, b = np.array([[0, 10], [1, 14], [2, 11.0]]), np.array([[0, 13], [1, 10], [2, 14.0]])
    best = min(np.linalg.norm(a - b[list(p)], axis=1).sum() for p in permutations(range(3)))
    assert wasserstein(_diagram(a), _diagram(b)) == pytest.approx(best)


@pytest.mark.parametrize("name", DIAGRAM_DISTANCES)
class TestEveryDistance:
    def test_is_zero_between_equal_diagrams_and_symmetric(self, name: str) -> None:
        distance = DIAGRAM_DISTANCES.get(name)
        a, b = _diagram(_random(1, 30), (0.0, 2.0)), _diagram(_random(2, 40), (1.0, 3.0))
        assert distance(a, a) == 0
        assert distance(_diagram([]), _diagram([])) == 0
        assert distance(a, b) == pytest.approx(distance(b, a))
        assert distance(a, b) > 0

    def test_classes_that_never_die_meet_only_each_other(self, name: str) -> None:
        distance = DIAGRAM_DISTANCES.get(name)
        assert distance(_diagram([], (0.0, 5.0)), _diagram([], (6.0, 0.0))) == pytest.approx(1.0)
        assert distance(_diagram([], (2.0,)), _diagram([], (), (2.5,))) == pytest.approx(0.5)

    def test_is_infinite_where_their_numbers_differ(self, name: str) -> None:
        distance = DIAGRAM_DISTANCES.get(name)
        assert distance(_diagram([(0, 1)], (0.0,)), _diagram([(0, 1)])) == np.inf
        assert distance(_diagram([], (), (0.0,)), _diagram([(0, 1e9)])) == np.inf

    def test_does_not_depend_on_the_order_of_the_bars(self, name: str) -> None:
        distance = DIAGRAM_DISTANCES.get(name)
        a, b = _random(3, 25), _random(4, 25)
        assert distance(_diagram(a[::-1]), _diagram(b)) == pytest.approx(distance(_diagram(a), _diagram(b)))


@given(POINTS, POINTS)
def test_bottleneck_is_the_least_of_the_three(first: Points, second: Points) -> None:
    a, b = _of(first), _of(second)
    assert bottleneck(a, b) <= wasserstein(a, b, 1.0, np.inf) + 1e-9
    assert wasserstein(a, b, 1.0, np.inf) <= wasserstein(a, b, 1.0, 1.0) + 1e-9


def test_an_assignment_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "LARGEST_ASSIGNMENT", 10)
    with pytest.raises(AnalysisIncomplete, match=r"11 x 11.*sliced-wasserstein"):
        wasserstein(_diagram(_random(0, 11)), _diagram([]))


def test_a_misspelt_distance_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean bottleneck"):
        DIAGRAM_DISTANCES.get("bottelneck")
