"""Features followed over the layers of one model: holes of neighbour graphs by zigzag, and shared neighbours.

Gardinazzi, Viswanathan, Panerai, Ansuini, Cazzaniga, Biagetti, "Persistent Topological Features in Large Language
Models", ICML 2025 (arXiv:2410.11042): at every layer the clique complex of the k-nearest-neighbour graph of the texts,
consecutive layers joined by their intersection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.progress import Progress, silent
from cohomcli.topology.figures import LayerTracking, TrackedDimension
from cohomcli.topology.geometry import fast_distances
from cohomcli.topology.neighbours import nearest
from cohomcli.topology.zigzag import Simplex, ZigzagBar, zigzag_bars

STEP = "track"
NEIGHBOURS, MOST_TEXTS = 5, 1_000


def track_layers(
    layers: Mapping[str, NDArray[Any]], neighbours: int = NEIGHBOURS, seed: int = 0, progress: Progress = silent
) -> LayerTracking | None:
    """Follow H0 and H1 over the `layers`, (n, d_l) activations of the same n texts in forward order.

    Distances are Euclidean at full width. Of more than `MOST_TEXTS` texts that many are drawn with `seed`. None for
    fewer than two layers or as many texts as neighbours.
    """
    n = min((len(x) for x in layers.values()), default=0)
    if len(layers) < 2 or n <= neighbours:
        return None
    rows = _rows(n, seed)
    near = []
    for at, x in enumerate(layers.values()):
        progress(STEP, at, len(layers) + 1)
        near.append(nearest(fast_distances(np.array(x[rows], dtype=np.float64)), neighbours))
    progress(STEP, len(layers), len(layers) + 1)
    bars = zigzag_bars([clique_complex(one) for one in near])
    progress(STEP, len(layers) + 1, len(layers) + 1)
    return LayerTracking(
        layers=tuple(layers),
        n_texts=len(rows),
        neighbours=neighbours,
        dimensions=tuple(_tracked(k, bars, len(layers)) for k in (0, 1)),
        kept=tuple(_kept(a, b) for a, b in pairwise(near)),
    )


def _rows(n: int, seed: int) -> NDArray[np.int64]:
    if n <= MOST_TEXTS:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, MOST_TEXTS, replace=False))


def clique_complex(near: NDArray[np.int64]) -> set[Simplex]:
    """Vertices, edges and triangles of the graph that joins i and j when either is among the other's neighbours.

    `near` (n, k) holds the neighbours of every vertex.
    """
    beside: list[set[int]] = [set() for _ in range(len(near))]
    for vertex, others in enumerate(near.tolist()):
        for other in others:
            beside[vertex].add(other)
            beside[other].add(vertex)
    edges = {(a, b) for a, others in enumerate(beside) for b in others if a < b}
    triangles = {(a, b, c) for a, b in edges for c in beside[a] & beside[b] if b < c}
    return {(vertex,) for vertex in range(len(near))} | edges | triangles


def _tracked(dimension: int, bars: Sequence[ZigzagBar], n_layers: int) -> TrackedDimension:
    mine = [bar for bar in bars if bar.dimension == dimension]
    births, deaths = ([getattr(bar, end) for bar in mine] for end in ("birth", "death"))
    counts = np.zeros((n_layers, n_layers), dtype=np.int64)
    np.add.at(counts, (births, deaths), 1)
    through = _through(counts)
    alive = np.diag(through)
    shared = [[through[min(i, j), max(i, j)] / alive[i] if alive[i] else None for j in range(n_layers)]
              for i in range(n_layers)]  # fmt: skip
    return TrackedDimension(
        dimension=dimension,
        alive=tuple(int(value) for value in alive),
        born=tuple(int(value) for value in counts.sum(axis=1)),
        died=tuple(int(value) for value in counts.sum(axis=0)),
        mean_life=float(np.mean(np.subtract(deaths, births) + 1)) if mine else None,
        shared=tuple(tuple(None if v is None else float(v) for v in row) for row in shared),
    )


def _through(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many bars are born at i or before and die at j or after; `counts[b, d]` of them run from b to d."""
    total: NDArray[np.int64] = np.cumsum(np.cumsum(counts, axis=0)[:, ::-1], axis=1)[:, ::-1]
    return total


def _kept(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """The mean share of common entries of the rows of `a` and `b` (n, k)."""
    return float((a[:, :, None] == b[:, None, :]).any(axis=2).mean())
