"""The shape of attention: every head's weights as a graph on the tokens, and as a filtration of it.

Kushnareva, Cherniavskii, Mikhailov, Artemova, Barannikov, Bernstein, Piontkovskaya, Piontkovski, Burnaev, "Artificial
Text Detection via Examining the Topology of Attention Maps", EMNLP 2021 (arXiv:2109.04825); definitions as in the
authors' code (danchern97/tda4atd). Their count of directed cycles, cut at 500, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from math import sqrt
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from cohomcli.topology.figures import AttentionTopology, BarFigures, GraphFigures, HeadTopology, PatternDistances
from cohomcli.topology.persistence import rips
from cohomcli.topology.results import Array, Diagram
from cohomcli.topology.summaries import persistence_entropy

THRESHOLDS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75)
SMALLEST_WEIGHT = 1e-3
"""Weights up to this are no edge of the filtration."""

Figures = TypeVar("Figures", GraphFigures, BarFigures, PatternDistances)


def attention_topology(maps: Iterable[Mapping[str, NDArray[Any]]]) -> AttentionTopology | None:
    """The figures of the heads, from the weights (heads, T, T) by block of one text after another.

    Texts of a single token have no graph and are left out; None when no other text is there.
    """
    found: dict[tuple[str, int], list[HeadTopology]] = {}
    n_texts = n_tokens = 0
    for text in maps:
        size = next(iter(text.values())).shape[-1]
        if size < 2:
            continue
        n_texts, n_tokens = n_texts + 1, n_tokens + size
        for layer, heads in text.items():
            for head, weights in enumerate(heads):
                found.setdefault((layer, head), []).append(head_topology(layer, head, weights))
    if not found:
        return None
    return AttentionTopology(n_texts, n_tokens, tuple(_mean_head(heads) for heads in found.values()))


def head_topology(layer: str, head: int, weights: NDArray[Any]) -> HeadTopology:
    """The figures of one head on one text; `weights` (T, T), T >= 2, row i what token i attends to."""
    exact = np.asarray(weights, dtype=np.float64)
    h0, h1 = attention_diagrams(exact)
    return HeadTopology(
        layer=layer,
        head=head,
        h0=bar_figures(h0),
        h1=bar_figures(h1),
        patterns=pattern_distances(exact),
        graph=tuple(graph_figures(exact, threshold) for threshold in THRESHOLDS),
    )


def attention_diagrams(weights: Array) -> tuple[Diagram, ...]:
    """H0 and H1 of the flag complex filtered by 1 - max(a_ij, a_ji): strong attention joins first."""
    kept = np.where(weights > SMALLEST_WEIGHT, weights, 0.0)
    lengths = np.clip(1.0 - np.maximum(kept, kept.T), 0.0, 1.0)
    np.fill_diagonal(lengths, 0.0)
    return rips(squareform(lengths, checks=False), 1)


def bar_figures(diagram: Diagram) -> BarFigures:
    """The figures of the finite bars; all zero when there are none."""
    lengths = diagram.pairs[:, 1] - diagram.pairs[:, 0]
    if len(lengths) == 0:
        return BarFigures(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    birth, death = diagram.pairs[int(np.argmax(lengths))]
    return BarFigures(
        count=float(len(lengths)),
        total=float(lengths.sum()),
        mean=float(lengths.mean()),
        deviation=float(lengths.std()),
        entropy=persistence_entropy(lengths),
        longest_birth=float(birth),
        longest_death=float(death),
    )


def graph_figures(weights: Array, threshold: float) -> GraphFigures:
    """The figures of the graph of the weights from `threshold` on."""
    graph = weights >= threshold
    n, edges = len(graph), int(graph.sum())
    sparse = csr_matrix(graph)
    strong = int(connected_components(sparse, connection="strong")[0])
    weak = int(connected_components(sparse, connection="weak")[0])
    undirected = int(np.triu(graph | graph.T).sum())
    loops = undirected - n + weak
    return GraphFigures(threshold, float(edges), 2 * edges / n, float(strong), float(weak), float(loops))


def pattern_distances(weights: Array) -> PatternDistances:
    """The distances to the four patterns."""
    n = len(weights)
    first = np.zeros((n, n))
    first[:, 0] = 1.0
    patterns = np.eye(n), np.eye(n, k=-1), np.eye(n, k=1), first
    return PatternDistances(*(_distance(weights, pattern) for pattern in patterns))


def _distance(weights: Array, pattern: Array) -> float:
    size = float((weights**2).sum() + (pattern**2).sum())
    return float(np.linalg.norm(weights - pattern)) / sqrt(size)


def _mean_head(heads: Sequence[HeadTopology]) -> HeadTopology:
    return HeadTopology(
        layer=heads[0].layer,
        head=heads[0].head,
        h0=_mean([one.h0 for one in heads]),
        h1=_mean([one.h1 for one in heads]),
        patterns=_mean([one.patterns for one in heads]),
        graph=tuple(_mean([one.graph[at] for one in heads]) for at in range(len(THRESHOLDS))),
    )


def _mean(items: Sequence[Figures]) -> Figures:
    kind = type(items[0])
    columns = ([getattr(item, field.name) for item in items] for field in fields(kind))
    # a column of equal values, such as the threshold, keeps its value to the last bit
    return kind(*(column[0] if len(set(column)) == 1 else float(np.mean(column)) for column in columns))
