"""The structural losses: known answers, what minimises them, scale, and gradients; against the measures and numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cohomcli.errors import UsageError
from cohomcli.nn import CohomologicalTransformer, MapPair, ToyCohomologicalModel, measure_pair
from cohomcli.nn.spectral import page_norms
from cohomcli.training import CohomologicalTrainingObjective, ExactSequenceLoss, SpectralSequenceLoss
from cohomcli.training.losses import complex_defect, image_samples, squared_norm, uncovered, uncovered_features

ZERO = torch.zeros(())
WORST = math.log(1 + 1 / 1e-3)  # the price of a direction that nothing covers, at the default epsilon


def loss_of(first: Tensor, second: Tensor, inputs: Tensor | None = None) -> tuple[float, dict[str, float]]:
    total, logs = ExactSequenceLoss(1.0)([MapPair(first, second, inputs)], ZERO)
    return float(total), {name: float(value) for name, value in logs.items()}


def exact_pair(m: int = 6) -> tuple[Tensor, Tensor]:
    eye = torch.eye(m)
    return eye[:, : m // 2], eye[m // 2 :]


def test_an_exact_isotropic_pair_is_the_minimum() -> None:
    total, logs = loss_of(*exact_pair())
    assert total == pytest.approx(0.0, abs=1e-6)
    assert logs["complex_defect"] == 0.0


def test_zero_maps_zero_data_identities_and_rank_one_cost() -> None:
    eye = torch.eye(6)
    assert loss_of(eye, eye)[1]["complex_defect"] == pytest.approx(1.0)
    zeros = [
        loss_of(torch.zeros(6, 3), exact_pair()[1])[0],
        loss_of(exact_pair()[0], torch.zeros(3, 6))[0],
        loss_of(*exact_pair(), torch.zeros(10, 3))[0],
    ]
    assert min(zeros) > 0.4 * WORST
    assert loss_of(torch.zeros(6, 3), torch.zeros(3, 6))[0] == pytest.approx(WORST, rel=1e-3)
    thin = torch.zeros(6, 6)
    thin[0, 0] = 1
    assert loss_of(thin, torch.eye(6)[5:])[0] > 0.5 * WORST


def test_each_uncovered_direction_has_its_price() -> None:
    m, epsilon = 8, 1e-3
    prices = []
    for missing in range(4):
        side = torch.eye(m)[:, : m // 2 - missing]  # of m / 2 written directions
        prices.append(float(uncovered(side.T, torch.eye(m)[m // 2 :], epsilon)))
    expected = [
        -(
            (4 - k) * math.log((4 / (4 - k) if k < 4 else 0) + epsilon)
            + k * math.log(epsilon)
            + 4 * math.log(1 + epsilon)
        )
        / m
        + math.log(1 + epsilon)
        for k in range(4)
    ]
    assert prices == pytest.approx(expected, abs=1e-4)
    assert prices == sorted(prices)


@given(st.integers(0, 30), st.floats(1e-4, 1e4), st.floats(1e-4, 1e4), st.floats(1e-4, 1e4))
def test_the_exact_loss_is_scale_free_batch_free_and_agrees_with_the_measure(
    seed: int, a: float, b: float, c: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    A, B, X = (torch.randn(*shape, generator=generator) for shape in ((8, 5), (7, 8), (64, 5)))
    plain, logs = loss_of(A, B, X)
    scaled, _ = loss_of(a * A, b * B, c * X)
    doubled, _ = loss_of(A, B, torch.cat([X, X]))
    assert scaled == pytest.approx(plain, rel=1e-3)
    assert doubled == pytest.approx(plain, rel=1e-4)
    assert logs["complex_defect"] == pytest.approx(measure_pair(MapPair(A, B, X)).complex_energy, rel=0.05)


def test_kappa_of_a_complex_is_zero_and_of_a_random_pair_is_its_expectation() -> None:
    torch.manual_seed(0)
    A, reader = torch.randn(8, 3), torch.randn(5, 8)
    Q = torch.linalg.qr(A).Q
    B = reader - (reader @ Q) @ Q.T
    assert float(complex_defect(A.T, B)) < 1e-12
    m = 200
    A, B = torch.randn(m, m), torch.randn(m, m)
    # E ||BA||_F^2 / ||A||_F^2 = ||B||_F^2 / m = m, and ||B||_2 -> 2 sqrt m: kappa -> 1/4
    assert float(complex_defect(A.T, B)) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("shape", [(5, 5), (40, 20), (3, 90)])
def test_power_iteration_against_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    B = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    largest = torch.linalg.svdvals(B)[0]
    assert float(squared_norm(B).detach()) == pytest.approx(float(largest.detach()) ** 2, rel=0.01)
    if shape == (5, 5):
        ours = torch.autograd.grad(squared_norm(B), B)[0]
        true = torch.autograd.grad(torch.linalg.svdvals(B)[0] ** 2, B)[0]
        assert torch.allclose(ours, true, atol=1e-2)


def test_the_coverage_term_is_the_log_determinant_by_numpy() -> None:
    rng = np.random.default_rng(0)
    y, B = rng.normal(size=(30, 5)), rng.normal(size=(4, 5))
    shape = [z.T @ z / np.trace(z.T @ z) for z in (y, B)]
    L = 5 / 2 * (shape[0] + shape[1])
    wanted = -np.linalg.slogdet((L + 1e-3 * np.eye(5)) / 1.001)[1] / 5
    found = uncovered(torch.from_numpy(y), torch.from_numpy(B))
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_gradients_are_right() -> None:
    torch.manual_seed(2)
    A, B, X = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (3, 4), (9, 3)))

    def both(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        written = image_samples(MapPair(a, b, x))
        return written.pow(2).sum() * 0 + uncovered(written, b)

    assert torch.autograd.gradcheck(both, (A, B, X), atol=1e-6)
    h = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    real = torch.ones(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: uncovered_features(z, real), (h,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda z: page_norms([z, 2 * z.roll(1, 1)]), (h,), atol=1e-6)


def test_descent_reaches_exactness() -> None:
    torch.manual_seed(3)
    A, B = torch.nn.Parameter(torch.randn(6, 6)), torch.nn.Parameter(torch.randn(6, 6))
    optimiser = torch.optim.Adam([A, B], lr=0.05)
    criterion = ExactSequenceLoss(1.0)
    for _ in range(400):
        optimiser.zero_grad()
        criterion([MapPair(A, B)], ZERO)[0].backward()
        optimiser.step()
    found = measure_pair(MapPair(A, B), energy=0.01)
    assert found.complex_defect < 0.01
    assert found.excess == 0
    assert found.rank_image == 3


def test_half_precision_and_autocast_give_the_same_loss() -> None:
    torch.manual_seed(4)
    A, B, X = torch.randn(6, 4), torch.randn(5, 6), torch.randn(40, 4)
    plain, _ = loss_of(A, B, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_of(A, B, X)[0] == pytest.approx(plain, rel=1e-5)
    assert loss_of(A.bfloat16(), B.bfloat16(), X.bfloat16())[0] == pytest.approx(plain, rel=0.05)


def spectral(local: Any, overall: Tensor, mask: Tensor | None = None) -> float:
    return float(SpectralSequenceLoss(1.0)(local, overall, ZERO, mask)[0])


def test_spectral_loss_wants_agreement_without_collapse() -> None:
    torch.manual_seed(5)
    white = torch.linalg.qr(torch.randn(64, 8) - torch.randn(64, 8).mean(0)).Q
    white = (white - white.mean(0)).view(4, 16, 8)
    agreeing = spectral(white, white)
    assert agreeing < 0.01
    noisy = spectral(white + 0.5 * white.roll(1, 1), white)
    constant = torch.ones(4, 16, 8)
    thin = torch.randn(4, 16, 1).expand(4, 16, 8)
    zero = torch.zeros(4, 16, 8)
    assert noisy > agreeing
    assert min(spectral(same, same) for same in (constant, thin, zero)) > 0.05 * WORST
    assert spectral(zero, zero) == pytest.approx(0.1 * WORST, rel=1e-3)


@given(st.integers(0, 20), st.floats(1e-3, 1e3))
def test_spectral_loss_is_scale_free_and_ignores_padding(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    assert spectral(scale * a, scale * b) == pytest.approx(spectral(a, b), rel=1e-3)
    mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
    junk = torch.full((2, 3, 4), 7.0)
    padded = spectral(torch.cat([a, junk], 1), torch.cat([b, -junk], 1), mask)
    assert padded == pytest.approx(spectral(a, b), rel=1e-4)


def outputs_of(kind: str) -> tuple[torch.nn.Module, Any, Tensor]:
    torch.manual_seed(6)
    if kind == "toy":
        model: Any = ToyCohomologicalModel(dim=16, num_classes=5)
        outputs = model(torch.randn(8, 10, 16))
        return model, outputs, torch.nn.functional.cross_entropy(outputs["logits"], torch.randint(0, 5, (8,)))
    model = CohomologicalTransformer(vocab_size=40, dim=16, sequence_dim=4, h0_heads=2, exact="soft")
    ids = torch.randint(0, 40, (2, 12))
    outputs = model(ids, attention_mask=torch.ones_like(ids), labels=ids, return_structure=True)
    return model, outputs, outputs.loss


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros(1) if g is None else g for g in found]


@pytest.mark.parametrize("kind", ["toy", "transformer"])
def test_weight_zero_adds_exactly_nothing(kind: str) -> None:
    model, outputs, base = outputs_of(kind)
    objective = CohomologicalTrainingObjective(0.0, 0.0)
    total, logs = objective(outputs, base)
    assert total is base
    assert not objective.needs_structure
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, total), gradients(model, base), strict=True))
    assert float(logs["final_total_loss"]) == float(base.detach())


@pytest.mark.parametrize("kind", ["toy", "transformer"])
def test_the_objective_sums_its_terms_logs_each_and_each_has_a_gradient(kind: str) -> None:
    model, outputs, base = outputs_of(kind)
    total, logs = CohomologicalTrainingObjective(0.3, 0.7)(outputs, base)
    parts = float(base.detach()) + 0.3 * float(logs["exact_loss"]["exact_loss"])
    parts += 0.7 * float(logs["spectral_loss"]["spectral_loss"])
    assert float(total.detach()) == pytest.approx(parts, rel=1e-5)
    plain = gradients(model, base)
    for weights in ((0.3, 0.0), (0.0, 0.7)):
        alone, _ = CohomologicalTrainingObjective(*weights)(outputs, base)
        assert any(not torch.allclose(a, b) for a, b in zip(gradients(model, alone), plain, strict=True))
    assert not any(value.requires_grad for value in logs["exact_loss"].values())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="property of maps"):
        ExactSequenceLoss(0.1)([torch.eye(2)], ZERO)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="different shapes"):
        SpectralSequenceLoss(0.1)(torch.ones(1, 2, 3), torch.ones(1, 2, 4), ZERO)
    with pytest.raises(UsageError, match="weight"):
        ExactSequenceLoss(-1.0)
    with pytest.raises(UsageError, match="epsilon"):
        SpectralSequenceLoss(0.1, epsilon=0.0)
