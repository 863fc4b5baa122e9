"""The figures draw the dataclasses' numbers, choose their pages sensibly, and are never empty."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sampleresults import HOSTILE_NAMES, layer, layers, noisy_circle, renamed, topology

from cohomcli.report.axes import log_ticks, spread
from cohomcli.report.plots_betti import draw_betti
from cohomcli.report.plots_diagrams import MOST_BARS, bars_shown, draw_barcodes, draw_diagrams, pages
from cohomcli.report.plots_overview import draw_overview
from cohomcli.report.plots_profile import draw_profile
from cohomcli.report.style import DIMENSION, identity
from cohomcli.topology.results import LayerTopology, TopologyResult


def points_of(figure: Figure, panel: int, colour: str) -> list[tuple[float, float]]:
    """Every point drawn in one panel in one colour."""
    lines = [line for line in figure.axes[panel].lines if to_rgb(line.get_color()) == to_rgb(colour)]
    return [(float(x), float(y)) for line in lines for x, y in line.get_xydata()]


def pixels(figure: Figure, dpi: int = 60) -> np.ndarray:
    """The drawn figure, (height, width, 3) uint8, without the detour over a PNG file, as slow as the drawing."""
    figure.set_dpi(dpi)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def share_of(image: np.ndarray, colour: str) -> float:
    wanted = np.round(np.array(to_rgb(colour)) * 255)
    return float((np.abs(image - wanted).max(axis=2) < 12).mean())


@pytest.fixture(autouse=True)
def _style():
    with identity():
        yield


def test_profile_draws_raw_and_scale_free_totals() -> None:
    result = topology(layers(8))
    figure = draw_profile("t", result)
    for dimension, colour in ((0, DIMENSION[0]), (1, DIMENSION[1])):
        summaries = [item.summaries[dimension] for item in result.layers]
        for column, name in enumerate(("total_persistence", "total_over_scale")):
            drawn = set(points_of(figure, 2 * dimension + column, colour))
            assert drawn == {(float(at), getattr(summary, name)) for at, summary in enumerate(summaries)}


def test_profile_names_the_peak() -> None:
    result = topology(layers(8))
    peak = max(result.layers, key=lambda item: item.summaries[0].total_persistence)
    texts = [text.get_text() for text in draw_profile("t", result).axes[0].texts]
    assert any(text.startswith(f"{peak.name}: ") for text in texts)


def test_profile_scale_is_logarithmic_only_when_the_range_asks_for_it() -> None:
    raw, free = draw_profile("t", topology(layers(8))).axes[:2]
    assert raw.get_yscale() == "log"
    assert free.get_yscale() == "linear"
    assert free.get_ylim()[0] == 0


def test_overview_has_six_panels_of_the_right_numbers() -> None:
    result = topology(layers(8))
    figure = draw_overview("t", result)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left")[0] for axes in panels] == list("abcdef")
    entropies = {(float(at), item.summaries[1].entropy) for at, item in enumerate(result.layers)}
    assert set(points_of(figure, 3, DIMENSION[1])) == entropies


def test_overview_picture_of_betti_one_is_the_curve() -> None:
    result = topology(layers(8))
    panel = next(axes for axes in draw_overview("t", result).axes if axes.get_title(loc="left").startswith("e"))
    image = panel.collections[0].get_array()
    heights = np.linspace(0, panel.get_ylim()[1], image.shape[0])
    for at, item in enumerate(result.layers):
        bars = item.diagrams[1].pairs / item.scale
        grid = item.betti.grid / item.scale
        for row, height in enumerate(heights):
            seen_at = grid[grid <= height][-1]
            assert image[row, at] == ((bars[:, 0] <= seen_at + 1e-12) & (seen_at + 1e-12 < bars[:, 1])).sum()


def test_diagrams_draw_every_bar_in_units_of_scale() -> None:
    result = topology(layers(3))
    (page,) = pages(result.layers)
    figure = draw_diagrams("t", page)
    for panel, item in enumerate(result.layers):
        for diagram in item.diagrams:
            drawn = points_of(figure, panel, DIMENSION[diagram.dimension])
            expected = [tuple(pair) for pair in (diagram.pairs / item.scale).tolist()]
            essential = [point for point in drawn if point[1] > figure.axes[panel].get_xlim()[1]]
            assert sorted(set(drawn) - set(essential)) == sorted(set(expected))
            assert len(essential) == len(diagram.essential)


def test_barcodes_keep_the_longest_bars_and_say_so() -> None:
    item = layer("layer_0", noisy_circle(60, 3, 0.3, 0))
    (page,) = pages([item])
    figure = draw_barcodes("t", page)
    segments = [s for collection in figure.axes[0].collections for s in collection.get_segments()]
    lengths = sorted(float(s[1, 0] - s[0, 0]) for s in segments if s[0, 0] == 0)
    expected = sorted((item.diagrams[0].pairs[:, 1] / item.scale).tolist())[-(MOST_BARS - 1) :]
    np.testing.assert_allclose(lengths[: MOST_BARS - 1], expected)
    assert len(segments) == bars_shown(item)[0]
    shown, total = bars_shown(item)
    assert f"{shown} of {total}" in [text.get_text() for text in figure.axes[0].texts]


def test_betti_curves_are_steps_through_the_counts() -> None:
    item = layer("layer_0", noisy_circle(40, 3, 0.2, 0))
    figure = draw_betti("t", topology([item]))
    (line,) = figure.axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    deaths = item.diagrams[0].pairs[:, 1]
    for x, y in line.get_xydata():
        assert y == 1 + (deaths > x * item.scale * (1 + 1e-12)).sum()


def test_first_page_has_both_ends_and_the_peaks() -> None:
    result = topology(layers(32, n_points=20, dim=4))
    first, *rest = pages(result.layers)
    names = [item.name for item in first.layers]
    assert len(names) == 12
    assert names[0] == "embedding"
    assert names[-1] == "final_norm"
    for dimension in (0, 1):
        peak = max(result.layers, key=lambda item: item.summaries[dimension].total_persistence)
        assert peak.name in names
    shown = [item.name for page in (first, *rest) for item in page.layers]
    assert sorted(shown) == sorted(item.name for item in result.layers)
    assert all(len(page.layers) <= 12 for page in rest)


@pytest.mark.parametrize("n", [1, 2, 7, 12, 13, 25, 100])
def test_pages_hold_every_layer_once_in_order(n: int) -> None:
    some = layers(3)
    clouds = [replace(some[i % 3], name=f"layer_{i}") for i in range(n)]
    groups = [[int(item.name.removeprefix("layer_")) for item in page.layers] for page in pages(clouds)]
    assert sorted(at for group in groups for at in group) == list(range(n))
    assert all(group == sorted(group) and len(group) <= 12 for group in groups)


def test_axes_are_shared_unless_one_layer_would_crush_the_others() -> None:
    even = layers(4)
    assert pages(even)[0].shared
    far = noisy_circle(30, 3, 0.01, 0)
    far[0] += 1e6
    (page,) = pages([*even, layer("layer_9", far)])
    assert not page.shared
    assert page.limits[-1] > 3 * page.limits[0]


def degenerate() -> dict[str, list[LayerTopology]]:
    line = np.arange(6.0)[:, None]
    return {
        "one point": [layer("layer_0", np.zeros((1, 2)))],
        "coinciding": [layer("embedding", np.ones((5, 2))), *layers(3)[1:]],
        "no H1": [layer("embedding", line), layer("layer_0", 2 * line)],
        "only H0": list(layers(3, maxdim=0)),
        "H2": list(layers(3, n_points=20, dim=4, maxdim=2)),
        "censored": [layer("layer_0", noisy_circle(30, 3, 0.05, 0), threshold=1.0)],
        "hostile": list(renamed([*HOSTILE_NAMES[:3], *HOSTILE_NAMES[6:]])),
        "sublayers": list(renamed(["embedding", "layer_0.attention", "layer_0.mlp", "layer_0", "final_norm"])),
        "encoder-decoder": list(
            renamed(["encoder.embedding", "encoder.layer_0", "decoder.embedding", "decoder.layer_0"])
        ),
    }


@pytest.mark.parametrize("kind", degenerate())
@pytest.mark.filterwarnings("error")
def test_every_figure_can_be_drawn_of_anything(kind: str) -> None:
    result = TopologyResult(tuple(degenerate()[kind]), topology(degenerate()[kind]).expansion)
    figures = [draw(HOSTILE_NAMES[6], result) for draw in (draw_overview, draw_profile, draw_betti)]
    if kind in ("one point", "coinciding", "H2", "censored", "hostile"):
        figures += [draw("t", pages(result.layers)[0]) for draw in (draw_diagrams, draw_barcodes)]
    for figure in figures:
        ink = pixels(figure).min(axis=2) < 200
        assert ink.any(axis=0).mean() > 0.3
        assert ink.any(axis=1).mean() > 0.2


def test_dimensions_have_their_colours_in_every_figure() -> None:
    result = topology(layers(4))
    page = pages(result.layers)[0]
    overview = draw_overview("t", result)
    for figure in (overview, draw_diagrams("t", page), draw_barcodes("t", page)):
        image = pixels(figure, dpi=75)
        assert share_of(image, DIMENSION[0]) > 0.0001
        assert share_of(image, DIMENSION[1]) > 0.0001
        assert share_of(image, DIMENSION[2]) == 0 or figure is overview


def test_labels_at_the_line_ends_do_not_overlap() -> None:
    for heights in ([0.5, 0.5, 0.5], [0.1, 0.12, 0.9], [0.0, 0.01, 0.02, 0.03], [0.3]):
        placed = spread(heights, 0.1)
        assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(placed))
        assert np.mean(placed) == pytest.approx(np.mean(heights), abs=0.15)
    assert spread([0.1, 0.5], 0.1) == [0.1, 0.5]


@pytest.mark.parametrize(("low", "high"), [(1e-7, 1e9), (0.9, 23), (1.2, 1.9), (3, 4), (180, 180_000)])
def test_log_axes_always_have_a_few_round_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low <= place <= high for place in ticks)
