"""What pruning did to the shape of a model's representations: plain figures, which reports read back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerChange:
    """One layer's states on the same texts, dense and pruned.

    `h0` and `h1` are total persistences in units of the metric, `scale` the mean distance between two texts' points.
    `drift` is 1 less the debiased CKA of both states, `diagram_drift` the Wasserstein distance of their diagrams as a
    share of the largest it could be: 0 for no change, at most 1, None where it is not defined.
    """

    name: str
    h0: tuple[float, float]
    h1: tuple[float, float]
    scale: tuple[float, float]
    drift: float | None
    diagram_drift: float | None


@dataclass(frozen=True)
class TopologyChange:
    """All layers that both models have, in forward order. `expansion` is the scale-free ratio of peak to embedding."""

    dataset: str
    n_texts: int
    expansion: tuple[float | None, float | None]
    layers: tuple[LayerChange, ...]
