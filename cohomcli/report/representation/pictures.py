"""Which figures an entry's geometry, similarity, tracking and attention get, with the words that go with each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cohomcli.report.document import Gallery
from cohomcli.report.names import clean, count, listing, number
from cohomcli.report.picture import Picture, in_groups
from cohomcli.report.representation.draw import draw_attention, draw_geometry, draw_similarity, draw_tracking
from cohomcli.results import Entry
from cohomcli.topology.figures import AttentionTopology, LayerTracking, SimilarityMatrix
from cohomcli.topology.results import TopologyResult


def representation_pictures(entry: Entry, prefix: str) -> list[Picture]:
    """The figures, not yet drawn; `prefix` starts every file name."""
    subject = f"{clean(entry.model, 60)} on {clean(entry.dataset, 40)}"
    pictures = []
    if entry.topology is not None and sum(layer.geometry is not None for layer in entry.topology.layers) > 1:
        pictures.append(_geometry(subject, entry.topology, prefix))
    result = entry.representation
    if result is not None and result.similarity and len(result.similarity[0].layers) > 1:
        pictures.append(_similarity(subject, result.similarity, prefix))
    if result is not None and result.tracking is not None:
        pictures.append(_tracking(subject, result.tracking, prefix))
    if result is not None and result.attention is not None:
        pictures.append(_attention(subject, result.attention, prefix))
    return pictures


def representation_galleries(pictures: Sequence[Picture]) -> list[Gallery]:
    """The figures under their headings."""
    shown = {
        "Geometry over depth": in_groups(pictures, "geometry"),
        "Similarity between layers": in_groups(pictures, "similarity"),
        "Followed over the layers": in_groups(pictures, "tracking"),
        "Attention, head by head": in_groups(pictures, "attention"),
    }
    return [Gallery(title, group) for title, group in shown.items() if group]


def _geometry(subject: str, topology: TopologyResult, prefix: str) -> Picture:
    known = [layer for layer in topology.layers if layer.geometry is not None and layer.geometry.twonn is not None]
    said = [
        f"{clean(layer.name, 30)} {number(layer.geometry.twonn, 3)}" for layer in known if layer.geometry is not None
    ]
    return Picture(
        file=f"{prefix}geometry.png",
        group="geometry",
        title="Geometry over depth",
        alt=f"Intrinsic dimension, hubness, mean cosine and ranks of the layers of {subject}. TwoNN: {listing(said)}.",
        caption=(
            "Intrinsic dimension by three estimators; hubness (0: all texts are equally often neighbours); mean cosine "
            "between two texts (1: all point one way); how many directions the activations vary in, by the "
            "participation ratio of the variance and by the effective rank of the singular values."
        ),
        draw=partial(draw_geometry, subject, topology),
    )


def _similarity(subject: str, matrices: tuple[SimilarityMatrix, ...], prefix: str) -> Picture:
    titles = listing(matrix.title for matrix in matrices)
    n = len(matrices[0].layers)
    return Picture(
        file=f"{prefix}similarity.png",
        group="similarity",
        title="Similarity between layers",
        alt=f"{titles} between all pairs of the {count(n, 'layer')} of {subject}. {_neighbours_said(matrices[0])}",
        caption=(
            "Every layer against every other, the first at the bottom left. Bright is alike: the scale of a divergence "
            "runs the other way round. Values of different measures are not comparable."
        ),
        draw=partial(draw_similarity, subject, matrices),
    )


def _neighbours_said(matrix: SimilarityMatrix) -> str:
    """The least alike pair of neighbouring layers, in words."""
    steps = [(matrix.values[at][at + 1], at) for at in range(len(matrix.layers) - 1)]
    known = [(value, at) for value, at in steps if value is not None]
    if not known:
        return ""
    value, at = min(known) if matrix.kind == "similarity" else max(known)
    pair = f"{clean(matrix.layers[at], 30)} and {clean(matrix.layers[at + 1], 30)}"
    return f"Of neighbouring layers {pair} are the least alike by {matrix.title} ({number(value, 3)})."


def _tracking(subject: str, tracking: LayerTracking, prefix: str) -> Picture:
    said = [
        f"H{t.dimension} classes live through {number(t.mean_life, 3)} layers on average"
        for t in tracking.dimensions
        if t.mean_life is not None
    ]
    return Picture(
        file=f"{prefix}tracking.png",
        group="tracking",
        title="Followed over the layers",
        alt=f"What lives on from layer to layer of {subject}: {listing(said)}.",
        caption=(
            f"The graphs that join each text to its {tracking.neighbours} nearest neighbours, with their triangles, "
            "followed by zigzag persistence. Left: H1 classes alive and newly born. Middle: share of its neighbours "
            "that a text keeps to the next layer. Right: of the H1 classes of the layer in the row, the share that "
            "lives without a break up to the layer in the column."
        ),
        draw=partial(draw_tracking, subject, tracking),
    )


def _attention(subject: str, attention: AttentionTopology, prefix: str) -> Picture:
    longest = max(attention.heads, key=lambda head: head.h1.total)
    return Picture(
        file=f"{prefix}attention.png",
        group="attention",
        title="Attention, head by head",
        alt=(
            f"Attention graphs of {count(len(attention.heads), 'head')} of {subject}: H1 total persistence is largest "
            f"in head {longest.head} of {clean(longest.layer, 30)} ({number(longest.h1.total, 3)})."
        ),
        caption=(
            f"Mean over {count(attention.n_texts, 'text')}; blocks from bottom to top, heads from left to right. H0: "
            "mean lifetime, large where tokens are weakly joined. H1: total persistence, large where attention runs in "
            "rings. Distance to a pattern: 0 where every token attends to just that token."
        ),
        draw=partial(draw_attention, subject, attention),
    )
