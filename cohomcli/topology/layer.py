"""One layer: from its activations to its cloud, diagrams and figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import AnalysisIncomplete
from cohomcli.topology import pointcloud
from cohomcli.topology.compat import TodacommOptions, todacomm_figures
from cohomcli.topology.engines import choose_engine
from cohomcli.topology.evidence import with_evidence
from cohomcli.topology.geometry import geometry_of
from cohomcli.topology.landmarks import Landmarks, maxmin
from cohomcli.topology.loops import longest_loops
from cohomcli.topology.metrics import Space, space_of
from cohomcli.topology.persistence import central_first, components, rips
from cohomcli.topology.pointcloud import PointCloud
from cohomcli.topology.results import Array, Diagram, LayerTopology, Loop, TopologyOptions
from cohomcli.topology.summaries import betti_curve, summarize
from cohomcli.topology.tree import mean_distance, spanning_tree


@dataclass(frozen=True)
class _Shape:
    """The homology of a cloud, its scale, where its filtration ends (inf: nowhere), and its longest loops."""

    diagrams: tuple[Diagram, ...]
    scale: float
    threshold: float
    loops: tuple[Loop, ...] = ()


def analyze_layer(name: str, x: NDArray[Any], options: TopologyOptions) -> LayerTopology:
    """Persistent homology of one layer's cloud, `x` (n, d) finite.

    Raises:
        AnalysisIncomplete: a metric that is undefined for some row, distances that overflow, too many points for
            representatives; names the layer.
    """
    cloud = pointcloud.make_cloud(x, options.pca, options.metric)
    space = space_of(name, cloud.points, options.metric)
    landmarks = maxmin(space, options.landmarks) if 0 < options.landmarks < len(space) else None
    shape = _measure(space, cloud, landmarks, options)
    source = TodacommOptions(options.pca, options.maxdim, options.metric)
    layer = LayerTopology(
        name=name,
        n_points=cloud.n_points,
        n_distinct=cloud.n_distinct,
        ambient_dim=cloud.ambient_dim,
        pca_dim=cloud.pca_dim,
        explained_variance=cloud.explained_variance,
        scale=shape.scale,
        mean_norm=cloud.mean_norm,
        metric=options.metric,
        engine=choose_engine(options.engine, options.maxdim).name,
        diagrams=shape.diagrams,
        summaries=tuple(summarize(diagram, shape.scale) for diagram in shape.diagrams),
        betti=betti_curve(shape.diagrams),
        compat=todacomm_figures(x, source, name) if options.compat else None,
        threshold=shape.threshold if np.isfinite(shape.threshold) else None,
        n_landmarks=len(landmarks.indices) if landmarks else None,
        covering_radius=landmarks.radius if landmarks else None,
        diagram_error=landmarks.diagram_error if landmarks else None,
        loops=shape.loops,
        geometry=geometry_of(x, options.seed) if options.geometry else None,
    )
    return with_evidence(layer, cloud, space, options)


def _measure(space: Space, cloud: PointCloud, landmarks: Landmarks | None, options: TopologyOptions) -> _Shape:
    """The homology of the landmarks or of all points; the scale is always that of all points."""
    if landmarks is not None:
        chosen = replace(space, rows=space.rows[landmarks.indices])
        scale = mean_distance(space, cloud.multiplicity)
        return _homology(chosen, cloud.first[landmarks.indices], scale, options)
    if options.maxdim == 0:
        tree = spanning_tree(space, cloud.multiplicity)
        limit = _limit(options, tree.mean_distance)
        return _Shape((components(tree.lengths, limit),), tree.mean_distance, limit)
    order = central_first(space.rows)
    distances = replace(space, rows=space.rows[order]).condensed()
    scale = pointcloud.scale(distances, cloud.multiplicity[order])
    return _from_distances(space, distances, cloud.first[order], scale, options)


def _homology(space: Space, texts: NDArray[np.int64], scale: float, options: TopologyOptions) -> _Shape:
    if options.maxdim == 0:
        limit = _limit(options, scale)
        return _Shape((components(spanning_tree(space, np.ones_like(texts)).lengths, limit),), scale, limit)
    return _from_distances(space, space.condensed(), texts, scale, options)


def _from_distances(
    space: Space, distances: Array, texts: NDArray[np.int64], scale: float, options: TopologyOptions
) -> _Shape:
    """`texts[i]` is the row of the activations that point i stands for."""
    limit = _limit(options, scale)
    diagrams = rips(distances, options.maxdim, options.engine, limit)
    try:
        found = longest_loops(distances, options.representatives, options.engine, limit)
    except AnalysisIncomplete as error:
        raise AnalysisIncomplete(f"layer {space.layer!r}: {error.message}", error.hint) from error
    loops = tuple(replace(loop, points=tuple(texts[list(loop.points)].tolist())) for loop in found)
    return _Shape(diagrams, scale, limit, loops)


def _limit(options: TopologyOptions, scale: float) -> float:
    if options.threshold is None:
        return float(np.inf)
    return options.threshold * (scale if options.threshold_unit == "scale" else 1.0)
