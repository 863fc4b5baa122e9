"""RTD and its kin against published figures: the barcodes and Kendall taus of the notebooks, the table of the paper."""

import gudhi
import numpy as np
import pytest
from representationpairs import CLUSTERS, N_RINGS, Array, many_clusters, one_cluster, rings
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau

from cohomcli.topology.cca import Subspace, leading_subspace, svcca
from cohomcli.topology.cka import centred, cka, rbf_kernel
from cohomcli.topology.measures import MEASURES
from cohomcli.topology.pairdistances import PairDistances, pair_distances, spanning_tree, tree_weight
from cohomcli.topology.rtd import cross_barcode, directed_max_rtd, directed_rtd

# Printed by the executed cells of experiments/Rings.ipynb in IlyaTrofimov/RTD, per number of equal rings: base against
# changed, then the reverse; number of bars, their 97.6% quantile, the longest, the median one. Ripser++ is float32.
PUBLISHED = {
    2: ((600, 0.035174768418073654, 0.11198318749666214, 0.0034274086356163025),
        (200, 0.026847925037145615, 0.026847925037145615, 0.026847925037145615)),
    3: ((300, 0.035174768418073654, 0.11198318749666214, 0.031426265835762024),
        (500, 0.010321404784917831, 0.013078518211841583, 0.006443798542022705)),
    4: ((300, 0.042209722101688385, 0.11198318749666214, 0.035174768418073654),
        (400, 0.023914720863103867, 0.023914720863103867, 0.00928284227848053)),
    5: ((400, 0.042209722101688385, 0.11198318749666214, 0.035174768418073654),
        (300, 0.017732389271259308, 0.017732389271259308, 0.010697435587644577)),
}  # fmt: skip


def _figures(inner: Array, other: Array) -> tuple[int, float, float, float]:
    pairs = cross_barcode(inner, np.minimum(inner, other)).pairs.astype(np.float32).astype(np.float64)
    lengths = np.sort(pairs[:, 1] - pairs[:, 0])
    lengths = lengths[lengths > 0]
    n = len(lengths)
    return n, float(lengths[n * 976 // 1000]), float(lengths[-1]), float(lengths[n // 2])


@pytest.mark.parametrize("n_equal", PUBLISHED)
def test_published_barcodes_are_reproduced_to_all_digits(n_equal: int) -> None:
    base, changed = (pair_distances(x).condensed for x in (rings(1), rings(n_equal)))
    assert (_figures(base, changed), _figures(changed, base)) == PUBLISHED[n_equal]


@pytest.mark.parametrize(("name", "tau"), [("rtd", 0.8), ("cka", -0.2)])
def test_published_taus_of_the_rings(name: str, tau: float) -> None:
    values = [MEASURES.get(name)(rings(1), rings(k)) for k in range(1, N_RINGS + 1)]
    assert kendalltau(values, range(N_RINGS)).statistic == pytest.approx(tau, abs=1e-12)


@pytest.mark.parametrize(("name", "tau"), [("rtd", 1.0), ("cka", 0.23809523809523814)])
def test_published_taus_of_the_clusters(name: str, tau: float) -> None:
    values = [MEASURES.get(name)(one_cluster(7), many_clusters(7, k)) for k in CLUSTERS]
    assert kendalltau(values, CLUSTERS).statistic == pytest.approx(tau, abs=1e-12)


def test_published_taus_of_svcca() -> None:
    """The notebooks centre each point over its coordinates, not each coordinate over the points, before SVCCA does."""

    def prepared(x: Array) -> Subspace:
        return leading_subspace(x - x.mean(axis=1, keepdims=True), of="singular values")

    clusters = [svcca(prepared(one_cluster(7)), prepared(many_clusters(7, k))) for k in CLUSTERS]
    assert kendalltau(clusters, CLUSTERS).statistic == pytest.approx(0.14285714285714288, abs=1e-12)
    circles = [svcca(prepared(rings(1)), prepared(rings(k))) for k in range(1, N_RINGS + 1)]
    assert kendalltau(circles, range(N_RINGS)).statistic == pytest.approx(-0.2, abs=1e-12)


def test_published_tau_of_rbf_cka_on_the_clusters() -> None:
    base = centred(rbf_kernel(one_cluster(7), 0.2))
    values = [cka(base, centred(rbf_kernel(many_clusters(7, k), 0.2))) for k in CLUSTERS]
    assert kendalltau(values, CLUSTERS).statistic == pytest.approx(0.23809523809523814, abs=1e-12)


def _over_pairs(x: Array) -> PairDistances:
    """Distances in units of the 0.9 quantile of the pairs, as the code published with SRTD takes it."""
    condensed = pdist(x)
    return PairDistances(len(x), condensed / np.quantile(condensed, 0.9))


@pytest.mark.parametrize(
    ("name", "value"),
    [("nts-e", 0.286550), ("nts-m", 0.336100), ("rtd-lite", 7.164670), ("srtd-lite", 19.950334),
     ("max-rtd-lite", 12.785664)],
)  # fmt: skip
def test_figures_in_the_tests_published_with_srtd(name: str, value: float) -> None:
    pair = _over_pairs(one_cluster(42)), _over_pairs(many_clusters(42, 2))
    assert MEASURES.get(name).compare(*pair) == pytest.approx(value, abs=1e-6)


# Wang, Hu 2026, table 2e and 2f: RTD + Max-RTD - SRTD in the two directions, halved, and the two asymmetries.
TABLE_2 = {2: (0.357, 0.000, 13.0976, -12.3839), 3: (0.493, 0.013, 11.2554, -10.2954)}


@pytest.mark.parametrize("k", TABLE_2)
def test_published_differences_between_rtd_max_rtd_and_srtd(k: int) -> None:
    a, b = _over_pairs(one_cluster(42)), _over_pairs(many_clusters(42, k))
    w, v = a.condensed, b.condensed
    whole = MEASURES.get("srtd").compare(a, b)
    first = directed_rtd(w, v), directed_max_rtd(w, v)
    second = directed_rtd(v, w), directed_max_rtd(v, w)
    found = (sum(first) - whole) / 2, (sum(second) - whole) / 2, first[0] - second[0], first[1] - second[1]
    assert found[:2] == pytest.approx(TABLE_2[k][:2], abs=6e-4)
    assert found[2:] == pytest.approx(TABLE_2[k][2:], abs=6e-5)


@pytest.mark.parametrize("seed", range(4))
def test_srtd_is_the_homology_of_the_papers_auxiliary_graph(seed: int) -> None:
    """Matrix 1a: max and min glued along the diagonal and half of max; an apex over max, and none over min."""
    rng = np.random.default_rng(seed)
    n = 9
    w, v = squareform(pdist(rng.normal(size=(n, 2)))), squareform(pdist(rng.normal(size=(n, 3))))
    most, least = np.maximum(w, v), np.minimum(w, v)
    half = np.where(np.tri(n) > 0, most, 1e3)
    far = np.full((n, 1), 1e3)
    paper = np.block(
        [[most, half.T, np.zeros((n, 1))], [half, least, far], [np.zeros((1, n)), far.T, np.zeros((1, 1))]]
    )
    skeleton = gudhi.RipsComplex(distance_matrix=paper, max_edge_length=100.0).create_simplex_tree(max_dimension=2)
    skeleton.compute_persistence()
    bars = skeleton.persistence_intervals_in_dimension(1)
    expected = sorted(map(tuple, bars[bars[:, 1] > bars[:, 0]]))
    ours = cross_barcode(squareform(most, checks=False), squareform(least, checks=False)).pairs
    assert np.array(sorted(map(tuple, ours))) == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_light_versions_add_up_and_are_ordered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(40, 6))
    least, whole, most = (MEASURES.get(name)(x, y) for name in ("rtd-lite", "srtd-lite", "max-rtd-lite"))
    assert whole == pytest.approx(least + most, rel=1e-12)
    assert most >= whole / 2 >= least >= 0


def test_merge_times_can_agree_where_lengths_do_not() -> None:
    """Order of merges is a coarser thing than order of lengths (Wang, Hu 2026, theorem 4.2)."""
    chain = PairDistances(4, np.array([1.0, 5.0, 7.0, 2.0, 6.0, 3.0]))
    other = PairDistances(4, np.array([1.0, 7.0, 6.0, 2.0, 5.0, 3.0]))
    assert MEASURES.get("nts-m").compare(chain, other) == pytest.approx(1.0)
    weights = PairDistances(4, np.array([1.0, 2.0, 2.5, 3.0, 4.0, 5.0]))
    assert MEASURES.get("nts-e").compare(chain, weights) < 1


def test_trees_have_the_weight_of_a_minimum_spanning_tree() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        square = np.round(squareform(rng.uniform(size=45)), 1)  # full of ties
        edges = spanning_tree(square)
        condensed = squareform(square)
        assert condensed[edges].sum() == pytest.approx(tree_weight(condensed))
        first, second = np.triu_indices(10, 1)
        component = np.arange(10)
        for edge in edges:  # nine edges that never close a cycle span ten points
            a, b = component[first[edge]], component[second[edge]]
            assert a != b
            component[component == a] = b
