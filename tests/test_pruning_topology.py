"""`cohom prune --topology`: the shape of a model's states before and after, through the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from ripser import ripser

from cohomcli.__main__ import main
from cohomcli.data.sample import load_all_texts
from cohomcli.data.spec import DatasetSpec
from cohomcli.models.activations import collect
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadOptions
from cohomcli.runs.entries import load_run

FAST = ["--calibration-tokens", "512", "--eval-tokens", "512", "--block-size", "64", "--no-html", "--no-exactness"]
TEXTS = 40


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohomcli.jobs.prune_topology.TEXTS", TEXTS)


def _prune(capsys, folder: Path, *arguments: str) -> dict:
    capsys.readouterr()
    code = main(["prune", "-m", "tiny-gpt", *FAST, "--topology", *arguments, "--output-dir", str(folder), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_topology_before_and_after_is_reported_drawn_and_read_back(capsys, tmp_path: Path) -> None:
    document = _prune(capsys, tmp_path, "--method", "magnitude", "--pattern", "0.7")
    change, run = document["pruning"]["topology"], Path(document["run"])
    assert change["n_texts"] == TEXTS
    layers = {one["name"]: one for one in change["layers"]}
    assert list(layers) == ["embedding", *(f"layer_{at}" for at in range(6)), "final_norm"]
    # the embedding is not pruned; everything behind it moves, and both figures lie in (0, 1]
    assert layers["embedding"]["drift"] == layers["embedding"]["diagram_drift"] == 0.0
    assert all(0 < one[key] <= 1 for one in change["layers"][1:] for key in ("drift", "diagram_drift"))
    assert all(one["h0"][0] != one["h0"][1] for one in change["layers"][1:])
    # the dense column, by another library on states collected here (40 points have fewer than 50 components: no PCA)
    texts = load_all_texts(DatasetSpec("builtin", split="heldout"), TEXTS, 0).texts
    states = collect(load(resolve("tiny-gpt"), LoadOptions()), texts, ActivationOptions()).layers["layer_3"]
    h0, h1 = ripser(states.astype(np.float64), maxdim=1)["dgms"]
    deaths = h0[np.isfinite(h0[:, 1]), 1]
    assert layers["layer_3"]["h0"][0] == pytest.approx(deaths.sum(), rel=1e-4)
    assert layers["layer_3"]["h1"][0] == pytest.approx((h1[:, 1] - h1[:, 0]).sum(), rel=1e-3)
    assert load_run(run).entries[0].pruning.topology.layers[3].h0 == tuple(layers["layer_2"]["h0"])
    assert "Topology, dense" in (run / "report.md").read_text()
    assert list((run / "plots").glob("*pruning_topology.png"))


def test_layers_keep_their_names_when_blocks_go(capsys, tmp_path: Path) -> None:
    document = _prune(capsys, tmp_path, "--method", "influence", "--pattern", "blocks:0.34", "--no-plots")
    gone = document["pruning"]["blocks_gone"]
    names = [one["name"] for one in document["pruning"]["topology"]["layers"]]
    assert names == ["embedding", *(f"layer_{at}" for at in range(6) if at not in gone), "final_norm"]
    first = min(gone)  # blocks before the first that went compute what they did
    drifts = {one["name"]: one["drift"] for one in document["pruning"]["topology"]["layers"]}
    assert all(drifts[f"layer_{at}"] == 0 for at in range(first))
    assert drifts[f"layer_{next(at for at in range(first, 6) if at not in gone)}"] > 0


def test_nothing_pruned_changes_no_topology(capsys, tmp_path: Path) -> None:
    change = _prune(capsys, tmp_path, "--method", "wanda", "--pattern", "0", "--no-plots")["pruning"]["topology"]
    assert all(one["drift"] == one["diagram_drift"] == 0 for one in change["layers"])
    assert change["expansion"][0] == change["expansion"][1]
