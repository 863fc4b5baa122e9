"""What the persistence engine returns: diagrams, their summaries, and the profile of a model over its layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.figures import Geometry

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

    The rest is evidence, None where it was not asked for or cannot be had. `statistic` is what was tested: in H0 the
    longest lifetime over the scale, above it the largest death / birth; `null_median` and `null_95` are its quantiles
    over the replicates of the null model. `p_value` is for this layer and dimension alone, `p_holm` (Holm) and
    `p_joint` (Westfall and Young's largest statistic) are corrected for all of the analysis. `intervals` holds the
    95% confidence limits of the figures above by name, for their expected value over fresh samples of as many texts.
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
    statistic: float | None = None
    null_median: float | None = None
    null_95: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    p_joint: float | None = None
    intervals: dict[str, tuple[float, float]] | None = None


@dataclass(frozen=True)
class BettiCurve:
    """Number of classes alive at each filtration value: `values[k, j]` is beta_k at `grid[j]`, essential ones included.

    A class [b, d) is alive at t when b <= t < d. `low` and `high`, where computed, are pointwise 95% confidence limits
    of its expected value over fresh samples of as many texts, shape (dimensions, grid), for the dimensions they cover.
    """

    grid: Array
    values: NDArray[np.int64]
    low: Array | None = None
    high: Array | None = None


@dataclass(frozen=True)
class NullDraws:
    """The statistics of one layer, one column per dimension: `observed` (D,) and of the replicates (R, D)."""

    observed: Array
    replicates: Array


@dataclass(frozen=True)
class LayerEvidence:
    """How a layer's evidence was got.

    `n_tested` points were compared with `replicates` clouds of the null model `null` (None: no test). `subsamples` is
    the number of subsamples behind the 95% confidence limits (0: there are none). `draws` lives until the correction.
    """

    null: str | None
    replicates: int
    n_tested: int
    subsamples: int
    draws: NullDraws | None = None


@dataclass(frozen=True)
class EvidenceOptions:
    """What evidence is computed: `replicates` of the model `null` ("none": no test), `subsamples` for limits (0: none).

    Clouds of more than `max_points` distinct points are tested on a seeded sample of so many, and get no limits.
    """

    null: str = "rotation"
    replicates: int = 199
    subsamples: int = 100
    max_points: int = 500


@dataclass(frozen=True)
class Loop:
    """A representative of one H1 bar: a cycle that appears at `birth` and becomes a boundary at `death`.

    `points` are row numbers of the activations, hence of the texts, along the cycle. `closed` says that they are one
    closed path; otherwise they are several, one after another.
    """

    birth: float
    death: float
    points: tuple[int, ...]
    closed: bool


@dataclass(frozen=True)
class LayerTopology:
    """Persistent homology of one layer's point cloud.

    `n_points` points were analysed, `n_distinct` of them pairwise different. `ambient_dim` is the layer's width,
    `pca_dim` the dimension analysed, `explained_variance` the share of variance it keeps (1.0 when PCA was not
    needed). `scale` is the mean pairwise distance of the analysed cloud under `metric`; `mean_norm` the mean
    Euclidean norm of the raw activations.

    `threshold` is the length at which the filtration ends, in units of the metric; None when it is complete. With
    landmarks, `n_landmarks` of the distinct points were analysed, every point lies within `covering_radius` of one,
    and the diagrams are within `diagram_error` (bottleneck distance, guaranteed) of the whole cloud's; None without.
    `loops` are representatives of the longest H1 bars, `geometry` its other figures and `evidence` how p-values and
    confidence limits were got, where asked for.
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
    threshold: float | None = None
    n_landmarks: int | None = None
    covering_radius: float | None = None
    diagram_error: float | None = None
    loops: tuple[Loop, ...] = ()
    geometry: Geometry | None = None
    evidence: LayerEvidence | None = None


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
    time. `available_bytes` is the memory the analysis may use and `time_limit` the CPU seconds its forecast may have;
    None asks for no check.

    `threshold` ends the filtration at a length, in units of the metric or, with `threshold_unit` "scale", of the
    layer's mean pairwise distance; None completes it. `landmarks` > 0 analyses that many maxmin landmarks where a cloud
    has more points. `representatives` is the number of longest H1 bars per layer whose points are named.
    `geometry` asks for the figures of `Geometry` too, `evidence` for p-values and confidence limits.
    """

    pca: int = 50
    maxdim: int = 1
    metric: str = "euclidean"
    engine: str = "auto"
    compat: str | None = None
    workers: int = 1
    seed: int = 0
    available_bytes: int | None = None
    time_limit: float | None = None
    threshold: float | None = None
    threshold_unit: Literal["distance", "scale"] = "distance"
    landmarks: int = 0
    representatives: int = 0
    geometry: bool = False
    evidence: EvidenceOptions | None = None
