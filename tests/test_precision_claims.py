"""Claims of the HNF 'sheaf precision optimizer' that are false, refuted by numbers; and the corrected curvature bound.

docs/claims.md states each with the figures found here. The claimed bound is p >= log2(c kappa D^2 / eps) significand
bits, kappa = 1/2 sup |f''|, D the diameter of the domain, as 'a necessary condition: no algorithm can do better'.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from cohomcli.precision.cohomology import label_cohomology
from cohomcli.precision.formats import get_format
from cohomcli.precision.rounding import round_to
from cohomcli.precision.sheaf import LabelSheaf, uniform_possible

SQRT6_9 = math.sqrt(6) / 9  # 0.27217


def claimed_bits(kappa: float, diameter: float, eps: float, c: float = 1.0) -> float:
    """The claimed necessary bits; log2(1/eps) where the curvature is zero, as its code has it."""
    return math.log2(c * kappa * diameter**2 / eps) if kappa else math.log2(1 / eps)


# ---- curvature does not decide precision ----


@pytest.mark.parametrize("n", [100, 10_000, 1_000_000])
def test_fp16_beats_the_curvature_bound_on_sin_nx_over_n_squared(n: int) -> None:
    """kappa = 1/2 and D = 1 for every N, yet storing input and output in fp16 errs by at most about 2^-12 / N."""
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    error = (round_to(torch.sin(n * round_to(x, "fp16")) / n**2, "fp16") - torch.sin(n * x) / n**2).abs().max().item()
    assert error <= 2.0**-12 / n + 2.0**-11 / n**2 + 2.0**-25
    significand = get_format("fp16").significand_bits
    smallest_c = 1 / 8  # the weakest of the constants in use: 1/8 in the paper, 1 in its Python, 2 in its C++
    assert claimed_bits(0.5, 1.0, error, smallest_c) > significand + math.log2(n) - 4


def test_no_constant_rescues_the_curvature_bound() -> None:
    """For any c > 0 some N makes the true error smaller than c kappa D^2 2^-p."""
    for c in (1e-2, 1e-4, 1e-6):
        n = 10 / c
        assert 2.0**-12 / n + 2.0**-11 / n**2 < c * 0.5 * 2.0**-11


def test_a_linear_map_needs_bits_although_its_curvature_is_zero() -> None:
    x = torch.linspace(0.5, 1.5, 1001, dtype=torch.float64)
    assert (round_to(x, "bf16") - x).abs().max().item() > 1e-3


# ---- Wilkinson's matrix W21 ----


def eigenvalues_below(x: Fraction) -> int:
    """How many eigenvalues of W21+ (diagonal |i - 10|, off-diagonals 1) lie below x: Sturm's count, exact."""
    count, pivot = 0, Fraction(1)
    for i in range(21):
        pivot = abs(i - 10) - x - (1 / pivot if i else 0)
        if pivot == 0:
            pivot = Fraction(1, 2**200)  # x is an eigenvalue of a leading block: perturb it, as the LAPACK counts do
        count += pivot < 0
    return count


@pytest.mark.parametrize(("dtype", "radius"), [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_wilkinson_needs_no_80_bits(dtype: type, radius: float) -> None:
    """'More than 80 bits for 1e-8, a fundamental limit': every eigenvalue in plain fp64 is proved to 1e-14.

    Symmetric eigenvalues are perfectly conditioned (Weyl): the error is a modest multiple of u ||W||.
    """
    w = np.diag(np.abs(np.arange(-10.0, 11.0))) + np.diag(np.ones(20), 1) + np.diag(np.ones(20), -1)
    found = np.linalg.eigvalsh(w.astype(dtype))
    assert found.dtype == dtype
    for k, value in enumerate(found.tolist()):
        centre, r = Fraction(value), Fraction(radius)
        assert eigenvalues_below(centre - r) <= k < eigenvalues_below(centre + r)


# ---- the curvature of softmax, and the other constants ----


def second_derivative(parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """|D^2 softmax(x)(v, v)| for a unit v: component i is p_i ((v_i - m)^2 - var), m and var those of v under p."""
    x, v = np.split(parameters, 2)
    p = np.exp(x - x.max())
    p, v = p / p.sum(), v / np.linalg.norm(v)
    centred = v - p @ v
    value = p * (centred**2 - p @ centred**2)
    return float(np.linalg.norm(value)), x, v, value


def test_the_formula_for_the_second_derivative_of_softmax_agrees_with_autograd() -> None:
    _, x, v, value = second_derivative(np.random.default_rng(0).normal(size=10))
    direction = torch.from_numpy(v)

    def slope(z: torch.Tensor) -> torch.Tensor:
        return torch.autograd.functional.jvp(lambda y: torch.softmax(y, 0), z, direction, create_graph=True)[1]

    found = torch.autograd.functional.jvp(slope, torch.from_numpy(x), direction)[1]
    np.testing.assert_allclose(found.numpy(), value, atol=1e-14)


@pytest.mark.parametrize("n", range(2, 9))
def test_softmax_curvature_is_sqrt6_over_9_not_362(n: int) -> None:
    """sup over x, |v| = 1; equal arguments suffice, since a symmetric form attains its norm on its diagonal."""
    rng = np.random.default_rng(n)
    samples = rng.normal(size=(2000, 2 * n)) * np.repeat([3.0, 1.0], n)
    norms = np.array([second_derivative(s)[0] for s in samples])
    starts = samples[np.argsort(norms)[-3:]]
    best = max(-minimize(lambda s: -second_derivative(s)[0], start, method="BFGS").fun for start in starts)
    assert norms.max() <= best <= SQRT6_9 + 1e-9
    assert best == pytest.approx(SQRT6_9, abs=1e-5)
    assert 362.5 / (best / 2) > 2600  # against kappa = 1/2 sup |D^2 softmax|


@pytest.mark.parametrize(
    ("f", "claimed", "true"),
    [
        (nn.functional.gelu, 5.0, 1 / math.sqrt(2 * math.pi)),
        (torch.sigmoid, 2.0, math.sqrt(3) / 36),
        (torch.tanh, 2.0, 2 * math.sqrt(3) / 9),
        (nn.functional.silu, 1.0, 0.25),
    ],
)
def test_curvature_constants_of_activations(f, claimed: float, true: float) -> None:
    x = torch.linspace(-12, 12, 240_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert second.abs().max().item() / 2 == pytest.approx(true, rel=1e-6)
    assert claimed > 3.9 * true


# ---- H^1 is no proof of impossibility ----


def sheaf(n: int, edges: list[tuple[int, int]], spoilt: set[int]) -> LabelSheaf:
    """One format, admissible everywhere but on `spoilt`."""
    allowed = np.array([[v not in spoilt] for v in range(n)])
    return LabelSheaf(("fp16",), allowed, np.array(edges, dtype=np.int64).reshape(-1, 2), np.arange(n))


def test_h1_is_neither_necessary_nor_sufficient_for_impossibility() -> None:
    residual = sheaf(3, [(0, 1), (0, 2), (1, 2)], set())
    assert label_cohomology(residual).h1 == 1
    assert uniform_possible(residual, "fp16")
    chain = sheaf(3, [(0, 1), (1, 2)], {1})
    assert label_cohomology(chain).h1 == 0
    assert not uniform_possible(chain, "fp16")


def test_one_layer_has_no_obstruction_and_a_sequential_net_has_no_cycle() -> None:
    """The source reports H^0 = 0, H^1 = 1 for a single Linear, and H^0 = 0, H^1 = 17 for 17 layers in a row."""
    for n in (1, 17):
        found = label_cohomology(sheaf(n, [(i, i + 1) for i in range(n - 1)], set()))
        assert (found.h0, found.h1, found.euler) == (1, 0, 1)


# ---- 'uniform precision is mathematically impossible' on its own networks ----


def cifar_net() -> nn.Sequential:
    """A network of the CIFAR-10 demo's size and shape: 17 layers, 620,810 parameters, seeded weights, eval mode."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10)]
    return nn.Sequential(*layers).eval()


def run_uniform(fmt: str, x: torch.Tensor) -> torch.Tensor:
    """The network with every weight, the input and every layer's result stored in one format, computed in float64."""
    model = cifar_net().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(round_to(p, fmt))
        for layer in model:
            x = round_to(layer(round_to(x, fmt)), fmt)
    return x


@pytest.fixture(scope="module")
def cifar() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch (16, 3, 32, 32) and the float64 logits (16, 10)."""
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return x, cifar_net().double()(x)


def test_the_network_has_the_size_of_the_demo() -> None:
    model = cifar_net()
    assert len(model) == 17
    assert sum(p.numel() for p in model.parameters()) == 620_810


def test_uniform_fp32_meets_the_epsilon_that_the_source_calls_impossible(cifar: tuple) -> None:
    """Its demo: eps = 1e-6, H^0 = 0, 'uniform precision is mathematically impossible', then 32 bits for all 17."""
    x, exact = cifar
    eps = 1e-6
    kappas = [0.0 if isinstance(layer, nn.Linear) else 1.0 for layer in cifar_net()]
    needed = [claimed_bits(kappa, 10.0, eps) for kappa in kappas]
    assert max(needed) <= 32  # uniform 32 satisfies its own inequality: only uniform 16 was ever tried
    assert max(needed) > get_format("fp32").significand_bits  # and with true significands it says: not in fp32
    with torch.no_grad():
        native = cifar_net()(x.float()).double()
    for error in (native - exact, run_uniform("fp32", x) - exact):
        assert error.abs().max().item() < eps / 5
        assert (error.norm() / exact.norm()).item() < eps


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
def test_uniform_16_bit_meets_an_epsilon_that_the_source_calls_impossible(fmt: str, cifar: tuple) -> None:
    x, exact = cifar
    eps = 1e-3
    assert claimed_bits(1.0, 10.0, eps) > 16 > get_format(fmt).significand_bits
    assert (run_uniform(fmt, x) - exact).abs().max().item() < eps


def impossible_net(x: np.ndarray) -> np.ndarray:
    """The source's showpiece: a linear-relu-linear branch and exp(exp(.)) (clamped at 5), concatenated."""
    rng = np.random.default_rng(0)
    shapes = [(100, 50), (50, 25), (100, 50), (50, 25), (50, 10)]
    a, b, c, d, e = (rng.uniform(-1, 1, s).astype(x.dtype) / np.sqrt(x.dtype.type(s[0])) for s in shapes)
    low = np.maximum(x @ a, 0) @ b
    high = np.exp(np.minimum(np.exp(np.minimum(x @ c, 5)), 5)) @ d
    return np.concatenate([low, high], axis=1) @ e


@pytest.mark.skipif(np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps, reason="no wider reference type here")
def test_uniform_fp64_meets_epsilon_on_the_impossible_net() -> None:
    """eps = 1e-6, 'there is NO consistent global precision that works': fp64 throughout does."""
    x = np.random.default_rng(1).normal(size=(64, 100))
    error = abs(impossible_net(x) - impossible_net(x.astype(np.longdouble))).max()
    assert 0 < error < 1e-12


def test_the_30_percent_memory_saving_leaves_out_the_transformer_blocks() -> None:
    """Vocabulary 1000, width 64, 2 blocks, feed-forward 256: '30.4 % below AMP, 58.2 % below fp32'."""
    block = sum(p.numel() for p in nn.TransformerEncoderLayer(64, 4, 256).parameters())
    embedding, positions, head = 1000 * 64, 32 * 64, 64 * 1000 + 1000
    parameters = embedding + positions + 2 * block + head
    assert (2 * block, parameters) == (99_968, 231_016)
    amp, fp32 = 0.6 * 4 * parameters, 4 * parameters  # its 'AMP' is 0.6 times fp32; real autocast keeps fp32 weights
    counted = 4 * embedding + 2 * head
    assert (round(1 - counted / amp, 3), round(1 - counted / fp32, 3)) == (0.304, 0.582)
    at_best = counted + 2 * (positions + 2 * block)  # had everything it forgot been stored in 16 bits
    assert at_best > 1.06 * amp


# ---- what is true: the corrected curvature bound ----


def worst_error(coefficients: np.ndarray, a: float, b: float, h: float, offset: float) -> float:
    """Least worst-case error of any algorithm that sees only the cell of its input: half the largest oscillation.

    Cells are [offset + k h, offset + (k + 1) h], cut off at a and b. f is convex or concave on [a, b], so it is
    monotone on every cell but the one with a critical point, and monotone on either side of that.
    """
    walls = np.arange(offset, b + h, h)
    walls = np.concatenate([[a], walls[(walls > a) & (walls < b)], [b]])
    roots = np.roots(np.polyder(coefficients))
    critical = np.real(roots[np.isreal(roots)])
    ends = np.sort(np.concatenate([walls, critical[(critical > a) & (critical < b)]]))
    return float(abs(np.diff(np.polyval(coefficients, ends))).max()) / 2


def random_convex_cubic(rng: np.random.Generator) -> tuple[np.ndarray, float, float, float]:
    """Coefficients of a quadratic or cubic with |f''| >= kappa_min > 0 on [a, b], in any position and sign."""
    a, width = rng.uniform(-3, 3), np.exp(rng.uniform(-3, 3))
    low, high = np.exp(rng.uniform(-2, 3, size=2))
    high = low if rng.random() < 0.4 else high
    b = a + width
    cubic = (high - low) / width / 6  # f'' runs from low at a to high at b
    quadratic = (low - 6 * cubic * a) / 2
    slope = -2 * quadratic * a - 3 * cubic * a**2 - rng.uniform(-0.5, 1.5) * min(low, high) * width
    return rng.choice([-1, 1]) * np.array([cubic, quadratic, slope, 1.0]), a, b, min(low, high)


def test_the_corrected_curvature_bound_has_no_violation() -> None:
    """p >= log2(kappa_min D^2 / (8 eps)), kappa_min = inf |f''|, inputs known to cells of length 2^-p D <= D / 6."""
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(1500):
        coefficients, a, b, kappa = random_convex_cubic(rng)
        width = b - a
        bits = rng.uniform(math.log2(6), 9)
        h = width * 2.0**-bits
        offset = a - rng.uniform(0, h)
        eps = worst_error(coefficients, a, b, h, offset)
        assert bits >= math.log2(kappa * width**2 / (8 * eps)) - 1e-9
        ratios.append(eps / (kappa * width * h / 8))
    assert min(ratios) < 2.2  # and it is tight within a factor of about two


def test_the_corrected_bound_needs_small_cells() -> None:
    """Two cells that meet at the vertex of x^2 / 2 halve the oscillation: beyond h = D / 6 the bound may fail."""
    assert worst_error(np.array([0.5, 0, 0]), -0.5, 0.5, 1.0, 0.0) == pytest.approx(1 / 16)
