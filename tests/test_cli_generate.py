"""Training on grids and `cohom generate` as a user meets them: files, completions, animation, equal bytes, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cohomcli.__main__ import main
from cohomcli.nn import NonLinearTransformer

ARCHITECTURE = "{model_type: nonlinear_transformer, hidden_size: 16, depth: 2, heads: 2, window_size: 1}"
TRAIN = [
    "--objective", "grid", "--set", f"training.architecture={ARCHITECTURE}", "--max-steps", "120", "--batch-size",
    "16", "--lr", "0.01", "--warmup-steps", "5", "--eval-steps", "60", "--logging-steps", "60", "--save-steps", "60",
    "--set", "training.eval_fraction=0.3", "--no-html", "--no-plots", "--quiet",
]  # fmt: skip
CLASSES = {"rows": lambda k, i, j: i % 2, "columns": lambda k, i, j: j % 2}


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def stripes() -> str:
    """Grids of 2 x 3 to 4 x 5 cells in two classes: rows alternate, or columns do; the phase is free."""
    found = []
    for name, rule in CLASSES.items():
        for phase in (0, 1):
            for height in (2, 3, 4):
                for width in (3, 4, 5):
                    rows = ("".join(str((rule(0, i, j) + phase) % 2) for j in range(width)) for i in range(height))
                    found.append(f"label: {name}\n" + "\n".join(rows) + "\n\n")
    return "".join(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stripes")
    (folder / "stripes.txt").write_text(stripes())
    assert main(["train", *TRAIN, "-d", str(folder / "stripes.txt"), "--output-dir", str(folder / "out")]) == 0
    return (folder / "out/latest").resolve()


def _generate(capsys, run: Path, out: Path, *arguments: str) -> tuple[dict, Path]:
    code, text, err = _run(
        capsys, "generate", "-m", str(run), *arguments, "--output-dir", str(out), "--json", "--quiet", "--no-html"
    )
    assert code == 0, err
    document = json.loads(text)
    return document, Path(document["run"])


def test_training_on_grids_is_training(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["training"]["loss"] < 0.5 * results["training"]["initial_loss"]
    assert results["sample"]["unit"] == "grid"
    settings = json.loads((run / "model/config.json").read_text())
    assert (settings["height"], settings["width"], settings["symbols"], settings["mask_token_id"]) == (4, 5, "01", 2)
    assert (settings["class_names"], settings["palette"]) == (["columns", "rows"], "colours")
    assert (run / "checkpoints/step-000120/trainer/state.json").exists()


def test_new_grids_are_of_their_class_in_text_and_pictures(capsys, run: Path, tmp_path: Path) -> None:
    from PIL import Image

    wanted = ["--label", "all", "-n", "6", "--gif", "--steps", "20", "--guidance", "1", "--temperature", "0.5"]
    wanted += ["--noise", "0"]
    document, folder = _generate(capsys, run, tmp_path, *wanted)
    grids = document["generation"]["grids"]
    assert [grid["label"] for grid in grids] == ["columns"] * 6 + ["rows"] * 6
    right = 0
    for grid in grids:
        cells = np.array([[int(c) for c in row] for row in grid["rows"]])
        assert cells.shape == (4, 5)
        axis = 0 if grid["label"] == "columns" else 1
        right += int((cells == cells.take([0], axis)).all())
    assert right >= 10  # by chance 2^-15 each
    assert sorted({int(n) for grid in grids for row in grid["filled_at"] for n in row.split()}) == list(range(1, 21))
    image = np.asarray(Image.open(folder / "images/0000-columns.png").convert("RGB"))
    cell = image.shape[0] // 4
    shown = ["".join("01"[int(c.any())] for c in line) for line in image[::cell, ::cell]]
    assert shown == grids[0]["rows"]  # the second colour of ten is blue, the first black
    with Image.open(folder / "steps.gif") as animation:
        assert animation.n_frames == 21
    text = (folder / "grids.txt").read_text()
    assert text.startswith("label: columns\n" + "\n".join(grids[0]["rows"]) + "\n\n")
    lines = [json.loads(line) for line in (folder / "grids.jsonl").read_text().splitlines()]
    assert [line["text"].split("\n") for line in lines] == [grid["rows"] for grid in grids]
    assert "20 passes" in (folder / "report.md").read_text()
    assert (folder / "plots/generation.png").exists()
    _, again = _generate(capsys, run, tmp_path, *wanted)
    for name in ("results.json", "grids.txt", "steps.gif", "grids.png", "plots/generation.png"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    code, _, err = _run(capsys, "inspect", str(folder))
    assert code == 0, err


def test_partial_grids_are_completed_and_given_cells_kept(capsys, run: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial.txt"
    partial.write_text("010?\n0??0\n????\n\nlabel: rows\n0??\n??1\n")
    document, folder = _generate(
        capsys, run / "model", tmp_path, "--complete", str(partial), "-n", "1", "--temperature", "0", "--noise", "0"
    )
    first, second = document["generation"]["grids"]
    assert (first["rows"][0][:3], first["rows"][1][0], first["rows"][1][3]) == ("010", "0", "0")
    assert (second["rows"][0][0], second["rows"][1][2], second["label"]) == ("0", "1", "rows")
    assert second["rows"] == ["000", "111"]
    assert document["generation"]["n_grids"] == 2
    assert document["dataset"] == "partial"
    assert second["source"].endswith("partial.txt, line 6")
    read_back = (folder / "grids.txt").read_text().split("\n\n")
    assert read_back[1] == "label: rows\n000\n111"


def test_gates_and_saved_configurations_hold(capsys, run: Path, tmp_path: Path) -> None:
    code, _, err = _run(
        capsys, "generate", "-m", str(run), "-n", "2", "--size", "2x3", "--fail-on", "generation.n_grids > 1",
        "--output-dir", str(tmp_path), "--quiet", "--no-html", "--no-plots",
    )  # fmt: skip
    assert (code, "n_grids" in err) == (1, True)
    folder = tmp_path / "latest"
    code, _, err = _run(
        capsys, "generate", "-c", str(folder / "config.yaml"), "--output-dir", str(tmp_path / "again"), "--quiet"
    )
    assert code == 1
    assert (tmp_path / "again/latest/grids.txt").read_bytes() == (folder / "grids.txt").read_bytes()


def test_a_model_of_grids_is_a_model_like_any_other(capsys, run: Path, tmp_path: Path) -> None:
    model, data = str(run / "model"), str(run.parent.parent / "stripes.txt")
    code, out, err = _run(capsys, "inspect", model, "--json")
    assert code == 0, err
    assert json.loads(out)["n_layer"] == 2
    code, out, err = _run(
        capsys, "run", "-m", model, "-d", data, "-n", "12", "--unit", "paragraph", "--no-bands", "--null", "none",
        "--no-precision", "--output-dir", str(tmp_path), "--no-html", "--no-plots", "--json", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["metrics"]["kind"] == "pseudo-perplexity"
    code, out, err = _run(
        capsys, "analyze-precision", "-m", model, "-d", data, "--unit", "paragraph", "--eps", "0.1", "--calibration",
        "2", "--heldout", "2", "--survey", "2", "--length", "16", "--no-baselines", "--output-dir", str(tmp_path),
        "--no-html", "--no-plots", "--json", "--quiet", "--set", "precision.pareto=0",
    )  # fmt: skip
    assert code == 0, err


def test_training_goes_on_from_a_saved_model_of_grids(capsys, run: Path, tmp_path: Path) -> None:
    data = run.parent.parent / "stripes.txt"
    steps = ["--max-steps", "2", "--warmup-steps", "0", "--no-plots", "--no-html", "--quiet", "--output-dir"]
    common = ["train", "--objective", "grid", "-m", str(run / "model"), *steps, str(tmp_path)]
    code, _, err = _run(capsys, *common, "-d", str(data), "--set", "training.eval_fraction=0.3")
    assert code == 0, err
    before = json.loads((run / "results.json").read_text())["training"]["loss"]
    after = json.loads((tmp_path / "latest/results.json").read_text())["training"]["initial_loss"]
    assert after == before
    other = tmp_path / "other.txt"
    for content, fragment in (
        ("012\n\n120\n\n201\n\n111\n", "symbol '2'"),
        ("0101010\n\n1010101\n\n0011001\n\n1110000\n", "do not fit"),
        ("label: spots\n01\n\nlabel: spots\n10\n\n00\n\n11\n", "class 'spots'"),
    ):
        other.write_text(content)
        code, _, err = _run(capsys, *common, "-d", str(other), "--set", "training.eval_fraction=0.5")
        assert (code, err.count("\n")) == (3, 1), err
        assert fragment in err


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["-m", "tiny-gpt"], 3, "no model of grids"),
        (["-m", "nowhere/at/all"], 2, "neither a file"),
        (["--label", "diagonal"], 2, "it has columns, rows"),
        (["--size", "5x5"], 3, "do not fit"),
        (["--size", "5"], 2, "HxW"),
        (["--guidance", "1"], 2, "--label"),
        (["--steps", "0"], 2, "steps"),
        (["--complete", "PARTIAL", "--size", "2x2"], 2, "--size"),
        (["--complete", "missing.txt"], 3, "missing.txt"),
    ],
)
def test_what_cannot_be_generated_is_one_line_with_its_code(
    capsys, run: Path, tmp_path: Path, arguments: list[str], code: int, fragment: str
) -> None:
    model = [] if "-m" in arguments else ["-m", str(run)]
    got, out, err = _run(capsys, "generate", *model, *arguments, "--output-dir", str(tmp_path / "out"), "--quiet")
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert fragment in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("content", "fragment"),
    [("01\n10\n", "no cell to fill"), ("0?\n7?\n", "symbol '7'"), ("?????????\n", "do not fit"), ("\n", "no grid"),
     ("label: x\n0?\n", "no class 'x'")],
)  # fmt: skip
def test_files_that_cannot_be_completed_are_named(
    capsys, run: Path, tmp_path: Path, content: str, fragment: str
) -> None:
    (tmp_path / "p.txt").write_text(content)
    code, out, err = _run(
        capsys, "generate", "-m", str(run), "--complete", str(tmp_path / "p.txt"), "--output-dir", str(tmp_path / "o")
    )
    assert (code in (2, 3), out) == (True, "")
    assert fragment in err.splitlines()[-1]


def test_a_grid_model_without_symbols_is_refused(capsys, tmp_path: Path) -> None:
    from cohomcli.models.gridtokenizer import grid_tokenizer

    torch.manual_seed(0)
    NonLinearTransformer(vocab_size=3, dim=8, depth=1, heads=1, matrix_dim=3).save_pretrained(tmp_path / "plain")
    grid_tokenizer("01").save_pretrained(tmp_path / "plain")
    code, _, err = _run(capsys, "generate", "-m", str(tmp_path / "plain"), "--output-dir", str(tmp_path / "o"), "-q")
    assert (code, "no model of grids" in err) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["-d", "digits"], "no model of grids"),
        (["-d", "digits", "--set", "training.architecture={model_type: gpt2}"], "'gpt2' is no model of grids"),
        (["-d", "digits", "--set", f"training.architecture={ARCHITECTURE[:-1]}, height: 9}}"], "height follows"),
        (["-d", "digits", "--set", f"training.architecture={ARCHITECTURE[:-1]}, heads: 5}}"], "5 heads"),
        (["-d", "digits", "--set", f"training.architecture={ARCHITECTURE}", "--spectral-weight", "1"], "for texts"),
        (["-d", "digits", "--set", f"training.architecture={ARCHITECTURE}", "--grid-size", "4x4"], "smaller than"),
        (["-d", "digits", "--set", f"training.architecture={ARCHITECTURE}", "--levels", "40"], "17 levels"),
    ],
)
def test_what_cannot_be_trained_on_grids_is_one_line(
    capsys, tmp_path: Path, arguments: list[str], fragment: str
) -> None:
    code, out, err = _run(
        capsys, "train", "--objective", "grid", *arguments, "--output-dir", str(tmp_path / "out"), "--quiet"
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err
