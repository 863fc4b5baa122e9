"""`cohom circuits`, `cohom prune --protect` and `cohom train --mask` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import inductionmodel
import numpy as np
import pytest
from safetensors.numpy import load_file

from cohomcli.__main__ import main
from cohomcli.runs.circuits import read_circuit_file
from cohomcli.runs.entries import load_run

FAST = ["--task", "induction", "--pairs", "16", "--check", "6", "--quiet"]
PRUNE = ["--calibration-tokens", "384", "--eval-tokens", "384", "--block-size", "24", "--no-html", "--no-plots"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inductionmodel.saved(tmp_path_factory.mktemp("model") / "induction")


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_circuit_is_found_written_and_read_back(capsys, tmp_path: Path, folder: Path) -> None:
    arguments = ["circuits", "-m", str(folder), *FAST, "--output-dir", str(tmp_path), "--json"]
    code, out, err = _run(capsys, *arguments, "--fail-on", "circuits.faithfulness < 0.9")
    assert code == 0, err
    document = json.loads(out)
    found = document["circuits"]
    assert found["circuit"] == [inductionmodel.PREVIOUS, inductionmodel.INDUCTION]
    assert found["options"]["metric"] == "logit"
    assert [point["kept"] for point in found["curve"]][:2] == [0, 1]
    assert {claim["status"] for claim in document["claims"]} == {"measured", "estimated"}
    run = Path(document["run"])
    assert (run / "plots" / "circuit.png").stat().st_size > 5000
    report = (run / "report.md").read_text()
    assert "Components of largest effect" in report
    assert inductionmodel.INDUCTION in report
    assert read_circuit_file(run).components == tuple(found["circuit"])
    entry = load_run(run).entries[0]
    assert entry.circuits.circuit == tuple(found["circuit"])
    assert json.loads(json.dumps(found)) == found
    # the pairs it was found on give the same circuit again, and the same bytes of effects
    again = [*arguments[:3], "--task", str(run / "artifacts" / "pairs.jsonl"), *FAST[2:], *arguments[-3:]]
    code, out, err = _run(capsys, *again)
    assert code == 0, err
    repeated = json.loads(out)
    assert repeated["dataset"] == "pairs"
    assert repeated["circuits"]["components"] == found["components"]


def test_the_terminal_names_the_largest(capsys, tmp_path: Path, folder: Path) -> None:
    code, out, _ = _run(
        capsys, "circuits", "-m", str(folder), *FAST, "--level", "edges", "--ablation", "mean", "--no-minimise",
        "--no-html", "--no-plots", "--output-dir", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    assert "edges keep" in out
    assert "layer_0.head_1 -> layer_1.head_2.k" in out


def test_a_dry_run_writes_nothing(capsys, tmp_path: Path, folder: Path) -> None:
    code, out, _ = _run(
        capsys, "circuits", "-m", str(folder), *FAST, "--level", "edges", "--dry-run", "--json", "--output-dir",
        str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert (document["n_pairs"], document["n_components"], document["metric"]) == (16, 110, "logit")
    assert not (tmp_path / "out").exists()


def _pairs(tmp_path: Path, **changes: str) -> str:
    good = {
        "clean": "The apple river stone apple river", "corrupt": "The apple cloud stone apple river",
        "answer": " stone", "wrong": " apple",
    }  # fmt: skip
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (good, {**good, **changes})))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["-m", "tiny-bert"], 3, "no decoder"),
        (["-m", "nowhere/nothing"], 3, "nowhere"),
        (["--task", "inducktion"], 2, "did you mean induction"),
        (["--task", "nowhere.jsonl"], 3, "cannot read"),
        (["--task", "ioi"], 3, "not single tokens"),
        (["--task", {"corrupt": "The apple cloud apple river"}], 3, "the corrupt one 5"),
        (["--task", {"answer": " stone river"}], 3, "not one token"),
        (["--task", {}], 3, "too few"),
        (["--level", "layers"], 2, "level"),
        (["--method", "gradient"], 2, "attribution"),
        (["--tolerance", "2"], 2, "tolerance"),
        (["--pairs", "1"], 2, "pairs"),
        (["-m", "tiny-gpt", "--pairs", "4"], 4, "does not do this task"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    capsys, tmp_path: Path, folder: Path, monkeypatch, arguments: list, code: int, fragment: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = [_pairs(tmp_path, **one) if isinstance(one, dict) else one for one in arguments]
    model = [] if "-m" in given else ["-m", str(folder)]
    got, out, err = _run(capsys, "circuits", *FAST, *model, *given, "--output-dir", str(tmp_path / "out"))
    assert (got, out) == (code, ""), err
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert [path for path in (tmp_path / "out").glob("*") if path.name != ".partial"] == []


def test_a_protected_circuit_survives_pruning_and_masks_survive_training(capsys, tmp_path: Path, folder: Path) -> None:
    code, _, err = _run(
        capsys, "circuits", "-m", str(folder), *FAST, "--no-html", "--no-plots", "--output-dir", str(tmp_path / "c")
    )
    assert code == 0, err
    circuit = tmp_path / "c" / "latest" / "artifacts" / "circuit.json"
    text = tmp_path / "text.txt"
    draw = np.random.default_rng(0)
    text.write_text("\n".join(" ".join(draw.choice(inductionmodel.WORDS, 30)) for _ in range(120)))
    data = ["-d", str(text), *PRUNE, "--method", "magnitude", "--set", "data.unit=line", "--quiet", "--json"]
    code, out, err = _run(
        capsys, "prune", "-m", str(folder), *data, "--protect", str(circuit), "--output-dir", str(tmp_path / "p")
    )
    assert code == 0, err
    document = json.loads(out)
    assert any("was kept as it is" in note for note in document["notes"])
    pruned = Path(document["run"]) / "model"
    old, new = (load_file(place / "model.safetensors") for place in (folder, pruned))
    name, size = "transformer.h.1.attn.c_attn.weight", inductionmodel.SIZE
    for part in range(3):  # queries, keys and values of head 2
        columns = slice((4 * part + 2) * size, (4 * part + 3) * size)
        assert np.array_equal(old[name][:, columns], new[name][:, columns])
    # what it was found for still works; without protection the same pruning is another matter, measured elsewhere
    code, out, err = _run(
        capsys, "circuits", "-m", str(pruned), *FAST, "--no-html", "--no-plots", "--json", "--output-dir", str(tmp_path)
    )
    assert code == 0, err
    assert json.loads(out)["circuits"]["accuracy"] == 1
    code, out, err = _run(
        capsys, "train", "-m", str(pruned), "-d", str(text), "--set", "data.unit=line", "--mask", str(pruned),
        "--max-steps", "6", "--eval-steps", "3", "--save-steps", "3", "--block-size", "16", "--batch-size", "2",
        "--ema", "0.5", "--no-html", "--no-plots", "--quiet", "--json", "--output-dir", str(tmp_path / "t"),
    )  # fmt: skip
    assert code == 0, err
    trained = load_file(Path(json.loads(out)["run"]) / "model" / "model.safetensors")
    inside = [key for key in new if ".attn.c_" in key or ".mlp.c_" in key]
    weights = [key for key in inside if key.endswith("weight")]
    assert all(not trained[key][new[key] == 0].any() for key in weights)
    assert any((trained[key] != new[key]).any() for key in weights)


@pytest.mark.parametrize(
    ("command", "flag", "fragment"),
    [("prune", "--protect", "no circuit at"), ("train", "--mask", "no masks.safetensors")],
)
def test_what_is_not_there_cannot_be_kept(capsys, tmp_path: Path, command: str, flag: str, fragment: str) -> None:
    code, out, err = _run(
        capsys, command, flag, str(tmp_path / "nothing"), "--output-dir", str(tmp_path / "out"), "--quiet"
    )
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert fragment in err
    assert not list((tmp_path / "out").glob("2*"))


def test_a_circuit_of_another_model_is_refused(capsys, tmp_path: Path) -> None:
    file = tmp_path / "circuit.json"
    document = {
        "schema": "cohom.circuit/1", "model": {"n_heads": 6, "n_groups": 6, "weights_sha256": "0"},
        "task": {"name": "ioi"}, "components": [{"name": "layer_30.head_2"}],
    }  # fmt: skip
    file.write_text(json.dumps(document))
    code, _, err = _run(capsys, "prune", *PRUNE, "--protect", str(file), "--output-dir", str(tmp_path), "--quiet")
    assert (code, err.count("\n")) == (3, 1)
    assert "belongs to another model" in err
    file.write_text(json.dumps({**document, "schema": "cohom.circuit/0"}))
    code, _, err = _run(capsys, "prune", *PRUNE, "--protect", str(file), "--output-dir", str(tmp_path), "--quiet")
    assert (code, "no circuit of schema" in err) == (3, True)
