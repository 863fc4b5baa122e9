"""`cohom prune` with low rank, several passes and recovery, as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from cohomcli.__main__ import main
from cohomcli.jobs import recover as recovery
from cohomcli.jobs.recover import recover
from cohomcli.pruning.lowrank import load_factored
from cohomcli.runs.entries import load_run

FAST = ["--calibration-tokens", "1024", "--eval-tokens", "1024", "--block-size", "64", "--no-html", "--no-plots"]
FAST += ["--no-exactness"]


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _pruned(capsys, folder: Path, *arguments: str) -> tuple[dict, Path]:
    code, out, err = _run(capsys, "prune", *FAST, *arguments, "--output-dir", str(folder), "--json")
    assert code == 0, err
    document = json.loads(out)
    return document, Path(document["run"])


def test_low_rank_gives_a_stock_model_and_its_factors(capsys, tmp_path: Path) -> None:
    document, run = _pruned(capsys, tmp_path, "--pattern", "rank:0.5", "--verify")
    pruning, folder = document["pruning"], run / "model"
    assert all(one["rank"] == {96: {288: 36, 96: 24, 384: 38}, 384: {96: 38}}[one["shape"][1]][one["shape"][0]]
               for one in pruning["maps"])  # fmt: skip
    assert pruning["sparsity"] == pytest.approx(0.5, abs=0.01)
    before, after = pruning["n_parameters"]
    assert before == after
    assert sum("equal bit for bit" in note for note in document["notes"]) == 1
    assert sum("factors were loaded" in note for note in document["notes"]) == 1
    assert not (folder / "masks.safetensors").exists()
    stock, thin = AutoModelForCausalLM.from_pretrained(folder).eval(), load_factored(folder)
    ids = torch.arange(20, 60)[None]
    torch.testing.assert_close(stock(input_ids=ids).logits, thin(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    count = sum(p.numel() for p in thin.parameters())
    assert pruning["factored"]["n_parameters"] == count < before
    assert pruning["factored"]["largest_difference"] < 1e-3
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["factored_prefill_cpu_seconds"] > 0
    assert len(manifest["prefill_cpu_seconds"]) == 2
    kept = load_run(run).entries[0].pruning
    assert kept.factored.n_parameters == count
    report = (run / "report.md").read_text()
    assert "neither smaller nor faster" in report
    assert f"{count:,}" in report
    recipe = json.loads((folder / "cohom_prune.json").read_text())
    assert recipe["result"]["factored"]["n_parameters"] == count


def test_recovery_of_zeros_lowers_perplexity_and_keeps_them(capsys, tmp_path: Path) -> None:
    arguments = ["--pattern", "0.7", "--method", "wanda", "--rounds", "2", "--recover", "12", "--recover-lr", "3e-4"]
    document, run = _pruned(capsys, tmp_path, *arguments)
    plain, _ = _pruned(capsys, tmp_path, "--pattern", "0.7", "--method", "wanda")
    pruning = document["pruning"]
    first, last = pruning["passes"]
    assert (first["pattern"], last["pattern"]) == ("0.6125", "0.7")
    assert first["sparsity"] < last["sparsity"] == plain["pruning"]["sparsity"] == pruning["sparsity"]
    quality = pruning["perplexity"]
    assert quality["after"] == last["recovered"][0] < quality["pruned"] == last["pruned"][0]
    assert quality["after"] < plain["pruning"]["perplexity"]["after"]  # held-out text, the same sparsity
    assert plain["pruning"]["perplexity"]["pruned"] is None
    assert pruning["recovery"] == {"steps": 12, "learning_rate": 3e-4, "n_tokens": 2 * 12 * 8 * 63}
    weights, masks = load_file(run / "model" / "model.safetensors"), load_file(run / "model" / "masks.safetensors")
    zeros = 0
    for name, bits in masks.items():
        stored = weights[f"transformer.h.{name.removeprefix('layer_')}.weight"]
        keep = np.unpackbits(bits, axis=1)[:, : stored.shape[1]].astype(bool)
        assert np.array_equal(keep, stored != 0)
        zeros += int((~keep).sum())
    total = sum(one["shape"][0] * one["shape"][1] for one in pruning["maps"])
    assert zeros / total == pytest.approx(pruning["sparsity"], abs=1e-6)
    assert load_run(run).entries[0].pruning.passes[1].recovered == tuple(last["recovered"])
    assert "Passes" in (run / "report.md").read_text()
    again, _ = _pruned(capsys, tmp_path, *arguments)
    assert again["pruning"] == pruning


def test_a_run_that_was_interrupted_between_passes_resumes_to_the_same_results(
    capsys, tmp_path: Path, monkeypatch
) -> None:
    arguments = ["--pattern", "0.7", "--method", "wanda", "--rounds", "2", "--recover", "2", "--recover-lr", "3e-4"]
    arguments += ["--calibration-tokens", "256", "--eval-tokens", "256"]
    calls: list[int] = []

    def stops_in_the_second_pass(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return recover(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "recover", stops_in_the_second_pass)
        code, out, err = _run(capsys, "prune", *FAST, *arguments, "--output-dir", str(tmp_path), "--quiet")
    assert (code, out) == (130, ""), err
    assert [path.name for path in tmp_path.iterdir()] == [".partial"]
    code, _, err = _run(capsys, "prune", "--resume", "latest", "--output-dir", str(tmp_path), "--quiet")
    assert code == 0, err
    resumed = (tmp_path / "latest").resolve()
    _, whole = _pruned(capsys, tmp_path, *arguments)
    for name in ("results.json", "model/model.safetensors", "model/masks.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("pattern", ["rank:0.6", "mlp:0.5"])
def test_recovery_of_what_is_smaller(capsys, tmp_path: Path, pattern: str) -> None:
    document, run = _pruned(
        capsys, tmp_path, "--pattern", pattern, "--recover", "12", "--recover-lr", "3e-4", "--verify"
    )
    quality = document["pruning"]["perplexity"]
    assert quality["after"] < quality["pruned"]
    stock = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    if pattern == "mlp:0.5":
        assert stock.config.n_inner == 192
        return
    weight = stock.transformer.h[0].mlp.c_fc.weight.double()
    rank = next(one["rank"] for one in document["pruning"]["maps"] if one["name"] == "layer_0.mlp.c_fc")
    assert int(torch.linalg.matrix_rank(weight, rtol=1e-5)) == rank  # trained, and still of that rank
    ids = torch.arange(20, 60)[None]
    thin = load_factored(run / "model")
    torch.testing.assert_close(stock(input_ids=ids).logits, thin(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--pattern", "rank:0.99"], "leaves no rank of layer_0.attn.c_attn"),
        (["--pattern", "rank:0"], "no map smaller"),
        (["--pattern", "rank:1"], "[0, 1)"),
        (["--pattern", "rank:0.5", "--method", "wanda"], "does not prune"),
        (["--pattern", "rank:0.5", "--sweep", "0.99"], "leaves no rank"),
        (["--method", "svdllm"], "does not prune 0.5"),
        (["--pattern", "2:4", "--rounds", "2"], "goes in one pass"),
        (["--pattern", "rank:0.5", "--rounds", "2"], "goes in one pass"),
        (["--rounds", "0"], "greater than or equal to 1"),
        (["--recover", "-1"], "greater than or equal to 0"),
        (["--recover", "5", "--recover-lr", "0"], "greater than 0"),
        (["--rounds", "2", "--allocation", "owl"], "owl"),
        (["--recover", "5", "--stream", "always"], "not with --stream"),
        (["--rounds", "2", "--stream", "always"], "not with --stream"),
        (["--pattern", "rank:0.5", "--stream", "always"], "cannot prune rank:0.5"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path: Path, arguments: list[str], fragment: str) -> None:
    code, out, err = _run(capsys, "prune", *FAST, *arguments, "--output-dir", str(tmp_path / "out"), "--quiet")
    assert (code, out) == (2, ""), err
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert not (tmp_path / "out").exists()


def test_a_recovery_that_diverges_or_does_not_fit_leaves_nothing(capsys, tmp_path: Path, monkeypatch) -> None:
    arguments = ["--method", "wanda", "--recover", "8", "--recover-lr", "1e30"]
    arguments += ["--quiet", "--output-dir", str(tmp_path)]
    code, out, err = _run(capsys, "prune", *FAST, *arguments)
    assert (code, out) == (4, "")
    assert "diverged" in err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("cohomcli.models.memory.available_bytes", lambda: 8_000_000)
    code, out, err = _run(capsys, "prune", *FAST, *arguments)
    assert (code, out) == (4, "")
    assert "--recover needs about" in err


def test_a_dry_run_names_the_passes_and_the_memory_of_recovery(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(
        capsys, "prune", *FAST, "--rounds", "2", "--recover", "5", "--dry-run", "--json", "--output-dir", str(tmp_path)
    )
    assert code == 0
    document = json.loads(out)
    assert document["passes"] == pytest.approx([0.4375, 0.5])
    assert document["recovery_memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
