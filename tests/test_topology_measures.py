"""Properties every measure between representations must have, and those that tell the measures apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology.cca import canonical_correlations, whole_subspace
from cohomcli.topology.measures import MEASURES, Measure, representation_distances

ALL: list[Measure] = [MEASURES.get(name) for name in MEASURES]
NAMES = [measure.name for measure in ALL]


def _cloud(seed: int, n: int = 40, d: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("measure", ALL, ids=NAMES)
def test_a_representation_equals_itself_moved_scaled_and_turned(measure: Measure) -> None:
    x = _cloud(0)
    turn, _ = np.linalg.qr(_cloud(1, 5))
    assert measure(x, x) == pytest.approx(measure.of_itself, abs=1e-9)
    assert measure(x, 7 * x @ turn + 3) == pytest.approx(measure.of_itself, abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(ALL), st.integers(0, 10**6), st.integers(4, 25))
def test_values_stay_in_their_bounds_and_are_symmetric_where_they_say_so(measure: Measure, seed: int, n: int) -> None:
    x, y = _cloud(seed, n, 3), _cloud(seed + 1, n, 8)
    value = measure(x, y)
    assert measure.low <= value <= measure.high
    if measure.symmetric:
        assert measure(y, x) == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("measure", ALL, ids=NAMES)
def test_values_do_not_depend_on_the_order_of_the_texts(measure: Measure) -> None:
    x, y, order = _cloud(2), _cloud(3, 40, 9), np.random.default_rng(4).permutation(40)
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y), rel=1e-9)


@pytest.mark.parametrize("measure", ALL, ids=NAMES)
def test_unrelated_texts_are_further_apart_than_nearly_equal_ones(measure: Measure) -> None:
    x = _cloud(5)
    near, far = measure(x, x + 0.05 * _cloud(6)), measure(x, x[np.random.default_rng(7).permutation(40)])
    assert near > far if measure.kind == "similarity" else near < far


@pytest.mark.parametrize("measure", [m for m in ALL if m.name != "neighbours"], ids=lambda m: m.name)
def test_a_representation_that_is_one_point_has_no_value(measure: Measure) -> None:
    with np.errstate(all="raise"):
        assert np.isnan(measure(np.ones((6, 3)), _cloud(8, 6)))


@pytest.mark.parametrize("measure", ALL, ids=NAMES)
def test_unusable_input_is_refused(measure: Measure) -> None:
    with pytest.raises(UsageError, match="40 and 39"):
        measure(_cloud(0), _cloud(0)[:39])
    with pytest.raises(AnalysisIncomplete, match="not finite"):
        measure(_cloud(0), np.full((40, 2), np.nan))
    with pytest.raises(AnalysisIncomplete, match="shape"):
        measure(_cloud(0)[:, 0], _cloud(0))


def test_only_plain_cka_sees_a_likeness_in_unrelated_wide_representations() -> None:
    """With 20 texts in 500 dimensions plain CKA is near 1 for pure noise; the debiased one is near 0."""
    x, y = _cloud(1, 20, 500), _cloud(2, 20, 500)
    assert MEASURES.get("cka")(x, y) > 0.9
    assert abs(MEASURES.get("cka-debiased")(x, y)) < 0.1


def test_linear_cka_equals_the_formula_of_the_paper() -> None:
    x, y = _cloud(3), _cloud(4, 40, 7)
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)
    frobenius = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert MEASURES.get("cka")(x, y) == pytest.approx(frobenius, rel=1e-12)


def test_linear_cka_equals_the_code_published_with_rtd() -> None:
    """hsic(P, Q) = tr(P P^T E Q Q^T E) / (n - 1)^2 (IlyaTrofimov/RTD, rtd/cka.py)."""
    x, y = _cloud(5), _cloud(6, 40, 3)
    e = np.eye(40) - 1 / 40

    def hsic(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.trace(p @ p.T @ e @ q @ q.T @ e)) / 39**2

    assert MEASURES.get("cka")(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), rel=1e-12)


def test_debiased_cka_equals_the_unbiased_hsic_estimator() -> None:
    """(tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'K L 1 / (n-2)) / (n (n-3)), hollow K, L (Song et al. 2012, eq. 5)."""
    x, y = _cloud(7, 12), _cloud(8, 12, 4)

    def hsic(p: np.ndarray, q: np.ndarray) -> float:
        n, k, m = len(p), p @ p.T, q @ q.T
        np.fill_diagonal(k, 0.0)
        np.fill_diagonal(m, 0.0)
        ends = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return float(np.trace(k @ m) + ends) / (n * (n - 3))

    assert MEASURES.get("cka-debiased")(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), rel=1e-9)


def test_canonical_correlations_equal_those_of_the_whitened_cross_covariance() -> None:
    x, y = _cloud(9, 60, 3), _cloud(10, 60, 5) + np.repeat(_cloud(9, 60, 3)[:, :1], 5, axis=1)
    a, b = x - x.mean(axis=0), y - y.mean(axis=0)

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(values**-0.5) @ vectors.T

    expected = np.linalg.svd(root(a.T @ a) @ a.T @ b @ root(b.T @ b), compute_uv=False)
    assert canonical_correlations(whole_subspace(x), whole_subspace(y)) == pytest.approx(expected, abs=1e-10)


def test_pwcca_weights_directions_by_what_the_first_representation_carries() -> None:
    """Loud directions count more: kept loud and lost faint ones give a high value, the reverse a low one."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(500, 2)) @ np.diag([10.0, 0.1])
    loud = np.stack([x[:, 0], rng.normal(size=500)], axis=1)
    faint = np.stack([rng.normal(size=500), x[:, 1]], axis=1)
    assert MEASURES.get("pwcca")(x, loud) > 0.9
    assert MEASURES.get("pwcca")(x, faint) < 0.2
    assert MEASURES.get("svcca").compare(*(whole_subspace(v) for v in (x, loud))) == pytest.approx(0.5, abs=0.05)


def test_a_matrix_holds_every_pair() -> None:
    layers = {"a": _cloud(0), "b": _cloud(1), "c": _cloud(2, 40, 8)}
    matrices = representation_distances(layers, ["pwcca", "rtd-lite"])
    for name in ("pwcca", "rtd-lite"):
        matrix, measure = matrices[name], MEASURES.get(name)
        assert matrix.names == ("a", "b", "c")
        expected = [[measure(x, y) for y in layers.values()] for x in layers.values()]
        assert matrix.values == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)


def test_a_matrix_refuses_other_texts_and_unknown_measures() -> None:
    with pytest.raises(UsageError, match="same texts"):
        representation_distances({"a": _cloud(0), "b": _cloud(0)[:9]}, ["cka"])
    with pytest.raises(UsageError, match="did you mean cka"):
        representation_distances({"a": _cloud(0)}, ["ckaa"])
