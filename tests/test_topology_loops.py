"""Representatives of H1 bars against linear algebra over Z/2: born with the bar, bounding at its death, not before."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology import loops
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.loops import longest_loops
from cohomcli.topology.persistence import rips
from cohomcli.topology.results import TopologyOptions


class Span:
    """The span of vectors over Z/2, each an integer whose bits are its coordinates."""

    def __init__(self, vectors):
        self.pivots = {}
        for vector in vectors:
            if rest := self.reduce(vector):
                self.pivots[rest.bit_length()] = rest

    def reduce(self, vector):
        while vector and vector.bit_length() in self.pivots:
            vector ^= self.pivots[vector.bit_length()]
        return vector

    def __contains__(self, vector):
        return self.reduce(vector) == 0


def check(distances, loop):
    """The cycle's longest edge is the birth, and it bounds at the death but not before."""
    square = squareform(distances)
    edges = {pair: 1 << k for k, pair in enumerate(itertools.combinations(range(len(square)), 2))}
    walk = list(zip(loop.points, loop.points[1:] + loop.points[:1], strict=True))
    assert len(set(loop.points)) == len(loop.points) >= 4
    assert max(square[u, v] for u, v in walk) == loop.birth
    cycle = 0
    for u, v in walk:
        cycle ^= edges[min(u, v), max(u, v)]
    triangles = [
        (max(square[a, b], square[a, c], square[b, c]), edges[a, b] ^ edges[a, c] ^ edges[b, c])
        for a, b, c in itertools.combinations(range(len(square)), 3)
    ]
    assert cycle in Span(t for length, t in triangles if length <= loop.death)
    assert cycle not in Span(t for length, t in triangles if length < loop.death)


def problem(kind, seed):
    rng = np.random.default_rng([seed, len(kind)])
    n = int(rng.integers(6, 20))
    if kind == "cloud":
        return pdist(rng.normal(size=(n, 3)))
    if kind == "lattice":
        return pdist(rng.integers(0, 4, size=(n, 2)).astype(float))
    return rng.integers(1, 6, size=n * (n - 1) // 2).astype(float)


@pytest.mark.parametrize("engine", ["redzed", "ripser"])
@pytest.mark.parametrize("kind", ["cloud", "lattice", "tied non-metric"])
def test_every_loop_represents_its_bar(kind, engine):
    seen = 0
    for seed in range(8):
        distances = problem(kind, seed)
        found = longest_loops(distances, 1000, engine)
        expected = rips(distances)[1].pairs
        assert sorted((loop.birth, loop.death) for loop in found) == sorted(map(tuple, expected.tolist()))
        for loop in found:
            assert loop.closed
            check(distances, loop)
        seen += len(found)
    assert seen > 10


@pytest.mark.parametrize("kind", ["cloud", "tied non-metric"])
def test_the_reduced_column_represents_the_bar_too(monkeypatch, kind):
    """What is used where the shortest path through the birth edge is of another class."""
    monkeypatch.setattr(loops._Reduction, "_is_boundary", lambda *_: False)
    found = [(d, loop) for seed in range(8) for d in [problem(kind, seed)] for loop in longest_loops(d, 1000)]
    simple = [(d, loop) for d, loop in found if loop.closed and len(set(loop.points)) == len(loop.points)]
    assert len(simple) > 10
    for distances, loop in simple:
        check(distances, loop)


def test_the_loop_of_a_circle_goes_around_it():
    angles = 2 * np.pi * np.arange(24) / 24
    noise = np.random.default_rng(0).normal(size=(6, 2)) * 0.1
    points = np.concatenate([noise, np.column_stack([np.cos(angles), np.sin(angles)]) * 5])
    order = np.random.default_rng(1).permutation(len(points))
    (loop,) = longest_loops(pdist(points[order]), 1)
    around = [order[i] for i in loop.points]
    assert sorted(around) == list(range(6, 30))
    steps = np.diff([*around, around[0]]) % 24
    assert set(steps.tolist()) in ({1}, {23})


def test_loops_are_the_longest_first_and_end_at_the_threshold():
    distances = pdist(np.random.default_rng(3).normal(size=(60, 3)))
    lifetimes = np.sort(np.diff(rips(distances)[1].pairs, axis=1)[:, 0])[::-1]
    found = longest_loops(distances, 5)
    np.testing.assert_array_equal([loop.death - loop.birth for loop in found], lifetimes[:5])
    limit = np.median(distances) / 2
    assert all(loop.death <= limit for loop in longest_loops(distances, 50, threshold=limit))
    assert longest_loops(distances, 0) == ()
    assert longest_loops(np.ones(3), 9) == ()


def test_points_are_rows_of_the_activations_behind_duplicates_and_landmarks():
    angles = 2 * np.pi * np.arange(16) / 16
    circle = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    x = np.concatenate([np.repeat(circle[:1], 5, axis=0), circle[1:]])  # row 0 five times, then the others
    (loop,) = analyze_layers({"a": x}, TopologyOptions(pca=0, representatives=1)).layers[0].loops
    assert sorted(loop.points) == [0, *range(5, 20)]
    layer = analyze_layers({"a": x}, TopologyOptions(pca=0, representatives=1, landmarks=8)).layers[0]
    assert len(layer.loops[0].points) == 8
    assert layer.n_distinct == 16
    assert set(layer.loops[0].points) <= {0, *range(5, 20)}
    assert analyze_layers({"a": x}, TopologyOptions(pca=0)).layers[0].loops == ()


def test_too_many_points_are_refused_with_the_layer(monkeypatch):
    monkeypatch.setattr(loops, "MOST_POINTS", 20)
    x = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)
    with pytest.raises(UsageError, match="--maxdim 0 leaves out; use --maxdim 1"):
        analyze_layers({"a": x}, TopologyOptions(representatives=1, maxdim=0))
    with pytest.raises(AnalysisIncomplete, match=r"layer 'a': representatives .* up to 20 points.*--landmarks 20"):
        analyze_layers({"a": x}, TopologyOptions(representatives=1))
