"""Vietoris-Rips persistent homology of a cloud: exact H0 by single linkage, H1 and H2 by a checked engine."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology.engines import ENGINES, H0_ENGINE, MAXDIM, choose_engine
from cohomcli.topology.results import Array, Diagram

# Lengths outside this range are scaled by a power of two before an engine rounds them to float32.
SAFE_LENGTHS = (2.0**-60, 2.0**60)


def rips(
    distances_or_points: Array, maxdim: int = 1, engine: str = "auto", threshold: float = np.inf
) -> tuple[Diagram, ...]:
    """Diagrams H0 .. H_maxdim of the Vietoris-Rips filtration over Z/2, edge length = diameter convention.

    A 1-D argument is a condensed distance vector in pdist order (empty: one point), a 2-D one is (n, d) points under
    the Euclidean metric. Every birth and death is the float64 length of an edge of the cloud. H0 is exact in float64;
    in H1 and H2 the engines compare lengths in float32, so classes living less than 6e-8 of their birth are lost.
    Simplices longer than `threshold` are left out, and classes alive there are `censored`.

    Raises:
        UsageError: unknown engine, maxdim outside 0..2, or a negative or NaN threshold.
        AnalysisIncomplete: distances that are negative or not finite, or memory that ran out.
    """
    if not 0 <= maxdim <= MAXDIM:
        raise UsageError(f"maxdim {maxdim} is not supported", f"choose 0 to {MAXDIM}")
    if not threshold >= 0:
        raise UsageError(f"threshold {threshold} is not a length", "give a number >= 0")
    points_given = np.ndim(distances_or_points) == 2
    distances = np.asarray(pdist(distances_or_points) if points_given else distances_or_points, dtype=np.float64)
    if distances.size and not (np.isfinite(distances.max()) and distances.min() >= 0):
        raise AnalysisIncomplete("the distances of the cloud are not all finite and non-negative")
    name = choose_engine(engine, maxdim).name
    diagrams = [_components(distances, threshold)]
    if name != H0_ENGINE:
        diagrams += _higher(distances, maxdim, name, threshold)
    return tuple(diagrams)


def point_count(distances: Array) -> int:
    """n from the length n (n - 1) / 2 of a condensed distance vector."""
    return round((1 + math.sqrt(1 + 8 * len(distances))) / 2)


def _components(distances: Array, threshold: float) -> Diagram:
    """H0: every class is born at 0 and dies at a merge height of single linkage (Gower, Ross 1969)."""
    heights = linkage(distances, "single")[:, 2] if distances.size else np.zeros(0)
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
    ordered = np.sort(lengths)
    return [_diagram(k, _exact(bars, ordered), limit, unit) for k, bars in enumerate(raw, start=1)]


def _unit(distances: Array) -> float:
    """The power of two that brings the longest edge near 1 when float32 could overflow or lose digits, else 1."""
    longest = float(distances.max())
    if longest == 0 or SAFE_LENGTHS[0] <= longest <= SAFE_LENGTHS[1]:
        return 1.0
    return float(np.ldexp(1.0, int(np.frexp(longest)[1])))


def _exact(bars: Array, ordered: Array) -> Array:
    """Replace float32 births and deaths by the smallest float64 edge length that rounds to them.

    `ordered` holds the sorted edge lengths. Engines hand out float32 values, which cannot be matched back to the
    distances they came from; this undoes the rounding, and makes the engines agree to the last bit.
    """
    rounded = bars.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf)).astype(np.float64)
    at = np.searchsorted(ordered, (below + rounded) / 2)
    candidates = ordered[np.minimum(at, len(ordered) - 1)]
    return np.where(candidates.astype(np.float32) == rounded, candidates, bars)


def _diagram(dimension: int, bars: Array, limit: float, unit: float) -> Diagram:
    """Split an engine's bars at the threshold and sort them by birth, then death."""
    bars = bars[bars[:, 0] <= limit]
    alive = bars[:, 1] > limit
    pairs = bars[~alive & (bars[:, 1] > bars[:, 0])]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))] * unit
    return Diagram(dimension, pairs, np.zeros(0), np.sort(bars[alive, 0]) * unit)


def forecast_bytes(n: int, maxdim: int, engine: str = "redzed") -> int:
    """Upper estimate of the peak memory, in bytes, of `rips` on n points beyond the points themselves.

    4 n^2 for the condensed float64 distances and as much for their sorted copy, plus the engine's own peak, measured
    in fresh processes on Gaussian, clustered and planar clouds and rounded up: RedZeD 10 n^2 (H1, n <= 4,000) and
    100 n^2 + 0.1 n^3 (H2, n <= 400), Ripser 180 n^2 (H1, n <= 2,000) and 12 n^3 (H2, n <= 300).
    """
    engine = choose_engine(engine, maxdim).name
    square, cube = (0.0, 0.0) if maxdim == 0 else ENGINE_BYTES[engine, maxdim]
    return int((8 + square) * n**2 + cube * n**3)


ENGINE_BYTES = {
    ("redzed", 1): (10.0, 0.0),
    ("redzed", 2): (100.0, 0.1),
    ("ripser", 1): (180.0, 0.0),
    ("ripser", 2): (0.0, 12.0),
}


def check_memory(n: int, maxdim: int, engine: str, available: int) -> int:
    """The forecast for n points, in bytes.

    Raises:
        AnalysisIncomplete: it exceeds `available` bytes; says how many points would fit.
    """
    needed = forecast_bytes(n, maxdim, engine)
    if needed <= available:
        return needed
    fits = bisect_right(range(n), available, key=lambda k: forecast_bytes(k, maxdim, engine)) - 1
    raise AnalysisIncomplete(
        f"persistent homology up to H{maxdim} of {n} points needs about {_size(needed)}, {_size(available)} are free",
        f"--samples {fits} fits" if fits > 0 else "lower --maxdim",
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
