"""p-values and confidence limits on their way to disk and into reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sampleresults import entry, layers, topology

from cohomcli.report.evidence import evidence_facts, limits_tables, p_columns, significance_sentence
from cohomcli.report.facts import headline
from cohomcli.report.plots_profile import draw_profile
from cohomcli.report.tables import write_tables
from cohomcli.report.words import limits, seen
from cohomcli.results import Entry
from cohomcli.runs.entries import entry_document, load_entry, save_entry
from cohomcli.runs.folder import RunFolder
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.results import EvidenceOptions, LayerEvidence, LayerTopology, TopologyOptions


def with_evidence(layer: LayerTopology, p: float, corrected: float) -> LayerTopology:
    """`layer` as if its H1 had been tested with these p-values."""
    h0, h1 = layer.summaries
    inside = {"total_over_scale": (0.5 * h1.total_over_scale, 2 * h1.total_over_scale)}
    tested = replace(
        h1, statistic=1.5, null_median=1.1, null_95=1.2, p_value=p, p_holm=1.0, p_joint=corrected, intervals=inside
    )
    return replace(layer, summaries=(h0, tested), evidence=LayerEvidence("rotation", 199, layer.n_points, 100))


def sample_entry(*pairs: tuple[float, float]) -> Entry:
    changed = [with_evidence(layer, *pair) for layer, pair in zip(layers(len(pairs)), pairs, strict=True)]
    return entry(topology=topology(changed))


def test_every_sentence_about_loops_carries_its_p_value() -> None:
    words = " ".join(seen(sample_entry((0.005, 0.01), (0.4, 0.9), (0.005, 0.03))))
    assert "2 of 3 layers have a loop beyond chance at 5% after correction for all tests" in words
    assert "embedding (p = 0.005, corrected 0.01)" in words
    assert "final_norm (p = 0.005, corrected 0.03)" in words
    assert "layer_0 (p" not in words


def test_no_significant_layer_is_said_with_the_smallest_p_value() -> None:
    words = " ".join(seen(sample_entry((0.2, 0.5), (0.04, 0.3))))
    assert "no layer is shown to have a loop beyond chance; the smallest p-value is 0.04 (final_norm)" in words
    assert "corrected for all tests 0.3" in words


def test_untested_entries_say_so_and_claim_nothing() -> None:
    plain = entry()
    assert "this run made none" in " ".join(limits(plain))
    assert "come without error bars" in " ".join(limits(plain))
    assert not any("p = " in sentence for sentence in seen(plain))
    assert significance_sentence(layers(3), 1) == ""
    assert p_columns(layers(3)) == ([], [(), (), ()])
    assert limits_tables(layers(3)) == []
    assert evidence_facts(layers(3)) == []


def test_headline_table_facts_and_limits_show_the_evidence() -> None:
    tested = sample_entry((0.005, 0.01), (0.4, 0.9))
    assert tested.topology is not None
    (longest,) = [fact for fact in headline(tested) if "longest" in fact.label]
    assert "p = " in longest.note
    columns, cells = p_columns(tested.topology.layers)
    assert [column.name for column in columns] == ["H1 p", "H1 p corr."]
    assert cells == [("0.005", "0.01"), ("0.4", "0.9")]
    assert [fact.label for fact in evidence_facts(tested.topology.layers)] == ["null model", "confidence limits"]
    (table,) = limits_tables(tested.topology.layers)
    assert " to " in table.rows[0][1]
    assert "95% limits" in " ".join(limits(tested))


def test_profile_draws_limits_of_the_layers_that_have_them() -> None:
    bare, tested = entry(n_layers=3), sample_entry((0.1, 0.2), (0.1, 0.2), (0.1, 0.2))
    assert bare.topology is not None
    assert tested.topology is not None
    bars = [
        sum(len(axes.collections) for axes in draw_profile("title", result).axes)
        for result in (bare.topology, tested.topology)
    ]
    assert bars[1] == bars[0] + 3  # H1 over scale, one per layer


def test_csv_tables_hold_p_values_and_limits(tmp_path: Path) -> None:
    write_tables([sample_entry((0.005, 0.01), (0.4, 0.9))], tmp_path)
    header, first = (tmp_path / "tables" / "layers.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert (row["h1_p_value"], row["h1_p_joint"], row["h0_p_value"]) == ("0.005", "0.01", "")
    lines = (tmp_path / "tables" / "limits.csv").read_text().splitlines()
    assert lines[0] == "model,dataset,layer,dimension,figure,value,low,high"
    assert len(lines) == 3


def test_evidence_survives_the_run_folder(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).standard_normal((30, 6)).astype(np.float32)
    options = TopologyOptions(evidence=EvidenceOptions(replicates=19, subsamples=20))
    before = entry(topology=analyze_layers({"embedding": cloud, "layer_0": cloud**3}, options))
    run = RunFolder.create(tmp_path, "tda", "tiny", ["cohom"], None)
    save_entry(run, before)
    after = load_entry(next(run.stage.glob("artifacts/*")))
    assert before.topology is not None
    assert after.topology is not None
    for a, b in zip(before.topology.layers, after.topology.layers, strict=True):
        assert a.summaries == b.summaries
        assert a.evidence == b.evidence
        assert a.betti.low is not None
        assert b.betti.low is not None
        assert np.array_equal(a.betti.low, b.betti.low)
    layer = entry_document(after)["topology"]["layers"][1]
    assert layer["h1"]["p_value"] == pytest.approx(before.topology.layers[1].summaries[1].p_value)
    assert layer["evidence"] == {"n_tested": 30, "null": "rotation", "replicates": 19, "subsamples": 20}


def test_untested_results_have_no_empty_keys() -> None:
    document = entry_document(entry())["topology"]["layers"][0]
    assert "evidence" not in document
    assert not {"p_value", "p_holm", "p_joint", "intervals", "statistic"} & set(document["h1"])
