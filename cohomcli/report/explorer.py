"""The data of the page's interactive view: every layer's bars and Betti curves, small enough to sit in the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohomcli.report.layers import dimensions_of
from cohomcli.report.names import clean
from cohomcli.topology.results import Array, BettiCurve, Diagram, LayerTopology

MOST_BARS = 2000
"""Bars embedded per layer and dimension, the longest; the view says of how many."""
MOST_LAYERS = 400
_DIGITS = 4
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


@dataclass(frozen=True)
class Explorer:
    """One entry's view. `data` is JSON that ends no script element and opens no comment, whatever the names are.

    Without scripts the page shows its figures instead, and in print too.
    """

    data: str
    n_layers: int
    dimensions: tuple[int, ...]


def explorer_of(layers: Sequence[LayerTopology]) -> Explorer | None:
    """The view of `layers`, in units of each layer's scale; None when no layer has any."""
    shown = [layer for layer in layers if layer.scale > 0][:MOST_LAYERS]
    if not shown:
        return None
    document = {"dimensions": dimensions_of(shown), "layers": [_layer(layer) for layer in shown]}
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)
    return Explorer(text, len(shown), tuple(dimensions_of(shown)))


def _layer(layer: LayerTopology) -> dict[str, Any]:
    return {
        "name": clean(layer.name, 60),
        "points": layer.n_points,
        "distinct": layer.n_distinct,
        "scale": _round(layer.scale),
        "bars": [_bars(diagram, layer.scale) for diagram in layer.diagrams],
        "betti": _betti(layer.betti, layer.scale),
    }


def _bars(diagram: Diagram, scale: float) -> dict[str, Any]:
    """Finite bars as (births, deaths, counts), longest first; bars equal at the precision shown are one."""
    bars = diagram.pairs[np.argsort(diagram.pairs[:, 0] - diagram.pairs[:, 1], kind="stable")][:MOST_BARS] / scale
    counted: dict[tuple[float, float], int] = {}
    for birth, death in bars.tolist():
        key = (_round(birth), _round(death))
        counted[key] = counted.get(key, 0) + 1
    return {
        "dimension": diagram.dimension,
        "total": len(diagram.pairs),
        "births": [birth for birth, _ in counted],
        "deaths": [death for _, death in counted],
        "counts": list(counted.values()),
        "essential": _open(diagram.essential, scale),
        "censored": _open(diagram.censored, scale),
    }


def _open(births: Array, scale: float) -> list[float]:
    return [_round(birth / scale) for birth in np.sort(births)[:MOST_BARS].tolist()]


def _betti(betti: BettiCurve, scale: float) -> dict[str, Any]:
    """Betti curves where they change, as step functions: `at` and one row of `values` per dimension."""
    values = betti.values
    if values.shape[1] == 0:
        return {"at": [], "values": []}
    changed = np.flatnonzero(np.r_[True, (np.diff(values, axis=1) != 0).any(axis=0)])
    kept = np.union1d(changed, [values.shape[1] - 1])
    return {"at": [_round(t / scale) for t in betti.grid[kept].tolist()], "values": values[:, kept].tolist()}


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")
