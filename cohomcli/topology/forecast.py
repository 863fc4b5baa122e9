"""Memory and time of persistent homology before it starts: refusal with numbers and advice instead of a crash."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from cohomcli.errors import AnalysisIncomplete
from cohomcli.topology.engines import choose_engine
from cohomcli.topology.pca import BLOCK_CELLS

# Bytes beyond the distances: a n^2 + b n^3. Measured in fresh processes on Gaussian, clustered and planar clouds and
# rounded up: RedZeD H1 for n <= 16,000, H2 for n <= 1,000; Ripser H1 for n <= 2,000, H2 for n <= 300.
ENGINE_BYTES = {
    ("redzed", 1): (9.0, 0.0),
    ("redzed", 2): (110.0, 0.05),
    ("ripser", 1): (180.0, 0.0),
    ("ripser", 2): (0.0, 12.0),
}
# CPU seconds of one core, factor * n^power, on the same clouds (an Intel Xeon of 2024).
ENGINE_SECONDS = {
    ("redzed", 1): (2.5e-7, 2),
    ("redzed", 2): (6e-11, 4),
    ("ripser", 1): (1.8e-6, 2),
    ("ripser", 2): (1.5e-7, 3),
}
DISTANCE_BYTES = 4.0  # n (n - 1) / 2 float64
# One distance of scipy's kernels, per coordinate, and one step of the spanning tree.
SECONDS_PER_COORDINATE, SECONDS_PER_STEP = 4e-10, 5e-5
TREE_BYTES = 48.0  # per point: what is still outside, its nearest distance, the distances of one step


@dataclass(frozen=True)
class Forecast:
    """Peak memory in bytes and CPU seconds of one cloud: an estimate, as adversarial clouds can take far longer."""

    n_bytes: int
    seconds: float


def forecast(n: int, maxdim: int, engine: str = "auto", width: int = 50) -> Forecast:
    """What `rips` up to H_maxdim of `n` points with `width` coordinates needs beyond the points themselves.

    H0 alone takes the O(n)-memory spanning tree; otherwise all distances are held, and the engine's own peak beside
    them.
    """
    name = choose_engine(engine, maxdim).name
    measuring = SECONDS_PER_COORDINATE * width * n**2 / 2
    if maxdim == 0:
        return Forecast(int((TREE_BYTES + 8 * width) * n), measuring + SECONDS_PER_STEP * n)
    square, cube = ENGINE_BYTES[name, maxdim]
    factor, power = ENGINE_SECONDS[name, maxdim]
    n_bytes = int((DISTANCE_BYTES + square) * n**2 + cube * n**3)
    return Forecast(n_bytes, measuring + factor * float(n) ** power)


def forecast_bytes(n: int, maxdim: int, engine: str = "auto") -> int:
    """Peak memory of `rips` on n points in bytes, beyond the points themselves."""
    return forecast(n, maxdim, engine).n_bytes


def cloud_bytes(n: int, d: int, pca: int) -> int:
    """Peak memory of making the cloud of an (n, d) layer, beyond its activations: PCA (0: none), blocks and result."""
    if not 0 < pca < d:
        return 16 * n * d
    blocks = 16 * n * d if n <= d else 24 * min(n * d, BLOCK_CELLS)
    return blocks + 16 * n * pca + 16 * min(n, d) ** 2


def check_memory(n: int, maxdim: int, engine: str, available: int) -> int:
    """The forecast for n points, in bytes.

    Raises:
        AnalysisIncomplete: it exceeds `available` bytes; says how many points would fit.
    """
    needed = forecast_bytes(n, maxdim, engine)
    if needed <= available:
        return needed
    raise AnalysisIncomplete(
        f"persistent homology up to H{maxdim} of {n} points needs about {size(needed)}, {size(available)} are free",
        _advice(n, maxdim, available, lambda k: forecast_bytes(k, maxdim, engine)),
    )


def check_time(n: int, layers: int, maxdim: int, engine: str, limit: float, width: int = 50) -> float:
    """The forecast for `layers` clouds of n points, in CPU seconds.

    Raises:
        AnalysisIncomplete: it exceeds `limit` seconds; says how many points would take less.
    """
    needed = layers * forecast(n, maxdim, engine, width).seconds
    if needed <= limit:
        return needed
    raise AnalysisIncomplete(
        f"persistent homology up to H{maxdim} of {n} points in {layers} layers needs about {duration(needed)} of one "
        f"core, the limit is {duration(limit)}",
        _advice(n, maxdim, limit, lambda k: layers * forecast(k, maxdim, engine, width).seconds) + ", or --max-seconds",
    )


def _advice(n: int, maxdim: int, limit: float, needs: Callable[[int], float]) -> str:
    fits = bisect_right(range(n), limit, key=needs) - 1
    if fits <= 0:
        return "lower --maxdim"
    less = f", or --maxdim {maxdim - 1}" if maxdim else ""
    return f"--samples {fits} fits{less}, or --landmarks {fits} with a guaranteed error"


def size(n_bytes: int) -> str:
    """`n_bytes` for people."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """`seconds` for people."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
