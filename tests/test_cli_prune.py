"""`cohom prune` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from cohomcli.__main__ import main
from cohomcli.report.pruning.part import sweep_curve
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
        (["--pattern", "heads:0.5"], 3, "size of a head"),
        (["--pattern", "blocks:0.1"], 2, "is 0"),
        (["--pattern", "blocks:0.5", "--method", "admm"], 2, "does not prune"),
        (["--pattern", "mlp:0.5", "--allocation", "owl"], 2, "sparsity of its own"),
        (["--sweep", "1.0"], 2, "[0, 1)"),
        (["--sweep", "0.3", "--pattern", "2:4"], 2, "nothing to sweep"),
        (["--calibration-tokens", "64"], 3, "fewer than two blocks"),
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


def _refused(capsys, folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and the one line of an error that left nothing behind."""
    code, out, err = _run(capsys, "prune", *FAST, *arguments, "--output-dir", str(folder), "--quiet")
    assert out == ""
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert [path for path in folder.glob("*") if path.name != ".partial"] == []
    return code, err


def test_a_model_that_gives_nan_is_refused(capsys, tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=4096, n_embd=16, n_layer=2, n_head=2, n_positions=128, eos_token_id=0, bos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.fill_(1e38)  # overflows, and inf - inf follows
    model.save_pretrained(tmp_path / "model")
    arguments = ["-m", str(tmp_path / "model"), "--tokenizer", "tiny-gpt"]
    code, err = _refused(capsys, tmp_path / "out", *arguments)
    assert code == 4
    assert "nan" in err


def test_too_little_text_and_too_little_memory_are_refused(capsys, tmp_path: Path, monkeypatch) -> None:
    text = tmp_path / "short.jsonl"
    text.write_text('{"text": "Too short."}\n{"text": "Far too short."}\n')
    code, err = _refused(capsys, tmp_path / "out", "--calibration", str(text), "--split", "train")
    assert code in (2, 3)
    monkeypatch.setattr("cohomcli.pruning.forecast.available_bytes", lambda: 10_000)
    code, err = _refused(capsys, tmp_path / "out")
    assert code == 4
    assert "is free" in err


def test_blocks_go_exactness_is_reported_and_the_run_reads_back(capsys, tmp_path: Path) -> None:
    code, out, err = _run(
        capsys, "prune", "-m", "tiny-gpt", *FAST, "--pattern", "blocks:0.34", "--sweep", "0.17", "--output-dir",
        str(tmp_path), "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "CPU seconds" in err
    document = json.loads(out)
    pruning = document["pruning"]
    assert len(pruning["blocks_gone"]) == 2
    assert [len(pruning["exactness"][when]) for when in ("before", "after")] == [5, 3]
    assert all(0 <= one["kappa"] <= 1 and one["free_rank"] >= 0 for one in pruning["exactness"]["before"])
    folder = Path(document["run"])
    assert json.loads((folder / "model" / "config.json").read_text())["n_layer"] == 4
    (point,) = pruning["sweep"]
    assert (point["pattern"], point["sparsity"]) == ("blocks:0.17", 0.17)
    assert 0 < point["drift"] < pruning["drift"][-1]
    kept = load_run(folder).entries[0].pruning
    assert kept.blocks_gone == tuple(pruning["blocks_gone"])
    report = (folder / "report.md").read_text()
    assert "Exactness" in report
    assert "Sparsity and perplexity" in report
    assert [sparsity for sparsity, _, _ in sweep_curve(kept)] == [0.0, 0.17, pytest.approx(1 / 3)]


def test_the_curve_of_a_sweep_is_drawn(capsys, tmp_path: Path) -> None:
    code, out, err = _run(
        capsys, "prune", "-m", "tiny-gpt", *(flag for flag in FAST if flag != "--no-plots"), "--method", "wanda",
        "--sweep", "0.3", "--sweep", "0.7", "--no-exactness", "--output-dir", str(tmp_path), "--json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["pruning"]["exactness"] == {"before": [], "after": []}
    losses = [point["perplexity"][0] for point in document["pruning"]["sweep"]]
    assert losses[0] < document["pruning"]["perplexity"]["after"] < losses[1]
    assert list((Path(document["run"]) / "plots").glob("*pruning_sweep.png"))


def test_inspect_measures_exactness_on_request(capsys) -> None:
    code, out, err = _run(capsys, "inspect", "tiny-gpt", "--exactness", "--json", "--quiet")
    assert code == 0, err
    report = json.loads(out)["exactness"]
    assert [one["name"] for one in report["pairs"]] == [f"layer_{index}" for index in range(5)]
    assert report["n_tokens"] == 2048
    code, _, err = _run(capsys, "inspect", __file__.replace(".py", ".txt"), "--exactness")
    assert (code, "no model" in err) == (2, True)
