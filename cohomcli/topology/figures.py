"""What is returned beside diagrams: geometry, similarity, tracking and attention as plain figures, free of scipy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MeasureKind = Literal["divergence", "similarity"]


@dataclass(frozen=True)
class Geometry:
    """Figures of the activations of one layer at full width, before any PCA; None where a figure is not defined.

    They are of `n_points` texts: all of them, or 2,000 drawn with the seed where there are more.
    `twonn`, `mle` (20 neighbours) and `ph_dimension` estimate the intrinsic dimension of the distinct points.
    `hubness` is the skewness of how often a distinct point is among the 10 nearest neighbours of the others: 0 when all
    are equally often, large when a few are neighbours of many. `mean_cosine` is the mean cosine between two different
    texts: 0 for directions spread evenly, 1 for a single direction. `participation_ratio` and `effective_rank` count
    the directions in which the centred activations vary.
    """

    n_points: int
    twonn: float | None
    mle: float | None
    ph_dimension: float | None
    hubness: float | None
    mean_cosine: float | None
    participation_ratio: float | None
    effective_rank: float | None


@dataclass(frozen=True)
class TrackedDimension:
    """The classes of one homology dimension over L layers.

    `alive[l]` of them exist at layer l (its Betti number), of which `born[l]` were not there at the layer before and
    `died[l]` are not there at the next. `mean_life` is the mean number of layers a class lives through. `shared[i][j]`
    is the share of the classes alive at layer i that live from i to j without a break: the persistence similarity of
    the paper's first version and of its code; None where layer i has none.
    """

    dimension: int
    alive: tuple[int, ...]
    born: tuple[int, ...]
    died: tuple[int, ...]
    mean_life: float | None
    shared: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class LayerTracking:
    """What survives from layer to layer, on `n_texts` texts.

    `dimensions` follows the holes of the clique complexes of the `neighbours`-nearest-neighbour graphs. `kept[l]` is
    the mean share of its nearest neighbours that a text keeps from layer l to l + 1.
    """

    layers: tuple[str, ...]
    n_texts: int
    neighbours: int
    dimensions: tuple[TrackedDimension, ...]
    kept: tuple[float, ...]


@dataclass(frozen=True)
class GraphFigures:
    """The directed graph of the weights that are at least `threshold`, self-loops included.

    `edges`; mean vertex `degree`, in and out; `strong` and `weak` components; `loops`, the first Betti number of the
    graph without directions, in which a self-loop counts.
    """

    threshold: float
    edges: float
    degree: float
    strong: float
    weak: float
    loops: float


@dataclass(frozen=True)
class BarFigures:
    """The finite bars of one dimension: their number, lengths, entropy, and where the longest is born and dies."""

    count: float
    total: float
    mean: float
    deviation: float
    entropy: float
    longest_birth: float
    longest_death: float


@dataclass(frozen=True)
class PatternDistances:
    """|A - P|_F / sqrt(|A|_F^2 + |P|_F^2), in [0, sqrt 2], to the pattern where every token attends to one token.

    To itself, to the one before, to the one after, to the first of the text.
    """

    to_self: float
    to_previous: float
    to_next: float
    to_first: float


@dataclass(frozen=True)
class HeadTopology:
    """The figures of one head, each the mean over the texts. `h0` and `h1` are of the filtration 1 - weight."""

    layer: str
    head: int
    h0: BarFigures
    h1: BarFigures
    patterns: PatternDistances
    graph: tuple[GraphFigures, ...]


@dataclass(frozen=True)
class AttentionTopology:
    """Every head of every block, in forward order, on `n_texts` texts of `n_tokens` tokens together."""

    n_texts: int
    n_tokens: int
    heads: tuple[HeadTopology, ...]


@dataclass(frozen=True)
class SimilarityMatrix:
    """One measure between every two layers: `values[i][j]` of layer i and layer j, None where it is not defined."""

    measure: str
    title: str
    kind: MeasureKind
    bounded: bool
    paper: str
    layers: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class RepresentationResult:
    """The parts that were asked for; None and empty where they were not, or where there is nothing to measure."""

    similarity: tuple[SimilarityMatrix, ...] = ()
    tracking: LayerTracking | None = None
    attention: AttentionTopology | None = None
