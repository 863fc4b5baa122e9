"""Readings from one layer's result: its summary, diagram or Betti curve in a given homology dimension."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.results import Diagram, DimensionSummary, LayerTopology

SUBSCRIPT = "₀₁₂₃₄₅₆₇₈₉"


def dimensions_of(layers: Iterable[LayerTopology]) -> list[int]:
    """The homology dimensions that any of the layers has, ascending."""
    return sorted({summary.dimension for layer in layers for summary in layer.summaries})


def summary_of(layer: LayerTopology, dimension: int) -> DimensionSummary | None:
    """The layer's summary in `dimension`, None when it was not computed."""
    return next((summary for summary in layer.summaries if summary.dimension == dimension), None)


def diagram_of(layer: LayerTopology, dimension: int) -> Diagram | None:
    """The layer's diagram in `dimension`, None when it was not computed."""
    return next((diagram for diagram in layer.diagrams if diagram.dimension == dimension), None)


def betti_of(layer: LayerTopology, dimension: int) -> NDArray[np.int64] | None:
    """beta_dimension on the layer's grid, shape (len(grid),), None when it was not computed."""
    curves: NDArray[np.int64] = layer.betti.values
    return curves[dimension] if dimension < len(curves) else None


def embedding_of(layers: Iterable[LayerTopology]) -> LayerTopology | None:
    """The first embedding layer (an encoder-decoder has two), None when it was not analysed."""
    return next((layer for layer in layers if layer.name.rpartition(".")[2] == "embedding"), None)
