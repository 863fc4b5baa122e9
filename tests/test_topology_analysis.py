"""The analysis of several layers: workers change nothing, scale-free figures, expansion, notes and refusals."""

from dataclasses import fields

import joblib
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.topology import analysis
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.forecast import forecast_bytes
from cohomcli.topology.results import TopologyOptions


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stack(n=40, d=80, factors=(1.0, 3.0, 2.0, 0.5)):
    names = ["embedding", *(f"layer_{i}" for i in range(len(factors) - 2)), "final_norm"]
    return {name: factor * gaussian(i, n, d) for i, (name, factor) in enumerate(zip(names, factors, strict=True))}


def same(a, b):
    """Equality to the last bit of nested dataclasses, tuples and arrays."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return bool(a == b)


def test_threads_give_the_same_result():
    layers = stack()
    assert same(
        analyze_layers(layers, TopologyOptions(pca=10, workers=3)), analyze_layers(layers, TopologyOptions(pca=10))
    )


@pytest.mark.parametrize("backend", ["threading", "sequential", "multiprocessing", "loky"])
def test_an_outer_joblib_backend_is_honoured(backend):
    layers = stack(n=12)
    with joblib.parallel_config(backend=backend):
        result = analyze_layers(layers, TopologyOptions(workers=2))
    assert same(result, analyze_layers(layers, TopologyOptions()))


@pytest.mark.parametrize(("engine", "hint"), [("redzed", "threads"), ("ripser", "processes")])
def test_workers_are_threads_only_for_the_engine_that_releases_the_interpreter(monkeypatch, engine, hint):
    hints = []

    def parallel(prefer, **options):
        hints.append(prefer)
        return joblib.Parallel(prefer=prefer, backend="multiprocessing", **{**options, "return_as": "list"})

    monkeypatch.setattr(analysis, "PROCESSES_PAY_AFTER", 0.0)
    monkeypatch.setattr(analysis, "Parallel", parallel)
    layers = stack()
    two = analyze_layers(layers, TopologyOptions(pca=10, engine=engine, workers=2))
    assert hints == [hint]
    assert same(two, analyze_layers(layers, TopologyOptions(pca=10, engine=engine)))


def test_small_ripser_jobs_start_no_processes(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pool was started")

    monkeypatch.setattr(analysis, "Parallel", refuse)
    assert analyze_layers(stack(n=10), TopologyOptions(engine="ripser", workers=2)).layers[0].engine == "ripser"


def test_progress_counts_the_layers():
    calls = []
    analyze_layers(stack(n=10), TopologyOptions(workers=2), lambda *call: calls.append(call))
    assert calls == [("topology", done, 4) for done in range(5)]


def test_figures_of_a_layer():
    x = gaussian(0, 40, 6)
    x[20:30] = x[:10]
    layer = analyze_layers({"layer_0": x}, TopologyOptions(maxdim=2)).layers[0]
    assert (layer.n_points, layer.n_distinct, layer.ambient_dim, layer.pca_dim) == (40, 30, 6, 6)
    assert layer.mean_norm == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-6)
    square = np.linalg.norm(x[:, None].astype(float) - x[None].astype(float), axis=2)
    assert layer.scale == pytest.approx(square.sum() / (40 * 39), rel=1e-12)
    assert [summary.dimension for summary in layer.summaries] == [0, 1, 2]
    assert layer.summaries[0].count == 29
    assert layer.betti.values.shape == (3, 256)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_scale_free_figures_do_not_see_the_scale(metric):
    layers = stack()
    options = TopologyOptions(pca=10, metric=metric)
    plain = analyze_layers(layers, options)
    scaled = analyze_layers({name: 7 * x for name, x in layers.items()}, options)
    factor = 7 if metric == "euclidean" else 1
    for a, b in zip(plain.layers, scaled.layers, strict=True):
        assert b.scale == pytest.approx(factor * a.scale, rel=1e-6)
        for s, t in zip(a.summaries, b.summaries, strict=True):
            assert t.total_persistence == pytest.approx(factor * s.total_persistence, rel=1e-4)
            assert t.total_over_scale == pytest.approx(s.total_over_scale, rel=1e-4)
            assert t.max_over_scale == pytest.approx(s.max_over_scale, rel=1e-4)
            assert t.entropy == pytest.approx(s.entropy, rel=1e-4)
    assert scaled.expansion.scale_free == pytest.approx(plain.expansion.scale_free, rel=1e-6)


def test_expansion_is_the_peak_block_over_the_embedding():
    x = gaussian(0, 25, 4)
    layers = {"embedding": x, "layer_0": 2 * x, "layer_1": 5 * x, "layer_1.mlp": 50 * x, "final_norm": 9 * x}
    expansion = analyze_layers(layers, TopologyOptions()).expansion
    assert expansion.raw == pytest.approx(5, rel=1e-6)
    assert expansion.scale_free == pytest.approx(1, rel=1e-6)
    assert expansion.peak_raw == "layer_1"
    assert expansion.reason == ""


def test_expansion_of_an_encoder_decoder_is_its_encoder_s():
    x = gaussian(0, 25, 4)
    layers = {"encoder.embedding": x, "encoder.layer_0": 2 * x, "decoder.embedding": x, "decoder.layer_0": 8 * x}
    expansion = analyze_layers(layers, TopologyOptions()).expansion
    assert expansion.raw == pytest.approx(2, rel=1e-6)
    assert expansion.peak_raw == "encoder.layer_0"


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"layer_0": gaussian(0, 5, 2)}, "the embedding was not analysed"),
        ({"embedding": gaussian(0, 5, 2), "final_norm": gaussian(1, 5, 2)}, "no block was analysed"),
        (
            {"embedding": np.ones((5, 2), np.float32), "layer_0": gaussian(0, 5, 2)},
            "all points of the embedding coincide",
        ),
    ],
)
def test_expansion_that_is_no_number_says_why(layers, reason):
    expansion = analyze_layers(layers, TopologyOptions()).expansion
    assert (expansion.raw, expansion.scale_free) == (None, None)
    assert expansion.reason.startswith(reason)


def test_one_point_has_one_essential_class_and_nothing_else():
    result = analyze_layers({"embedding": gaussian(0, 1, 60)}, TopologyOptions(maxdim=2))
    layer = result.layers[0]
    assert (layer.n_points, layer.scale) == (1, 0.0)
    assert [(s.count, s.essential, s.total_over_scale) for s in layer.summaries] == [
        (0, 1, 0.0),
        (0, 0, 0.0),
        (0, 0, 0.0),
    ]


def test_degenerate_layers_are_noted():
    collapsed = np.ones((20, 4), np.float32)
    repeated = np.repeat(gaussian(0, 5, 4), 4, axis=0)
    half = np.repeat(gaussian(1, 10, 4), 2, axis=0)
    notes = analyze_layers({"embedding": collapsed, "layer_0": repeated, "layer_1": half}, TopologyOptions()).notes
    assert len(notes) == 2
    assert notes[0].startswith("all points coincide in embedding:")
    assert "distinct in layer_0 (5 of 20):" in notes[1]


def test_lost_variance_is_noted_and_long_lists_are_cut():
    layers = {f"layer_{i}": gaussian(i, 50, 40) for i in range(6)}
    (note,) = analyze_layers(layers, TopologyOptions(pca=5)).notes
    assert note.startswith("PCA to 5 dimensions keeps less than 80% of the variance in layer_0 (")
    assert note.endswith("and 2 more")


def test_pca_that_is_an_isometry_or_not_applied_is_noted():
    (isometry,) = analyze_layers({"a": gaussian(0, 12, 30)}, TopologyOptions(pca=20)).notes
    assert isometry.startswith("12 points span at most 11 dimensions: PCA to 20 is an isometry")
    (skipped,) = analyze_layers({"a": gaussian(0, 12, 30)}, TopologyOptions(pca=20, metric="cosine")).notes
    assert skipped.startswith("PCA is not applied: it would change cosine distances")


def test_a_fallback_engine_is_noted(monkeypatch):
    choice = analysis.choose_engine("ripser", 1)
    monkeypatch.setattr(analysis, "choose_engine", lambda *_: type(choice)("ripser", "redzed-tda is away"))
    assert analyze_layers({"a": gaussian(0, 5, 2)}, TopologyOptions()).notes[0] == "redzed-tda is away"


def test_nan_is_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(analysis, "analyze_layer", lambda *_: pytest.fail("computed"))
    layers = stack(n=10)
    layers["layer_1"][3] = np.nan
    with pytest.raises(AnalysisIncomplete, match="'layer_1': 1 of 10"):
        analyze_layers(layers, TopologyOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "euclid"},
        {"engine": "x"},
        {"compat": "x"},
        {"maxdim": 3},
        {"maxdim": -1},
        {"pca": -1},
        {"workers": 0},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError):
        analyze_layers({"a": gaussian(0, 5, 2)}, TopologyOptions(**options))


def test_too_little_memory_is_refused_and_scarce_memory_takes_workers(monkeypatch):
    layers = stack(n=100, d=4)
    with pytest.raises(AnalysisIncomplete, match=r"100 points needs about 0 MiB|--samples"):
        analyze_layers(layers, TopologyOptions(available_bytes=20_000))
    monkeypatch.setattr(analysis, "Parallel", lambda **_: pytest.fail("two workers do not fit"))
    one = int(1.5 * forecast_bytes(100, 1, "redzed"))
    assert len(analyze_layers(layers, TopologyOptions(workers=2, available_bytes=one)).layers) == 4


def test_h0_alone_is_single_linkage():
    layer = analyze_layers({"a": gaussian(0, 30, 3)}, TopologyOptions(maxdim=0)).layers[0]
    assert layer.engine == "single-linkage"
    assert len(layer.diagrams) == len(layer.summaries) == len(layer.betti.values) == 1


def test_blas_threads_are_given_back():
    with threadpool_limits(2, user_api="blas"):
        analyze_layers(stack(n=10), TopologyOptions(workers=2))
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {2}
