"""Curves and images of diagrams against GUDHI, persim and closed forms."""

from pathlib import Path

import numpy as np
import pytest
from gudhi.representations import BettiCurve, Entropy, Landscape, Silhouette
from persim import PersistenceImager
from safetensors.numpy import load_file
from scipy.stats import entropy

from cohomcli.__main__ import main
from cohomcli.runs.entries import load_run
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.results import Array, Diagram, TopologyOptions
from cohomcli.topology.summaries import betti_curve, persistence_entropy
from cohomcli.topology.vectors import (
    CURVES,
    LANDSCAPES,
    betti,
    common_grid,
    entropy_curve,
    landscape,
    persistence_image,
    silhouette,
    tents,
    vectors_of,
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


def test_vectors_of_layers_share_their_grids_and_do_not_change_with_scale() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((40, 5)).astype(np.float32)
    layers = analyze_layers({"a": x, "b": 1000 * x, "c": x[:, :2]}, TopologyOptions()).layers
    arrays = vectors_of(layers, size=50, side=8)
    assert {name.partition("/")[2] for name in arrays if name.startswith("a/")} == {
        f"h{k}/{what}" for k in (0, 1) for what in (*CURVES, "image")
    }
    for k in (0, 1):
        bars = layers[0].diagrams[k].pairs / layers[0].scale
        grid = arrays[f"grid/h{k}"]
        assert grid.shape == (50,)
        assert np.array_equal(arrays[f"a/h{k}/landscape"], landscape(bars, grid))
        assert arrays[f"a/h{k}/landscape"].shape == (LANDSCAPES, 50)
        assert arrays[f"a/h{k}/image"].shape == (8, 8)
        assert np.allclose(arrays[f"a/h{k}/silhouette"], arrays[f"b/h{k}/silhouette"], rtol=1e-5, atol=1e-6)
        assert np.allclose(arrays[f"a/h{k}/image"], arrays[f"b/h{k}/image"], rtol=1e-4, atol=1e-6)
        weight = sum((bars[:, 1] - bars[:, 0]) * 1.0)
        assert 0.2 * weight < arrays[f"a/h{k}/image"].sum() <= weight


def test_the_command_writes_vectors_beside_the_diagrams(tmp_path: Path) -> None:
    arguments = [
        "tda",
        "-m",
        "tiny-gpt",
        "--samples",
        "20",
        "--layers",
        "0,3",
        "--null",
        "none",
        "--no-bands",
        "--quiet",
    ]
    out = ["--no-plots", "--no-html", "--vectors", "--output-dir", str(tmp_path), "--json"]
    assert main([*arguments, *out]) == 0
    run = (tmp_path / "latest").resolve()
    (path,) = run.rglob("vectors.safetensors")
    stored = load_file(path)
    layers = load_run(run).entries[0].topology.layers
    for name, values in vectors_of(layers).items():
        assert np.array_equal(stored[name], values)
    assert str(path.relative_to(run)) in (run / "report.md").read_text().replace("\\", "")
