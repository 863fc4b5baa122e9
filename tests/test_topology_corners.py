"""Where the topology engine's cases meet: empty and one-point inputs, the exact edge of a limit, units for people."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
from sampleresults import layer, noisy_circle
from scipy.spatial.distance import pdist

from cohomcli.config import Config
from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.attention import THRESHOLDS, graph_figures
from cohomcli.topology.crosslayers import cross_layers
from cohomcli.topology.diagramdrift import diagram_drift
from cohomcli.topology.drift import Subject
from cohomcli.topology.evidence import check_evidence
from cohomcli.topology.exchanges import Population, permutation_report
from cohomcli.topology.forecast import duration, size
from cohomcli.topology.measures import MEASURES, representation_distances
from cohomcli.topology.permutation import ExchangeOptions
from cohomcli.topology.persistence import rips
from cohomcli.topology.replicates import bars_of
from cohomcli.topology.representation import RepresentationOptions, analyze_representation
from cohomcli.topology.results import Diagram, EvidenceOptions, NullDraws, TopologyOptions
from cohomcli.topology.significance import gap, joint_p_values
from cohomcli.topology.stack import expansion_of
from cohomcli.topology.tracking import track_layers
from cohomcli.topology.vectors import silhouette, vectors_of


def cloud(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_the_engine_s_defaults_are_the_command_s() -> None:
    config = Config()
    options, evidence = TopologyOptions(), EvidenceOptions()
    for name in ("pca", "maxdim", "metric", "engine", "compat", "threshold", "threshold_unit", "landmarks"):
        assert getattr(options, name) == getattr(config.topology, name), name
    assert options.representatives == config.topology.representatives
    assert evidence.null == config.evidence.null_model
    for name in ("replicates", "subsamples", "max_points"):
        assert getattr(evidence, name) == getattr(config.evidence, name), name
    exchange = ExchangeOptions()
    for name in ("pca", "metric", "engine", "maxdim"):
        assert getattr(exchange, name) == getattr(options, name), name
    # with 999 arrangements and the observed one, p-values are whole thousandths
    assert exchange.arrangements + 1 == 1000


@pytest.mark.parametrize(("d", "pca"), [(100, 10), (8, 4)])
def test_a_cloud_of_equal_points_is_explained_whole(d: int, pca: int) -> None:
    (found,) = analyze_layers({"layer_0": np.ones((12, d), np.float32)}, TopologyOptions(pca=pca, maxdim=0)).layers
    assert found.explained_variance == 1.0
    assert (found.n_points, found.n_distinct, found.scale) == (12, 1, 0.0)


def test_nothing_is_compared_where_there_are_no_two_texts() -> None:
    wanted = RepresentationOptions(similarity=("cka",), neighbours=0)
    assert analyze_representation({}, wanted).similarity == ()
    assert analyze_representation({"embedding": cloud(1, 3)}, wanted).similarity == ()
    assert len(analyze_representation({"embedding": cloud(2, 3)}, wanted).similarity) == 1


@pytest.mark.parametrize(("n", "n_layers"), [(10, 1), (12, 3)])
def test_measures_take_exactly_the_memory_they_say(n: int, n_layers: int) -> None:
    """A matrix per layer and fifteen for the cone of a pair, in float64."""
    layers = {f"layer_{k}": cloud(n, 4, k) for k in range(n_layers)}
    needed = 8 * n * n * n_layers + 8 * n * n * 15
    assert set(representation_distances(layers, ["cka"], available_bytes=needed)) == {"cka"}
    with pytest.raises(AnalysisIncomplete, match="GiB are free"):
        representation_distances(layers, ["cka"], available_bytes=needed - 1)


def test_a_layer_without_loops_has_vectors_beside_one_with() -> None:
    points = noisy_circle(20, 5, 0.05, 0)
    both = [layer("layer_0", points, maxdim=1), layer("layer_1", points, maxdim=0)]
    arrays = vectors_of(both)
    assert arrays["layer_0/h1/betti"].max() >= 1
    assert not arrays["layer_1/h1/betti"].any()
    assert not arrays["layer_1/h1/image"].any()


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 MiB"), (2**29, "512 MiB"), (2**30 - 2**20, "1023 MiB"), (2**30, "1.0 GiB"), (5 * 2**29, "2.5 GiB")],
)
def test_memory_is_said_in_the_larger_unit_it_fills(n_bytes: int, words: str) -> None:
    assert size(n_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9.94, "9.9 s"), (10.0, "10 s"), (119.0, "119 s"), (120.0, "2.0 minutes"), (7199.0, "120.0 minutes"),
     (7200.0, "2.0 hours")],
)  # fmt: skip
def test_time_is_said_in_the_larger_unit_it_fills_twice(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_ratio_to_an_embedding_without_its_figure_is_none() -> None:
    layers = [layer(name, noisy_circle(15, 4, 0.1, k)) for k, name in enumerate(("embedding", "layer_0", "layer_1"))]
    figures = [replace(one, compat={"H0_total_persistence": 2.0 + k}) for k, one in enumerate(layers)]
    assert expansion_of(figures).compat == 2.0  # 4 over 2
    assert expansion_of([replace(figures[0], compat=None), *figures[1:]]).compat is None
    assert expansion_of(layers).compat is None


def test_one_more_class_that_never_dies_is_as_far_as_can_be() -> None:
    """No bar is finite, so dropping all costs nothing, and the difference cannot be matched."""
    bare = [layer("layer_0", noisy_circle(6, 3, 0.1, 0), maxdim=0)] * 2
    none = np.zeros((0, 2))
    diagrams = [Diagram(0, none, np.zeros(k), np.zeros(0)) for k in (1, 2)]
    first, second = (replace(one, diagrams=(d,)) for one, d in zip(bare, diagrams, strict=True))
    assert diagram_drift(first, second) == 1.0
    assert diagram_drift(first, first) == 0.0
    assert math.isnan(diagram_drift(replace(first, scale=0.0), second))


@pytest.mark.parametrize("own", ["b", "c", ""])
def test_a_model_is_ranked_among_all_models_of_the_population_but_itself(own: str) -> None:
    """Whatever the order of the weights' digests; where they are not known, nothing is left out."""

    def subject(row: int, weights: str) -> Subject:
        return Subject(row, "t", (layer("layer_0", noisy_circle(12, 4, 0.1, row)),), weights=weights)

    members = ["a", "b", "c", "d", "e", "f"]
    population = Population(tuple(members), tuple(subject(k + 1, name) for k, name in enumerate(members)))
    report = permutation_report([subject(0, own)], [], [0], population, ExchangeOptions())
    (test,) = report.population
    assert test.units == len(members) + 1 - (own in members)


# --- measures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_representation_is_to_itself_what_the_bounds_say(name: str) -> None:
    """A similarity takes its largest value there, a distance or divergence its smallest."""
    measure = MEASURES.get(name)
    points = cloud(30, 5).astype(np.float64)
    prepared = measure.prepare(points)
    own = measure.compare(prepared, prepared)
    assert own == pytest.approx(measure.high if measure.kind == "similarity" else measure.low, abs=1e-9)


def test_an_unbiased_estimate_of_no_likeness_is_negative_half_of_the_time() -> None:
    """Unrelated clouds: the mean over many pairs is 0, so that cutting at 0 would show."""
    measure = MEASURES.get("cka-debiased")
    kernels = [measure.prepare(cloud(24, 6, seed).astype(np.float64)) for seed in range(40)]
    values = [measure.compare(a, b) for a, b in zip(kernels[::2], kernels[1::2], strict=True)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))


def test_a_kernel_has_no_width_where_most_points_are_one() -> None:
    points = np.vstack([np.zeros((9, 2)), np.ones((2, 2))])
    measure = MEASURES.get("cka-rbf")
    prepared = measure.prepare(points)
    assert math.isnan(measure.compare(prepared, prepared))


def test_tracking_needs_a_neighbour_less_than_texts() -> None:
    layers = {name: cloud(6, 3, k) for k, name in enumerate(("embedding", "layer_0"))}
    assert track_layers(layers, neighbours=6) is None
    assert track_layers({"embedding": layers["embedding"]}, neighbours=2) is None
    found = track_layers(layers, neighbours=5)
    assert found is not None
    assert found.kept == (1.0,)  # the five nearest of six are all others, in both layers
    defaults = {name: p.default for name, p in inspect.signature(track_layers).parameters.items()}
    assert defaults["neighbours"] == Config().topology.track_neighbours
    assert defaults["seed"] == RepresentationOptions().seed == Config().compute.seed


# --- evidence and figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "drawn"), [(4, 4), (7, 6), (10, 10)])
def test_subsamples_come_in_halves_and_are_counted(asked: int, drawn: int) -> None:
    evidence = EvidenceOptions(null="none", subsamples=asked)
    options = TopologyOptions(maxdim=0, evidence=evidence)
    (found,) = analyze_layers({"layer_0": cloud(24, 3)}, options).layers
    assert found.evidence is not None
    assert found.evidence.subsamples == drawn


@pytest.mark.parametrize(
    "wrong", [{"replicates": 0}, {"subsamples": -1}, {"max_points": 0}, {"null": "nothing of the kind"}]
)
def test_evidence_that_means_nothing_is_refused(wrong: dict[str, int]) -> None:
    check_evidence(EvidenceOptions(replicates=1, subsamples=0, max_points=1))
    with pytest.raises(UsageError):
        check_evidence(EvidenceOptions(**wrong))


def test_statistics_without_a_bar_or_a_scale() -> None:
    bars, none = np.array([[0.0, 1.0], [0.5, 3.0]]), np.zeros((0, 2))
    assert gap(bars, 2.0) == 1.25
    assert gap(none, 2.0) == 0.0
    assert gap(bars, 0.0) == 0.0


@pytest.mark.parametrize("observed", [3.0, 0.5])
def test_a_statistic_that_never_varies_says_nothing_about_the_others(observed: float) -> None:
    """Beside a varying one, whose corrected p-value stays its own."""
    rng = np.random.default_rng(0)
    varying = rng.normal(size=(20, 1))
    draws = NullDraws(np.array([observed]), varying)
    still = NullDraws(np.array([7.0]), np.full((20, 1), 7.0))
    alone, (beside, constant) = joint_p_values([draws])[0], joint_p_values([draws, still])
    assert alone == beside == pytest.approx([(1 + (varying >= observed).sum()) / 21])
    assert constant == pytest.approx([1.0])


@pytest.mark.parametrize("maxdim", [0, 1])
@pytest.mark.parametrize("unit", [1.0, 2.5])
def test_replicates_have_the_bars_of_the_whole_computation(maxdim: int, unit: float) -> None:
    """Also where the mean distance is exactly 1, and where there is nothing but one point."""
    distances = pdist(noisy_circle(20, 3, 0.1, 1))
    distances *= unit / distances.mean()
    for found, wanted in zip(bars_of(distances, maxdim, "ripser"), rips(distances, maxdim), strict=True):
        assert np.allclose(np.sort(found, axis=0), np.sort(wanted.pairs, axis=0), rtol=1e-6)
        assert len(found) > 0
    assert [len(bars) for bars in bars_of(np.zeros(6), maxdim, "ripser")] == [0] * (maxdim + 1)


def test_attention_graphs_are_cut_where_the_paper_cuts_them() -> None:
    """Kushnareva et al., EMNLP 2021 (arXiv:2109.04825), have six thresholds; an edge has that weight or more."""
    assert THRESHOLDS == (0.025, 0.05, 0.1, 0.25, 0.5, 0.75)
    weights = np.tril(np.random.default_rng(0).dirichlet(np.ones(8), 8))
    edges = [graph_figures(weights, threshold).edges for threshold in THRESHOLDS]
    assert edges == [float((weights >= threshold).sum()) for threshold in THRESHOLDS]


def test_vectors_are_as_the_documents_say() -> None:
    arrays = vectors_of([layer("layer_0", noisy_circle(20, 4, 0.05, 0))])
    assert arrays["layer_0/h1/landscape"].shape == (5, 200)
    assert arrays["layer_0/h1/image"].shape == (32, 32)
    bars, grid = np.array([[0.0, 1.0], [0.5, 3.0]]), np.linspace(0, 3, 7)
    assert np.array_equal(silhouette(bars, grid), silhouette(bars, grid, power=1.0))
    assert not np.allclose(silhouette(bars, grid), silhouette(bars, grid, power=2.0))


def test_only_the_first_six_pairs_get_a_matrix() -> None:
    subjects = [Subject(k, "t", (layer("layer_0", noisy_circle(8, 3, 0.1, k), maxdim=0),)) for k in range(8)]
    found = cross_layers(subjects, [(k + 1, k) for k in range(7)], "diagrams")
    assert [one.row for one in found] == [1, 2, 3, 4, 5, 6]
