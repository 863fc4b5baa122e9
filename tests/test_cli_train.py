"""`cohom train` as a user meets it: a run folder, an exact resume after a kill, new architectures, clear refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cohomcli.__main__ import main
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions

FAST = [
    "--max-steps", "8", "--eval-steps", "4", "--save-steps", "2", "--texts", "60", "--block-size", "32",
    "--batch-size", "2", "--logging-steps", "1", "--warmup-steps", "2", "--set", "training.eval_texts=8",
    "--no-html", "--no-plots",
]  # fmt: skip
LONG = [*FAST, "--max-steps", "30", "--exact-weight", "0.1"]


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_training_writes_a_run_and_a_model_that_loads_anywhere(capsys, tmp_path: Path) -> None:
    code, out, err = _run(capsys, "train", *FAST[:-1], "--output-dir", str(tmp_path), "--json", "--quiet")
    assert code == 0, err
    document = json.loads(out)
    training = document["training"]
    assert (training["steps"], training["stopped"], training["checkpoint"]) == (8, "steps", "model")
    assert [record["step"] for record in training["history"]] == list(range(9))
    assert 0 < training["loss"] < training["initial_loss"] + 1
    assert len(training["samples"]) == 3
    run = Path(document["run"])
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000006", "step-000008"]
    lines = [json.loads(line) for line in (run / "artifacts/history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    trained = load(resolve(str(run / "model")), LoadOptions())
    last = load(resolve(str(run / "checkpoints/step-000008")), LoadOptions())
    assert trained.info.weights_sha256 == last.info.weights_sha256
    assert (run / "plots").exists()
    assert "What it writes" in (run / "report.md").read_text()
    # the same command again gives the same bytes
    code, out, _ = _run(capsys, "train", *FAST[:-1], "--output-dir", str(tmp_path), "--json", "--quiet")
    again = Path(json.loads(out)["run"])
    assert (again / "results.json").read_bytes() == (run / "results.json").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training that nobody interrupted."""
    out = tmp_path_factory.mktemp("unbroken")
    assert main(["train", *LONG, "--output-dir", str(out), "--quiet"]) == 0
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_resumes_to_the_same_model(capsys, tmp_path: Path, unbroken: Path, number: int) -> None:
    command = [sys.executable, "-m", "cohomcli", "train", *LONG, "--output-dir", str(tmp_path / "killed"), "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while not list((tmp_path / "killed").glob(".partial/*/checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [".partial"]
    code, _, err = _run(capsys, "train", "--resume", "latest", "--output-dir", str(tmp_path / "killed"), "--quiet")
    assert code == 0, err
    whole, resumed = (path / "latest" for path in (unbroken, tmp_path / "killed"))
    assert (whole / "results.json").read_bytes() == (resumed / "results.json").read_bytes()
    for name in ("model/model.safetensors", "artifacts/history.jsonl"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [
        ("{model_type: cohomological_transformer, hidden_size: 16, sequence_dim: 8}", "causal"),
        (
            "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
            "masked",
        ),
    ],
)
def test_a_new_model_is_built_from_its_configuration(capsys, tmp_path: Path, architecture: str, objective: str) -> None:
    code, out, err = _run(
        capsys, "train", *FAST, "--set", f"training.architecture={architecture}", "--objective", objective,
        "--spectral-weight", "0.1", "--output-dir", str(tmp_path), "--json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["model_info"]["lm_head"] == objective
    assert document["training"]["initial_loss"] == pytest.approx(torch.tensor(2048.0).log().item(), abs=0.5)
    assert all("spectral" in record["terms"] for record in document["training"]["history"][1:])
    model = str(Path(document["run"]) / "model")
    code, _, err = _run(
        capsys, "tda", "-m", model, "-n", "12", "--no-html", "--no-plots", "--output-dir", str(tmp_path), "--quiet"
    )
    assert code == 0, err


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "train", *FAST, "--dry-run", "--json", "--output-dir", str(tmp_path / "out"))
    assert code == 0
    document = json.loads(out)
    assert document["n_parameters"] == 892_416
    assert document["tokens_per_step"] == 64
    assert document["memory_bytes"] > 16 * document["n_parameters"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["-m", "tiny-gpt", "-m", "tiny-bert"], 2, "one model"),
        (["-m", "tiny-gpt", "--objective", "masked"], 2, "causal objective"),
        (["--block-size", "100000"], 2, "positions"),
        (["--set", "training.architecture={model_type: gpt3}"], 2, "unknown model_type"),
        (["--set", "training.architecture={model_type: gpt2, n_head: 7}"], 2, "no gpt2 model"),
        (["-d", "/nonexistent.txt"], 3, "no such file"),
        (
            ["--tokenizer", "tiny-bert", "--set", "training.architecture={model_type: gpt2, vocab_size: 9}"],
            2,
            "model knows 9",
        ),
        (["--resume", "nowhere"], 3, "no interrupted run"),
        (["--lr-scheduler-type", "step"], 2, "cosine"),
        (["--max-steps", "3", "--lr", "1e30", "--max-grad-norm", "0", "--warmup-steps", "0"], 4, "diverged"),
    ],
)
def test_what_cannot_be_trained_is_one_line_with_its_code(
    capsys, tmp_path: Path, arguments: list[str], code: int, fragment: str
) -> None:
    got, out, err = _run(capsys, "train", *FAST, *arguments, "--output-dir", str(tmp_path / "out"), "--quiet")
    assert (got, out) == (code, "")
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert fragment in err


def test_too_little_text_is_refused(capsys, tmp_path: Path) -> None:
    texts = tmp_path / "t.txt"
    texts.write_text("one short line\n\nand another\n")
    code, _, err = _run(capsys, "train", *FAST, "-d", str(texts), "--output-dir", str(tmp_path / "out"), "--quiet")
    assert code == 3
    assert "too few" in err
