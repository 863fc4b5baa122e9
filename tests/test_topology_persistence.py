"""Diagrams against closed forms, an independent spanning tree, ripser and GUDHI; engines, thresholds and memory."""

import math
import warnings

import gudhi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import pdist, squareform

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology import engines
from cohomcli.topology.engines import choose_engine, redzed_fault, reference_cloud, squared_bars
from cohomcli.topology.persistence import rips


def polygon(n, radius=1.0, centre=(0.0, 0.0)):
    angles = 2 * np.pi * np.arange(n) / n
    return radius * np.column_stack([np.cos(angles), np.sin(angles)]) + centre


def polygon_bar(n, radius=1.0):
    """H1 of a regular n-gon: born with its sides, dead when chords over a third of the circle appear
    (Adamaszek, Adams, "The Vietoris-Rips complexes of a circle", 2017)."""
    return [2 * radius * math.sin(math.pi / n), 2 * radius * math.sin(math.pi * math.ceil(n / 3) / n)]


def spanning_tree_lengths(distances):
    """Sorted edge lengths of a minimum spanning tree, by Prim's algorithm on the square matrix."""
    square = squareform(distances) if len(distances) else np.zeros((1, 1))
    nearest, outside, lengths = square[0].copy(), set(range(1, len(square))), []
    while outside:
        new = min(outside, key=lambda i: nearest[i])
        outside.remove(new)
        lengths.append(nearest[new])
        nearest = np.minimum(nearest, square[new])
    return sorted(lengths)


def gudhi_bars(distances, maxdim, threshold=np.inf):
    """H0 .. H_maxdim bars of positive length over Z/2 in float64, sorted, from GUDHI's simplex tree."""
    square = squareform(distances) if len(distances) else np.zeros((1, 1))
    tree = gudhi.RipsComplex(distance_matrix=square, max_edge_length=threshold)
    tree = tree.create_simplex_tree(max_dimension=maxdim + 1)
    # Classes of the top dimension are not homology of the Rips complex unless no larger simplex exists at all.
    tree.compute_persistence(2, 0, tree.dimension() <= maxdim)
    return [sort_bars(tree.persistence_intervals_in_dimension(k)) for k in range(maxdim + 1)]


def sort_bars(bars):
    bars = np.asarray(bars, dtype=np.float64).reshape(-1, 2)
    bars = bars[bars[:, 1] > bars[:, 0]]
    return bars[np.lexsort((bars[:, 1], bars[:, 0]))]


def all_bars(diagram):
    undying = np.concatenate([diagram.essential, diagram.censored])
    return sort_bars(np.concatenate([diagram.pairs, np.column_stack([undying, np.full(len(undying), np.inf)])]))


def fuzz_distances(rng, kind, n):
    if kind == "normal":
        return pdist(rng.normal(size=(n, 4)))
    if kind == "duplicates":
        x = rng.normal(size=(n, 2))
        return pdist(np.concatenate([x, x[: n // 3]]))
    if kind == "lattice":
        return pdist(rng.integers(0, 4, size=(n, 3)).astype(float))
    if kind == "non-metric":
        return rng.random(n * (n - 1) // 2)
    return rng.integers(0, 5, size=n * (n - 1) // 2).astype(float)  # non-metric with ties and zeros


KINDS = ["normal", "duplicates", "lattice", "non-metric", "tied non-metric"]


@pytest.mark.parametrize("maxdim", [1, 2])
@pytest.mark.parametrize("engine", ["redzed", "ripser"])
@pytest.mark.parametrize("kind", KINDS)
def test_engines_agree_with_gudhi(kind, engine, maxdim):
    rng = np.random.default_rng([KINDS.index(kind), maxdim])
    for n in (1, 2, 3, 4, 5, 9, 14, 22):
        distances = fuzz_distances(rng, kind, n)
        threshold = np.inf if n % 2 or not len(distances) else float(np.quantile(distances, 0.6))
        diagrams = rips(distances, maxdim, engine, threshold)
        for diagram, expected in zip(diagrams, gudhi_bars(distances, maxdim, threshold), strict=True):
            np.testing.assert_allclose(all_bars(diagram), expected, rtol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(120, 20), (150, 2)])
def test_default_engine_equals_ripser_to_the_last_bit(n, d):
    distances = pdist(np.random.default_rng(n).normal(size=(n, d)))
    for a, b in zip(rips(distances), rips(distances, engine="ripser"), strict=True):
        np.testing.assert_array_equal(a.pairs, b.pairs)


def test_births_and_deaths_are_float64_edge_lengths():
    distances = pdist(np.random.default_rng(0).normal(size=(80, 6)))
    for diagram in rips(distances)[1:]:
        assert len(diagram.pairs) > 20
        assert np.isin(diagram.pairs, distances).all()


clouds = hnp.arrays(np.float64, st.tuples(st.integers(1, 16), st.integers(1, 3)), elements=st.integers(-3, 3))


@given(clouds)
@settings(max_examples=80, deadline=None)
def test_h0_is_the_minimum_spanning_tree(points):
    (h0,) = rips(points, maxdim=0)
    lengths = [length for length in spanning_tree_lengths(pdist(points)) if length > 0]
    np.testing.assert_allclose(h0.pairs[:, 1], lengths, rtol=1e-14)
    assert (h0.pairs[:, 0] == 0).all()
    assert len(h0.pairs) == len(np.unique(points, axis=0)) - 1
    assert h0.essential.tolist() == [0.0]
    assert h0.censored.size == 0


@pytest.mark.parametrize("n", [4, 5, 6, 7, 12, 31, 100])
def test_regular_polygon(n):
    h0, h1 = rips(polygon(n))
    np.testing.assert_allclose(h1.pairs, [polygon_bar(n)], rtol=1e-12)
    np.testing.assert_allclose(h0.pairs[:, 1], np.full(n - 1, polygon_bar(n)[0]), rtol=1e-12)
    assert h1.essential.size == h1.censored.size == 0


def test_two_circles():
    h0, h1 = rips(np.concatenate([polygon(12), polygon(15, radius=2.0, centre=(10.0, 0.0))]))
    np.testing.assert_allclose(h1.pairs, sorted([polygon_bar(12), polygon_bar(15, 2.0)]), rtol=1e-12)
    gap = pdist(np.array([[1.0, 0.0], 2 * polygon(15)[7] + [10.0, 0.0]]))[0]
    assert h0.pairs[-1, 1] == pytest.approx(gap)


def test_flat_torus_has_two_dominant_loops():
    # Projecting to a factor does not lengthen edges and a factor's fillings are fillings, so both loops of the
    # product live exactly as long as the polygon's.
    n = 18
    circle = polygon(n)
    torus = np.concatenate([np.repeat(circle, n, axis=0), np.tile(circle, (n, 1))], axis=1)
    h1 = rips(torus)[1]
    lifetimes = h1.pairs[:, 1] - h1.pairs[:, 0]
    longest = np.argsort(lifetimes)[::-1]
    np.testing.assert_allclose(h1.pairs[longest[:2]], [polygon_bar(n)] * 2, rtol=1e-12)
    assert lifetimes[longest[2]] < 0.2 * lifetimes[longest[1]]


def test_octahedron_encloses_a_void():
    h0, h1, h2 = rips(np.concatenate([np.eye(3), -np.eye(3)]), maxdim=2)
    np.testing.assert_allclose(h2.pairs, [[math.sqrt(2), 2.0]], rtol=1e-15)
    assert len(h0.pairs) == 5
    assert len(h1.pairs) == 0


@pytest.mark.parametrize("factor", [2.0**-140, 1e-30, 1 / 3, 1e5, 2.0**140])
def test_scaling_the_cloud_scales_the_diagrams(factor):
    points = np.random.default_rng(3).normal(size=(60, 5))
    for threshold in (np.inf, 2.5):
        scaled = rips(factor * points, threshold=factor * threshold)
        for small, large in zip(rips(points, threshold=threshold), scaled, strict=True):
            np.testing.assert_allclose(large.pairs, factor * small.pairs, rtol=1e-12)
            np.testing.assert_allclose(large.censored, factor * small.censored, rtol=1e-12)


def test_permutations_and_rigid_motions_change_nothing():
    rng = np.random.default_rng(4)
    points = rng.normal(size=(60, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    for moved in (points[rng.permutation(60)], points @ rotation + 5.0):
        for a, b in zip(rips(points), rips(moved), strict=True):
            np.testing.assert_allclose(a.pairs, b.pairs, rtol=1e-12)


def test_repeating_points_changes_nothing():
    points = np.random.default_rng(5).normal(size=(40, 3))
    for a, b in zip(rips(points), rips(np.concatenate([points, points[::2]])), strict=True):
        np.testing.assert_array_equal(a.pairs, b.pairs)


@pytest.mark.parametrize("engine", ["redzed", "ripser"])
def test_classes_alive_at_the_threshold_are_censored_not_essential(engine):
    side, death = polygon_bar(12)
    for threshold, loops in ((0.9 * side, 0), (1.1 * side, 1), (0.99 * death, 1)):
        h0, h1 = rips(polygon(12), engine=engine, threshold=threshold)
        assert len(h1.pairs) == 0
        np.testing.assert_allclose(h1.censored, [side] * loops)
        assert len(h0.essential) == 1
        assert len(h0.censored) == (11 if threshold < side else 0)
    for factor, pairs in ((1 + 1e-12, [[side, death]]), (1 - 1e-12, np.zeros((0, 2)))):  # closer than float32 can tell
        h1 = rips(polygon(12), engine=engine, threshold=death * factor)[1]
        np.testing.assert_allclose(h1.pairs, pairs)
        assert len(h1.pairs) + len(h1.censored) == 1


@pytest.mark.parametrize("engine", ["redzed", "ripser"])
def test_an_edge_as_long_as_the_threshold_is_inside(engine):
    length = 0.1 + 0.2  # not a float32
    square = np.array([length, length * 2**0.5, length, length, length * 2**0.5, length])
    assert rips(square, engine=engine, threshold=length)[1].censored.tolist() == [length]
    assert rips(square, engine=engine, threshold=np.nextafter(length, 0))[1].censored.size == 0


def test_the_reference_barcode_is_what_ripser_and_gudhi_compute():
    distances = pdist(reference_cloud())
    expected = [engines.REFERENCE_H1, engines.REFERENCE_H2]
    assert [squared_bars(bars) for bars in engines.ripser(distances, 2, np.inf)] == expected
    assert [squared_bars(bars) for bars in gudhi_bars(distances, 2)[1:]] == expected


def broken(distances, maxdim, threshold):
    return [np.zeros((0, 2))] * maxdim


def missing(distances, maxdim, threshold):
    raise ImportError("no wheel")


@pytest.mark.parametrize(("redzed", "why"), [(broken, "failed its self-check"), (missing, "cannot be imported")])
def test_a_faulty_default_engine_is_replaced_with_a_note(monkeypatch, redzed, why):
    monkeypatch.setattr(engines, "redzed", redzed)
    redzed_fault.cache_clear()
    try:
        choice = choose_engine("auto", 1)
        assert choice.name == "ripser"
        assert why in choice.note
        with pytest.raises(UsageError, match=f"{why}.*--engine ripser"):
            choose_engine("redzed", 1)
    finally:
        redzed_fault.cache_clear()


def test_engine_choice():
    assert choose_engine("auto", 1) == choose_engine("redzed", 1)
    assert choose_engine("auto", 2).name == "redzed"
    assert choose_engine("ripser", 0).name == "single-linkage"
    assert not choose_engine("auto", 1).note
    with pytest.raises(UsageError, match="did you mean ripser"):
        choose_engine("ripsr", 1)


@pytest.mark.parametrize(("arguments", "message"), [({"maxdim": 3}, "maxdim 3"), ({"threshold": -1.0}, "not a length")])
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        rips(np.ones(3), **arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_wrong_distances_are_refused(bad):
    with pytest.raises(AnalysisIncomplete, match="finite and non-negative"):
        rips(np.array([1.0, bad, 1.0]))


def test_an_engine_out_of_memory_is_a_clear_error(monkeypatch):
    def hungry(distances, maxdim, threshold):
        raise MemoryError

    monkeypatch.setitem(engines.ENGINES._entries, "ripser", hungry)
    with pytest.raises(AnalysisIncomplete, match="ripser ran out of memory on 5 points"):
        rips(np.ones(10), engine="ripser")


def test_ripser_is_called_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engines.ripser(np.ones(10), 1, np.inf)
