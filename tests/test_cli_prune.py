"""`cohom prune` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cohomcli.__main__ import main
from cohomcli.runs.entries import load_run

FAST = ["--calibration-tokens", "1024", "--eval-tokens", "1024", "--block-size", "64", "--no-html", "--no-plots"]


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_pruning_saves_a_model_its_masks_and_its_recipe(capsys, tmp_path: Path) -> None:
    texts = tmp_path / "other.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"Item {k}: the price of {k} loaves is {3 * k}."}) + "\n" for k in range(90))
    )
    code, out, err = _run(
        capsys, "prune", "-m", "tiny-gpt", *FAST, "--eval", str(texts), "--output-dir", str(tmp_path / "out"), "--json",
        "--quiet", "--fail-on", "pruning.perplexity.after > 1e6",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    pruning = document["pruning"]
    assert (pruning["method"], pruning["pattern"], pruning["sparsity"]) == ("chain", "0.5", 0.5)
    assert [one["domain"] for one in pruning["evaluations"]] == ["in", "out"]
    assert 1 < pruning["perplexity"]["before"] < pruning["perplexity"]["after"] < 200
    folder = Path(document["run"]) / "model"
    weights, masks = load_file(folder / "model.safetensors"), load_file(folder / "masks.safetensors")
    assert len(masks) == 24
    stored = weights["transformer.h.0.mlp.c_fc.weight"]
    mask = np.unpackbits(masks["layer_0.mlp.c_fc"], axis=1)[:, : stored.shape[1]]
    assert np.array_equal(mask.astype(bool), stored != 0)
    recipe = json.loads((folder / "cohom_prune.json").read_text())
    assert recipe["parent"]["weights_sha256"] == document["model_info"]["weights_sha256"]
    assert recipe["result"]["sparsity"] == 0.5
    assert load_run(Path(document["run"])).entries[0].pruning.drift == tuple(pruning["drift"])
    assert (Path(document["run"]) / "report.md").read_text().count("Perplexity") >= 1


def test_channels_really_go_and_the_result_is_verified_elsewhere(capsys, tmp_path: Path) -> None:
    code, out, err = _run(
        capsys, "prune", "-m", "tiny-bert", *FAST, "--pattern", "mlp:0.25", "--verify", "--output-dir", str(tmp_path),
        "--json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    before, after = document["pruning"]["n_parameters"]
    assert before - after == 6 * (2 * 96 + 1) * 96  # a quarter of 384 channels in six blocks, with their biases
    assert any("equal bit for bit" in note for note in document["notes"])
    config = json.loads((Path(document["run"]) / "model" / "config.json").read_text())
    assert config["intermediate_size"] == 288


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--pattern", "1.5"], 2, "[0, 1)"),
        (["--pattern", "3:7"], 2, "does not divide"),
        (["--method", "wander"], 2, "wanda"),
        (["--lambda", "2"], 2, "[0, 1]"),
        (["-m", "nowhere/nothing"], 3, "nowhere"),
        (["--calibration", "/nonexistent.txt"], 3, "no such file"),
        (["--block-size", "100000"], 2, "positions"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    capsys, tmp_path: Path, monkeypatch, arguments: list[str], code: int, fragment: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got, out, err = _run(capsys, "prune", *FAST, *arguments, "--output-dir", str(tmp_path / "out"), "--quiet")
    assert (got, out) == (code, "")
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    published = [path for path in (tmp_path / "out").glob("*") if path.name != ".partial"]
    assert published == []


def test_a_dry_run_writes_nothing(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "prune", *FAST, "--dry-run", "--json", "--output-dir", str(tmp_path / "out"))
    assert code == 0
    assert json.loads(out)["calibration_tokens"] == 1024
    assert not (tmp_path / "out").exists()
