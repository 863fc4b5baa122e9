"""Zigzag persistence against linear algebra on small complexes, and what follows from layer to layer."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.topology import tracking
from cohomcli.topology.tracking import clique_complex, track_layers
from cohomcli.topology.zigzag import Simplex, ZigzagBar, zigzag_bars


def _closed(top: set[Simplex]) -> set[Simplex]:
    return {face for s in top for k in range(1, len(s) + 1) for face in combinations(sorted(s), k)}


def _independent(vectors: list[int]) -> list[int]:
    """A basis over Z/2 of the span of integers read as bit vectors."""
    basis: dict[int, int] = {}
    for vector in vectors:
        while vector and vector.bit_length() in basis:
            vector ^= basis[vector.bit_length()]
        if vector:
            basis[vector.bit_length()] = vector
    return list(basis.values())


def _kernel(images: list[int]) -> list[int]:
    """All combinations (bit masks over the positions in `images`) that add up to zero: a basis of them."""
    basis: dict[int, tuple[int, int]] = {}
    kernel = []
    for at, image in enumerate(images):
        mask = 1 << at
        while image and image.bit_length() in basis:
            other, other_mask = basis[image.bit_length()]
            image, mask = image ^ other, mask ^ other_mask
        if image:
            basis[image.bit_length()] = image, mask
        else:
            kernel.append(mask)
    return kernel


class _Homology:
    """Cycles and boundaries of dimension k of a complex as bit vectors over all simplices of dimension k."""

    def __init__(self, complex_: set[Simplex], k: int, index: dict[Simplex, int]) -> None:
        chains = sorted(s for s in complex_ if len(s) == k + 1)
        boundaries = [self._boundary(s, index) for s in chains] if k else [0] * len(chains)
        self.cycles = [
            sum(1 << index[s] for at, s in enumerate(chains) if mask >> at & 1) for mask in _kernel(boundaries)
        ]
        self.boundaries = _independent([self._boundary(s, index) for s in complex_ if len(s) == k + 2])

    @staticmethod
    def _boundary(simplex: Simplex, index: dict[Simplex, int]) -> int:
        return sum(1 << index[face] for face in combinations(simplex, len(simplex) - 1))


def _rank(complexes: list[set[Simplex]], i: int, j: int, k: int) -> int:
    """How many classes run from complex i to j: the rank of the relation 'the same, step by step' between H_k's.

    Pairs (x, y) of cycles of K_i and K_j are related when a chain of cycles of the intersections, each homologous to
    the next in the complex between, leads from x to y. Its rank is its dimension without pairs (x, 0) and (0, y).
    """
    n_bits = 200
    index = {s: at for at, s in enumerate(sorted({s for c in complexes for s in c}, key=lambda s: (len(s), s)))}
    own = [_Homology(c, k, index) for c in complexes]
    relation = [z | z << n_bits for z in own[i].cycles] + [b << n_bits for b in own[i].boundaries] + own[i].boundaries
    low = (1 << n_bits) - 1
    for t in range(i, j):
        between = _Homology(complexes[t] & complexes[t + 1], k, index)
        bridges = between.cycles
        images = [pair >> n_bits for pair in relation] + bridges
        kernel = _kernel(images)
        pairs = []
        for mask in kernel:
            x = y = 0
            for at, pair in enumerate(relation):
                if mask >> at & 1:
                    x ^= pair & low
            for at, bridge in enumerate(bridges):
                if mask >> (len(relation) + at) & 1:
                    y ^= bridge
            pairs.append(x | y << n_bits)
        relation = pairs + [b << n_bits for b in own[t + 1].boundaries]
    everything = _independent(relation + [b << n_bits for b in own[j].boundaries] + own[i].boundaries)
    ends = [_independent([v << shift for v in own[at].boundaries]) for at, shift in ((i, 0), (j, n_bits))]
    zero_right = _within(everything, lambda pair: pair >> n_bits, _independent(own[j].boundaries))
    zero_left = _within(everything, lambda pair: pair & low, _independent(own[i].boundaries))
    return len(everything) - zero_right - zero_left + len(ends[0]) + len(ends[1])


def _within(vectors: list[int], side: object, subspace: list[int]) -> int:
    """The dimension of the vectors whose `side` lies in `subspace`."""
    images = [side(v) for v in vectors] + subspace  # type: ignore[operator]
    return len(_independent([m & ((1 << len(vectors)) - 1) for m in _kernel(images)]))


TOPS = st.sets(st.frozensets(st.integers(0, 4), min_size=1, max_size=3), max_size=6)
SEQUENCES = st.lists(TOPS.map(lambda tops: _closed({tuple(sorted(t)) for t in tops})), min_size=1, max_size=4)


@settings(max_examples=150)
@given(SEQUENCES)
def test_bars_over_every_span_equal_the_rank_of_the_relation(complexes: list[set[Simplex]]) -> None:
    bars = zigzag_bars(complexes)
    for k in (0, 1):
        for i in range(len(complexes)):
            for j in range(i, len(complexes)):
                over = sum(bar.dimension == k and bar.birth <= i and bar.death >= j for bar in bars)
                assert over == _rank(complexes, i, j, k), (k, i, j)


def test_a_circle_that_breaks_and_closes_again_is_two_bars() -> None:
    square = _closed({(0, 1), (1, 2), (2, 3), (0, 3)})
    broken = square - {(0, 1)}
    assert zigzag_bars([square, broken, square, square]) == [
        ZigzagBar(0, 0, 3), ZigzagBar(1, 0, 0), ZigzagBar(1, 2, 3)
    ]  # fmt: skip


def test_a_circle_replaced_by_a_disjoint_one_does_not_live_on() -> None:
    one, other = _closed({(0, 1), (1, 2), (0, 2)}), _closed({(3, 4), (4, 5), (3, 5)})
    assert [bar for bar in zigzag_bars([one, other]) if bar.dimension == 1] == [ZigzagBar(1, 0, 0), ZigzagBar(1, 1, 1)]


def test_two_circles_that_share_a_handover_live_on() -> None:
    """Both layers hold the circle 0-1-2-3, each with its own tail."""
    circle = {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert ZigzagBar(1, 0, 1) in zigzag_bars([_closed(circle | {(3, 4)}), _closed(circle | {(0, 5)})])


def test_a_clique_complex_has_the_neighbours_edges_and_their_triangles() -> None:
    near = np.array([[1], [0], [0], [2]])
    assert clique_complex(near) == _closed({(0, 1), (0, 2), (2, 3)})
    assert (0, 1, 2) in clique_complex(np.array([[1, 2], [2, 0], [0, 1]]))


def _circle(n: int, seed: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(n) / n
    rng = np.random.default_rng(seed)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) + 1e-3 * rng.normal(size=(n, 2))


def test_a_circle_is_followed_through_the_layers_that_have_it() -> None:
    layers = {"a": _circle(40, 0), "b": 5 * _circle(40, 1) @ np.eye(2, 6), "c": np.arange(40.0)[:, None] ** 1.01}
    found = track_layers(layers, neighbours=4)
    assert found is not None
    loops = found.dimensions[1]
    assert (loops.alive, loops.born, loops.died) == ((1, 1, 0), (1, 0, 0), (0, 1, 0))
    assert loops.mean_life == 2
    assert loops.shared == ((1.0, 1.0, 0.0), (1.0, 1.0, 0.0), (None, None, None))
    assert found.dimensions[0].alive == (1, 1, 1)
    assert found.kept[0] > 0.9


def test_equal_layers_keep_everything_and_shuffled_ones_nearly_nothing() -> None:
    x = np.random.default_rng(2).normal(size=(80, 6))
    same = track_layers({"a": x, "b": x}, 5)
    other = track_layers({"a": x, "b": x[::-1]}, 5)
    assert same is not None
    assert other is not None
    assert same.kept == (1.0,)
    assert same.dimensions[1].shared[0][1] == 1.0
    assert other.kept[0] < 0.25
    assert other.dimensions[1].shared[0][1] < 0.2


def test_there_is_nothing_to_follow_with_one_layer_or_few_texts() -> None:
    x = np.random.default_rng(3).normal(size=(6, 3))
    assert track_layers({"a": x}) is None
    assert track_layers({"a": x[:5], "b": x[:5]}) is None
    assert track_layers({}) is None


def test_many_texts_are_sampled_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MOST_TEXTS", 30)
    x = np.random.default_rng(4).normal(size=(90, 4))
    first, again, other = (track_layers({"a": x, "b": x**3}, seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert first.n_texts == 30
    assert first == again != other
