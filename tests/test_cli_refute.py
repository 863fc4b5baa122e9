"""`cohom precision --refute` and `--certify-box` as a user meets them; every proved claim of a run verifies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flint")

from proofchecks import check_runs, verify_without_torch

from cohomcli.__main__ import main
from cohomcli.jobs import refute as job

FAST = ["--no-plots", "--no-html", "--no-baselines", "--pareto", "0", "--quiet", "--probes", "2", "--survey", "0"]
NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], Path]:
    code = main(["precision", *arguments, *FAST, "--output-dir", str(tmp_path)])
    folder = (tmp_path / "latest").resolve()
    return code, json.loads((folder / "results.json").read_text()), folder


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "net.py"
    file.write_text(NET)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    save_file(layers.state_dict(), tmp_path / "net.safetensors")
    return ["-m", str(tmp_path / "net.safetensors"), "--model-code", f"{file}:build", "--input-shape", "1x4"]


def test_every_proved_claim_of_a_text_model_has_a_certificate_that_verifies(tmp_path: Path) -> None:
    small = ["--calibration", "1", "--heldout", "1", "--length", "3", "--eps", "1e-3", "--formats", "fp32,bf16"]
    code, document, folder = run(tmp_path, *small, "--refute")
    assert code == 0
    claims = {(c["kind"], c["status"]): c for c in document["precision"]["claims"]}
    assert claims["witness", "proved"]["error"] > 1e-3
    assert claims["collision", "not found"]["certificate"] is None
    native = [c for c in document["precision"]["claims"] if c["kind"] == "witness" and "native" in c["text"]]
    assert [c["status"] for c in native] == ["proved"]
    proved = [c for c in document["claims"] if c["status"] == "proved"]
    bounds = [c for c in document["claims"] if c["status"] == "proved-in-model" and "certificate" in c]
    assert len(proved) >= 3
    assert len(bounds) == 1
    certified = {c["certificate"] for c in (*proved, *bounds)}
    assert {json.loads((folder / c).read_text())["kind"] for c in certified} >= {"witness", "optimality"}
    checked, wrong = check_runs(tmp_path)
    assert (checked, wrong) == (len(certified), [])
    report = (folder / "report.md").read_text()
    assert proved[0]["certificate"] in report


def test_a_feed_forward_net_is_bounded_on_a_box_and_refuted(net: list[str], tmp_path: Path) -> None:
    extra = ["--norm", "max-abs", "--eps", "1e-4", "--refute", "--certify-box", "0.1", "--formats", "fp32,bf16,fp16"]
    code, document, folder = run(tmp_path, *net, *extra)
    assert code == 0
    claims = document["precision"]["claims"]
    (box,) = [c for c in claims if c["kind"] == "box"]
    assert box["status"] == "proved"
    assert document["precision"]["measured_error"] < box["error"]
    assert any("certified over sampled" in c["text"] for c in document["claims"])
    assert {c["kind"] for c in claims if c["status"] == "proved"} >= {"box", "witness", "collision"}
    assert verify_without_torch("-q", str(folder)).returncode == 0


def test_a_plan_alone_has_its_bound_certified_and_so_has_the_absence_of_one(net: list[str], tmp_path: Path) -> None:
    """A dual bound where there is a plan, a Farkas-type bound where no plan can be predicted to meet epsilon."""
    code, document, folder = run(tmp_path, *net, "--eps", "1e-3", "--formats", "fp32,bf16")
    assert code == 0
    (bound,) = [c for c in document["claims"] if "costs less than" in c["text"]]
    assert json.loads((folder / bound["certificate"]).read_text())["kind"] == "optimality"
    code, document, folder = run(tmp_path, *net, "--eps", "1e-9", "--formats", "bf16,fp16")
    assert code == 4
    assert document["precision"]["infeasible"]
    (none,) = [c for c in document["claims"] if c["text"].startswith("no assignment of")]
    assert json.loads((folder / none["certificate"]).read_text())["kind"] == "optimality"
    assert check_runs(tmp_path) == (2, [])


def test_a_proof_that_was_altered_is_seen_without_torch(net: list[str], tmp_path: Path) -> None:
    _, document, folder = run(
        tmp_path, *net, "--eps", "1e-4", "--norm", "max-abs", "--formats", "fp32,bf16", "--refute"
    )
    certificate = folder / next(c["certificate"] for c in document["claims"] if c["status"] == "proved")
    whole = certificate.read_text()
    changed = json.loads(whole)
    changed["claim"]["epsilon"] = 0.125
    certificate.write_text(json.dumps(changed))
    (only,) = check_runs(tmp_path)[1]
    assert "rejected" in only
    certificate.write_text(whole)
    assert check_runs(tmp_path)[1] == []
    barred = verify_without_torch("--help")
    assert barred.returncode == 0


def test_what_cannot_be_proved_ends_in_a_note(net: list[str], tmp_path: Path) -> None:
    """On inputs of a million the layers leave the range of fp16: no bound, and the plan stands all the same."""
    code, document, _ = run(tmp_path, *net, "--certify-box", "1e6", "--formats", "fp32,fp16", "--eps", "1e-2")
    assert code == 0
    assert any("may leave the range of fp16" in note for note in document["precision"]["notes"])
    assert document["precision"]["claims"] == []


def test_proofs_without_flint_are_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    assert main(["precision", "--refute", *FAST, "--output-dir", str(tmp_path)]) == 2
    assert "cohom[prove]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
