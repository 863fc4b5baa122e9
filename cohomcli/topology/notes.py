"""What a reader of the topology must know: degenerate layers and layers that PCA or the metric changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cohomcli.topology.results import LayerTopology, TopologyOptions

LOW_VARIANCE = 0.8
LISTED = 4


def notes_of(layers: Sequence[LayerTopology], options: TopologyOptions) -> list[str]:
    """One sentence per finding, each naming its layers."""
    collapsed = [layer for layer in layers if layer.n_distinct == 1 and layer.n_points > 1]
    repeated = [layer for layer in layers if 1 < layer.n_distinct < layer.n_points / 2]
    blurred = [layer for layer in layers if layer.explained_variance < LOW_VARIANCE]
    notes = []
    if collapsed:
        names = _names(layer.name for layer in collapsed)
        notes.append(f"all points coincide in {names}: there is no shape to measure")
    if repeated:
        names = _names(f"{layer.name} ({layer.n_distinct} of {layer.n_points})" for layer in repeated)
        notes.append(f"fewer than half of the points are distinct in {names}: H0 counts only distinct points")
    if blurred:
        names = _names(f"{layer.name} ({layer.explained_variance:.0%})" for layer in blurred)
        notes.append(f"PCA to {options.pca} dimensions keeps less than {LOW_VARIANCE:.0%} of the variance in {names}")
    return notes + _pca_notes(layers, options) + _landmark_notes(layers) + _threshold_notes(layers)


def _pca_notes(layers: Sequence[LayerTopology], options: TopologyOptions) -> list[str]:
    wide = [layer for layer in layers if 0 < options.pca < layer.ambient_dim]
    if wide and options.metric != "euclidean":
        return [f"PCA is not applied: it would change {options.metric} distances, which are measured at full width"]
    isometric = [layer for layer in wide if layer.pca_dim < options.pca or layer.n_distinct - 1 == options.pca]
    if len(isometric) == len(layers) and layers:
        n = max(layer.n_distinct for layer in layers)
        return [f"{n} points span at most {n - 1} dimensions: PCA to {options.pca} is an isometry and loses nothing"]
    return []


def _landmark_notes(layers: Sequence[LayerTopology]) -> list[str]:
    """The guaranteed error of landmarks, and how many bars are long enough to be certain in spite of it."""
    thinned = [layer for layer in layers if layer.diagram_error is not None]
    if not thinned:
        return []
    worst = max(thinned, key=lambda layer: layer.diagram_error or 0.0)
    certain = (f"{sum(_certain(layer, k) for layer in thinned)} of H{k}" for k in range(1, len(worst.diagrams)))
    long = ", ".join(certain)
    return [
        f"{worst.n_landmarks} landmarks stand for up to {max(layer.n_distinct for layer in thinned)} points in "
        f"{len(thinned)} layers: diagrams are within {worst.diagram_error:.4g} of the whole cloud's (guaranteed; "
        f"largest in {worst.name})"
        + (f"; bars that live longer than twice their layer's error: {long}" if long else "")
    ]


def _certain(layer: LayerTopology, dimension: int) -> int:
    pairs = layer.diagrams[dimension].pairs
    return int((pairs[:, 1] - pairs[:, 0] > 2 * (layer.diagram_error or 0.0)).sum())


def _threshold_notes(layers: Sequence[LayerTopology]) -> list[str]:
    ended = [layer for layer in layers if layer.threshold is not None]
    alive = sum(summary.censored for layer in ended for summary in layer.summaries)
    if not ended:
        return []
    lengths = sorted({layer.threshold or 0.0 for layer in ended})
    where = f"{lengths[0]:.4g}" if len(lengths) == 1 else f"{lengths[0]:.4g} to {lengths[-1]:.4g}"
    return [f"the filtration ends at {where}: {alive} classes alive there are censored, their deaths unknown"]


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    rest = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(listed[:LISTED]) + rest
