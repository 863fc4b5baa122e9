"""`cohom train --ablate` as a user meets it: a plan, a run that can be interrupted, tables and words, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cohomcli.__main__ import main
from cohomcli.config import resolve
from cohomcli.jobs.ablate import _plan
from cohomcli.runs.entries import load_run
from cohomcli.training.ablation import final_cells, tuning_cells

MODEL = "{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
FAST = [
    "train", "--ablate", "--ablate-task", "modular", "--max-steps", "3", "--batch-size", "8", "--warmup-steps", "1",
    "--arms", "none,ours,placebo,compute", "--seeds", "2", "--save-steps", "0", "--no-html",
    "--set", "ablation.options={modulus: 5, train_share: 0.6}", "--set", "ablation.weights=0.1",
    "--set", "ablation.tune_seeds=1", "--set", "ablation.compute_ratio=1.5", "--set", f"training.architecture={MODEL}",
]  # fmt: skip


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_ablation_that_runs_out_of_time_goes_on_to_the_same_bytes(capsys, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, out, err = _run(capsys, *FAST, "--output-dir", str(whole), "--json", "--quiet")
    assert code == 0, err
    document = json.loads(out)
    code, _, err = _run(capsys, *FAST, "--output-dir", str(parts), "--max-time", "1e-9", "--quiet")
    assert code == 4
    assert "the time is up after 1 of 10 runs" in err
    cells = next(parts.glob(".partial/*/artifacts/cells"))
    assert [path.name for path in cells.iterdir()] == ["tune-ours-w0.1-s1000.json"]
    written = cells.joinpath("tune-ours-w0.1-s1000.json").stat().st_mtime_ns
    config = cells.parents[1] / "config.yaml"
    config.write_text(config.read_text().replace("max_time: 1.0e-09", "max_time: null"))
    code, out, err = _run(capsys, "train", "--resume", "latest", "--output-dir", str(parts), "--quiet")
    assert code == 0, err
    for name in ("results.json", "plots/ablation.png"):
        assert (whole / "latest" / name).read_bytes() == (parts / "latest" / name).read_bytes()
    again = parts / "latest/artifacts/cells"
    assert again.joinpath("tune-ours-w0.1-s1000.json").stat().st_mtime_ns == written
    assert len(list(again.iterdir())) == 10
    assert not (parts / "latest/running").exists()
    training = document["training"]
    assert [row["arm"] for row in training["ablation"]] == ["none", "ours", "placebo", "compute"]
    assert [row["steps"] for row in training["ablation"]] == [3, 3, 3, 4]
    assert {row["verdict"] for row in training["ablation"]} <= {"reference", "no evidence"}  # two seeds prove nothing
    assert {(c["arm"], c["against"]) for c in training["comparisons"]} >= {("ours", "placebo"), ("ours", "compute")}
    report = (parts / "latest/report.md").read_text()
    assert "Arms on the test split" in report
    assert "no evidence" in report
    entry = load_run(parts / "latest").entries[0]
    assert entry.ablation is not None
    assert entry.ablation.compute_ratio == 1.5
    assert [arm.mean for arm in entry.ablation.arms] == [row["mean"] for row in training["ablation"]]
    assert "ours against placebo" in out


def test_a_dry_run_names_every_run_and_forecasts_the_time(capsys, tmp_path: Path) -> None:
    code, out, err = _run(capsys, *FAST, "--dry-run", "--json", "--output-dir", str(tmp_path / "out"))
    assert code == 0, err
    plan = json.loads(out)
    assert len(plan["cells"]) == 10
    assert plan["cells"]["001"] == "tune-ours-w0.1-s1000"
    assert plan["steps"] == {"none": 3, "ours": 3, "placebo": 3, "compute": 4}
    assert 0 < plan["forecast_cpu_seconds"] < 600
    assert not (tmp_path / "out").exists()


def test_the_built_in_text_is_a_task(capsys, tmp_path: Path) -> None:
    arguments = [
        "train", "--ablate", "--max-steps", "2", "--batch-size", "2", "--block-size", "16", "--warmup-steps", "1",
        "--texts", "60", "--arms", "none,literal", "--seeds", "2", "--save-steps", "0", "--no-html", "--no-plots",
        "--set", "training.eval_texts=4", "--set", "ablation.weights=0.1", "--set", "ablation.tune_seeds=1",
    ]  # fmt: skip
    code, out, err = _run(capsys, *arguments, "--output-dir", str(tmp_path), "--json", "--quiet")
    assert code == 0, err
    training = json.loads(out)["training"]
    assert (training["metric"], training["task"]) == ("loss", "text")
    assert 3 < training["ablation"][0]["mean"] < 6  # tiny-gpt on plays that it has not seen
    assert len(set(training["ablation"][0]["values"])) == 2


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--arms", "none,hours"], "did you mean ours"),
        (["--arms", "ours,placebo"], "none"),
        (["--set", "ablation.weights=-1"], "positive"),
        (["--set", "ablation.options={modulo: 5}"], "did you mean modulus"),
        (["--set", "ablation.options={modulus: many}"], "must be of type int"),
        (["--ablate-task", "chess"], "scan"),
        (["--exact-weight", "0.1"], "chooses the weights itself"),
        (["--patience", "2"], "patience"),
        (["--objective", "masked"], "causal"),
        (["--set", "training.architecture={model_type: gpt2, n_head: 7}"], "no gpt2 model"),
    ],
)
def test_what_cannot_be_compared_is_one_line(capsys, tmp_path: Path, arguments: list[str], fragment: str) -> None:
    code, out, err = _run(capsys, *FAST, *arguments, "--output-dir", str(tmp_path / "out"), "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert not (tmp_path / "out").exists()


CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("ablate-*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_have_all_arms_five_seeds_and_equal_budgets(path: Path) -> None:
    config = resolve(path, environ={})
    plan = _plan(config, 1.2)
    assert set(plan.arms) == {"none", "ours", "literal", "placebo", "vicreg", "orthogonal", "compute"}
    assert len(plan.seeds) >= 5
    assert len(tuning_cells(plan)) == 5 * len(plan.weights) * len(plan.tune_seeds)
    assert len(final_cells(plan, {})) == 7 * len(plan.seeds)
    assert str(path.relative_to(path.parent.parent)) in path.read_text().splitlines()[0]


def test_the_tasks_that_were_promised_have_a_configuration() -> None:
    tasks = {resolve(path, environ={}).ablation.task for path in CONFIGS}
    assert tasks == {"text", "scan", "listops", "modular", "digits"}
