"""Vietoris-Rips persistent homology of a cloud: exact H0 by single linkage, H1 and H2 by a checked engine."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology.engines import ENGINES, H0_ENGINE, MAXDIM, choose_engine
from cohomcli.topology.metrics import space_of
from cohomcli.topology.restore import restore_lengths
from cohomcli.topology.results import Array, Diagram
from cohomcli.topology.tree import spanning_tree

# Lengths outside this range are scaled by a power of two before an engine rounds them to float32.
SAFE_LENGTHS = (2.0**-60, 2.0**60)


def rips(
    distances_or_points: Array, maxdim: int = 1, engine: str = "auto", threshold: float = np.inf
) -> tuple[Diagram, ...]:
    """Diagrams H0 .. H_maxdim of the Vietoris-Rips filtration over Z/2, edge length = diameter convention.

    A 1-D argument is a condensed distance vector in pdist order (empty: one point), a 2-D one is (n, d) points under
    the Euclidean metric, whose H0 alone takes O(n) memory.

    Precision: every birth and death is the float64 length of an edge of the cloud. H0 is exact in float64. In H1 and
    H2 the engines compare lengths in float32, so births and deaths are right to 6e-8 relative (the contract is 1e-6)
    and classes that live less than that are lost. Simplices longer than `threshold` are left out; classes alive there
    are `censored`, which is not `essential`.

    Raises:
        UsageError: unknown engine, maxdim outside 0..2, or a negative or NaN threshold.
        AnalysisIncomplete: distances that are negative or not finite, or memory that ran out.
    """
    if not 0 <= maxdim <= MAXDIM:
        raise UsageError(f"maxdim {maxdim} is not supported", f"choose 0 to {MAXDIM}")
    if not threshold >= 0:
        raise UsageError(f"threshold {threshold} is not a length", "give a number >= 0")
    points_given = np.ndim(distances_or_points) == 2
    if points_given and maxdim == 0:
        points = np.asarray(distances_or_points, dtype=np.float64)
        tree = spanning_tree(space_of("points", points, "euclidean"), np.ones(len(points), dtype=np.int64))
        return (components(tree.lengths, threshold),)
    if points_given:
        points = np.asarray(distances_or_points, dtype=np.float64)
        distances = pdist(points[central_first(points)])
    else:
        distances = np.asarray(distances_or_points, dtype=np.float64)
    if distances.size and not (np.isfinite(distances.max()) and distances.min() >= 0):
        raise AnalysisIncomplete("the distances of the cloud are not all finite and non-negative")
    name = choose_engine(engine, maxdim).name
    heights = linkage(distances, "single")[:, 2] if distances.size else np.zeros(0)
    diagrams = [components(heights, threshold)]
    if name != H0_ENGINE:
        diagrams += _higher(distances, maxdim, name, threshold)
    return tuple(diagrams)


def central_first(points: Array) -> NDArray[np.int64]:
    """The order of `points` (n, d) by their distance from the mean, in which RedZeD takes 8 to 13% less time.

    Central points reach the others early, so that a search for connecting points, which goes by number, ends sooner.
    """
    centred = points - points.mean(axis=0)
    return np.argsort(np.einsum("ij,ij->i", centred, centred), kind="stable")


def point_count(distances: Array) -> int:
    """n from the length n (n - 1) / 2 of a condensed distance vector."""
    return round((1 + math.sqrt(1 + 8 * len(distances))) / 2)


def components(heights: Array, threshold: float = np.inf) -> Diagram:
    """H0: every class is born at 0 and dies at a merge height of single linkage, in any order (Gower, Ross 1969)."""
    deaths = np.sort(heights[(heights > 0) & (heights <= threshold)])
    censored = np.zeros(np.count_nonzero(heights > threshold))
    return Diagram(0, np.column_stack([np.zeros_like(deaths), deaths]), np.zeros(1), censored)


def _higher(distances: Array, maxdim: int, name: str, threshold: float) -> list[Diagram]:
    """H1 .. H_maxdim from an engine, in float64. A complete Rips complex is contractible: no class is essential."""
    if point_count(distances) < 4:  # the smallest flag complex with a cycle is a square
        empty = np.zeros(0)
        return [Diagram(k, np.zeros((0, 2)), empty, empty) for k in range(1, maxdim + 1)]
    unit = _unit(distances)
    lengths = distances / unit if unit != 1.0 else distances
    limit = min(threshold / unit, float(lengths.max()))
    try:
        # Rounding is monotone: edges up to the threshold stay under the engine's rounded one; `_diagram` cuts exactly.
        raw = ENGINES.get(name)(lengths, maxdim, threshold / unit)
    except MemoryError as error:
        raise AnalysisIncomplete(
            f"{name} ran out of memory on {point_count(distances)} points", "analyse fewer points or a lower maxdim"
        ) from error
    kept = [bars[bars[:, 1] > bars[:, 0]] for bars in raw]
    exact = restore_lengths(np.concatenate(kept), lengths)
    parts = np.split(exact, np.cumsum([len(bars) for bars in kept])[:-1])
    return [_diagram(k, bars, limit, unit) for k, bars in enumerate(parts, start=1)]


def _unit(distances: Array) -> float:
    """The power of two that brings the longest edge near 1 when float32 could overflow or lose digits, else 1."""
    longest = float(distances.max())
    if longest == 0 or SAFE_LENGTHS[0] <= longest <= SAFE_LENGTHS[1]:
        return 1.0
    return float(np.ldexp(1.0, int(np.frexp(longest)[1])))


def _diagram(dimension: int, bars: Array, limit: float, unit: float) -> Diagram:
    """Split an engine's bars at the threshold and sort them by birth, then death."""
    bars = bars[bars[:, 0] <= limit]
    alive = bars[:, 1] > limit
    pairs = bars[~alive & (bars[:, 1] > bars[:, 0])]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))] * unit
    return Diagram(dimension, pairs, np.zeros(0), np.sort(bars[alive, 0]) * unit)
