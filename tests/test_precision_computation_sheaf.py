"""The linearised computation sheaf and the balance class against dense solves, autograd and enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rationals import fraction_rank

from cohomcli.precision import computation_sheaf
from cohomcli.precision.balance import _circulation, balance, fundamental_cycles, spanning_forest
from cohomcli.precision.computation_sheaf import ComputationSheaf, adjoint, class_of, pairing, perturbation
from cohomcli.precision.rounding import round_to

# ---- the linearised computation sheaf ----


@st.composite
def programs(draw: st.DrawFn) -> ComputationSheaf:
    """Random programs of up to 7 vertices with small integer Jacobians; dead ends and several outputs happen."""
    n = draw(st.integers(2, 7))
    dims = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    pairs = [(u, v) for v in range(1, n) for u in range(v)]
    edges = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=9, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    blocks = {(u, v): rng.integers(-2, 3, (dims[v], dims[u])).astype(float) for u, v in edges}
    outputs = draw(st.sets(st.sampled_from(sorted({v for _, v in edges})), min_size=1))
    return ComputationSheaf(tuple(dims), blocks, tuple(sorted(outputs)))


def total(sheaf: ComputationSheaf, vertices: tuple[int, ...]) -> int:
    return sum(sheaf.dims[v] for v in vertices)


def random_cochain(sheaf: ComputationSheaf, seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v: rng.integers(-3, 4, sheaf.dims[v]).astype(float) for v in sheaf.operations}


@given(programs())
def test_cohomology_of_programs(sheaf: ComputationSheaf) -> None:
    want = {
        "nothing": (total(sheaf, sheaf.inputs), 0),
        "inputs": (0, 0),
        "inputs and outputs": (0, total(sheaf, sheaf.outputs)),
    }
    for relative, dimensions in want.items():
        found = computation_sheaf.cohomology(sheaf, relative)
        assert (found.h0, found.h1) == dimensions
        assert found.rank == fraction_rank(computation_sheaf.coboundary(sheaf, relative))


@given(programs(), st.integers(0, 2**32))
def test_the_class_of_a_cochain_is_the_output_error_and_pairs_through_the_adjoint(
    sheaf: ComputationSheaf, seed: int
) -> None:
    delta = random_cochain(sheaf, seed)
    d = computation_sheaf.coboundary(sheaf, "inputs")
    stacked = np.concatenate([delta[v] for v in sheaf.operations])
    x = dict(zip(sheaf.operations, np.split(np.linalg.solve(d, stacked), ends(sheaf)), strict=True))
    solved = np.concatenate([x[v] for v in sheaf.outputs])
    error = class_of(sheaf, delta)
    np.testing.assert_allclose(error, solved, atol=1e-9 * (1 + np.abs(solved).max()))
    covector = np.random.default_rng(seed + 1).integers(-3, 4, len(error)).astype(float)
    assert pairing(sheaf, covector, delta) == covector @ error  # integers: exact in float64
    assert set(adjoint(sheaf, covector)) == set(range(len(sheaf.dims)))


def ends(sheaf: ComputationSheaf) -> np.ndarray:
    return np.cumsum([sheaf.dims[v] for v in sheaf.operations])[:-1]


@given(programs(), st.integers(0, 2**32))
def test_the_class_is_the_isomorphism_of_the_long_exact_sequence(sheaf: ComputationSheaf, seed: int) -> None:
    """A coboundary relative to inputs and outputs has class 0; the coboundary of an output value y has class y."""
    rng = np.random.default_rng(seed)
    for relative in ("inputs and outputs", "inputs"):
        d = computation_sheaf.coboundary(sheaf, relative)
        hidden = [v for v in sheaf.operations if relative == "inputs" or v not in sheaf.outputs]
        x = {v: rng.integers(-3, 4, sheaf.dims[v]).astype(float) for v in hidden}
        stacked = np.concatenate([x[v] for v in hidden]) if hidden else np.zeros(0)
        image = dict(zip(sheaf.operations, np.split(d @ stacked, ends(sheaf)), strict=True))
        y = np.concatenate([x.get(v, np.zeros(sheaf.dims[v])) for v in sheaf.outputs])
        np.testing.assert_array_equal(class_of(sheaf, image), y)


@given(st.data())
def test_rank_mod_p_equals_rational_rank_of_small_dyadic_matrices(data: st.DataObject) -> None:
    """Minors of these stay below p in absolute value once denominators are cleared, so both ranks are equal."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rank = data.draw(st.integers(0, 3))
    a = rng.integers(-2, 3, (rows, rank)) @ rng.integers(-2, 3, (rank, columns)) * 0.25
    assert computation_sheaf._rank_mod_p(computation_sheaf._residues(a)) == fraction_rank(a)


def test_rank_is_exact_where_floating_point_rank_fails() -> None:
    """A chain with gain 1e8 per step: numpy's rank drops the unit pivots, the exact rank does not."""
    blocks = {(v - 1, v): np.array([[1e8]]) for v in range(1, 9)}
    sheaf = ComputationSheaf((1,) * 9, blocks, (8,))
    assert computation_sheaf.cohomology(sheaf, "inputs").h1 == 0
    assert np.linalg.matrix_rank(computation_sheaf.coboundary(sheaf, "inputs")) == 7


class Residual(torch.nn.Module):
    """x -> s (stored x) -> h = A s + a -> t = tanh h -> y = B t + s, the stores perturbed by `delta`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(4, 6).double(), torch.nn.Linear(6, 4).double()

    def forward(self, x: torch.Tensor, delta: tuple[torch.Tensor, ...]) -> torch.Tensor:
        s = x + delta[0]
        h = self.up(s) + delta[1]
        t = torch.tanh(h) + delta[2]
        return self.down(t) + s + delta[3]


def mlp_sheaf(model: Residual, x: torch.Tensor) -> ComputationSheaf:
    up, down = (layer.weight.detach().numpy() for layer in (model.up, model.down))
    slope = 1 - torch.tanh(model.up(x)).detach().numpy() ** 2
    blocks = {(0, 1): np.eye(4), (1, 2): up, (2, 3): np.diag(slope), (3, 4): down, (1, 4): np.eye(4)}
    return ComputationSheaf((4, 4, 6, 6, 4), blocks, (4,))


def test_class_and_pairing_equal_autograd_on_a_residual_mlp() -> None:
    model, x = Residual(), torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sheaf = mlp_sheaf(model, x)
    sizes = (4, 6, 6, 4)
    zero = tuple(torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in sizes)
    delta = tuple(torch.randn(n, dtype=torch.float64) for n in sizes)
    _, forward = torch.autograd.functional.jvp(lambda *d: model(x, d), zero, delta)
    cochain = {v + 1: part.numpy() for v, part in enumerate(delta)}
    np.testing.assert_allclose(class_of(sheaf, cochain), forward.numpy(), rtol=1e-12)
    covector = torch.randn(4, dtype=torch.float64)
    gradients = torch.autograd.grad(model(x, zero), zero, covector)
    g = adjoint(sheaf, covector.numpy())
    for v, gradient in enumerate(gradients):
        np.testing.assert_allclose(g[v + 1], gradient.numpy(), rtol=1e-12)
    assert pairing(sheaf, covector.numpy(), cochain) == pytest.approx(float(covector @ forward), rel=1e-12)


@pytest.mark.parametrize(("fmt", "share"), [("fp16", 1e-3), ("bf16", 1e-2), ("e4m3", 0.15)])
def test_the_class_of_the_rounding_cochain_is_the_error_of_the_rounded_program(fmt: str, share: float) -> None:
    """Run the MLP with every store rounded: its output error is the class up to second order in the unit roundoff."""
    model, x = Residual(), torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        s = round_to(x, fmt)
        h = round_to(pre := model.up(s), fmt)
        t = round_to(post := torch.tanh(h), fmt)
        y = round_to(out := model.down(t) + s, fmt)
        exact = model(x, (torch.zeros(()),) * 4)
    cochain = dict(enumerate([(s - x).numpy(), (h - pre).numpy(), (t - post).numpy(), (y - out).numpy()], start=1))
    error = (y - exact).numpy()
    gap = np.linalg.norm(class_of(mlp_sheaf(model, x), cochain) - error) / np.linalg.norm(error)
    assert 0 < gap < share


def test_forward_accumulation_lists_every_vertex() -> None:
    sheaf = ComputationSheaf((1, 1, 1), {(0, 1): np.array([[2.0]]), (1, 2): np.array([[5.0]])}, (2,))
    x = perturbation(sheaf, {1: np.array([3.0])})
    assert {v: value.tolist() for v, value in x.items()} == {0: [0.0], 1: [3.0], 2: [15.0]}


def test_ill_formed_programs_and_cochains_are_refused() -> None:
    one = np.ones((1, 1))
    for dims, blocks, outputs, message in [
        ((1, 1), {(1, 0): one}, (0,), "does not fit"),
        ((1, 2), {(0, 1): one}, (1,), "does not fit"),
        ((1, 1), {(0, 1): one * np.nan}, (1,), "not finite"),
        ((1, 1), {(0, 1): one}, (0,), "not inputs"),
    ]:
        with pytest.raises(ValueError, match=message):
            ComputationSheaf(dims, blocks, outputs)
    sheaf = ComputationSheaf((1, 1), {(0, 1): one}, (1,))
    with pytest.raises(ValueError, match="vertex 0"):
        class_of(sheaf, {0: np.ones(1)})
    with pytest.raises(ValueError, match="covector"):
        adjoint(sheaf, np.ones(2))


# ---- the balance class ----

DIAMOND = np.array([[0, 1], [1, 3], [0, 2], [2, 3]])


def test_the_diamond_with_unequal_branches_wastes_the_log_of_their_ratio() -> None:
    found = balance(4, DIAMOND, np.log2([100.0, 1.0, 1.0, 4.0]))
    assert found.experimental
    assert found.total == pytest.approx(np.log2(25))
    assert found.certified == pytest.approx(np.log2(25))
    assert abs(found.class_coordinates).tolist() == pytest.approx([np.log2(25)])
    assert abs(found.circulation).tolist() == pytest.approx([1, 1, 1, 1])


@st.composite
def gains_on_graphs(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 4))
    end = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(end, end), max_size=6))
    gains = draw(st.lists(st.integers(-2, 2), min_size=len(edges), max_size=len(edges)))
    return n, np.array(edges, dtype=np.int64).reshape(-1, 2), np.array(gains, dtype=float)


@given(gains_on_graphs())
def test_least_waste_by_enumeration_and_its_certificate(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    """Incidence matrices are totally unimodular: integer gains have an integer optimum, found here by trying all."""
    n, edges, gains = case
    reach_of_p = range(-6, 7)  # |p| <= sum of three gains along a path
    candidates = np.array(list(itertools.product([0], *([reach_of_p] * (n - 1)))), dtype=float)
    # Fixing p_0 = 0 loses nothing: every component may be shifted on its own, and all shifts are enumerated.
    least = abs(candidates[:, edges[:, 0]] - candidates[:, edges[:, 1]] - gains).sum(axis=1).min()
    found = balance(n, edges, gains)
    assert found.total == pytest.approx(least, abs=1e-7)
    assert found.certified == pytest.approx(least, abs=1e-7)
    inflow = np.zeros(n)
    np.add.at(inflow, edges[:, 1], found.circulation)
    np.add.at(inflow, edges[:, 0], -found.circulation)
    assert abs(inflow).max() < 1e-12
    assert (abs(found.circulation) <= 1 + 1e-12).all()
    assert (least == 0) == (not found.class_coordinates.any())


@given(gains_on_graphs())
def test_fundamental_cycles_are_a_basis_of_the_cycle_space(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    n, edges, _ = case
    cycles = fundamental_cycles(edges, spanning_forest(n, edges))
    boundary = np.zeros((n, len(edges)), dtype=np.int64)
    for e, (u, v) in enumerate(edges.tolist()):
        boundary[v, e] += 1
        boundary[u, e] -= 1
    assert not (boundary @ cycles.T).any()
    assert fraction_rank(cycles) == len(cycles) == len(edges) - fraction_rank(boundary)


def test_gains_of_a_potential_waste_nothing_and_weights_price_the_waste() -> None:
    p = np.array([3.0, -1.5, 0.25, 7.0])
    exact = balance(4, DIAMOND, p[DIAMOND[:, 0]] - p[DIAMOND[:, 1]])
    assert exact.total == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(exact.potential, p - p[0], atol=1e-9)
    weighted = balance(4, DIAMOND, np.array([1.0, 0.0, 0.0, 0.0]), np.array([5.0, 3.0, 2.0, 4.0]))
    assert weighted.total == pytest.approx(2.0)  # the cheapest edge of the loop takes the whole bit
    assert weighted.waste.tolist() == pytest.approx([0, 0, 1, 0])


def test_a_certificate_from_any_solver_is_brought_within_the_weights() -> None:
    weights = np.array([5.0, 3.0, 2.0, 4.0])
    cycles = fundamental_cycles(DIAMOND, spanning_forest(4, DIAMOND))
    assert abs(_circulation(cycles, np.array([8.0]), weights)).tolist() == pytest.approx([2, 2, 2, 2])
    assert abs(_circulation(cycles, np.array([-1.5]), weights)).tolist() == [1.5] * 4


def test_gains_must_be_numbers_and_weights_positive() -> None:
    for gains, weights in [(np.full(4, np.inf), None), (np.zeros(3), None), (np.zeros(4), np.zeros(4))]:
        with pytest.raises(ValueError, match="finite"):
            balance(4, DIAMOND, gains, weights)
