"""Diagrams as vectors on a grid: Betti curve, landscape, silhouette, entropy curve and persistence image.

Each takes the finite bars of a diagram, (k, 2) births and deaths; a class [b, d) is alive at t when b <= t < d. All are
zero without bars, and comparable between diagrams only on one and the same grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from cohomcli.registry import Registry
from cohomcli.topology.results import Array, Diagram, LayerTopology

# name -> function (bars (k, 2), grid (m,)) -> (m,) or (levels, m)
CURVES = Registry("curve")
LANDSCAPES = 5
GRID, SIDE = 200, 32  # places on a grid, pixels along a side of an image


def common_grid(diagrams: list[Diagram], size: int = 100) -> Array:
    """`size` even steps from 0 to the largest death of any of the `diagrams`; to 1 when there is none."""
    last = max((float(diagram.pairs[:, 1].max(initial=0.0)) for diagram in diagrams), default=0.0)
    grid: Array = np.linspace(0.0, last or 1.0, size)
    return grid


def betti(bars: Array, grid: Array) -> Array:
    """The number of bars alive at each t."""
    count: Array = _alive(bars, grid).sum(axis=0)
    return count


def tents(bars: Array, grid: Array) -> Array:
    """max(0, min(t - b, d - t)) of every bar, (k, m)."""
    heights: Array = np.minimum(grid - bars[:, :1], bars[:, 1:] - grid)
    return np.maximum(heights, 0.0)


def landscape(bars: Array, grid: Array, levels: int = LANDSCAPES) -> Array:
    """The `levels` largest tents at each t, (levels, m): Bubenik, JMLR 16, 2015."""
    heights = tents(bars, grid)
    padded = np.concatenate([heights, np.zeros((levels, len(grid)))])
    largest: Array = -np.sort(-padded, axis=0)[:levels]
    return largest


def silhouette(bars: Array, grid: Array, power: float = 1.0) -> Array:
    """The mean tent, bars weighted by lifetime^`power`: Chazal, Fasy, Lecci, Rinaldo, Wasserman, SoCG 2014."""
    weights = (bars[:, 1] - bars[:, 0]) ** power
    total = float(weights.sum())
    mean: Array = weights @ tents(bars, grid) / total if total > 0 else np.zeros_like(grid)
    return mean


def entropy_curve(bars: Array, grid: Array) -> Array:
    """-sum p log p over the bars alive at t, p a bar's share of the total lifetime (Atienza et al. 2020), in nats."""
    lifetimes = bars[:, 1] - bars[:, 0]
    shares = lifetimes / lifetimes.sum() if len(bars) else lifetimes
    curve: Array = -(shares * np.log(shares)) @ _alive(bars, grid) if len(bars) else np.zeros_like(grid)
    return curve


def persistence_image(bars: Array, births: Array, lifetimes: Array, width: float) -> Array:
    """Gaussians of standard deviation `width` at (birth, lifetime), weighted by lifetime, integrated over each pixel.

    Adams et al., JMLR 18, 2017. `births` (p + 1,) and `lifetimes` (q + 1,) are the edges of the pixels; the image is
    (q, p), row 0 the shortest lifetimes.
    """
    lengths = bars[:, 1] - bars[:, 0]
    across = np.diff(norm.cdf((births - bars[:, :1]) / width), axis=1)
    up = np.diff(norm.cdf((lifetimes - lengths[:, None]) / width), axis=1)
    image: Array = (lengths[:, None] * up).T @ across
    return image


def _alive(bars: Array, grid: Array) -> Array:
    alive: Array = ((bars[:, :1] <= grid) & (grid < bars[:, 1:])).astype(np.float64)
    return alive


CURVES.add("betti", betti)
CURVES.add("landscape", landscape)
CURVES.add("silhouette", silhouette)
CURVES.add("entropy", entropy_curve)


def vectors_of(layers: Sequence[LayerTopology], size: int = GRID, side: int = SIDE) -> dict[str, Array]:
    """Every layer's diagrams as vectors on common grids, by name; bars are divided by their layer's scale.

    `grid/h<k>` (size,) are the distances, `image/h<k>/births` and `/lifetimes` (side + 1,) the edges of the pixels;
    `<layer>/h<k>/<curve>` for every curve in CURVES, landscapes (LANDSCAPES, size); `<layer>/h<k>/image` (side, side),
    with a Gaussian one pixel of lifetime wide. Classes that never die are left out.
    """
    arrays: dict[str, Array] = {}
    for k in sorted({diagram.dimension for layer in layers for diagram in layer.diagrams}):
        bars = {layer.name: _scaled(layer, k) for layer in layers}
        every = np.concatenate(list(bars.values()))
        grid = np.linspace(0.0, float(every[:, 1].max(initial=0.0)) or 1.0, size)
        births = np.linspace(0.0, float(every[:, 0].max(initial=0.0)) or 1.0, side + 1)
        lifetimes = np.linspace(0.0, float((every[:, 1] - every[:, 0]).max(initial=0.0)) or 1.0, side + 1)
        arrays |= {f"grid/h{k}": grid, f"image/h{k}/births": births, f"image/h{k}/lifetimes": lifetimes}
        for name, own in bars.items():
            arrays |= {f"{name}/h{k}/{curve}": CURVES.get(curve)(own, grid) for curve in CURVES}
            arrays[f"{name}/h{k}/image"] = persistence_image(own, births, lifetimes, float(lifetimes[1]))
    return arrays


def _scaled(layer: LayerTopology, dimension: int) -> Array:
    unit = layer.scale if layer.scale > 0 else 1.0
    found = [diagram.pairs / unit for diagram in layer.diagrams if diagram.dimension == dimension]
    return found[0] if found else np.zeros((0, 2))
