"""Which figures an entry gets, in the order of the report, with the words that go with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cohomcli.report.evidence import has_limits
from cohomcli.report.layers import dimensions_of, embedding_of, summary_of
from cohomcli.report.names import clean, count, listing, number
from cohomcli.report.picture import Group, Picture
from cohomcli.report.plots_betti import draw_betti
from cohomcli.report.plots_diagrams import MOST_BARS, Page, bars_shown, draw_barcodes, draw_diagrams, pages
from cohomcli.report.plots_overview import draw_overview
from cohomcli.report.plots_profile import draw_profile
from cohomcli.report.representation.pictures import representation_pictures
from cohomcli.results import Entry
from cohomcli.topology.results import LayerTopology, TopologyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Draw = Callable[[str, Page], Figure]


def pictures_of(entry: Entry, prefix: str) -> list[Picture]:
    """The figures of one entry, not yet drawn; none without topology. `prefix` starts every file name."""
    if entry.topology is None or not entry.topology.layers:
        return []
    subject = f"{clean(entry.model, 60)} on {clean(entry.dataset, 40)}"
    return [
        _overview(subject, entry.topology, prefix),
        _profile(subject, entry.topology, prefix),
        *_paged(subject, entry.topology, prefix),
        _betti(subject, entry.topology, prefix),
        *representation_pictures(entry, prefix),
    ]


def _overview(subject: str, topology: TopologyResult, prefix: str) -> Picture:
    return Picture(
        file=f"{prefix}overview.png",
        group="overview",
        title="Overview",
        alt=f"Six panels over the depth of {subject}. {_change(topology)}",
        caption=(
            "Six views on one depth axis. Squares are the embedding, diamonds the final norm, circles the blocks. "
            "a: total persistence in the units of the activations. b: the same divided by the layer's scale, its mean "
            "pairwise distance. c: mean norm of the activations and mean pairwise distance. d: persistence entropy. "
            "e: how many H1 classes are alive at each distance. f: share of points that are distinct, and share of the "
            "variance that the analysed dimensions keep."
        ),
        draw=partial(draw_overview, subject, topology),
    )


def _profile(subject: str, topology: TopologyResult, prefix: str) -> Picture:
    return Picture(
        file=f"{prefix}profile.png",
        group="profile",
        title="Layer profile",
        alt=f"Total persistence of every layer of {subject}, raw and scale-free. {_change(topology)}",
        caption=(
            "Left: total persistence as measured; it grows with the size of the activations. Right: divided by each "
            "layer's mean pairwise distance, which takes size out and leaves shape. The step into the final norm is "
            "dashed. The highest layer of each panel is named."
            + (" Pale bars: 95% confidence limits of a layer's figure." if has_limits(topology.layers) else "")
        ),
        draw=partial(draw_profile, subject, topology),
    )


def _change(topology: TopologyResult) -> str:
    """What the profile shows, in one sentence for those who cannot see it."""
    first, last = topology.layers[0], topology.layers[-1]
    sentences = []
    for dimension in dimensions_of(topology.layers):
        start, end = summary_of(first, dimension), summary_of(last, dimension)
        if start and end and first is last:
            sentences.append(f"H{dimension} total persistence: {number(start.total_persistence, 3)}.")
        elif start and end:
            sentences.append(
                f"H{dimension} total persistence: {number(start.total_persistence, 3)} at {clean(first.name, 30)}, "
                f"{number(end.total_persistence, 3)} at {clean(last.name, 30)}; over scale "
                f"{number(start.total_over_scale, 3)} and {number(end.total_over_scale, 3)}."
            )
    return " ".join(sentences)


def _paged(subject: str, topology: TopologyResult, prefix: str) -> list[Picture]:
    """Diagrams, then barcodes, page by page."""
    every = pages(topology.layers)
    n_layers = len(topology.layers)

    def picture(group: Group, title: str, at: int, page: Page, how: str, draw: Draw) -> Picture:
        suffix, part = (f"-{at + 1}", f", page {at + 1} of {len(every)}") if len(every) > 1 else ("", "")
        return Picture(
            file=f"{prefix}{group}{suffix}.png",
            group=group,
            title=f"{title}{part}",
            alt=f"{title} of {subject}{part}: {_counts(page.layers)}.",
            caption=f"{_which(page, at, n_layers)} {_axes(page)} {how}",
            draw=partial(draw, f"{subject}{part}", page),
        )

    return [
        *(picture("diagrams", "Persistence diagrams", k, p, _DIAGRAM, draw_diagrams) for k, p in enumerate(every)),
        *(picture("barcodes", "Barcodes", k, p, _barcode_words(p.layers), draw_barcodes) for k, p in enumerate(every)),
    ]


_DIAGRAM = (
    "Each dot is one bar: the distance at which it is born and the one at which it dies. H0 is born at 0, so it stands "
    "on the left edge. Dots near the diagonal are short-lived. Triangles on the dashed line never die; hollow ones "
    "were still alive where the filtration ended."
)


def _which(page: Page, at: int, n_layers: int) -> str:
    """Which layers a page shows and how they were chosen."""
    if len(page.layers) == n_layers:
        return "Every layer." if n_layers > 1 else "The one layer."
    if at == 0:
        how = "evenly spaced, with the first, the last and the layer of the largest total persistence per dimension"
        return f"{len(page.layers)} of {n_layers} layers, {how}; the others are on the further pages."
    return f"{len(page.layers)} of {n_layers} layers, in order."


def _axes(page: Page) -> str:
    if len(page.layers) == 1:
        return "Distances are in units of the layer's scale."
    if page.shared:
        return "Distances are in units of each layer's scale, so the panels share their axes and compare directly."
    return "Distances are in units of each layer's scale; the ranges differ too much for the panels to share axes."


def _barcode_words(layers: Sequence[LayerTopology]) -> str:
    cut = [layer for layer in layers if bars_shown(layer)[0] < bars_shown(layer)[1]]
    ends = "Each bar runs from birth to death; bars with an arrow do not end in the filtration."
    return (
        f"{ends} At most the {MOST_BARS} longest bars of each dimension are drawn; the panels say of how many."
        if cut
        else ends
    )


def _counts(layers: Sequence[LayerTopology]) -> str:
    each = []
    for layer in layers:
        bars = ", ".join(f"{count(len(d.pairs), 'finite bar')} in H{d.dimension}" for d in layer.diagrams)
        each.append(f"{clean(layer.name, 30)} has {bars}")
    return listing(each, most=PER_ALT)


PER_ALT = 12
"""Layers described in the alternative text of a page of panels."""


def _betti(subject: str, topology: TopologyResult, prefix: str) -> Picture:
    dashed = " The embedding is dashed." if embedding_of(topology.layers) else ""
    higher = max(dimensions_of(topology.layers), default=0) > 0
    ridges = " Higher Betti numbers are ridges, one per layer on a common vertical scale." if higher else ""
    limited = any(layer.betti.low is not None for layer in topology.layers)
    of = "; in H0 of the first and the last layer only" if len(topology.layers) > 2 else ""
    pale = f" Pale bands: 95% confidence limits of the expected curve, place by place{of}." if limited else ""
    return Picture(
        file=f"{prefix}betti.png",
        group="betti",
        title="Betti curves",
        alt=f"Betti curves of {subject}: the number of classes alive at each distance, one step function per layer.",
        caption=(
            "How many classes are alive at each distance, in units of each layer's scale; colour is depth."
            f"{dashed}{ridges}{pale}"
        ),
        draw=partial(draw_betti, subject, topology),
    )
