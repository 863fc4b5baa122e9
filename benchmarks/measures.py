"""Measures and vectorisations beside persim, GUDHI and ripser: CPU seconds, values and their largest difference.

    python -m benchmarks.measures                  # diagram distances, measures, geometry, tracking, curves
    python -m benchmarks.measures --sizes 100,500  # smaller diagrams
    python -m benchmarks.measures --only measures --json

Every line is the least CPU time of some repeats in one process on one thread, imports not counted. Diagrams have births
uniform in [5, 9] and exponential lifetimes of mean 0.2; representations are normal with decaying spectrum, one of them
the other plus noise. A peer that would take minutes is left out, and the line says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.topology.distances import bottleneck, sliced_wasserstein, wasserstein
from cohomcli.topology.geometry import geometry_of
from cohomcli.topology.measures import MEASURES
from cohomcli.topology.pairdistances import pair_distances
from cohomcli.topology.results import Diagram
from cohomcli.topology.rtd import cross_barcode
from cohomcli.topology.tracking import track_layers
from cohomcli.topology.vectors import landscape, persistence_image, silhouette

Array = NDArray[np.float64]
PARTS = ("distances", "measures", "geometry", "tracking", "curves")


@dataclass(frozen=True)
class Row:
    """One computation: ours, and a peer's on the same input where there is one."""

    part: str
    what: str
    seconds: float
    peer: str = ""
    peer_seconds: float | None = None
    difference: float | None = None
    note: str = ""


def main() -> None:
    """Print one line per computation."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", default="100,500,2000", help="points of the diagrams")
    options.add_argument("--only", action="append", default=[], choices=PARTS, help="only these parts")
    options.add_argument("--json", action="store_true", help="one JSON document on stdout")
    chosen = options.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",")]
    makers: dict[str, Callable[[], Iterator[Row]]] = {
        "distances": lambda: _distances(sizes),
        "measures": _measures,
        "geometry": _geometry,
        "tracking": _tracking,
        "curves": lambda: _curves(max(sizes)),
    }
    rows = []
    warnings.simplefilter("ignore")
    print(f"{'what':44}{'ours, CPU s':>12}{'peer, CPU s':>12}{'ratio':>7}{'difference':>12}  peer", file=_talk(chosen))
    for part in chosen.only or PARTS:
        for row in makers[part]():
            rows.append(row)
            print(_line(row), file=_talk(chosen), flush=True)
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))


def _talk(chosen: argparse.Namespace) -> Any:
    return sys.stderr if chosen.json else sys.stdout


def _line(row: Row) -> str:
    peer = f"{row.peer_seconds:.4f}" if row.peer_seconds is not None else "-"
    ratio = f"{row.peer_seconds / row.seconds:.1f}" if row.peer_seconds is not None and row.seconds else "-"
    difference = f"{row.difference:.1e}" if row.difference is not None else "-"
    return f"{row.what:44}{row.seconds:12.4f}{peer:>12}{ratio:>7}{difference:>12}  {row.peer} {row.note}".rstrip()


def _timed(work: Callable[[], Any], enough: float = 0.5) -> tuple[float, Any]:
    """The least CPU time of as many repeats as fit into `enough` seconds, at least one, and the last value."""
    best, spent, value = float("inf"), 0.0, None
    while spent < enough:
        begun = time.process_time()
        value = work()
        took = time.process_time() - begun
        best, spent = min(best, took), spent + max(took, 1e-4)
    return best, value


def _versus(part: str, what: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any]) -> Row:
    seconds, value = _timed(ours)
    peer_seconds, other = _timed(theirs)
    difference = float(np.max(np.abs(np.asarray(value, dtype=float) - np.asarray(other, dtype=float))))
    return Row(part, what, seconds, peer, peer_seconds, difference / max(float(np.max(np.abs(other))), 1e-300))


def _bars(n: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    births = rng.uniform(5, 9, n)
    return np.stack([births, births + rng.exponential(0.2, n)], axis=1)


def _distances(sizes: list[int]) -> Iterator[Row]:
    import gudhi
    import gudhi.hera
    import persim

    none = np.zeros(0)
    for n in sizes:
        a, b = _bars(n, 1), _bars(n, 2)
        first, second = Diagram(1, a, none, none), Diagram(1, b, none, none)
        hera = partial(gudhi.hera.wasserstein_distance, a, b, order=1.0, internal_p=2.0, delta=1e-6)
        peers: list[tuple[str, Callable[..., float], str, Callable[[], float]]] = [
            ("bottleneck", bottleneck, "GUDHI", partial(gudhi.bottleneck_distance, a, b)),
            ("W1, Euclidean", wasserstein, "hera (1e-6)", hera),
            ("W1, Euclidean", wasserstein, "persim", partial(persim.wasserstein, a, b)),
            ("sliced W, 50 directions", sliced_wasserstein, "persim", partial(persim.sliced_wasserstein, a, b)),
        ]
        for what, ours, peer, theirs in peers:
            yield _versus("distances", f"{what}, {n} points", partial(ours, first, second), peer, theirs)


def _pair(n: int, d: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    spread = 1 / np.sqrt(np.arange(1, d + 1))
    x = rng.normal(size=(n, d)) * spread
    return x, x + 0.3 * rng.normal(size=(n, d)) * spread


def _measures() -> Iterator[Row]:
    from ripser import ripser
    from scipy.spatial.distance import squareform

    for n, d in ((500, 576), (1000, 576)):
        x, y = _pair(n, d)
        for name in MEASURES:
            seconds, _ = _timed(partial(MEASURES.get(name), x, y))
            yield Row("measures", f"{name}, {n} texts x {d}", seconds)
    x, y = _pair(300, 576)
    a, b = pair_distances(x).condensed, pair_distances(y).condensed
    least = np.minimum(a, b)

    def reference() -> float:
        w, m = squareform(a), squareform(least)
        cone = np.block([[np.zeros_like(w), w], [w, m]])
        bars = ripser(cone, distance_matrix=True, maxdim=1)["dgms"][1]
        return float((bars[:, 1] - bars[:, 0]).sum())

    def ours() -> float:
        bars = cross_barcode(a, least).pairs
        return float((bars[:, 1] - bars[:, 0]).sum())

    yield _versus("measures", "one direction of RTD, 300 texts", ours, "ripser.py", reference)


def _geometry() -> Iterator[Row]:
    for n, d in ((200, 576), (500, 768), (2000, 384)):
        x, _ = _pair(n, d)
        seconds, _ = _timed(partial(geometry_of, x.astype(np.float32)))
        yield Row("geometry", f"all figures of a layer, {n} texts x {d}", seconds)


def _tracking() -> Iterator[Row]:
    for n, d, n_layers in ((200, 576, 31), (500, 768, 13), (1000, 384, 7)):
        rng = np.random.default_rng(0)
        x, _ = _pair(n, d)
        layers = {}
        for at in range(n_layers):
            x = x + 0.2 * rng.normal(size=x.shape) / np.sqrt(d)
            layers[f"layer_{at}"] = x.astype(np.float32)
        seconds, _ = _timed(partial(track_layers, layers))
        yield Row("tracking", f"zigzag of {n_layers} layers, {n} texts x {d}", seconds)


def _curves(n: int) -> Iterator[Row]:
    from gudhi.representations import Landscape, Silhouette
    from persim import PersistenceImager

    bars, grid = _bars(n, 3), np.linspace(0.0, 12.0, 200)
    peer = Landscape(num_landscapes=5, resolution=200, sample_range=[0.0, 12.0])
    yield _versus(
        "curves", f"landscape, {n} bars, 200 steps",
        lambda: np.sqrt(2) * landscape(bars, grid).ravel(), "GUDHI", lambda: peer(bars),
    )  # fmt: skip
    other = Silhouette(weight=lambda p: p[1] - p[0], resolution=200, sample_range=[0.0, 12.0])
    yield _versus(
        "curves", f"silhouette, {n} bars, 200 steps",
        lambda: np.sqrt(2) * silhouette(bars, grid), "GUDHI", lambda: other(bars),
    )  # fmt: skip
    imager = PersistenceImager(
        birth_range=(5, 9), pers_range=(0, 2), pixel_size=0.1, weight="persistence", weight_params={"n": 1.0},
        kernel_params={"sigma": [[0.04, 0.0], [0.0, 0.04]]},
    )  # fmt: skip
    across, up = np.linspace(5, 9, 41), np.linspace(0, 2, 21)
    yield _versus(
        "curves", f"persistence image, {n} bars, 20 x 40",
        lambda: persistence_image(bars, across, up, 0.2).T, "persim", lambda: imager.transform(bars, skew=True),
    )  # fmt: skip


if __name__ == "__main__":
    main()
