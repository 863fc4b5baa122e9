"""Comparison of models: figures, rankings, resampled profiles, data sets, and correlations with an honest n."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from cohomcli.data.spec import TextSample
from cohomcli.models.spec import LanguageMetrics, ModelInfo
from cohomcli.results import Entry
from cohomcli.topology.comparison import DEPTH_GRID, TOPOLOGY_FIGURES, compare, resample
from cohomcli.topology.correlation import correlate, holm
from cohomcli.topology.results import BettiCurve, DimensionSummary, LayerTopology, TopologyResult
from cohomcli.topology.stack import expansion_of


def summary(dimension, total, scale):
    return DimensionSummary(dimension, 3, total, total, 1.0, 1, 0, total / scale, total / scale)


def layer(name, h0, h1, scale=2.0, n=20, metric="euclidean"):
    summaries = (summary(0, h0, scale), *([] if h1 is None else [summary(1, h1, scale)]))
    betti = BettiCurve(np.zeros(1), np.zeros((1, 1), np.int64))
    return LayerTopology(name, n, n, 8, 8, 1.0, scale, 1.0, metric, "redzed", (), summaries, betti)


def topology(h0, h1=None, **options):
    """Embedding, blocks and a final norm with the given H0 totals; H1 totals for the embedding and the blocks."""
    names = ["embedding", *(f"layer_{i}" for i in range(len(h0) - 1))]
    h1 = [None] * len(h0) if h1 is None else h1
    layers = [layer(name, a, b, **options) for name, a, b in zip(names, h0, h1, strict=True)]
    layers.append(layer("final_norm", 1000.0, 1000.0 if h1[0] is not None else None, **options))
    return TopologyResult(tuple(layers), expansion_of(layers))


def entry(model, h0, *, loss=None, h1=None, dataset="plays", vocab_size=100, n_tokens=900, weights=None, **options):
    info = ModelInfo(
        model, "folder", model, "X", "decoder", len(h0) - 1, 8, vocab_size, 10, 64, "causal", weights or model
    )
    metrics = None if loss is None else LanguageMetrics("perplexity", loss, float(np.exp(loss)), 0.5, 800)
    texts = TextSample(dataset, dataset, "test", "line", 0, 20, ("a",) * 20, f"sha of {dataset}")
    return Entry(
        model,
        dataset,
        info,
        texts,
        pooling="last",
        n_tokens=n_tokens,
        metrics=metrics,
        topology=topology(h0, h1, **options),
    )


def test_figures_are_over_the_blocks_only():
    (row,) = compare([entry("a", [10.0, 20.0, 60.0], h1=[1.0, 2.0, 4.0], loss=2.0)]).rows
    assert (row.n_points, row.n_blocks) == (20, 2)
    assert (row.expansion_raw, row.expansion_scale_free, row.peak_raw) == (6.0, 6.0, "layer_1")
    assert (row.mean_h0_total, row.mean_h0_over_scale) == (40.0, 20.0)
    assert (row.mean_h1_over_scale, row.total_h1) == (1.5, 6.0)
    assert (row.loss, row.perplexity, row.metric_kind) == (2.0, np.exp(2.0), "perplexity")


def test_what_was_not_computed_is_none():
    (row,) = compare([entry("a", [10.0, 20.0])]).rows
    assert (row.mean_h1_over_scale, row.total_h1, row.loss, row.perplexity) == (None, None, None, None)


def test_rankings_put_low_perplexity_and_high_topology_first():
    result = compare([entry("a", [1.0, 5.0], loss=3.0), entry("b", [1.0, 9.0], loss=2.0), entry("c", [1.0, 7.0])])
    rankings = {ranking.figure: ranking.rows for ranking in result.rankings}
    assert set(rankings) == {"perplexity", *TOPOLOGY_FIGURES}
    assert rankings["perplexity"] == (1, 0)
    assert rankings["expansion_raw"] == (1, 2, 0)
    assert rankings["total_h1"] == ()


def test_profiles_of_different_depths_share_a_grid():
    result = compare([entry("a", [0.0, 1.0, 2.0]), entry("b", [0.0, 0.5, 1.0, 1.5, 2.0], h1=[0.0, 1.0, 2.0, 3.0, 4.0])])
    profiles = {(profile.row, profile.figure): profile for profile in result.profiles}
    a, b = profiles[0, "h0_total"], profiles[1, "h0_total"]
    assert (a.layers, a.depth) == (("embedding", "layer_0", "layer_1"), (0.0, 0.5, 1.0))
    assert a.resampled == pytest.approx(np.linspace(0, 2, len(DEPTH_GRID)))
    assert b.resampled == pytest.approx(a.resampled)
    assert (0, "h1_over_scale") not in profiles
    assert profiles[1, "h1_over_scale"].values == (0.0, 0.5, 1.0, 1.5, 2.0)


def test_a_profile_says_nothing_where_nothing_was_measured():
    values = resample((0.5, 0.75), (1.0, 2.0))
    known = [at for at, value in zip(DEPTH_GRID, values, strict=True) if value is not None]
    assert (known[0], known[-1]) == (0.5, 0.75)


def test_depth_counts_the_blocks_of_the_model_not_the_analysed_ones():
    whole = entry("a", [1.0, 2.0, 3.0, 4.0, 5.0])
    part = TopologyResult(whole.topology.layers[2:3], whole.topology.expansion)
    profile = compare([Entry("a", "plays", whole.info, topology=part)]).profiles[0]
    assert (profile.layers, profile.depth) == (("layer_1",), (0.5,))


def test_one_model_on_two_data_sets_is_contrasted():
    first = entry("a", [10.0, 20.0, 40.0], loss=2.0)
    second = entry("a", [10.0, 50.0, 30.0], loss=3.0, dataset="news")
    (contrast,) = compare([first, second, entry("b", [1.0, 2.0])]).contrasts
    assert (contrast.model, contrast.first, contrast.second) == ("a", 0, 1)
    assert contrast.figures["expansion_raw"] == (4.0, 5.0, 1.25)
    assert contrast.figures["total_h1"] == (None, None, None)
    assert (contrast.largest_layer, contrast.largest_difference) == ("layer_0", 15.0)


LOSSES = [3.0, 2.5, 2.9, 2.0, 1.0, 1.5]
PEAKS = [2.0, 3.0, 5.0, 4.0, 9.0, 7.0]


def models(k=6, **options):
    return [entry(f"m{i}", [1.0, PEAKS[i]], h1=[1.0, 2.0], loss=LOSSES[i], **options) for i in range(k)]


def test_correlation_agrees_with_scipy_and_all_permutations():
    (group,) = compare(models()).groups
    found = {correlation.figure: correlation for correlation in group.correlations}
    raw = found["expansion_raw"]
    expected = spearmanr(PEAKS, LOSSES).statistic
    assert raw.rho == pytest.approx(expected, abs=1e-12)
    rhos = [spearmanr(PEAKS, order).statistic for order in permutations(LOSSES)]
    assert raw.p_value == np.mean([abs(rho) >= abs(expected) - 1e-9 for rho in rhos])
    assert (raw.n, raw.method, raw.against) == (6, "exact", "loss")
    tested = [c for c in group.correlations if c.p_value is not None]
    assert [c.p_holm for c in tested] == holm([c.p_value for c in tested])
    assert found["total_h1"].rho is None
    assert found["total_h1"].reason == "total_h1 is the same for all models"


def test_n_is_the_number_of_distinct_models_never_of_layers():
    duplicate = entry("copy of m0", [1.0, 2.5], h1=[1.0, 2.0], loss=2.9, weights="m0")
    (group,) = compare([*models(3), duplicate]).groups
    assert group.rows == (0, 1, 2)
    for correlation in group.correlations:
        assert (correlation.rho, correlation.p_value, correlation.p_holm) == (None, None, None)
        assert correlation.reason == "3 comparable models; at least 4 are needed"


@pytest.mark.parametrize("change", [{"vocab_size": 101}, {"n_tokens": 901}, {"dataset": "news"}])
def test_losses_over_other_tokens_or_texts_are_not_mixed(change):
    result = compare([*models(5), entry("other", [1.0, 3.0], h1=[1.0, 2.0], loss=0.5, **change)])
    assert [group.rows for group in result.groups] == [(0, 1, 2, 3, 4), (5,)]
    assert result.groups[0].correlations[0].n == 5
    assert any("comparable only between models with the same texts, tokens and vocabulary" in n for n in result.notes)


def test_without_losses_there_is_nothing_to_correlate():
    result = compare([entry("a", [1.0, 2.0])])
    assert result.groups == ()
    assert result.no_groups == "no entry has a measured loss"


def test_failed_entries_and_unlike_ones_are_named():
    result = compare(
        [
            Entry("broken", "plays", error="no such folder"),
            entry("a", [1.0, 2.0]),
            entry("b", [1.0, 2.0], n=30, metric="cosine"),
        ]
    )
    assert [row.model for row in result.rows] == ["a", "b"]
    assert result.notes[0] == "broken on plays is left out: no such folder"
    assert "different numbers of points (20, 30)" in result.notes[1]
    assert "different metrics (cosine, euclidean)" in result.notes[2]


@pytest.mark.parametrize("y", [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 3.0, 3.0], [5.0, 1.0, 4.0, 2.0, 2.0, 9.0]])
def test_exact_p_value_with_and_without_ties(y):
    x = list(np.random.default_rng(0).integers(0, 4, len(y)).astype(float))
    found = correlate("x", x, "y", y)
    expected = spearmanr(x, y).statistic
    rhos = [spearmanr(x, order).statistic for order in permutations(y)]
    assert found.rho == pytest.approx(expected, abs=1e-12)
    assert found.p_value == pytest.approx(np.mean([abs(rho) >= abs(expected) - 1e-9 for rho in rhos]), abs=1e-15)


def test_the_smallest_exact_p_value():
    assert correlate("x", range(5), "y", [10.0, 8.0, 6.0, 4.0, 2.0]).p_value == 2 / 120


def test_sampled_p_value_is_near_scipy_s_and_repeatable():
    rng = np.random.default_rng(1)
    x, y = list(rng.normal(size=30)), list(rng.normal(size=30))
    found = correlate("x", x, "y", y, seed=3)
    expected = spearmanr(x, y)
    assert (found.n, found.method) == (30, "monte-carlo")
    assert found.rho == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    assert found == correlate("x", x, "y", y, seed=3)
    assert correlate("x", list(range(30)), "y", list(range(30))).p_value == 1e-4


def test_models_without_the_figure_do_not_count():
    assert correlate("x", [1.0, None, 2.0, 3.0, None], "y", [1.0, 2.0, 3.0, 4.0, 5.0]).n == 3


def test_holm_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
