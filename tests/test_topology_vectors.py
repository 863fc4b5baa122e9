"""Curves and images of diagrams against GUDHI, persim and closed forms."""

import numpy as np
import pytest
from gudhi.representations import BettiCurve, Entropy, Landscape, Silhouette
from persim import PersistenceImager
from scipy.stats import entropy

from cohomcli.topology.results import Array, Diagram
from cohomcli.topology.summaries import betti_curve, persistence_entropy
from cohomcli.topology.vectors import (
    CURVES,
    betti,
    common_grid,
    entropy_curve,
    landscape,
    persistence_image,
    silhouette,
    tents,
)


def _bars(seed: int, n: int = 30) -> Array:
    rng = np.random.default_rng(seed)
    births = rng.uniform(0, 2, n)
    return np.stack([births, births + rng.exponential(0.5, n)], axis=1)


GRID = np.linspace(0.0, 4.0, 97)
NONE = np.zeros((0, 2))


@pytest.mark.parametrize("seed", range(3))
def test_landscapes_equal_gudhi(seed: int) -> None:
    """GUDHI works in coordinates rotated by 45 degrees, which are larger by sqrt 2."""
    bars = _bars(seed)
    theirs = Landscape(num_landscapes=5, resolution=len(GRID), sample_range=[0.0, 4.0])(bars)
    assert landscape(bars, GRID).ravel() * np.sqrt(2) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_silhouettes_equal_gudhi(power: float) -> None:
    bars = _bars(4)
    theirs = Silhouette(weight=lambda p: (p[1] - p[0]) ** power, resolution=len(GRID), sample_range=[0.0, 4.0])(bars)
    assert silhouette(bars, GRID, power) * np.sqrt(2) == pytest.approx(theirs, abs=1e-9)


def test_betti_curves_equal_gudhi_and_our_own_summary() -> None:
    bars = _bars(5)
    assert betti(bars, GRID) == pytest.approx(BettiCurve(predefined_grid=GRID)(bars))
    mine = betti_curve([Diagram(1, bars, np.zeros(0), np.zeros(0))])
    assert betti(bars, mine.grid) == pytest.approx(mine.values[0])


def test_entropy_curves_equal_gudhi_and_add_up_to_persistence_entropy() -> None:
    rng = np.random.default_rng(6)
    births = rng.integers(0, 60, 20)
    bars = np.stack([GRID[births], GRID[births + rng.integers(1, 36, 20)]], axis=1)  # GUDHI rounds others to its grid
    theirs = Entropy(mode="vector", normalized=False, resolution=len(GRID), sample_range=[0.0, 4.0])(bars)
    assert entropy_curve(bars, GRID) == pytest.approx(theirs, abs=1e-9)
    together = np.array([[0.0, 3.0], [1.0, 2.0], [0.5, 1.5]])
    assert entropy_curve(together, np.array([1.25]))[0] == pytest.approx(entropy([3.0, 1.0, 1.0]))
    assert entropy_curve(together, np.array([1.25]))[0] == pytest.approx(persistence_entropy(np.array([3.0, 1.0, 1.0])))


def test_a_single_bar_is_a_tent() -> None:
    bar = np.array([[1.0, 3.0]])
    assert tents(bar, np.array([0.5, 1.0, 2.0, 2.5, 3.0])) == pytest.approx(np.array([[0, 0, 1, 0.5, 0]]))
    assert silhouette(bar, GRID) == pytest.approx(landscape(bar, GRID)[0])
    assert not landscape(bar, GRID)[1:].any()


@pytest.mark.parametrize("seed", range(2))
def test_images_equal_persim(seed: int) -> None:
    bars = _bars(seed)
    imager = PersistenceImager(
        birth_range=(0, 2), pers_range=(0, 2), pixel_size=0.1, weight="persistence", weight_params={"n": 1.0},
        kernel_params={"sigma": [[0.04, 0.0], [0.0, 0.04]]},
    )  # fmt: skip
    edges = np.linspace(0, 2, 21)
    ours = persistence_image(bars, edges, edges, 0.2)
    assert pytest.approx(imager.transform(bars, skew=True), abs=1e-9) == ours.T


def test_an_image_that_sees_everything_holds_the_total_persistence() -> None:
    bars, edges = _bars(7), np.linspace(-20, 20, 9)
    assert persistence_image(bars, edges, edges, 0.3).sum() == pytest.approx((bars[:, 1] - bars[:, 0]).sum())


@pytest.mark.parametrize("name", CURVES)
def test_a_diagram_without_bars_is_zero(name: str) -> None:
    assert not CURVES.get(name)(NONE, GRID).any()
    assert not persistence_image(NONE, GRID, GRID, 0.1).any()


def test_one_grid_serves_all_diagrams() -> None:
    diagrams = [Diagram(1, _bars(seed), np.zeros(0), np.zeros(0)) for seed in (1, 2)]
    grid = common_grid(diagrams, 50)
    assert (grid[0], grid[-1]) == (0.0, max(d.pairs.max() for d in diagrams))
    assert common_grid([Diagram(1, NONE, np.zeros(0), np.zeros(0))])[-1] == 1.0
