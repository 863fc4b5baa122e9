"""Measures of exactness with known answers: simplicial complexes, constructed pairs, random maps, and invariances."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cohomcli.errors import UsageError
from cohomcli.nn import CochainBlock, MapPair, SVDTracker, betti_numbers, measure, measure_pair
from cohomcli.nn.exactness import second_moment

Faces = list[tuple[int, ...]]


def coboundaries(top: Faces) -> list[Tensor]:
    """Signed coboundary matrices of the complex spanned by the simplices `top`."""
    faces = sorted(
        {f for s in top for k in range(1, len(s) + 1) for f in combinations(s, k)}, key=lambda f: (len(f), f)
    )
    layers = [[f for f in faces if len(f) == k] for k in range(1, max(map(len, faces)) + 1)]
    maps = []
    for lower, upper in pairwise(layers):
        d = torch.zeros(len(upper), len(lower), dtype=torch.float64)
        for row, simplex in enumerate(upper):
            for at in range(len(simplex)):
                d[row, lower.index(simplex[:at] + simplex[at + 1 :])] = (-1.0) ** at
        maps.append(d)
    return maps


SPHERE: Faces = list(combinations(range(4), 3))
# The seven-vertex torus (Csaszar) and the six-vertex projective plane, which over the reals looks like a point.
TORUS: Faces = [tuple(sorted((i, (i + step) % 7, (i + 3) % 7))) for i in range(7) for step in (1, 2)]
RP2: Faces = [
    (0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5), (0, 1, 5), (1, 2, 4), (2, 3, 5), (1, 3, 4), (2, 4, 5), (1, 3, 5)
]  # fmt: skip


@pytest.mark.parametrize(
    ("top", "betti"),
    [
        ([(0, 1), (1, 2), (0, 2)], (1, 1)),
        ([(0, 1), (2, 3)], (2, 0)),
        (SPHERE, (1, 0, 1)),
        (TORUS, (1, 2, 1)),
        (RP2, (1, 0, 0)),
        ([(0, 1, 2, 3)], (1, 0, 0, 0)),
    ],
)
def test_homology_of_simplicial_complexes_is_their_betti_numbers(top: Faces, betti: tuple[int, ...]) -> None:
    maps = coboundaries(top)
    assert betti_numbers(maps) == betti
    for n in range(1, len(maps)):
        found = measure(maps[n - 1], maps[n], energy=0.0)
        assert found.complex_defect == pytest.approx(0.0, abs=1e-12)
        assert found.complex_energy == pytest.approx(0.0, abs=1e-24)
        assert found.excess == found.harmonic == betti[n]
        assert found.homology_defect * found.dim_kernel == pytest.approx(betti[n], abs=1e-9)


def test_a_sequence_that_is_no_complex_has_no_homology() -> None:
    with pytest.raises(UsageError, match="is not zero"):
        betti_numbers([torch.eye(3), torch.eye(3)])
    with pytest.raises(UsageError, match="reads"):
        betti_numbers([torch.eye(3), torch.eye(4)])


def test_an_identity_pair_is_the_worst_complex_and_an_exact_pair_has_no_defect() -> None:
    same = measure(torch.eye(4), torch.eye(4), energy=0.0)
    assert (same.complex_defect, same.complex_energy, same.free_rank) == (1.0, 1.0, 0)
    exact = measure(torch.eye(4)[:, :2], torch.eye(4)[2:], energy=0.0)
    assert (exact.complex_defect, exact.homology_defect, exact.excess, exact.free_rank) == (0.0, 0.0, 0, 2)
    assert exact.kernel_share == pytest.approx(1.0)
    assert exact.read_alignment == 0.0
    assert exact.angles == pytest.approx((0.0, 0.0))


def test_principal_angles_of_planes_at_a_known_angle() -> None:
    theta = 0.3
    image = torch.tensor([[math.cos(theta)], [math.sin(theta)]], dtype=torch.float64)
    found = measure(image, torch.tensor([[0.0, 1.0]], dtype=torch.float64), energy=0.0)
    assert found.angles == pytest.approx((theta,))
    assert found.complex_defect == pytest.approx(math.sin(theta) ** 2)


def test_free_rank_follows_the_data_not_the_maps() -> None:
    covariance = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    full = measure(torch.eye(4), torch.eye(4), covariance, energy=0.0)
    assert (full.rank_image, full.rank_composite, full.free_rank) == (2, 2, 0)
    blind = measure(torch.eye(4), torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0])), covariance, energy=0.0)
    assert (blind.rank_image, blind.rank_composite, blind.free_rank) == (2, 1, 1)


def test_read_alignment_is_one_at_random_and_above_when_the_reader_looks_where_the_writer_writes() -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(64, 64, generator=generator), torch.randn(64, 64, generator=generator)
    assert measure(A, B).read_alignment == pytest.approx(1.0, abs=0.1)
    assert measure(A, A.T).read_alignment > 1.5


def test_ranks_keep_the_stated_energy() -> None:
    A = torch.diag(torch.tensor([10.0, 1.0, 0.5]))  # energies 100, 1, 0.25 of 101.25
    assert measure(A, torch.eye(3), energy=0.01).rank_image == 2
    assert measure(A, torch.eye(3), energy=0.02).rank_image == 1
    assert measure(A, torch.eye(3), energy=0.0).rank_image == 3


@given(st.integers(0, 50), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_measures_are_scale_free_and_bounded(seed: int, a: float, b: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    A, B, X = (torch.randn(*shape, generator=generator) for shape in ((6, 5), (4, 6), (30, 5)))
    plain, scaled = measure(A, B, second_moment(X)), measure(a * A, b * B, second_moment(X))
    assert 0 <= plain.complex_energy <= 1
    assert 0 <= plain.complex_defect <= 1
    assert scaled.complex_energy == pytest.approx(plain.complex_energy, rel=1e-4)
    assert scaled.read_alignment == pytest.approx(plain.read_alignment, rel=1e-4)
    assert (scaled.rank_image, scaled.free_rank, scaled.excess) == (plain.rank_image, plain.free_rank, plain.excess)


def test_against_numpy_on_a_random_pair() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(7, 4)), rng.normal(size=(3, 7))
    found = measure(torch.from_numpy(A), torch.from_numpy(B), energy=0.0)
    assert found.rank_image == np.linalg.matrix_rank(A)
    assert found.dim_kernel == 7 - np.linalg.matrix_rank(B)
    wanted = np.linalg.norm(B @ A) ** 2 / (np.linalg.norm(B, 2) ** 2 * np.linalg.norm(A) ** 2)
    assert found.complex_energy == pytest.approx(wanted)
    null = np.linalg.svd(B)[2][3:].T
    cosines = np.linalg.svd(np.linalg.qr(A)[0].T @ null, compute_uv=False)
    assert found.angles == pytest.approx(sorted(np.arccos(np.clip(cosines, 0, 1))), abs=1e-6)


def test_bad_input_is_named() -> None:
    with pytest.raises(UsageError, match="follow each other"):
        MapPair(torch.eye(3), torch.eye(4))
    with pytest.raises(UsageError, match="width 2"):
        MapPair(torch.eye(3), torch.eye(3), torch.ones(5, 2))
    with pytest.raises(UsageError, match="NaN"):
        measure(torch.full((2, 2), float("nan")), torch.eye(2))
    with pytest.raises(UsageError, match="energy"):
        measure(torch.eye(2), torch.eye(2), energy=1.0)


def test_zero_maps_have_no_image() -> None:
    found = measure(torch.zeros(3, 2), torch.eye(3))
    assert (found.rank_image, found.complex_defect, found.read_alignment) == (0, 0.0, 0.0)


def test_cochain_block_is_a_complex_whatever_its_parameters() -> None:
    torch.manual_seed(1)
    block = CochainBlock((6, 8, 6, 3))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(torch.randn(()).exp())
    assert betti_numbers(block.maps()) == block.betti
    x = torch.randn(5, 23)
    assert block.coboundary(block.coboundary(x)).abs().max() < 1e-5 * block.coboundary(x).abs().max()
    assert all(measure_pair(pair, 0.0).complex_energy < 1e-12 for pair in block.map_pairs(x))


def test_equal_even_widths_are_exact_inside_and_training_keeps_the_complex() -> None:
    torch.manual_seed(2)
    block = CochainBlock((4, 4, 4))
    assert block.betti == (2, 0, 2)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.05)
    x, target = torch.randn(20, 12), torch.randn(20, 12)
    for _ in range(10):
        optimiser.zero_grad()
        (block(x) - target).pow(2).mean().backward()
        optimiser.step()
    first, second = block.maps()
    assert (second @ first).norm() < 1e-5 * first.norm() * second.norm()


def test_many_steps_grow_linearly_because_the_step_is_nilpotent() -> None:
    torch.manual_seed(3)
    block = CochainBlock((4, 4)).double()
    x = torch.randn(1, 8, dtype=torch.float64)
    y = x
    for _ in range(100):
        y = block(y)
    assert torch.allclose(y, x + 100 * block.coboundary(x), rtol=1e-9)


def test_impossible_ranks_are_refused() -> None:
    with pytest.raises(UsageError, match="rank 5"):
        CochainBlock((4, 4, 4), (2, 5))
    with pytest.raises(UsageError, match="complex"):
        CochainBlock((4,), ())


def test_svd_tracker_accumulates_like_one_big_matrix() -> None:
    torch.manual_seed(4)
    parts = [torch.randn(2, 5, 6) for _ in range(3)]
    tracker = SVDTracker(6)
    for part in parts:
        values = tracker.update(part)
    wanted = torch.linalg.svdvals(torch.cat([part.reshape(-1, 6) for part in parts]).double())
    assert torch.allclose(values, wanted, rtol=1e-6)
    assert tracker.rank(0.0) == 6
    assert tracker.n_rows == 30
    tracker.reset()
    tracker.update(torch.eye(6)[:3])
    assert tracker.rank(0.0) == 3
    assert tracker.effective_rank() == pytest.approx(3.0)
    with pytest.raises(UsageError, match="width"):
        tracker.update(torch.ones(2, 5))
