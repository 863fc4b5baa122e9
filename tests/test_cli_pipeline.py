"""Whole pipelines with the command: train and gate, and revisions of a hub model compared in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hubserver import HubServer

from cohomcli.__main__ import main
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions

ROOT = Path(__file__).parents[1]
FAST = [
    "--samples",
    "24",
    "--no-plots",
    "--no-html",
    "--no-perplexity",
    "--null",
    "none",
    "--no-bands",
    "--track",
    "0",
    "--no-geometry",
    "--quiet",
]
TRAIN = [
    "--texts",
    "20",
    "--block-size",
    "32",
    "--warmup-steps",
    "0",
    "--set",
    "training.eval_texts=4",
    "--no-plots",
    "--no-html",
    "--quiet",
]


def trained(out: Path, *options: str) -> Path:
    """The final checkpoint of a short training of tiny-gpt."""
    assert main(["train", "-m", "tiny-gpt", *TRAIN, *options, "--output-dir", str(out)]) == 0
    results = json.loads((out / "latest" / "results.json").read_text())
    return (out / "latest").resolve() / results["training"]["checkpoint"]


def test_two_trained_checkpoints_and_the_gate_that_tells_them_apart(tmp_path: Path, monkeypatch, capsys) -> None:
    """What a pipeline does: train, compare with the released model, and go on only when the exit code is 0."""
    monkeypatch.setenv("COHOM_CACHE", str(tmp_path / "cache"))
    small = trained(tmp_path / "small", "--max-steps", "2", "--lr", "1e-5")
    large = trained(tmp_path / "large", "--max-steps", "25", "--lr", "3e-2")
    gate = ["--baseline", "tiny-gpt", *FAST, "--fail-on", "topology.layers.max_drift > 0.1"]
    drifts = []
    for checkpoint, code in ((small, 0), (large, 1)):
        out = tmp_path / f"compared-{code}"
        assert main(["compare", str(checkpoint), *gate, "--output-dir", str(out)]) == code
        drifts.append(json.loads((out / "latest" / "results.json").read_text())["topology"]["layers"]["max_drift"])
    assert drifts[0] < 0.01 < 0.1 < drifts[1]
    assert "topology.layers.max_drift is 0." in capsys.readouterr().err


@pytest.fixture
def hub_root(tmp_path: Path) -> Path:
    """Three revisions of one model, further and further from its first."""
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    torch.manual_seed(0)
    root = tmp_path / "hub"
    for at, place in enumerate(("models", "revisions/step1/models", "revisions/step20/models")):
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.add_(0.3 * at * parameter.std() * torch.randn_like(parameter))
        loaded.model.save_pretrained(root / place / "org" / "walk")
        loaded.tokenizer.save_pretrained(root / place / "org" / "walk")
    return root


def test_revisions_of_a_hub_model_are_compared_in_the_order_named(hub_root: Path, tmp_path: Path) -> None:
    flags = ["compare", "--checkpoints", "org/walk", "--revisions", "main,step1,step20", *FAST, "--json"]
    with HubServer(hub_root) as hub:
        closed = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        environment |= closed | {"NO_PROXY": "127.0.0.1", "COHOM_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-m", "cohomcli", *flags, "--output-dir", str(tmp_path / "out")],
            cwd=tmp_path, env=os.environ | environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        fetched = {exchange.path for exchange in hub.log if exchange.path.endswith("model.safetensors")}
    assert len(fetched) == 3
    document = json.loads(done.stdout)
    assert [entry["model"] for entry in document["models"]] == ["walk@main", "walk@step1", "walk@step20"]
    steps = document["comparison"]["drift"]["steps"]
    assert [(step["row"], step["against"]) for step in steps] == [(1, 0), (2, 1)]
    assert 0 < steps[0]["max_drift"] < document["comparison"]["drift"]["models"][1]["max_drift"]
    assert len({entry["model_info"]["weights_sha256"] for entry in document["models"]}) == 3
