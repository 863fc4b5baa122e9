"""Drift and distances: zero for equals, one for unrelated, blind to scale and rotation, closed when unsure."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampleresults import layer, noisy_circle
from scipy.spatial.distance import pdist, squareform

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology.diagramdrift import diagram_drift
from cohomcli.topology.drift import (
    DEFAULT,
    DIAGRAMS,
    Subject,
    bounded_distance,
    bounded_measures,
    check_memory,
    choose_measure,
    drift_report,
    model_drift,
    representation_drift,
    with_steps,
)
from cohomcli.topology.maps import LARGEST, flat_map, model_map
from cohomcli.topology.measures import MEASURES

NAMES = ("embedding", "layer_0", "layer_1")
ON_ACTIVATIONS = [name for name in bounded_measures() if name != DIAGRAMS]


class Held(dict):
    """Activations in memory."""

    def layer(self, name):
        return self[name]


def cloud(seed, n=40, d=12):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def subject(row, activations, names=NAMES, texts="t"):
    """A row whose layers hold the given arrays; diagrams only, where there are none."""
    arrays = dict(zip(names, activations, strict=True))
    layers = tuple(layer(name, np.asarray(x, dtype=float)) for name, x in arrays.items())
    return Subject(row, texts, layers, Held(arrays))


BASE = [cloud(seed) for seed in range(3)]


@pytest.mark.parametrize("name", ON_ACTIVATIONS)
def test_equal_representations_have_no_drift_and_the_bounds_hold(name):
    measure = MEASURES.get(name)
    assert representation_drift(BASE[0], BASE[0].copy(), measure) == 0.0
    for other in (BASE[1], BASE[0] + 0.1 * BASE[1], BASE[0][::-1]):
        assert 0.0 <= representation_drift(BASE[0], other, measure) <= 1.0


@pytest.mark.parametrize("name", [DEFAULT, "cka", "nts-e", "nts-m"])
def test_drift_sees_neither_scale_nor_shift_nor_rotation(name):
    rotation = np.linalg.qr(cloud(9, 12, 12).astype(float))[0]
    moved = 250.0 * (BASE[0].astype(float) @ rotation) + 3.0
    assert representation_drift(BASE[0], moved, MEASURES.get(name)) < 1e-6


def test_unrelated_representations_are_near_one():
    values = [representation_drift(cloud(k, 100, 64), cloud(k + 50, 100, 64), MEASURES.get(DEFAULT)) for k in range(10)]
    assert min(values) > 0.95
    # the plain version is not: with fewer texts than dimensions it calls noise alike, which is why it is no default
    assert representation_drift(cloud(0, 100, 400), cloud(50, 100, 400), MEASURES.get("cka")) < 0.5


def test_drift_grows_with_the_noise_that_was_added():
    noise = cloud(7)
    drifts = [representation_drift(BASE[0], BASE[0] + s * noise, MEASURES.get(DEFAULT)) for s in (0, 0.1, 0.3, 1, 3)]
    assert drifts == sorted(drifts)
    assert drifts[0] == 0.0
    assert drifts[-1] > 0.5


def test_a_similarity_becomes_one_minus_itself_cut_at_one():
    measure = MEASURES.get(DEFAULT)
    assert [bounded_distance(value, measure) for value in (1.0, 0.25, 0.0, -0.4)] == [0.0, 0.75, 1.0, 1.0]
    assert math.isnan(bounded_distance(math.nan, measure))


def test_collapsed_and_unequal_clouds_are_undefined_and_infinite_values_are_refused():
    flat = np.ones((40, 12), dtype=np.float32)
    assert math.isnan(representation_drift(BASE[0], flat, MEASURES.get(DEFAULT)))
    assert representation_drift(flat, flat.copy(), MEASURES.get(DEFAULT)) == 0.0
    assert math.isnan(representation_drift(BASE[0], BASE[0][:30], MEASURES.get(DEFAULT)))
    broken = BASE[0].copy()
    broken[0, 0] = np.inf
    with pytest.raises(AnalysisIncomplete):
        representation_drift(BASE[0], broken, MEASURES.get(DEFAULT))


def test_a_model_s_figures_are_over_its_layers_and_the_worst_is_named():
    changed = [BASE[0], BASE[1] + 0.2 * cloud(5), BASE[2] + cloud(6)]
    drift = model_drift(subject(1, changed), subject(0, BASE), DEFAULT)
    values = [representation_drift(a, b, MEASURES.get(DEFAULT)) for a, b in zip(changed, BASE, strict=True)]
    assert [one.layer for one in drift.layers] == list(NAMES)
    assert [one.drift for one in drift.layers] == values
    assert (drift.max_drift, drift.worst_layer) == (max(values), "layer_1")
    assert drift.mean_drift == pytest.approx(sum(values) / 3)
    assert (drift.row, drift.against) == (1, 0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (subject(0, BASE, texts="u"), "not the same texts"),
        (subject(0, BASE[:2], NAMES[:2]), "the layers differ (layer_1)"),
        (subject(0, BASE, ("embedding", "layer_1", "layer_0")), "the layers differ in order"),
        (subject(0, [BASE[0], np.ones_like(BASE[1]), BASE[2]]), "not defined in layer_0"),
        (None, "the baseline does not hold this model"),
    ],
)
def test_one_layer_that_cannot_be_compared_leaves_no_largest_drift(other, reason):
    drift = model_drift(subject(1, BASE), other, DEFAULT)
    assert (drift.max_drift, drift.mean_drift, drift.worst_layer) == (None, None, None)
    assert reason in drift.reason


def test_a_report_has_a_largest_drift_only_when_every_model_has():
    rows = [subject(0, BASE), subject(1, [x + 0.1 * cloud(8) for x in BASE]), subject(2, BASE, texts="other")]
    report = drift_report(rows, [], [], DEFAULT)
    assert (report.baselines, report.named, report.measured_on) == ((0,), False, "activations")
    assert [model.max_drift is None for model in report.models] == [False, True]
    assert (report.max_drift, report.mean_drift) == (None, None)
    assert "not the same texts" in report.reason
    whole = drift_report(rows[:2], [0], [(1, 0)], DEFAULT)
    assert (whole.max_drift, whole.named) == (whole.models[0].max_drift, True)


def test_checkpoints_are_also_measured_from_one_to_the_next():
    rows = [subject(k, [x + 0.3 * k * cloud(8) for x in BASE]) for k in range(4)]
    report = with_steps(drift_report(rows, [], [], DEFAULT), rows)
    assert [(step.row, step.against) for step in report.steps] == [(1, 0), (2, 1), (3, 2)]
    assert [model.against for model in report.models] == [0, 0, 0]
    assert report.max_step == max(step.max_drift for step in report.steps)
    assert report.max_step < report.max_drift


def test_measures_without_a_bound_and_misspelt_ones_are_refused():
    with pytest.raises(UsageError, match="no upper bound"):
        choose_measure("rtd", True)
    with pytest.raises(UsageError, match="did you mean"):
        choose_measure("cka-debias", True)
    with pytest.raises(UsageError, match="needs activations"):
        choose_measure("nts-e", False)
    assert [choose_measure("auto", complete) for complete in (True, False)] == [DEFAULT, DIAGRAMS]
    assert choose_measure(DIAGRAMS, True) == DIAGRAMS


def test_too_many_points_for_the_memory_are_refused_with_numbers():
    rows = [subject(0, BASE), subject(1, BASE)]
    check_memory(rows, DEFAULT, 10**6)
    check_memory(rows, DIAGRAMS, 0)
    with pytest.raises(AnalysisIncomplete, match="40 points"):
        check_memory(rows, DEFAULT, 10_000)


def brute_force(a, b):
    """W_1 in the maximum norm over all partial matchings of two small diagrams."""
    half = lambda bars: (bars[:, 1] - bars[:, 0]) / 2  # noqa: E731
    padded = [*range(len(b)), *[None] * len(a)]
    best = math.inf
    for order in set(permutations(padded, len(a))):
        cost = sum(half(a)[i] if j is None else np.abs(a[i] - b[j]).max() for i, j in enumerate(order))
        cost += sum(half(b)[j] for j in range(len(b)) if j not in order)
        best = min(best, cost)
    return best


def bars_of(draw):
    return np.array([[birth, birth + life] for birth, life in draw]).reshape(-1, 2)


BAR = st.tuples(st.floats(0.1, 5), st.floats(0.01, 3))


@given(st.lists(BAR, max_size=3), st.lists(BAR, max_size=3))
def test_diagram_drift_is_the_share_of_the_cost_of_dropping_every_bar(first, second):
    whole = layer("a", noisy_circle(6, 2, 0.1, 0))
    none = np.empty(0)
    one, other = (
        replace(
            whole, scale=1.0, diagrams=(replace(whole.diagrams[1], pairs=bars_of(x), essential=none, censored=none),)
        )
        for x in (first, second)
    )
    a, b = bars_of(first), bars_of(second)
    most = ((a[:, 1] - a[:, 0]).sum() + (b[:, 1] - b[:, 0]).sum()) / 2
    expected = brute_force(a, b) / most if most else 0.0
    assert diagram_drift(one, other) == pytest.approx(expected, abs=1e-9)


def test_diagram_drift_is_zero_for_a_rescaled_cloud_and_below_one_for_noise():
    points = noisy_circle(40, 3, 0.1, 0)
    base = layer("a", points)
    assert diagram_drift(base, layer("a", points)) == 0.0
    assert diagram_drift(base, layer("a", 1000 * points)) < 1e-5
    noise = layer("a", np.random.default_rng(0).normal(size=(40, 3)))
    assert 0.1 < diagram_drift(base, noise) < 1.0
    assert diagram_drift(base, noise) == pytest.approx(diagram_drift(noise, base))
    assert math.isnan(diagram_drift(base, layer("a", np.ones((40, 3)))))
    assert math.isnan(diagram_drift(base, layer("a", points, maxdim=0)))


def test_the_matrix_is_the_mean_drift_over_depths():
    rows = [subject(k, [x + 0.4 * k * cloud(k + 20) for x in BASE]) for k in range(3)]
    flat = model_map(rows, DEFAULT)
    values = np.array(flat.values)
    assert flat.n_depths == 3
    assert np.array_equal(values, values.T)
    assert not values.diagonal().any()
    for i in range(3):
        for j in range(i):
            assert values[i, j] == pytest.approx(model_drift(rows[i], rows[j], DEFAULT).mean_drift)


def test_models_of_different_depth_are_matched_by_relative_depth():
    deep = subject(0, [BASE[0], BASE[1], BASE[1], BASE[2], BASE[2]], ("embedding", *(f"layer_{k}" for k in range(4))))
    flat = model_map([deep, subject(1, BASE)], DEFAULT)
    middle = representation_drift(BASE[1], BASE[1], MEASURES.get(DEFAULT))
    assert flat.values[0][1] == pytest.approx(middle, abs=1e-12)  # ends and middle are the same clouds
    assert "three analyses" in flat.reason


def test_other_texts_have_no_distance_and_then_there_is_no_map():
    rows = [subject(0, BASE), subject(1, BASE), subject(2, BASE, texts="other")]
    flat = model_map(rows, DEFAULT)
    assert flat.values[0][1] == 0.0
    assert flat.values[0][2] is None
    assert flat.positions is None
    assert "not defined" in flat.reason
    assert model_map([rows[0]] * (LARGEST + 1), DEFAULT).values == ()


def test_diagrams_alone_make_a_matrix_too():
    rows = [replace(subject(k, [x * (1 + k) for x in BASE]), activations=None) for k in range(3)]
    values = np.array(model_map(rows, DIAGRAMS).values)
    assert values.max() < 1e-5


@given(st.integers(0, 10_000))
def test_a_flat_configuration_is_mapped_without_stress(seed):
    points = np.random.default_rng(seed).normal(size=(7, 2))
    distances = squareform(pdist(points))
    positions, stress = flat_map(distances)
    assert stress < 1e-3
    assert squareform(pdist(positions)) == pytest.approx(distances, abs=5e-3)
    assert (positions[0] <= 0).all()


def test_the_map_is_repeatable_and_its_stress_is_kruskal_s():
    distances = np.ones((4, 4)) - np.eye(4)  # four points equally far apart fit no plane
    positions, stress = flat_map(distances)
    apart = squareform(pdist(positions))
    assert stress == pytest.approx(np.sqrt(np.square(apart - distances).sum() / np.square(distances).sum()))
    assert 0.05 < stress < 0.35
    assert np.array_equal(positions, flat_map(distances)[0])
    assert flat_map(np.zeros((3, 3)))[1] == 0.0
