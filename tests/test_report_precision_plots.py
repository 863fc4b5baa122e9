"""The figures of a precision report draw the result's numbers, and no text covers another or leaves the figure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from precisionresults import FORMATS, flat, hostile, infeasible, llama, mlp, one_op, result, small, weights_result

from cohomcli.precision.result import PlanRow, PrecisionResult
from cohomcli.report.placing import Label, place_labels
from cohomcli.report.precision.digest import formats_of, obstructed_names, of_kind
from cohomcli.report.precision.draw_bars import BYTE_PARTS, draw_bytes, draw_contributors, top_groups
from cohomcli.report.precision.draw_formats import draw_formats
from cohomcli.report.precision.draw_overview import draw_precision, stops_of
from cohomcli.report.precision.draw_pareto import PLAN, draw_pareto
from cohomcli.report.precision.draw_weights import draw_weights
from cohomcli.report.precision.look import COLOUR, colour_of
from cohomcli.report.style import Frame, identity, new_figure


@pytest.fixture(autouse=True)
def _style():
    with identity():
        yield


@cache
def results() -> dict[str, PrecisionResult]:
    eight_bit = result(llama(2), (*FORMATS, "e4m3", "e5m2", "int8"))
    return {
        "blocks": small(),
        "chain": result(mlp(3)),
        "one": result(one_op()),
        "flat": result(flat(2000)),
        "many formats": replace(eight_bit, plan=tuple(_varied(eight_bit))),
        "no plan": infeasible(llama(2)),
        "nothing finite": replace(
            small(), met=False, measured_error=None,
            baselines=tuple(replace(b, error=None) for b in small().baselines),
        ),
        "cost table": replace(small(), objective="cost table"),
        "zero": replace(small(), epsilon=0.0, predicted_error=0.0, measured_error=0.0),
        "hostile": hostile(),
    }  # fmt: skip


def _varied(made: PrecisionResult) -> Iterator[PlanRow]:
    names = [f for f in COLOUR if f != "fp64"]
    for at, row in enumerate(made.plan):
        yield replace(row, format=names[at % len(names)] if row.kind == "weight" else names[at % 3])


def drawn_texts(figure: Figure) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every visible text with its box in pixels at 72 dpi; ticks beyond the limits of their axis are not drawn."""
    figure.set_dpi(72)
    figure.draw_without_rendering()
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=False)
            hidden |= {id(tick.label1) for tick, place in ticks if not low - 1e-9 <= place <= high + 1e-9}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]
    return [(t.get_text(), Text.get_window_extent(t, renderer).extents) for t in texts]


def collisions(figure: Figure) -> list[tuple[str, str]]:
    boxes = drawn_texts(figure)
    width, height = figure.get_size_inches() * 72
    found = [(text, "edge") for text, (x0, y0, x1, y1) in boxes if min(x0, y0, width - x1, height - y1) < -1]
    for at, (text, a) in enumerate(boxes):
        for other, b in boxes[at + 1 :]:
            if min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1:
                found.append((text, other))
    return found


DRAWN: dict[str, tuple[Callable[[str, PrecisionResult], Figure], ...]] = {
    "blocks": (draw_precision, draw_formats, draw_contributors, draw_bytes, draw_pareto),
    "chain": (draw_formats, draw_contributors),
    "one": (draw_precision, draw_pareto),
    "flat": (draw_formats, draw_pareto),
    "many formats": (draw_precision, draw_formats, draw_contributors),
    "no plan": (draw_precision, draw_bytes),
    "nothing finite": (draw_precision, draw_pareto),
    "cost table": (draw_pareto,),
    "zero": (draw_precision, draw_pareto),
    "hostile": (draw_precision, draw_formats, draw_contributors),
}


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.filterwarnings("error")
def test_no_text_covers_another_or_leaves_the_figure(kind: str) -> None:
    title = "\x1b[31m $\\frac{1}{0}$" if kind == "hostile" else "a model on a data set"
    for draw in DRAWN[kind]:
        assert collisions(draw(title, results()[kind])) == []


def test_the_check_above_sees_collisions() -> None:
    figure, (axes,) = new_figure("t", (1, 1), (3, 2), Frame())
    axes.text(0.5, 0.5, "one")
    axes.text(0.52, 0.5, "two")
    axes.text(1.5, 0.5, "outside")
    assert collisions(figure) == [("outside", "edge"), ("one", "two")]


def cells_of(figure: Figure) -> Counter[str]:
    found: Counter[str] = Counter()
    for axes in figure.axes:
        for collection in axes.collections:
            if isinstance(collection, PolyCollection):
                found[to_hex(collection.get_facecolor()[0])] += len(collection.get_paths())
    return found


@pytest.mark.parametrize("kind", ["blocks", "chain", "flat", "many formats"])
def test_the_graph_has_a_cell_of_the_right_colour_for_every_tensor(kind: str) -> None:
    made = results()[kind]
    figure = draw_formats("t", made)
    assert cells_of(figure) == Counter({to_hex(colour_of(f)): n for f, n in formats_of(made.plan).items()})
    dots = sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines)
    names = obstructed_names(made)
    assert dots == sum((row.kind, row.op) in names for row in made.plan)


def test_the_legend_of_the_graph_counts() -> None:
    made = small()
    words = " ".join(text.get_text() for text in draw_formats("t", made).legends[0].get_texts())
    for fmt, n in formats_of(of_kind(made.plan, "op")).items():
        assert f"{fmt}: {n} operations" in words
    assert "inadmissible: fp16 at 7" in words


def test_three_thousand_tensors_make_a_figure_of_bearable_size() -> None:
    made = result(llama(100))
    assert len(made.plan) > 3000
    width, height = draw_formats("t", made).get_size_inches()
    assert width < 11
    assert height < 14


def lengths(figure: Figure, panel: int) -> list[float]:
    return [patch.get_width() for patch in figure.axes[panel].patches]


def test_contributors_are_drawn_with_their_shares() -> None:
    made = small()
    figure = draw_contributors("t", made)
    groups = top_groups(made, 15)
    assert sum(lengths(figure, 0)) == pytest.approx(sum(g.share for g in groups))
    largest = sorted((row.share for row in made.plan), reverse=True)[:15]
    assert lengths(figure, 1) == pytest.approx(largest)
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert len(names) == len(largest)
    first = max(made.plan, key=lambda row: row.share)
    assert names[0].startswith(first.module.split(".", 1)[0]) or first.module.endswith(names[0].split(" ")[0])


def test_bytes_are_stacked_to_their_totals() -> None:
    made = small()
    axes = draw_bytes("t", made).axes[0]
    unit = {"MiB": 2**20, "KiB": 2**10}[axes.get_xlabel()]
    ends = [max(p.get_x() + p.get_width() for p in axes.patches[3 * k : 3 * k + 3]) * unit for k in range(7)]
    assert made.bytes_plan is not None
    assert ends == pytest.approx([made.bytes_plan.total, *(b.bytes.total for b in made.baselines if b.bytes)])
    assert [to_hex(p.get_facecolor()) for p in axes.patches[:3]] == [to_hex(colour) for _, colour in BYTE_PARTS]
    said = [text.get_text() for text in axes.texts]
    assert re.fullmatch(r"[\d.]+ MiB, 100 % of fp32, no casts", said[1])


def test_the_trade_off_draws_curve_bound_plan_and_baselines() -> None:
    made = small()
    assert made.bytes_plan is not None
    axes = draw_pareto("t", made).axes[0]
    assert axes.get_xscale() == "log"
    by_label = {str(line.get_label()): line for line in axes.lines}
    known = [p for p in made.pareto if p.objective is not None]
    curve = by_label["cheapest plan found (predicted)"].get_xydata()
    assert curve[:, 0].tolist() == [p.epsilon for p in known]
    np.testing.assert_allclose(curve[:, 1] * 2**20, [p.objective for p in known])
    bound = by_label["lower bound (proved in the model)"].get_ydata()
    np.testing.assert_allclose(bound * 2**20, [p.lower_bound for p in known])
    (star,) = [line for line in axes.lines if to_hex(line.get_color()) == to_hex(PLAN)]
    assert star.get_xydata().tolist() == [[made.measured_error, made.bytes_plan.total / 2**20]]
    (arrow,) = [line for line in axes.lines if line.get_marker() == ">"]
    assert arrow.get_xdata()[0] == axes.get_xlim()[1]
    texts = [text.get_text() for text in axes.texts]
    assert "uniform fp16: not finite" in texts
    assert "epsilon = 0.01" in texts


def test_points_that_coincide_share_their_label() -> None:
    made = small()
    same = tuple(replace(b, error=1.6e-2, bytes=made.bytes_fp16) for b in made.baselines[1:3])
    texts = [text.get_text() for text in draw_pareto("t", replace(made, baselines=same)).axes[0].texts]
    assert "uniform bf16\nuniform fp16" in texts


def test_labels_find_free_places() -> None:
    _, (axes,) = new_figure("t", (1, 1), (4, 3), Frame())
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    labels = [Label(0.5 + 0.02 * k, 0.5 + 0.01 * k, f"a name {k}", "black") for k in range(6)]
    boxes = place_labels(axes, labels, [[(0.0, 0.6), (1.0, 0.6)]])
    assert all(a.overlap(b) == 0 for at, a in enumerate(boxes) for b in boxes[at + 1 :])


def test_the_overview_shows_the_share_of_every_format_block_by_block() -> None:
    made = small()
    figure = draw_precision("t", made)
    axes = next(a for a in figure.axes if a.get_title(loc="left").startswith("c"))
    stops = stops_of(made.plan)
    assert [stop.name for stop in stops] == [
        "model.embed_tokens", *(f"model.layers.{k}" for k in range(3)), "model.norm", "lm_head",
    ]  # fmt: skip
    for at, stop in enumerate(stops):
        here = {to_hex(p.get_facecolor()): p.get_height() for p in axes.patches if round(p.get_x() + 0.45) == at}
        for fmt, n in formats_of(stop.rows).items():
            assert here[to_hex(colour_of(fmt))] == pytest.approx(n / len(stop.rows))


def test_the_overview_puts_errors_on_either_side_of_the_tolerance() -> None:
    made = small()
    axes = draw_precision("t", made).axes[0]
    points = {float(x) for line in axes.lines if line.get_marker() in "s*" for x in np.atleast_1d(line.get_xdata())}
    assert points >= {made.measured_error, *(b.error for b in made.baselines if b.error)}
    assert "not finite" in [text.get_text() for text in axes.texts]
    assert made.epsilon in {float(np.atleast_1d(line.get_xdata())[0]) for line in axes.lines}


def test_weights_are_drawn_as_they_are() -> None:
    made = weights_result()
    figure = draw_weights("t", made)
    assert [p.get_width() for p in figure.axes[0].patches] == [made.bytes_stored, *made.bytes_by_format.values()]
    points = {to_hex(line.get_color()): line.get_ydata().tolist() for line in figure.axes[1].lines}
    assert points[to_hex(COLOUR["bf16"])] == [row.errors["bf16"] for row in made.weights]
    assert len(points[to_hex(COLOUR["fp16"])]) == len(made.weights) - 1
    assert collisions(figure) == []


def test_formats_are_told_apart_without_hue() -> None:
    """Neighbouring widths differ in lightness, so that the picture survives a grey printer."""

    def lightness(fmt: str) -> float:
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(COLOUR[fmt]))
        return 116 * (0.2126 * r + 0.7152 * g + 0.0722 * b) ** (1 / 3) - 16

    pairs = [("fp64", "fp32"), ("fp32", "bf16"), ("fp32", "fp16"), ("bf16", "fp16"), ("e4m3", "e5m2")]
    assert all(abs(lightness(a) - lightness(b)) > 10 for a, b in pairs)
    assert len(set(COLOUR.values())) == len(COLOUR)
