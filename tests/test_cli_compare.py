"""`cohom compare` in a pipeline: baselines, checkpoints, gates and their exit codes, the files for CI servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
import yaml

from cohomcli.__main__ import main
from cohomcli.jobs.checkpoints import find_checkpoints, shared_tokenizer
from cohomcli.runs.activations import StoredActivations
from cohomcli.topology.drift import representation_drift
from cohomcli.topology.measures import MEASURES

ROOT = Path(__file__).parents[1]
FAST = ["--samples", "24", "--no-plots", "--no-html", "--no-perplexity", "--quiet"]
GATE = ["--fail-on", "topology.layers.max_drift > 0.1"]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COHOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of tiny-gpt in Hugging Face layout: as it is, after two small steps of SGD, after a collapse."""
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions

    folder = tmp_path_factory.mktemp("training")
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    model = loaded.model.requires_grad_(True)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(0)

    def save(name: str) -> None:
        model.save_pretrained(folder / name)
        loaded.tokenizer.save_pretrained(folder / name)

    save("checkpoint-9")
    batch = loaded.tokenizer(["To be, or not to be.", "All the world's a stage."], return_tensors="pt", padding=True)
    for _ in range(2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    save("checkpoint-11")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.std() * torch.randn_like(parameter))
    save("checkpoint-100")
    return folder


@pytest.fixture(scope="module")
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder for each checkpoint."""
    found = {}
    for checkpoint in sorted(trained.iterdir()):
        parent = tmp_path_factory.mktemp("runs")
        assert main(["tda", "-m", str(checkpoint), *FAST[:4], "--quiet", "--output-dir", str(parent)]) == 0
        found[checkpoint.name] = (parent / "latest").resolve()
    return found


def compare(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = main(["compare", *map(str, arguments), *FAST, "--output-dir", str(out), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_a_run_is_not_drifted_from_itself(runs, tmp_path: Path, capsys) -> None:
    same = runs["checkpoint-9"]
    code, document, _ = compare(
        capsys, tmp_path, same, "--baseline", same, "--fail-on", "topology.layers.max_drift > 0"
    )
    assert code == 0
    layers = document["topology"]["layers"]
    assert (layers["max_drift"], layers["mean_drift"]) == (0.0, 0.0)
    assert (layers["measure"], layers["measured_on"]) == ("cka-debiased", "activations")
    assert layers["baselines"] == ["checkpoint-9 (baseline)"]
    assert [entry["model"] for entry in document["models"]] == ["checkpoint-9 (baseline)", "checkpoint-9"]


def test_the_gate_trips_on_the_drifted_run_and_passes_the_other(runs, tmp_path: Path, capsys) -> None:
    base = runs["checkpoint-9"]
    code, near, err = compare(capsys, tmp_path, runs["checkpoint-11"], "--baseline", base, *GATE)
    assert (code, err) == (0, "")
    code, far, err = compare(capsys, tmp_path, runs["checkpoint-100"], "--baseline", base, *GATE)
    assert code == 1
    assert "topology.layers.max_drift is 0." in err
    assert near["topology"]["layers"]["max_drift"] < 0.01 < 0.1 < far["topology"]["layers"]["max_drift"]
    assert [gate["tripped"] for gate in far["gates"]] == [True]
    _, again, _ = compare(capsys, tmp_path, runs["checkpoint-100"], "--baseline", base, *GATE)
    assert len({Path(one["run"], "results.json").read_bytes() for one in (far, again)}) == 1
    stored = [json.loads((run / "results.json").read_text()) for run in (base, runs["checkpoint-100"])]
    x, y = (
        StoredActivations(next(run.rglob("activations.safetensors")), one["activations"]["sha256"])
        for run, one in zip((base, runs["checkpoint-100"]), stored, strict=True)
    )
    x.check()
    (model,) = far["comparison"]["drift"]["models"]
    for layer in model["layers"]:
        expected = representation_drift(y.layer(layer["layer"]), x.layer(layer["layer"]), MEASURES.get("cka-debiased"))
        assert layer["drift"] == expected
    assert [layer["layer"] for layer in model["layers"]] == [one["name"] for one in stored[0]["topology"]["layers"]]


def test_gates_are_repeatable_and_may_stand_in_the_configuration(runs, tmp_path: Path, capsys) -> None:
    config = tmp_path / "gates.yaml"
    gates = ["topology.layers.max_drift > 0.9", "topology.layers.mean_drift > 0.1"]
    config.write_text(yaml.safe_dump({"fail_on": gates, "compare": {"baseline": str(runs["checkpoint-9"])}}))
    code, document, _ = compare(capsys, tmp_path / "out", runs["checkpoint-100"], "-c", config)
    assert code == 1
    assert [gate["tripped"] for gate in document["gates"]] == [False, True]


@pytest.mark.parametrize(
    ("gate", "code", "says"),
    [
        ("topology.layers.max_drft > 0.1", 2, "did you mean topology.layers.max_drift"),
        ("topologie.layers.max_drift > 0.1", 2, "unknown metric"),
        ("metrics.perplexity > 1000", 1, "no 'metrics.perplexity'"),
        ("topology.layers.max_step > 0.1", 1, "is absent"),
    ],
)
def test_what_cannot_be_checked_never_passes(runs, tmp_path: Path, capsys, gate: str, code: int, says: str) -> None:
    arguments = [runs["checkpoint-11"], "--baseline", runs["checkpoint-9"], "--fail-on", gate]
    found, document, err = compare(capsys, tmp_path, *arguments)
    assert found == code
    assert says in err
    assert Path(document["run"], "results.json").is_file()


def test_runs_on_other_texts_have_no_drift_and_the_gate_says_why(runs, tmp_path: Path, capsys) -> None:
    arguments = ["tda", "-m", "tiny-gpt", *FAST[:4], "--quiet", "--seed", "9", "--output-dir", str(tmp_path)]
    assert main(arguments) == 0
    code, document, err = compare(
        capsys, tmp_path, (tmp_path / "latest").resolve(), "--baseline", runs["checkpoint-9"], *GATE
    )
    assert code == 1
    assert document["topology"]["layers"]["max_drift"] is None
    assert "is absent (not the same texts, pooled alike)" in err


def test_without_activations_a_gate_on_drift_asks_before_it_judges_diagrams(runs, tmp_path: Path, capsys) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(runs["checkpoint-100"], bare)
    next(bare.rglob("activations.safetensors")).unlink()
    arguments = [bare, "--baseline", runs["checkpoint-9"]]
    code, _, err = compare(capsys, tmp_path / "out", *arguments, *GATE)
    assert code == 3
    assert "--store-activations" in err
    code, document, _ = compare(capsys, tmp_path / "out", *arguments, *GATE, "--measure", "diagrams")
    layers = document["topology"]["layers"]
    assert layers["measured_on"] == "diagrams"
    assert code == int(layers["max_drift"] > 0.1)
    assert 0 < layers["max_drift"] <= 1
    code, _, err = compare(capsys, tmp_path / "out", *arguments, "--measure", "nts-e")
    assert code == 2
    assert "needs activations" in err


def test_activations_that_were_changed_are_refused(runs, tmp_path: Path, capsys) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(runs["checkpoint-9"], forged)
    path = next(forged.rglob("activations.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    code, _, err = compare(capsys, tmp_path / "out", forged, "--baseline", runs["checkpoint-9"])
    assert code == 3
    assert "is not what its run wrote" in err


def test_activations_are_kept_only_when_wanted(tmp_path: Path) -> None:
    arguments = ["tda", "-m", "tiny-gpt", *FAST[:4], "--quiet", "--output-dir", str(tmp_path)]
    assert main([*arguments, "--store-activations", "never"]) == 0
    assert not list((tmp_path / "latest").resolve().rglob("activations.safetensors"))
    assert "activations" not in json.loads((tmp_path / "latest" / "results.json").read_text())


def test_checkpoints_are_analysed_on_the_same_texts_in_order_of_step(trained: Path, tmp_path: Path, capsys) -> None:
    files = {"junit": tmp_path / "out.xml", "sarif": tmp_path / "out.sarif", "markdown": tmp_path / "out.md"}
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    code, document, _ = compare(capsys, tmp_path / "out", "--checkpoints", trained, *GATE, *flags)
    assert code == 1
    assert [entry["model"] for entry in document["models"]] == ["checkpoint-9", "checkpoint-11", "checkpoint-100"]
    assert len({entry["sample"]["sha256"] for entry in document["models"]}) == 1
    drift, flat = document["comparison"]["drift"], document["comparison"]["map"]
    assert [(model["row"], model["against"]) for model in drift["models"]] == [(1, 0), (2, 0)]
    assert [(step["row"], step["against"]) for step in drift["steps"]] == [(1, 0), (2, 1)]
    assert document["topology"]["layers"]["max_step"] == drift["steps"][1]["max_drift"]
    values = np.array(flat["values"])
    assert values[0, 1] < 0.01 < values[0, 2]
    assert len(flat["positions"]) == 3
    assert ET.fromstring(files["junit"].read_bytes()).get("failures") == "1"
    assert len(json.loads(files["sarif"].read_text())["runs"][0]["results"]) == 1
    assert "1 gate of 1 tripped" in files["markdown"].read_text()
    report = (Path(document["run"]) / "report.md").read_text()
    assert "### Drift from checkpoint to checkpoint" in report


def test_a_checkpoint_that_cannot_be_read_fails_the_command_after_the_others(trained: Path, tmp_path, capsys) -> None:
    folder = tmp_path / "training"
    for name in ("checkpoint-9", "checkpoint-11"):
        shutil.copytree(trained / name, folder / name)
    shutil.copytree(trained / "checkpoint-100", folder / "checkpoint-100")
    weights = next((folder / "checkpoint-100").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    code, document, _ = compare(capsys, tmp_path / "out", "--checkpoints", folder, *GATE)
    assert code == 3
    assert [entry["status"] for entry in document["models"]] == ["ok", "ok", "failed"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["checkpoint-100", "checkpoint-20", "checkpoint-3"], ["checkpoint-3", "checkpoint-20", "checkpoint-100"]),
        (["step_10", "step_9", "best"], ["step_9", "step_10"]),
        (["global_step2000", "global_step300"], ["global_step300", "global_step2000"]),
        (["epoch=2", "epoch=10", ".hidden-3"], ["epoch=2", "epoch=10"]),
        (["0002", "0010", "7"], ["0002", "7", "0010"]),
    ],
)
def test_steps_are_numbers_not_words(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "notes-5").mkdir()
    (tmp_path / "trainer_state-1.json").write_text("{}")
    assert [Path(one.reference).name for one in find_checkpoints(str(tmp_path))] == expected


def test_weight_files_are_checkpoints_and_the_folder_lends_its_tokenizer(tmp_path: Path) -> None:
    for name in ("model-20.safetensors", "model-3.safetensors"):
        (tmp_path / name).write_bytes(b"")
    found = find_checkpoints(str(tmp_path))
    assert [Path(one.reference).name for one in found] == ["model-3.safetensors", "model-20.safetensors"]
    assert shared_tokenizer(str(tmp_path), found) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert shared_tokenizer(str(tmp_path), found) == str(tmp_path)


def test_revisions_belong_to_a_model_and_keep_their_order() -> None:
    found = find_checkpoints("org/model", ["step3000", "step10", "step3000"])
    assert [(one.reference, one.revision, one.label) for one in found] == [
        ("org/model", "step3000", "model@step3000"),
        ("org/model", "step10", "model@step10"),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--checkpoints", "nowhere"], 3, "no folder of checkpoints"),
        (["--checkpoints", "."], 3, "holds 0 checkpoints"),
        (["--checkpoints", ".", "--revisions", "a,b"], 2, "not of a folder"),
        (["tiny-gpt", "--revisions", "a,b"], 2, "--checkpoints MODEL"),
        (["--baseline", "tiny-gpt"], 2, "nothing to compare with the baseline"),
        (["tiny-gpt", "--github-summary"], 2, "GITHUB_STEP_SUMMARY"),
        (["tiny-gpt", "--junit", "."], 2, "it is a folder"),
        (["tiny-gpt", "--fail-on", "drift"], 2, "cannot read the gate"),
    ],
)
def test_bad_wishes_are_one_line(
    tmp_path: Path, monkeypatch, capsys, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    found, document, err = compare(capsys, tmp_path / "out", *arguments)
    assert (found, document) == (code, {})
    assert says in err
    assert err.count("\n") == 1


def test_gates_of_other_commands_write_the_same_files(tmp_path: Path, monkeypatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    code = main([
        "tda", "-m", "tiny-gpt", *FAST[:4], "--quiet", "--output-dir", str(tmp_path / "out"), "--github-summary",
        "--junit", str(tmp_path / "new" / "out.xml"), "--fail-on", "topology.layers[*].n_points > 23",
    ])  # fmt: skip
    assert code == 1
    assert summary.read_text().startswith("before\n## cohom tda: 1 gate of 1 tripped")
    assert ET.parse(tmp_path / "new" / "out.xml").getroot().get("failures") == "1"


def github_script() -> tuple[str, dict[str, str]]:
    job = yaml.safe_load((ROOT / "docs/ci/github-actions.yml").read_text())["jobs"]["drift"]
    return "\n".join(step["run"] for step in job["steps"] if "run" in step), job["env"]


def gitlab_script() -> tuple[str, dict[str, str]]:
    job = yaml.safe_load((ROOT / "docs/ci/gitlab-ci.yml").read_text())["drift"]
    return "\n".join(job["script"]), job["variables"]


@pytest.mark.parametrize(
    ("script", "candidate", "of_runs", "code"),
    [(github_script, "checkpoint-100", False, 1), (gitlab_script, "checkpoint-11", True, 0)],
)
def test_the_pipelines_in_the_documentation_run(
    trained: Path, runs, tmp_path: Path, script, candidate: str, of_runs: bool, code: int
) -> None:
    """Their shell lines as they stand, with `pip` replaced by nothing, in an empty folder; of models and of runs."""
    lines, variables = script()
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pip").write_text("#!/bin/sh\ntest \"$*\" = 'install cohom'\n")
    (tools / "cohom").write_text(f'#!/bin/sh\nexec {sys.executable} -m cohomcli "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    base, new = ((runs if of_runs else {n: trained / n for n in runs})[name] for name in ("checkpoint-9", candidate))
    assert {"BASELINE", "CANDIDATE", "SAMPLES"} < variables.keys()
    values = variables | {"BASELINE": str(base), "CANDIDATE": str(new), "SAMPLES": "24"}
    environment = (
        os.environ
        | values
        | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GITHUB_STEP_SUMMARY": str(work / "summary.md"),
        }
    )
    command = ["bash", "-e", "-c", lines]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == code, done.stderr
    assert ET.parse(work / "drift.xml").getroot().get("failures") == str(code)
    shown = work / ("summary.md" if script is github_script else "drift.md")
    assert "Drift from checkpoint-9" in shown.read_text()


def test_runs_without_topology_are_no_runs_to_compare(tmp_path: Path, capsys) -> None:
    """A newer training or plan of the same model must not stand for its analysis."""
    out = ["--output-dir", str(tmp_path), "--quiet"]
    sketch = ["--no-baselines", "--no-plots", "--no-html", "--pareto", "0", "--probes", "2", "--survey", "0"]
    assert main(["precision", "-m", "tiny-gpt", *sketch, *out]) == 0
    plan = str((tmp_path / "latest").resolve())
    capsys.readouterr()
    assert main(["compare", plan, "tiny-bert", *out]) == 3
    assert "no topology to compare" in capsys.readouterr().err
    assert main(["compare", "tiny-gpt", "tiny-bert", *FAST[:4], "--no-perplexity", *out]) == 0
