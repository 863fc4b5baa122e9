"""The figures of geometry, similarity, tracking and attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cohomcli.report.axes import Curve, depth_axis, draw_curves
from cohomcli.report.depth import depth_of
from cohomcli.report.representation.heatmap import Heatmap, draw_heatmap
from cohomcli.report.style import DIMENSION, INK, MUTED, Frame, glyphs, new_figure
from cohomcli.topology.figures import (
    AttentionTopology,
    Geometry,
    HeadTopology,
    LayerTracking,
    SimilarityMatrix,
    TrackedDimension,
)
from cohomcli.topology.results import LayerTopology, TopologyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 3
_NAME = re.compile(r"(?:(encoder|decoder)\.)?(?:(embedding)|(final_norm)|layer_(\d+)(?:\.(attention|mlp))?)")


def draw_geometry(title: str, topology: TopologyResult) -> Figure:
    """Four panels over depth: intrinsic dimension, hubness, mean cosine, ranks."""
    depth = depth_of(topology.layers)
    panels: list[tuple[str, list[tuple[str, str, Callable[[Geometry], float | None]]]]] = [
        ("Intrinsic dimension", [
            ("TwoNN", DIMENSION[0], lambda g: g.twonn),
            ("MLE", DIMENSION[1], lambda g: g.mle),
            ("PH", DIMENSION[2], lambda g: g.ph_dimension),
        ]),
        ("Hubness", [("", INK, lambda g: g.hubness)]),
        ("Mean cosine between texts", [("", INK, lambda g: g.mean_cosine)]),
        ("Directions of variation", [
            ("effective rank", DIMENSION[0], lambda g: g.effective_rank),
            ("participation", DIMENSION[1], lambda g: g.participation_ratio),
        ]),
    ]  # fmt: skip
    figure, axes = new_figure(title, (2, 2), (3.7, 1.8), Frame(right=1.0, across=1.25))
    for panel, (heading, lines) in zip(axes, panels, strict=True):
        panel.set_title(heading)
        depth_axis(panel, depth, room=14)
        curves = [
            (track, Curve(label, colour, _reader(value))) for track in depth.streams for label, colour, value in lines
        ]
        draw_curves(panel, curves, "linear")
    return figure


def _reader(value: Callable[[Geometry], float | None]) -> Callable[[LayerTopology], float | None]:
    return lambda layer: value(layer.geometry) if layer.geometry is not None else None


def draw_similarity(title: str, matrices: Sequence[SimilarityMatrix]) -> Figure:
    """One heatmap per measure, bright where layers are alike."""
    rows = -(-len(matrices) // _ACROSS)
    shape = (rows, min(len(matrices), _ACROSS))
    frame = Frame(left=0.5, across=1.0, right=0.6, bottom=0.45, down=0.85)
    figure, axes = new_figure(title, shape, (2.5, 2.5), frame)
    for panel, matrix in zip(axes, matrices, strict=False):
        ticks = _layer_ticks(matrix.layers)
        heading = f"{matrix.title} ({matrix.kind})"
        draw_heatmap(panel, Heatmap(heading, _array(matrix.values), ticks, ticks, matrix.kind == "divergence"))
    for panel in axes[len(matrices) :]:
        panel.set_visible(False)
    return figure


def draw_tracking(title: str, tracking: LayerTracking) -> Figure:
    """Classes alive and born, neighbours kept, and the share of H1 classes that lives on."""
    frame = Frame(left=0.55, across=0.75, right=0.6, bottom=0.45)
    figure, (counts, kept, through) = new_figure(title, (1, 3), (2.5, 2.4), frame)
    loops = tracking.dimensions[-1]
    _draw_counts(counts, tracking, loops)
    kept.set_title("Neighbours kept to the next layer")
    kept.plot(np.arange(len(tracking.kept)) + 0.5, tracking.kept, "o-", color=INK, clip_on=False)
    kept.set_ylim(0, 1)
    _layer_axis(kept, tracking.layers)
    ticks = _layer_ticks(tracking.layers)
    heading = f"H{loops.dimension} classes that live on"
    draw_heatmap(through, Heatmap(heading, _array(loops.shared), ticks, ticks, limits=(0.0, 1.0)))
    return figure


def _draw_counts(axes: Axes, tracking: LayerTracking, tracked: TrackedDimension) -> None:
    places = np.arange(len(tracking.layers))
    axes.set_title(f"H{tracked.dimension} classes: alive \N{BLACK CIRCLE}, born \N{WHITE CIRCLE}")
    colour = DIMENSION[tracked.dimension]
    axes.plot(places, tracked.alive, "o-", color=colour)
    axes.plot(places, tracked.born, "o--", color=colour, markerfacecolor="white")
    axes.set_ylim(0, 1.1 * max(*tracked.alive, 1))
    _layer_axis(axes, tracking.layers)


def _layer_axis(axes: Axes, layers: Sequence[str]) -> None:
    axes.set_xlim(-0.5, len(layers) - 0.5)
    places, labels = zip(*_layer_ticks(layers), strict=True)
    axes.set_xticks(places, labels)
    axes.tick_params(axis="x", colors=MUTED)


def draw_attention(title: str, attention: AttentionTopology) -> Figure:
    """Blocks by heads: H0, H1, and the distance to two patterns."""
    layers = list(dict.fromkeys(head.layer for head in attention.heads))
    panels: list[tuple[str, Callable[[HeadTopology], float], bool]] = [
        ("H0 mean lifetime", lambda head: head.h0.mean, False),
        ("H1 total persistence", lambda head: head.h1.total, False),
        ("Distance to: all to first token", lambda head: head.patterns.to_first, True),
        ("Distance to: all to token before", lambda head: head.patterns.to_previous, True),
    ]
    n_heads = 1 + max(head.head for head in attention.heads)
    height = min(max(0.12 * len(layers), 1.4), 4.5)
    frame = Frame(left=0.5, across=1.1, right=0.6, bottom=0.5)
    figure, axes = new_figure(title, (2, 2), (3.2, height), frame)
    columns = [(at, str(at)) for at in range(0, n_heads, -(-n_heads // 12))]
    for panel, (heading, value, reverse) in zip(axes, panels, strict=True):
        values = np.full((len(layers), n_heads), np.nan)
        for head in attention.heads:
            values[layers.index(head.layer), head.head] = value(head)
        draw_heatmap(panel, Heatmap(heading, values, _layer_ticks(layers), columns, reverse, square=False))
    return figure


def _layer_ticks(layers: Sequence[str]) -> list[tuple[int, str]]:
    """Positions and short names of at most about ten layers: emb, 0, 1, ..., norm; 3a and 3m are inside block 3."""
    return [(at, glyphs(_label(layers[at]), 8)) for at in range(0, len(layers), -(-len(layers) // 10))]


def _label(name: str) -> str:
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    stack, embedding, norm, block, site = found.groups()
    return (stack or "")[:1] + ("emb" if embedding else "norm" if norm else block + (site or "")[:1])


def _array(rows: Sequence[Sequence[float | None]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)
