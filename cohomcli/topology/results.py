"""What the persistence engine returns: diagrams, their summaries, and the profile of a model over its layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Diagram:
    """One persistence diagram of a Vietoris-Rips filtration (edge length = diameter convention).

    `pairs` is (k, 2) float64, births and finite deaths with death > birth, sorted by birth, then death.
    `essential` holds the births of classes that never die; `censored` the births of classes still alive at
    the filtration's threshold, whose death is unknown. The two are different statements and are kept apart.
    """

    dimension: int
    pairs: Array
    essential: Array
    censored: Array


@dataclass(frozen=True)
class DimensionSummary:
    """Figures of one diagram; finite bars only, the essential class is in `essential` and in no sum.

    `total_persistence`, `max_lifetime` are in units of the metric; the `_over_scale` twins are divided by the
    cloud's scale (mean pairwise distance) and do not change when the activations are rescaled. `entropy` is the
    persistence entropy in nats, -sum p log p with p = lifetime / total (Chintakunta et al. 2015); 0 for no bars.
    """

    dimension: int
    count: int
    total_persistence: float
    max_lifetime: float
    entropy: float
    essential: int
    censored: int
    total_over_scale: float
    max_over_scale: float


@dataclass(frozen=True)
class BettiCurve:
    """Number of classes alive at each filtration value: `values[k, j]` is beta_k at `grid[j]`, essential ones included.

    A class [b, d) is alive at t when b <= t < d.
    """

    grid: Array
    values: NDArray[np.int64]


@dataclass(frozen=True)
class LayerTopology:
    """Persistent homology of one layer's point cloud.

    `n_points` points were analysed, `n_distinct` of them pairwise different. `ambient_dim` is the layer's width,
    `pca_dim` the dimension analysed, `explained_variance` the share of variance it keeps (1.0 when PCA was not
    needed). `scale` is the mean pairwise distance of the analysed cloud under `metric`; `mean_norm` the mean
    Euclidean norm of the raw activations.
    """

    name: str
    n_points: int
    n_distinct: int
    ambient_dim: int
    pca_dim: int
    explained_variance: float
    scale: float
    mean_norm: float
    metric: str
    engine: str
    diagrams: tuple[Diagram, ...]
    summaries: tuple[DimensionSummary, ...]
    betti: BettiCurve
    compat: dict[str, float] | None = None


@dataclass(frozen=True)
class Expansion:
    """Peak H0 total persistence over the blocks divided by the embedding's (`raw`), and the same for H0 / scale.

    `None` when there is no embedding layer or its H0 total is zero: a ratio to nothing is not a number.
    `peak_raw` and `peak_scale_free` name the layers of the two peaks; `final_norm` and attention or MLP outputs never
    count. Encoder-decoders are read on their encoder. `compat` is the source system's figure in its mode: the peak of
    its H0 totals over every layer but the final norm, over that of the embedding.
    """

    raw: float | None
    scale_free: float | None
    peak_raw: str | None
    peak_scale_free: str | None
    reason: str = ""
    compat: float | None = None


@dataclass(frozen=True)
class TopologyResult:
    """The layers in forward order, the expansion ratio, and notes a reader must know (degenerate layers, fallbacks)."""

    layers: tuple[LayerTopology, ...]
    expansion: Expansion
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class TopologyOptions:
    """How clouds are analysed. `pca` = 0 keeps the full width; `compat` is None or "todacomm".

    `pca` applies to the Euclidean metric; the others are measured at full width. `workers` layers are analysed at a
    time. `available_bytes` is the memory the analysis may use; None asks for no check.
    """

    pca: int = 50
    maxdim: int = 1
    metric: str = "euclidean"
    engine: str = "auto"
    compat: str | None = None
    workers: int = 1
    seed: int = 0
    available_bytes: int | None = None
