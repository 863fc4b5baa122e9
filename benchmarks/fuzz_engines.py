"""Our Vietoris-Rips engine against two independent ones, ripser and GUDHI, on random inputs made to be difficult.

    python -m benchmarks.fuzz_engines --inputs 10000

Kinds: clouds in general position, duplicates, lattices (many equal lengths), grids (squares whose diagonals tie),
near ties (differences around float32's resolution), arbitrary non-metric distances with and without ties and zeros,
extreme units, and 1 to 3 points; up to H2, a third of them with a threshold, which is often exactly an edge length.

Persistent homology commutes with rounding the filtration, so bars must agree exactly, not within a tolerance:
- H0 in float64 with GUDHI, and with the O(n)-memory tree where points are given;
- every dimension with GUDHI (float64) after rounding births and deaths to float32 and dropping bars of length zero;
- every dimension with ripser (float32), in the same way.
A bar that only one side has is printed with the seed that makes its input again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from cohomcli.topology.persistence import rips
from cohomcli.topology.results import Diagram

Array = NDArray[np.float64]
Bars = Counter[tuple[float, float]]


@dataclass(frozen=True)
class Problem:
    """One input: condensed distances, or points too, with what is asked of the engines. `unit` is a power of two."""

    kind: str
    seed: int
    distances: Array
    points: Array | None
    maxdim: int
    threshold: float
    unit: float = 1.0

    @property
    def n(self) -> int:
        """Number of points."""
        return round((1 + math.sqrt(1 + 8 * len(self.distances))) / 2)


def _normal(rng: np.random.Generator, n: int) -> Array:
    return rng.normal(size=(n, int(rng.integers(1, 8))))


def _duplicates(rng: np.random.Generator, n: int) -> Array:
    x = rng.normal(size=(n, 2))
    return np.concatenate([x, x[rng.integers(0, n, size=n // 2)]])


def _lattice(rng: np.random.Generator, n: int) -> Array:
    return rng.integers(0, int(rng.integers(2, 6)), size=(n, int(rng.integers(1, 5)))).astype(np.float64)


def _grid(rng: np.random.Generator, n: int) -> Array:
    side = max(1, int(np.sqrt(n)))
    x, y = np.meshgrid(np.arange(side), np.arange(max(1, n // side)))
    points: Array = np.column_stack([x.ravel(), y.ravel()]).astype(np.float64)
    return points * float(rng.choice([1.0, 0.1, 1 / 3]))


def _near_ties(rng: np.random.Generator, n: int) -> Array:
    return _grid(rng, n) + rng.normal(size=2) + 3e-8 * rng.normal(size=(len(_grid(rng, n)), 2))


def _ring(rng: np.random.Generator, n: int) -> Array:
    angles: Array = 2 * np.pi * (np.arange(n) if rng.random() < 0.5 else np.sort(rng.random(n)) * n) / n
    return np.column_stack([np.cos(angles), np.sin(angles)])


def _non_metric(rng: np.random.Generator, n: int) -> Array:
    return rng.random(n * (n - 1) // 2)


def _tied_non_metric(rng: np.random.Generator, n: int) -> Array:
    return rng.integers(0, int(rng.integers(2, 9)), size=n * (n - 1) // 2).astype(np.float64)


POINTS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "general position": _normal,
    "duplicates": _duplicates,
    "lattice": _lattice,
    "grid": _grid,
    "near ties": _near_ties,
    "ring": _ring,
}
DISTANCES = {"non-metric": _non_metric, "tied non-metric": _tied_non_metric}
KINDS = (*POINTS, *DISTANCES, "extreme unit", "1 to 3 points")


def problem(seed: int) -> Problem:
    """The input of `seed`."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    maxdim = int(rng.choice([1, 1, 2]))
    n = int(rng.integers(1, 4)) if kind == "1 to 3 points" else int(rng.integers(4, 15 if maxdim == 2 else 45))
    shape = kind if kind in POINTS or kind in DISTANCES else str(rng.choice([*POINTS, *DISTANCES]))
    points = POINTS[shape](rng, n) if shape in POINTS else None
    distances = pdist(points) if points is not None and len(points) > 1 else np.zeros(0)
    if points is None:
        distances = DISTANCES[shape](rng, n)
    unit = float(2.0 ** rng.choice([-140, 140])) if kind == "extreme unit" else 1.0
    return Problem(kind, seed, distances, points, maxdim, _threshold(rng, distances), unit)


def _threshold(rng: np.random.Generator, distances: Array) -> float:
    """Usually none; else an edge length or the middle between two, where float32 can tell which edges are below it."""
    if rng.random() > 1 / 3 or not len(distances):
        return float(np.inf)
    threshold = float(rng.choice(distances)) if rng.random() < 0.7 else float(np.median(distances))
    alike = distances[distances.astype(np.float32) == np.float32(threshold)]
    return threshold if len(np.unique(alike)) <= 1 and (not len(alike) or alike[0] == threshold) else float(np.inf)


def ours(given: Problem) -> list[Diagram]:
    """Our engine, in the problem's own unit."""
    found = rips(given.distances * given.unit, given.maxdim, threshold=given.threshold * given.unit)
    return [
        Diagram(d.dimension, d.pairs / given.unit, d.essential / given.unit, d.censored / given.unit) for d in found
    ]


def gudhi_bars(given: Problem) -> list[Array]:
    """GUDHI's simplex tree over Z/2, float64."""
    import gudhi

    square = squareform(given.distances) if len(given.distances) else np.zeros((1, 1))
    tree: Any = gudhi.RipsComplex(distance_matrix=square, max_edge_length=given.threshold)
    tree = tree.create_simplex_tree(max_dimension=given.maxdim + 1)
    tree.compute_persistence(2, 0, tree.dimension() <= given.maxdim)
    return [np.asarray(tree.persistence_intervals_in_dimension(k)).reshape(-1, 2) for k in range(given.maxdim + 1)]


def ripser_bars(given: Problem) -> list[Array]:
    """ripser over Z/2, float32. It needs two points."""
    from ripser import ripser

    square = squareform(given.distances)
    diagrams: list[Array] = ripser(square, distance_matrix=True, maxdim=given.maxdim, thresh=given.threshold)["dgms"]
    return diagrams


def as_bars(diagram: Diagram) -> Array:
    """All classes of a diagram, those without a death with death infinity."""
    undying = np.concatenate([diagram.essential, diagram.censored])
    return np.concatenate([diagram.pairs, np.column_stack([undying, np.full_like(undying, np.inf)])])


def counted(bars: Array, rounded: bool = True) -> Bars:
    """The multiset of bars of positive length, births and deaths rounded to float32 if `rounded`."""
    kept = bars.astype(np.float32).astype(np.float64) if rounded else np.asarray(bars, dtype=np.float64)
    return Counter((float(b), float(d)) for b, d in kept if d > b)


def differences(given: Problem) -> tuple[list[str], int]:
    """What only one side has, and the number of bars that were compared."""
    found = ours(given)
    found_h0 = counted(as_bars(found[0]), rounded=False)
    references = {"gudhi": gudhi_bars(given)} | ({"ripser": ripser_bars(given)} if given.n > 1 else {})
    pairs = [("gudhi H0 in float64", found_h0, counted(references["gudhi"][0], rounded=False))]
    if given.points is not None and given.unit == 1.0:
        tree = rips(given.points, 0, threshold=given.threshold)[0]
        pairs.append(("O(n)-memory tree", found_h0, counted(as_bars(tree), rounded=False)))
    for name, bars in references.items():
        pairs += [(f"{name} H{k}", counted(as_bars(found[k])), counted(bars[k])) for k in range(given.maxdim + 1)]
    problems = [
        f"seed {given.seed} ({given.kind}, {given.n} points, threshold {given.threshold:g}): {name}: "
        f"only ours {sorted((a - b).elements())[:3]}, only theirs {sorted((b - a).elements())[:3]}"
        for name, a, b in pairs
        if a != b
    ]
    return problems, sum(a.total() for _, a, _ in pairs)


def main() -> None:
    """Compare on `--inputs` random inputs and print a row per kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    begun = time.process_time()
    bars: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    wrong: list[tuple[str, str]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.inputs):
        given = problem(seed)
        problems, compared = differences(given)
        inputs[given.kind] += 1
        bars[given.kind] += compared
        wrong += [(given.kind, text) for text in problems]
    print("| kind | inputs | bars compared | unexplained |\n| :-- | --: | --: | --: |")
    for kind in KINDS:
        print(f"| {kind} | {inputs[kind]:,} | {bars[kind]:,} | {sum(k == kind for k, _ in wrong)} |")
    print(f"| all | {inputs.total():,} | {bars.total():,} | {len(wrong)} |")
    print(f"\n{time.process_time() - begun:.0f} CPU seconds")
    for _, text in wrong[:20]:
        print(text, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
