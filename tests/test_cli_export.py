"""`cohom precision --export` as a user meets it: rows in results and report, files in the run folder, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cohomcli.__main__ import main
from cohomcli.jobs import export as job

FAST = ["--no-plots", "--no-html", "--no-baselines", "--pareto", "0", "--quiet", "--probes", "2", "--survey", "0"]
NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    from safetensors.torch import save_file

    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    save_file(layers.state_dict(), tmp_path / "net.safetensors")
    code = ["--model-code", f"{tmp_path / 'net.py'}:build", "--input-shape", "3x4"]
    return ["-m", str(tmp_path / "net.safetensors"), *code]


def test_exports_are_written_and_listed_and_what_cannot_be_says_why(net: list[str], tmp_path: Path) -> None:
    wanted = ["--export", "torch,torchao", "--export", "hf,bitsandbytes", "--export", "autocast"]
    code = main(["precision", *net, *wanted, "--eps", "1e-2", *FAST, "--output-dir", str(tmp_path / "runs")])
    assert code == 0
    folder = (tmp_path / "runs" / "latest").resolve()
    rows = {row["name"]: row for row in json.loads((folder / "results.json").read_text())["precision"]["exports"]}
    assert list(rows) == ["torch", "torchao", "hf", "bitsandbytes", "autocast"]
    for name, row in rows.items():
        assert bool(row["files"]) == (name != "hf")
        assert all((folder / file).is_file() for file in row["files"])
        assert all(f"/exports/{name}/" in file for file in row["files"])
    assert rows["hf"]["omits"].startswith("not written: Sequential is no transformers model")
    assert not list(folder.glob("artifacts/*/exports/hf"))
    assert "equal the emulated plan's in every bit" in rows["torch"]["check"]
    program = torch.export.load(folder / rows["torch"]["files"][0]).module()
    assert program(torch.zeros(3, 4)).shape == (3, 2)
    report = (folder / "report.md").read_text()
    assert "### Exports" in report
    assert rows["torch"]["files"][0] in report


@pytest.mark.parametrize(
    ("wanted", "line"),
    [("torch,onxx", "unknown export 'onxx'; did you mean onnx?"), ("modelopt", "install cohom[export]")],
)
def test_unknown_and_uninstalled_exports_end_before_a_model_is_loaded(
    wanted: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    assert main(["precision", "--export", wanted, *FAST, "--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())
