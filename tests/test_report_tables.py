"""The CSV tables hold the dataclasses' numbers to the last bit, and nothing a spreadsheet would run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sampleresults import entry, failed_entry, hostile_entry, layer, noisy_circle, topology

from cohomcli.report.csvfile import guard
from cohomcli.report.tables import write_tables
from cohomcli.results import Entry


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tables(tmp_path: Path, *entries: Entry) -> dict[str, list[dict[str, str]]]:
    return {path.stem: read(path) for path in write_tables(entries, tmp_path)}


def test_layer_figures_are_exact(tmp_path: Path) -> None:
    item = entry(n_layers=5)
    rows = tables(tmp_path, item)["layers"]
    assert item.topology is not None
    for row, cloud in zip(rows, item.topology.layers, strict=True):
        assert (row["model"], row["dataset"], row["layer"]) == ("tiny-gpt", "builtin", cloud.name)
        for name in ("n_points", "n_distinct", "scale", "mean_norm", "explained_variance"):
            assert float(row[name]) == getattr(cloud, name)
        for summary in cloud.summaries:
            for name in ("count", "total_persistence", "max_lifetime", "entropy", "total_over_scale"):
                assert float(row[f"h{summary.dimension}_{name}"]) == getattr(summary, name)


def test_every_bar_and_every_betti_number_is_there(tmp_path: Path) -> None:
    item = entry(topology=topology([layer("layer_0", noisy_circle(30, 3, 0.05, 0), maxdim=2, threshold=1.0)]))
    written = tables(tmp_path, item)
    assert item.topology is not None
    (cloud,) = item.topology.layers
    for diagram in cloud.diagrams:
        rows = [row for row in written["diagrams"] if row["dimension"] == str(diagram.dimension)]
        finite = [(float(row["birth"]), float(row["death"])) for row in rows if row["kind"] == "finite"]
        assert np.array_equal(np.reshape(finite, (-1, 2)), diagram.pairs)
        alive = [row for row in rows if row["kind"] == "censored"]
        assert [float(row["birth"]) for row in alive] == diagram.censored.tolist()
        assert all(row["death"] == "" for row in alive)
    curves = [[int(r["betti"]) for r in written["betti"] if r["dimension"] == str(k)] for k in range(3)]
    assert np.array_equal(curves, cloud.betti.values)


def test_essential_classes_have_no_death(tmp_path: Path) -> None:
    rows = tables(tmp_path, entry(n_layers=3))["diagrams"]
    essential = [row for row in rows if row["kind"] == "essential"]
    assert [(row["dimension"], row["birth"], row["death"]) for row in essential] == [("0", "0.0", "")] * 3


def test_dimensions_may_differ_between_entries(tmp_path: Path) -> None:
    flat = entry("flat", topology=topology([layer("layer_0", noisy_circle(20, 3, 0.1, 0), maxdim=0)]))
    first, *rest = tables(tmp_path, flat, entry("full", n_layers=3))["layers"]
    assert first["h1_count"] == ""
    assert all(row["h1_count"] != "" for row in rest)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1", "\uff1d1"])
def test_formulas_are_disarmed(text: str) -> None:
    assert guard(text) == f"'{text}"


@pytest.mark.parametrize("text", ["layer_0", "", "a=b", "1-2", " ", "org/model"])
def test_plain_text_is_left_alone(text: str) -> None:
    assert guard(text) == text


def test_hostile_names_stay_in_their_cells(tmp_path: Path) -> None:
    item = hostile_entry()
    rows = tables(tmp_path, item)["layers"]
    assert item.topology is not None
    names = [cloud.name.encode("utf-8", "backslashreplace").decode() for cloud in item.topology.layers]
    assert [row["layer"].removeprefix("'") for row in rows] == names
    assert not [row for row in rows for cell in row.values() if cell.startswith(("=", "@"))]


def test_nothing_is_written_without_topology(tmp_path: Path) -> None:
    assert write_tables([failed_entry()], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
