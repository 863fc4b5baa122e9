"""Geometry, similarity, tracking and attention on disk, in tables, figures and sentences."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blankfigures import leave_figures_blank
from sampleresults import HOSTILE_NAMES, entry, layers, topology

from cohomcli.report.build import ReportContext, build
from cohomcli.report.representation.draw import draw_attention, draw_geometry, draw_similarity, draw_tracking
from cohomcli.report.representation.heatmap import Heatmap, draw_heatmap
from cohomcli.report.representation.pictures import representation_pictures
from cohomcli.report.representation.tables import representation_tables
from cohomcli.report.representation.words import representation_glossary, representation_limits, representation_seen
from cohomcli.report.style import Frame, identity, new_figure
from cohomcli.results import Entry
from cohomcli.runs.files import to_json
from cohomcli.runs.representation import read_representation, representation_document
from cohomcli.topology.attention import attention_topology
from cohomcli.topology.geometry import geometry_of
from cohomcli.topology.representation import (
    RepresentationOptions,
    RepresentationResult,
    analyze_representation,
    check_measures,
)

NAMES = ("embedding", "layer_0", "layer_1", "final_norm")
CONTEXT = ReportContext("tda", ("cohom", "tda"), "0", "title")


def _activations(names: tuple[str, ...] = NAMES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 12))
    return {name: (x := x + 0.4 * rng.normal(size=x.shape)) for name in names}


def _result(names: tuple[str, ...] = NAMES) -> RepresentationResult:
    options = RepresentationOptions(("cka", "rtd-lite"), 5)
    result = analyze_representation(_activations(names), options)
    weights = np.random.default_rng(1).dirichlet(np.ones(9), size=(2, 9))
    return replace(result, attention=attention_topology([{"layer_0": weights, "layer_1": weights[::-1]}]))


@pytest.fixture(scope="module")
def full() -> Entry:
    return _entry(NAMES)


def _entry(names: tuple[str, ...]) -> Entry:
    activations = _activations()
    shown = [
        replace(layer, name=name, geometry=geometry_of(activations[plain]))
        for layer, name, plain in zip(layers(4), names, NAMES, strict=True)
    ]
    result = _result()
    renamed = dict(zip(NAMES, names, strict=True))
    matrices = tuple(replace(m, layers=tuple(renamed[n] for n in m.layers)) for m in result.similarity)
    assert result.tracking is not None
    tracking = replace(result.tracking, layers=tuple(renamed[n] for n in result.tracking.layers))
    base = replace(entry(), topology=topology(shown))
    return replace(base, representation=replace(result, similarity=matrices, tracking=tracking))


def test_a_result_comes_back_from_json_as_it_was() -> None:
    result = _result()
    document = json.loads(to_json(representation_document(result)))
    assert set(document) == {"similarity", "tracking", "attention"}
    assert read_representation(document) == result
    assert read_representation({}) == RepresentationResult()
    assert representation_document(RepresentationResult()) == {}


def test_values_that_are_not_defined_are_null() -> None:
    flat = {"a": np.ones((9, 3)), "b": np.random.default_rng(0).normal(size=(9, 3))}
    result = analyze_representation(flat, RepresentationOptions(("cka", "nts-e")))
    assert result.similarity[0].values == ((None, None), (None, pytest.approx(1.0)))
    assert "NaN" not in to_json(representation_document(result))


def test_only_what_was_asked_for_is_there() -> None:
    assert analyze_representation(_activations(), RepresentationOptions()) == RepresentationResult()
    assert analyze_representation({}, RepresentationOptions(("cka",), 5)) == RepresentationResult()


def test_tracking_follows_the_residual_stream_alone() -> None:
    names = ("embedding", "layer_0.attention", "layer_0.mlp", "layer_0", "final_norm")
    result = analyze_representation(_activations(names), RepresentationOptions((), 5))
    assert result.tracking is not None
    assert result.tracking.layers == ("embedding", "layer_0", "final_norm")
    both = ("encoder.embedding", "encoder.layer_0", "decoder.embedding", "decoder.layer_0")
    result = analyze_representation(_activations(both), RepresentationOptions((), 5))
    assert result.tracking is not None
    assert result.tracking.layers == ("encoder.embedding", "encoder.layer_0")


def test_unknown_and_repeated_measures_are_refused() -> None:
    with pytest.raises(Exception, match="did you mean rtd-lite"):
        check_measures(["rtdlite"])
    with pytest.raises(Exception, match="named twice"):
        check_measures(["cka", "cka"])


def test_memory_is_forecast() -> None:
    with pytest.raises(Exception, match=r"4 layers of 90 texts needs about .* GiB"):
        analyze_representation(_activations(), RepresentationOptions(("rtd",), available_bytes=10**6))


def test_tables_hold_every_layer_and_head(full: Entry) -> None:
    geometry, tracking, attention = representation_tables(full)
    assert [row[0] for row in geometry.rows] == list(NAMES) == [row[0] for row in tracking.rows]
    assert [row[:2] for row in attention.rows] == [("layer_0", "2"), ("layer_1", "2")]
    for table in (geometry, tracking, attention):
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert tracking.rows[-1][-1] == "\N{EN DASH}"  # nothing comes after the last layer
    assert representation_tables(entry()) == []


def test_csv_files_hold_full_precision(full: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_blank(monkeypatch)
    build([full], None, tmp_path, CONTEXT)
    read = {
        name: list(csv.DictReader((tmp_path / "tables" / f"{name}.csv").open(encoding="utf-8")))
        for name in ("geometry", "similarity", "tracking", "attention")
    }
    assert full.topology is not None
    assert full.representation is not None
    assert full.representation.attention is not None
    assert full.topology.layers[1].geometry is not None
    assert float(read["geometry"][1]["twonn"]) == full.topology.layers[1].geometry.twonn
    assert float(read["similarity"][1]["value"]) == full.representation.similarity[0].values[0][1]
    assert len(read["similarity"]) == 2 * 16
    assert [row["neighbours_kept"] == "" for row in read["tracking"]] == [False, False, False, True] * 2
    heads = full.representation.attention.heads
    assert [float(row["h1_total"]) for row in read["attention"]] == [head.h1.total for head in heads]
    assert float(read["attention"][2]["edges_0.05"]) == heads[2].graph[1].edges


def test_the_report_shows_all_of_it(full: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_blank(monkeypatch)
    build([full], None, tmp_path, CONTEXT)
    page, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for heading in ("Geometry", "Tracked over the layers", "Attention graphs", "Similarity between layers"):
        assert heading in page
        assert heading in text
    for name in ("geometry", "similarity", "tracking", "attention"):
        assert (tmp_path / "plots" / f"{name}.png").exists()


def test_hostile_layer_names_stay_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_blank(monkeypatch)
    hostile = _entry(HOSTILE_NAMES[:4])
    build([hostile], None, tmp_path, CONTEXT)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=http" not in page
    with identity():
        for picture in representation_pictures(hostile, ""):
            picture.draw()


def test_figures_are_drawn_with_one_panel_per_measure(full: Entry) -> None:
    assert full.topology is not None
    result = full.representation
    assert result is not None
    assert result.tracking is not None
    assert result.attention is not None
    with identity():
        assert len(draw_geometry("t", full.topology).axes) == 4
        similarity = draw_similarity("t", result.similarity)
        assert [axes.get_title(loc="left") for axes in similarity.axes[:2]] == [
            "linear CKA (similarity)", "RTD-lite (divergence)"
        ]  # fmt: skip
        assert [t.get_text() for t in similarity.axes[0].get_xticklabels()] == ["emb", "0", "1", "norm"]
        assert len(draw_tracking("t", result.tracking).axes) >= 3
        assert len(draw_attention("t", result.attention).axes) >= 4


def test_bright_is_alike_for_both_kinds(full: Entry) -> None:
    """The diagonal, where a layer meets itself, has the brightest colour of either map."""
    assert full.representation is not None
    with identity():
        figure = draw_similarity("t", full.representation.similarity)
        for axes in figure.axes[:2]:
            image = axes.get_images()[0]
            colours = image.cmap(image.norm(image.get_array())).sum(axis=2)
            assert np.argmax(colours[1]) == 1


def test_a_constant_or_empty_heatmap_has_a_scale() -> None:
    with identity():
        _, axes = new_figure("t", (1, 2), (2.0, 2.0), Frame())
        for panel, value in zip(axes, (3.0, np.nan), strict=True):
            draw_heatmap(panel, Heatmap("t", np.full((2, 2), value), [(0, "a")], [(0, "b")]))
            low, high = panel.get_images()[0].get_clim()
            assert low < high


def test_sentences_name_the_break_and_say_what_is_not_meant(full: Entry) -> None:
    seen, limits = representation_seen(full), representation_limits(full)
    assert any(sentence.startswith("Intrinsic dimension (TwoNN): from ") for sentence in seen)
    assert sum("the least alike by" in sentence for sentence in seen) == 2
    assert any("nearest neighbours from one layer to the next" in sentence for sentence in seen)
    assert any("Plain CKA" in sentence for sentence in limits)
    assert any("what it passes on" in sentence for sentence in limits)
    assert representation_seen(entry()) == [] == representation_limits(entry())


def test_words_are_explained_where_they_are_used(full: Entry) -> None:
    labels = {fact.label for fact in representation_glossary([full])}
    assert {"intrinsic dimension", "hubness", "linear CKA", "RTD-lite", "attention graph"} <= labels
    assert representation_glossary([entry()]) == []
