"""The label sheaf against brute force: rank over the rationals, walks on graphs, hand cases."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from rationals import fraction_rank

from cohomcli.errors import UsageError
from cohomcli.precision import cohomology
from cohomcli.precision.cohomology import exact_rank, label_cohomology, meet_cohomology
from cohomcli.precision.sheaf import (
    LabelSheaf,
    coboundary,
    islands,
    label_sheaf,
    meet_coboundary,
    obstructions,
    restriction,
    sections,
    uniform_possible,
)
from cohomcli.precision.spec import Admissibility, ComputationGraph, Vertex


def make(n: int, edges: list[tuple[int, int]], allowed: list[set[str]], formats: str = "ab") -> LabelSheaf:
    """A sheaf with formats named by single letters; `allowed` gives the admissible set of every vertex."""
    table = np.array([[f in a for f in formats] for a in allowed], dtype=bool).reshape(n, len(formats))
    return LabelSheaf(tuple(formats), table, np.array(edges, dtype=np.int64).reshape(-1, 2), np.arange(n))


def dense_coboundary(sheaf: LabelSheaf, meet: bool) -> np.ndarray:
    """Delta by its definition, entry by entry."""
    basis = [(v, f) for v in range(sheaf.n_vertices) for f in range(len(sheaf.formats)) if sheaf.allowed[v, f]]
    rows = []
    for u, v in sheaf.edges.tolist():
        for f in range(len(sheaf.formats)):
            if not meet or (sheaf.allowed[u, f] and sheaf.allowed[v, f]):
                rows.append([(b == (v, f)) - (b == (u, f)) for b in basis])
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(basis))


@st.composite
def random_sheaves(draw: st.DrawFn) -> LabelSheaf:
    """Graphs of up to 6 vertices, with parallel edges and self-loops, and random admissible sets."""
    n = draw(st.integers(1, 6))
    vertex = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(vertex, vertex), max_size=9))
    return make(n, edges, draw(st.lists(st.sets(st.sampled_from("ab")), min_size=n, max_size=n)))


@settings(max_examples=500)
@given(random_sheaves())
def test_dimensions_equal_brute_force_rank_on_500_graphs(sheaf: LabelSheaf) -> None:
    variants = [(coboundary, label_cohomology, False), (meet_coboundary, meet_cohomology, True)]
    for build, compute, meet in variants:
        dense = dense_coboundary(sheaf, meet)
        matrix = build(sheaf)
        assert matrix.dtype == np.int8
        np.testing.assert_array_equal(matrix.toarray(), dense)
        rank = fraction_rank(dense)
        assert exact_rank(matrix) == rank
        found = compute(sheaf)
        assert (found.h0, found.h1) == (dense.shape[1] - rank, dense.shape[0] - rank)
        assert found.euler == dense.shape[1] - dense.shape[0] == found.h0 - found.h1
        assert found.h0 == sum(part.h0 for part in found.by_format)
        assert found.h1 == sum(part.h1 for part in found.by_format)
    assert found.betti1 == sheaf.n_edges - sheaf.n_vertices + found.n_components


def reach(sheaf: LabelSheaf, inside: set[int]) -> list[set[int]]:
    """Connected components of the subgraph on `inside`, by walking."""
    left, found = set(inside), []
    while left:
        region, todo = set(), [left.pop()]
        while todo:
            region.add(v := todo.pop())
            near = {b if a == v else a for a, b in sheaf.edges.tolist() if v in (a, b)}
            todo += (near & inside) - region
        found.append(region)
        left -= region
    return found


@given(random_sheaves())
def test_islands_sections_and_uniform_formats_by_walking_the_graph(sheaf: LabelSheaf) -> None:
    whole = reach(sheaf, set(range(sheaf.n_vertices)))
    basis = [(f, frozenset(vertices.tolist())) for f, vertices in sections(sheaf)]
    expected = []
    for j, island in enumerate(islands(sheaf)):
        inside = set(np.flatnonzero(sheaf.allowed[:, j]).tolist())
        regions = [set(np.flatnonzero(island.label == i).tolist()) for i in range(island.count)]
        assert sorted(map(sorted, regions)) == sorted(map(sorted, reach(sheaf, inside)))
        assert island.sizes == tuple(map(len, regions))
        expected += [(sheaf.formats[j], frozenset(c)) for c in whole if c <= inside]
        assert uniform_possible(sheaf, sheaf.formats[j]) == (len(inside) == sheaf.n_vertices)
    assert sorted(map(repr, basis)) == sorted(map(repr, expected))
    assert len(basis) == label_cohomology(sheaf).h0
    delta, pairs = coboundary(sheaf), np.argwhere(sheaf.allowed).tolist()
    for f, vertices in basis:
        cochain = np.array([sheaf.formats[j] == f and v in vertices for v, j in pairs], dtype=np.int64)
        assert not (delta @ cochain).any()


A, B = {"a"}, {"b"}
AB = A | B
PATH, CYCLE, TRIANGLE = [(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3), (3, 0)], [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("n", "edges", "allowed", "label", "meet"),
    [
        # One format on the path, the cycle, two components, the residual block x -> f -> +, x -> +.
        (4, PATH, [A] * 4, (1, 0), (1, 0)),
        (4, CYCLE, [A] * 4, (1, 1), (1, 1)),
        (4, PATH[::2], [A] * 4, (2, 0), (2, 0)),
        (3, TRIANGLE, [A] * 3, (1, 1), (1, 1)),
        # Both formats everywhere: everything doubles.
        (3, TRIANGLE, [AB] * 3, (2, 2), (2, 2)),
        # One bad vertex on a path: no section and yet H^1 = 0; two bad vertices: H^1 = |S| - 1.
        (4, PATH, [A, A, set(), A], (0, 0), (2, 0)),
        (4, PATH, [set(), A, A, set()], (0, 1), (1, 0)),
        # A must-be-a end and a must-be-b end: each format is spoilt once; islands are two and two.
        (4, PATH, [A, AB, AB, B], (0, 0), (2, 0)),
        # The residual block whose branch f cannot take a: the loop breaks in the meet variant only.
        (3, TRIANGLE, [AB, B, AB], (1, 2), (2, 1)),
        (1, [], [AB], (2, 0), (2, 0)),
        (0, [], [], (0, 0), (0, 0)),
    ],
)
def test_hand_cases(n: int, edges: list, allowed: list, label: tuple[int, int], meet: tuple[int, int]) -> None:
    formats = "ab" if any("b" in a for a in allowed) else "a"
    sheaf = make(n, edges, allowed, formats)
    for found, want in ((label_cohomology(sheaf), label), (meet_cohomology(sheaf), meet)):
        assert (found.h0, found.h1, found.euler) == (*want, want[0] - want[1])


def test_restriction_maps_are_the_blocks_of_the_coboundary() -> None:
    sheaf = make(3, [(0, 2), (1, 2)], [AB, B, A])
    blocks = [restriction(sheaf, v).toarray() for v in range(3)]
    assert [b.tolist() for b in blocks] == [[[1, 0], [0, 1]], [[0], [1]], [[1], [0]]]
    zero = np.zeros((2, 1))
    want = np.block([[-blocks[0], zero, blocks[2]], [np.zeros((2, 2)), -blocks[1], blocks[2]]])
    np.testing.assert_array_equal(coboundary(sheaf).toarray(), want)


def test_a_deep_residual_network_of_3000_ops() -> None:
    n, skips = 3000, [(i, i + 5) for i in range(0, 2990, 6)]
    sheaf = make(n, [(i, i + 1) for i in range(n - 1)] + skips, [AB if v % 100 else A for v in range(n)])
    found = label_cohomology(sheaf)
    assert (found.h0, found.betti1) == (1, len(skips))
    assert [(p.h0, p.h1, p.n_inadmissible, p.uniform) for p in found.by_format] == [
        (1, len(skips), 0, True),
        (0, len(skips) + 29, 30, False),
    ]


@settings(max_examples=100)
@given(st.data())
def test_exact_rank_of_signed_incidence_matrices(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    row = st.dictionaries(st.integers(0, n - 1), st.sampled_from([-1, 1]), max_size=2)
    rows = data.draw(st.lists(row, max_size=10))
    dense = np.array([[r.get(j, 0) for j in range(n)] for r in rows], dtype=np.int8).reshape(-1, n)
    assert exact_rank(sp.csr_array(dense)) == fraction_rank(dense)


def test_one_negative_edge_kills_both_cohomologies_of_the_square() -> None:
    signs = {(3, 0): -1}
    for signed, want in ((False, (1, 1)), (True, (0, 0))):
        dense = np.zeros((4, 4), dtype=np.int8)
        for i, (u, v) in enumerate(CYCLE):
            dense[i, v], dense[i, u] = 1, -(signs.get((u, v), 1) if signed else 1)
        rank = exact_rank(sp.csr_array(dense))
        assert (4 - rank, 4 - rank) == want


def test_matrices_outside_the_theorem_are_refused() -> None:
    for bad in ([[1, 1, 1]], [[2, 0, 0]]):
        with pytest.raises(ValueError, match="at most two entries"):
            exact_rank(sp.csr_array(np.array(bad)))


def test_a_formula_that_disagrees_with_the_rank_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohomology, "components", lambda n, edges: (1, np.zeros(n, dtype=np.int64)))
    with pytest.raises(ArithmeticError, match="disagree"):
        label_cohomology(make(4, PATH[::2], [A] * 4, "a"))


def vertex(index: int, *operands: int, fixed: str = "") -> Vertex:
    return Vertex(index, f"v{index}", "op", "aten.add", "block", (2,), "float32", 2, operands, fixed=fixed)


def test_the_sheaf_of_a_graph_leaves_fixed_vertices_out_and_names_obstructions() -> None:
    graph = ComputationGraph((vertex(0, fixed="integer"), vertex(1, 0), vertex(2, 0, 1), vertex(3, 1, 2)), (3,))
    allowed = np.array([[False, False], [True, True], [False, True], [True, True]])
    reasons = {(0, "fp16"): "integer", (0, "fp32"): "integer", (2, "fp16"): "max|v| = 7e4 exceeds 65504"}
    admissibility = Admissibility(("fp16", "fp32"), allowed, reasons)
    sheaf = label_sheaf(graph, admissibility)
    assert sheaf.vertices.tolist() == [1, 2, 3]
    assert sheaf.edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    half, single = obstructions(sheaf, admissibility)
    assert (half.format, half.vertices, half.reasons) == ("fp16", (2,), ("max|v| = 7e4 exceeds 65504",))
    assert (single.vertices, single.reasons) == ((), ())
    assert not uniform_possible(sheaf, "fp16")
    assert uniform_possible(sheaf, "fp32")
    with pytest.raises(UsageError, match="fp61"):
        uniform_possible(sheaf, "fp61")


def test_ill_fitting_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        LabelSheaf(("a",), np.ones((2, 2), dtype=bool), np.zeros((0, 2), dtype=np.int64), np.arange(2))
    with pytest.raises(ValueError, match="outside"):
        make(2, [(0, 2)], [A, A])
