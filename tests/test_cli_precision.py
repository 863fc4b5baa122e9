"""`cohom analyze-precision` as a user meets it: output, exit codes, files, gates and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cohomcli.__main__ import main

FAST = ["--no-plots", "--no-html", "--calibration", "2", "--heldout", "2", "--length", "16", "--pareto", "3", "--quiet"]
BARE = [*FAST, "--no-baselines"]
SKETCH = [*BARE, "--probes", "2", "--survey", "0"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One finished run on the built-in model, with everything on."""
    out = tmp_path_factory.mktemp("out")
    assert main(["precision", "--eps", "1e-3", *FAST, "--output-dir", str(out)]) == 0
    folder = (out / "latest").resolve()
    return folder, json.loads((folder / "results.json").read_text())


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def _strict(text: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    document: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return document


def test_results_carry_the_documented_keys(done: tuple[Path, dict[str, Any]]) -> None:
    _, document = done
    found = document["precision"]
    assert document["command"] == "analyze-precision"
    assert document["status"] == "ok"
    assert found["met"] is True
    assert found["measured_error"] <= found["epsilon"] == 1e-3
    assert found["euler"] == found["h0_dim"] - found["h1_dim"]
    assert found["bytes"]["plan"] < found["bytes"]["fp32"]
    assert {o["format"] for o in found["obstructions"]} == {"fp32", "bf16", "fp16"}
    assert {b["name"] for b in found["baselines"]} >= {"uniform-fp16", "uniform-bf16", "uniform-fp32", "half"}
    assert all(set(row) >= {"op", "module", "format", "reason"} for row in found["plan"])
    assert sum(found["share_of_ops"].values()) == pytest.approx(1.0)
    assert {c["status"] for c in document["claims"]} >= {"measured", "estimated", "proved-in-model"}


def test_files_of_the_run_agree(done: tuple[Path, dict[str, Any]]) -> None:
    from cohomcli.precision.planfile import read_plan
    from cohomcli.runs.entries import load_run

    folder, document = done
    (artifacts,) = (folder / "artifacts").iterdir()
    planned = read_plan(artifacts / "plan.json")
    assert [v.format for v in planned.vertices if v.format] == [row["format"] for row in document["precision"]["plan"]]
    assert planned.epsilon == 1e-3
    (entry,) = load_run(folder).entries
    assert entry.precision is not None
    assert entry.precision.kind == "program"
    assert entry.sample is not None
    report = (folder / "report.md").read_text()
    assert "tiny-gpt" in report
    assert "Met" in report


def test_the_same_run_gives_the_same_bytes(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    assert main(["analyze-precision", "--eps", "1e-3", *FAST, "--output-dir", str(tmp_path)]) == 0
    again = (tmp_path / "latest" / "results.json").read_bytes()
    assert again == (done[0] / "results.json").read_bytes()


def test_json_on_stdout_gates_and_their_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    held = ("--fail-on", "precision.measured_error > 0.5", "--fail-on", "precision.met == false")
    code, out, err = _run(capsys, "precision", *SKETCH, "--json", "--output-dir", str(tmp_path), *held)
    assert (code, err) == (0, "")
    assert [gate["tripped"] for gate in _strict(out)["gates"]] == [False, False]
    tripped = ("--fail-on", "precision.bytes.plan > 1000")
    assert _run(capsys, "precision", *SKETCH, "--json", "--output-dir", str(tmp_path), *tripped)[0] == 1
    misspelt = (*tripped, "--fail-on", "precision.no_such_key > 0")
    code, out, err = _run(capsys, "precision", *SKETCH, "--json", "--output-dir", str(tmp_path), *misspelt)
    assert code == 2  # no result has such a key; the results are written all the same
    assert len(err.splitlines()) == 2
    assert "precision.no_such_key" in err
    assert (Path(_strict(out)["run"]) / "results.json").is_file()


def test_an_error_that_cannot_be_kept_ends_with_4_and_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = _run(capsys, "precision", "--eps", "1e-9", *BARE, "--output-dir", str(tmp_path))
    assert code == 4
    assert "not met" in out
    assert "fp32 everywhere already errs" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--formats", "fp16,fp8"], 2, "fp8"),
        (["--eps", "0"], 2, "precision.epsilon"),
        (["--eps", "nan"], 2, "precision.epsilon"),
        (["--norm", "l7"], 2, "precision.norm"),
        (["--granularity", "layer"], 2, "precision.granularity"),
        (["--keep", "no.such.module=fp32"], 2, "no.such.module"),
        (["--keep", "lm_head"], 2, "lm_head"),
        (["--hardware", "sm1"], 3, "sm1"),
        (["--objective", "no-such-table.json"], 3, "no-such-table.json"),
        (["--outputs", "no_such_output"], 2, "no_such_output"),
        (["--input", "no-such-file.pt"], 3, "no-such-file.pt"),
        (["--input-shape", "3x"], 2, "3x"),
        (["--fail-on", "precision.gap"], 2, "precision.gap"),
        (["--calibration", "0"], 2, "precision.calibration"),
        (["--formats", "e4m3,int8"], 2, "format"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    found, out, err = _run(capsys, "precision", *BARE, *arguments, "--output-dir", str(tmp_path))
    assert (found, out) == (code, ""), err
    assert len(err.splitlines()) == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_the_plan_is_a_stage_of_run_that_can_be_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["run", "--samples", "12", "--no-plots", "--no-html", "--quiet", "--json", "--output-dir", str(tmp_path)]
    plan = ["--calibration", "2", "--heldout", "2", "--length", "16", "--no-baselines", "--set", "precision.pareto=0"]
    code, out, _ = _run(capsys, *small, *plan)
    assert code == 0
    document = _strict(out)
    assert document["precision"]["met"] is True
    assert document["topology"]["layers"]
    manifest = json.loads((Path(document["run"]) / "manifest.json").read_text())
    assert [stage["name"] for stage in manifest["stages"]][:2] == [
        "tiny-gpt on builtin",
        "tiny-gpt on builtin: precision",
    ]
    code, out, _ = _run(capsys, *small, "--no-precision")
    assert code == 0
    assert "precision" not in _strict(out)


def test_a_cost_table_and_hardware_are_read_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "costs.json"
    table.write_text(json.dumps({f: {"*": c, "weight": c} for f, c in (("fp32", 4.0), ("bf16", 3.0), ("fp16", 2.0))}))
    chip = tmp_path / "chip.json"
    chip.write_text(json.dumps({"softmax": ["fp32"], "*": ["fp32", "fp16"]}))
    out_dir = tmp_path / "out"
    code, out, err = _run(
        capsys, "precision", *BARE, "--json", "--objective", str(table), "--hardware", str(chip),
        "--output-dir", str(out_dir),
    )  # fmt: skip
    assert code == 0, err
    found = _strict(out)["precision"]
    assert found["objective"] == "cost table"
    assert {row["format"] for row in found["plan"] if "softmax" in row["target"]} == {"fp32"}
    assert {row["format"] for row in found["plan"] if row["kind"] == "op"} <= {"fp32", "fp16"}


def test_the_saved_model_comes_back_with_every_dtype_and_equal_logits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    from cohomcli.precision import load_mixed

    code, out, err = _run(
        capsys, "precision", *BARE, "--eps", "5e-4", "--save-model", "--json", "--output-dir", str(tmp_path)
    )
    assert code == 0, err
    (folder,) = Path(_strict(out)["run"]).glob("artifacts/*/model")
    first, second = load_mixed(folder), load_mixed(folder)
    dtypes = {str(p.dtype) for p in first.parameters()}
    assert dtypes == {"torch.float16", "torch.float32"}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)
    assert {str(p.dtype) for p in second.parameters()} == dtypes


def test_a_small_file_of_texts_is_surveyed_as_far_as_it_goes(tmp_path: Path) -> None:
    from cohomcli.config import Config
    from cohomcli.data.spec import DatasetSpec
    from cohomcli.errors import InputRefused
    from cohomcli.jobs.precision import draw_texts

    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"This is text number {n} of thirty." for n in range(30)))
    spec = DatasetSpec(str(file), split="calibration", unit="line")

    def drawn(**wanted: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        texts = draw_texts(spec, Config.model_validate({"precision": {"calibration": 3, "heldout": 2, **wanted}}))
        return texts.calibration.texts, texts.heldout.texts

    (few, few_held), (most, held) = drawn(survey=0), drawn()
    half = len(most) + len(held)
    assert 8 < half < 30  # the half of the file whose hashes say so: all of it is used
    assert (len(few), len(few_held), len(held)) == (3, 2, 2)
    assert most[:3] == few
    assert not set(most) & set(held)
    assert [len(texts) for texts in drawn(batch=2)] == [(half - 4) // 2 * 2, 4]
    with pytest.raises(InputRefused):
        drawn(survey=half)
    with pytest.raises(InputRefused):
        drawn(calibration=half)
