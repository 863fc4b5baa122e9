"""The sentences of the report are true of the entry at hand, and say what the figures do not mean."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from ripser import ripser
from sampleresults import PERPLEXITY, entry, failed_entry, hostile_entry, layer, layers, noisy_circle, topology
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from cohomcli.report import facts, words
from cohomcli.results import Entry
from cohomcli.topology.results import Expansion, LayerTopology


def of(*clouds: LayerTopology, **changes: object) -> Entry:
    return entry(topology=topology(clouds), **changes)


def text(item: Entry) -> str:
    return " ".join([*words.seen(item), *words.limits(item)])


def test_the_quoted_null_example_is_true() -> None:
    cloud = np.random.RandomState(42).randn(75, 50)
    bars = ripser(cloud, maxdim=1)["dgms"][1]
    assert "75 points drawn from a Gaussian in 50 dimensions give 64" in text(entry())
    assert len(bars) == 64


def test_the_spanning_tree_sentence_is_true() -> None:
    cloud = noisy_circle(40, 5, 0.3, 0)
    tree = minimum_spanning_tree(squareform(pdist(cloud))).sum()
    assert "length of the shortest tree that connects the points" in text(entry())
    np.testing.assert_allclose(layer("layer_0", cloud).summaries[0].total_persistence, tree, rtol=1e-6)


def test_expansions_are_quoted_with_their_layers_and_factors() -> None:
    item = entry(n_layers=8)
    assert item.topology is not None
    seen = " ".join(words.seen(item))
    expansion = item.topology.expansion
    assert expansion.raw is not None
    assert f"{expansion.raw:.3g}".rstrip(".") in seen
    assert f"({expansion.peak_raw})" in seen
    assert f"({expansion.peak_scale_free})" in seen
    peak = next(cloud for cloud in item.topology.layers if cloud.name == expansion.peak_raw)
    start = item.topology.layers[0]
    product = (peak.scale / start.scale) * (peak.summaries[0].total_over_scale / start.summaries[0].total_over_scale)
    np.testing.assert_allclose(product, expansion.raw)
    assert "product of two changes from the embedding" in seen


def test_no_expansion_without_embedding() -> None:
    seen = text(of(*layers(8)[1:]))
    assert "No expansion ratio is given: there is no embedding layer." in seen
    assert "product of two changes" not in seen


def test_scale_free_ratio_may_be_missing_alone() -> None:
    item = entry()
    assert item.topology is not None
    half = replace(item, topology=replace(item.topology, expansion=Expansion(2.0, None, "layer_0", None)))
    assert "a scale-free ratio could not be formed" in text(half)


def test_metrics_that_ignore_scale_are_not_told_about_units() -> None:
    assert "units of the activations" in text(entry())
    cosine = text(of(*(replace(cloud, metric="cosine") for cloud in layers(5))))
    assert "units of the activations" not in cosine
    assert "Only the second is about shape" not in cosine


def test_one_layer() -> None:
    seen = text(of(layers(3)[1]))
    assert "One layer was analysed: layer_0." in seen
    assert "between" not in seen.split("Distances were taken")[0]
    assert "not independent samples" not in seen


def test_one_point() -> None:
    assert "One point has no shape" in text(of(layer("layer_0", np.zeros((1, 3)))))
    assert "1 text of builtin" in text(of(layer("layer_0", np.zeros((1, 3)))))


def test_coinciding_points() -> None:
    cloud = noisy_circle(20, 3, 0.2, 0)
    cloud[10:] = cloud[0]
    seen = text(of(layer("embedding", np.ones((20, 3))), layer("layer_0", cloud)))
    assert "All points coincide at embedding" in seen
    assert "layer_0 (10 distinct of 20)" in seen


def test_without_h1_nothing_is_said_about_loops() -> None:
    flat = text(of(*layers(3, maxdim=0)))
    assert "nothing is said about loops" in flat
    assert "evidence of loops" not in flat
    line = np.arange(6.0)[:, None]
    none = text(of(layer("embedding", line), layer("layer_0", 2 * line)))
    assert "H1, loops: no layer has a finite bar." in none
    assert "does not prove that the representation has no loop" in none


def test_classes_alive_at_the_threshold_are_told() -> None:
    seen = text(of(layer("layer_0", noisy_circle(60, 3, 0.05, 0), threshold=1.0)))
    assert re.search(r"Still alive where the filtration ended: 1 class of H0 and 1 class of H1", seen)


def test_pooling_projection_and_norm_are_told_only_where_they_apply() -> None:
    assert "With last-token pooling" in text(entry(pooling="last"))
    assert "3 texts were cut at the length limit" in text(entry(pooling="last"))
    assert "With [CLS] pooling" in text(entry(pooling="cls"))
    assert "Mean pooling" in text(entry(pooling="mean"))
    assert "principal components" in text(entry())
    assert "principal components" not in text(of(*(replace(c, ambient_dim=c.pca_dim) for c in layers(4))))
    assert "The final norm rescales" in text(entry())
    assert "The final norm rescales" not in text(of(*layers(4)[:-1]))


def test_perplexity_and_its_absence() -> None:
    assert "Perplexity on these texts: 50 (3.912 nats per token over 4,096 predictions)" in text(entry())
    pseudo = replace(PERPLEXITY, kind="pseudo-perplexity", standard_error=0.02)
    masked = text(entry(metrics=pseudo))
    assert "Pseudo-perplexity on these texts" in masked
    assert "± 0.02 standard error" in masked
    assert "Salazar et al. 2020" in masked
    assert "No perplexity is given: there is no head." in text(entry(metrics=None, metrics_reason="there is no head"))
    assert "erplexity" not in text(entry(metrics=None, metrics_reason=""))


def test_no_sentence_claims_significance() -> None:
    for item in (entry(n_layers=8), entry(n_layers=3), of(layers(3)[1])):
        assert not re.search(r"(?i)significan(t|ce)(?! nor)|genuine|clearly|proves that", text(item))


def test_entries_without_topology_still_speak() -> None:
    bare = entry(topology=None)
    assert words.seen(bare) == ["Perplexity on these texts: 50 (3.912 nats per token over 4,096 predictions); the next "
                                "token is the model's first guess 31.2 % of the time."]  # fmt: skip
    assert words.limits(bare) == []
    assert words.seen(failed_entry()) == []


def test_inventory_counts_sublayers() -> None:
    names = ["embedding", "layer_0.attention", "layer_0.mlp", "layer_0", "final_norm"]
    clouds = [replace(cloud, name=name) for cloud, name in zip(layers(5), names, strict=True)]
    expected = "5 layers were analysed: the embedding, 1 block, 1 attention output, 1 MLP output and the final norm."
    assert expected in text(of(*clouds))


def test_method_names_model_data_and_hashes() -> None:
    values = {fact.label: f"{fact.value} {fact.note}" for fact in facts.method(entry())}
    assert "ab" * 32 in values["weights SHA-256"]
    assert "cd" * 32 in values["texts SHA-256"]
    assert "40 texts drawn with seed 0 from 900 distinct ones" in values["texts"]
    assert "134,515,008" in values["parameters"]
    assert "8 components in 8 of 8 layers; 93 % of the variance kept" in values["PCA"]


def test_headline_shows_both_expansions_or_why_not() -> None:
    shown = {fact.label: fact for fact in facts.headline(entry())}
    assert {"raw H0 expansion", "scale-free H0 expansion", "perplexity"} <= shown.keys()
    missing = {fact.label: fact for fact in facts.headline(of(*layers(8)[1:]))}
    assert missing["raw H0 expansion"].note == "there is no embedding layer"


def test_hostile_names_come_out_on_one_line() -> None:
    for sentence in (*words.seen(hostile_entry()), *words.limits(hostile_entry())):
        assert "\n" not in sentence
        assert "\x1b" not in sentence
        sentence.encode("utf-8")
