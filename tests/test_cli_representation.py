"""Geometry, similarity, tracking and attention graphs as a user asks for them."""

import json
from pathlib import Path

import pytest

from cohomcli.__main__ import main
from cohomcli.runs.entries import load_run

FAST = ["--samples", "24", "--no-plots", "--no-html", "--max-length", "24"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHOM_CACHE", str(tmp_path_factory.getbasetemp() / "cohom-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _document(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> dict:
    capsys.readouterr()
    assert main(["tda", *FAST, *arguments, "--output-dir", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_asked_for_is_in_the_results_and_comes_back(capsys, tmp_path: Path) -> None:
    wishes = ["--similarity", "cka-debiased,rtd-lite", "--attention-topology", "2", "--track", "3"]
    document = _document(capsys, tmp_path, *wishes)
    layers = [layer["name"] for layer in document["topology"]["layers"]]
    found = document["representation"]
    assert [matrix["measure"] for matrix in found["similarity"]] == ["cka-debiased", "rtd-lite"]
    assert all(matrix["layers"] == layers for matrix in found["similarity"])
    assert [row[at] for at, row in enumerate(found["similarity"][1]["values"])] == [0.0] * len(layers)
    assert (found["tracking"]["neighbours"], found["tracking"]["layers"]) == (3, layers)
    n_heads = len(found["attention"]["heads"]) / document["model_info"]["n_layer"]
    assert (found["attention"]["n_texts"], n_heads) == (2, int(n_heads))
    geometry = document["topology"]["layers"][2]["geometry"]
    assert geometry["n_points"] == 24
    assert geometry["ph_dimension"] is None  # too few texts
    assert geometry["twonn"] > 0
    entry = load_run(Path(document["run"])).entries[0]
    assert entry.representation is not None
    assert entry.representation.attention is not None
    assert entry.topology is not None
    assert entry.topology.layers[2].geometry is not None
    assert entry.topology.layers[2].geometry.twonn == geometry["twonn"]
    assert {"estimated", "measured"} <= {claim["status"] for claim in document["claims"]}
    again = _document(capsys, tmp_path, *wishes)
    assert {**again, "run": ""} == {**document, "run": ""}


def test_nothing_is_computed_that_was_switched_off(capsys, tmp_path: Path) -> None:
    document = _document(capsys, tmp_path, "--no-geometry", "--track", "0")
    assert "representation" not in document
    assert not any("geometry" in layer for layer in document["topology"]["layers"])


def test_the_terminal_shows_geometry(capsys, tmp_path: Path) -> None:
    assert main(["tda", *FAST, "--similarity", "nts-e", "--quiet", "--output-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for words in ("TwoNN", "NTS-E, from layer to layer:", "neighbours kept from layer to layer:"):
        assert words in out


def test_an_unknown_measure_ends_the_command_before_anything_is_loaded(capsys, tmp_path: Path) -> None:
    assert main(["tda", *FAST, "--similarity", "cka,rtdlite", "--output-dir", str(tmp_path / "none")]) == 2
    assert "did you mean rtd-lite" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_geometry_can_be_gated(capsys, tmp_path: Path) -> None:
    gate = "topology.layers[*].geometry.mean_cosine > 1.5"
    assert main(["tda", *FAST, "--quiet", "--output-dir", str(tmp_path), "--fail-on", gate]) == 0
    assert main(["tda", *FAST, "--quiet", "--output-dir", str(tmp_path), "--fail-on", gate.replace("1.5", "-2")]) == 1
