"""The commands as a user meets them: stdout, stderr, exit codes, run folders."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cohomcli.__main__ import main
from cohomcli.runs.entries import load_run

FAST = ["--samples", "24", "--no-plots", "--no-html"]
SKETCH = ["--set", "precision.pareto=0", "--set", "precision.probes=2", "--set", "precision.survey=0"]
RUN = [*FAST, *SKETCH]  # as good a plan as these tests need


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHOM_CACHE", str(tmp_path_factory.getbasetemp() / "cohom-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _process(arguments: list[str], **kwargs) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cohomcli", *arguments]
    # A suite started in the background inherits an ignored SIGINT; the command under test must not.
    kwargs.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def _folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir()) if parent.exists() else []


def _strict(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_two_models_give_one_strict_document_and_equal_bytes_again(capsys, tmp_path: Path) -> None:
    arguments = ["run", "--model", "tiny-gpt", "--model", "tiny-bert", *RUN, "--output-dir", str(tmp_path), "--json"]
    code, out, _ = _run(capsys, *arguments)
    assert code == 0
    document = _strict(out)
    assert document["schema"] == "cohom.results/1"
    assert [entry["model"] for entry in document["models"]] == ["tiny-gpt", "tiny-bert"]
    for entry, kind in zip(document["models"], ["perplexity", "pseudo-perplexity"], strict=True):
        assert entry["metrics"]["kind"] == kind
        assert 1 < entry["metrics"]["perplexity"] < 2048  # better than a uniform guess over the vocabulary
        assert all(layer["n_points"] == 24 for layer in entry["topology"]["layers"])
        names = [layer["name"] for layer in entry["topology"]["layers"]]
        assert names[:2] == ["embedding", "layer_0"]
        assert ("final_norm" in names) == (entry["model"] == "tiny-gpt")
    first = Path(document["run"])
    code, out, _ = _run(capsys, *arguments, "--no-cache")
    second = Path(_strict(out)["run"])
    assert first != second
    assert (first / "results.json").read_bytes() == (second / "results.json").read_bytes()
    assert (tmp_path / "latest").resolve() == second.resolve()


def test_the_run_folder_reads_back_and_repeats_from_its_config(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "tda", *FAST, "--maxdim", "1", "--seed", "3", "--output-dir", str(tmp_path), "--json")
    assert code == 0
    document = _strict(out)
    assert "absent" in document["metrics"]
    stored = load_run(Path(document["run"]))
    (entry,) = stored.entries
    layer = entry.topology.layers[0]
    lifetimes = layer.diagrams[0].pairs[:, 1] - layer.diagrams[0].pairs[:, 0]
    assert document["topology"]["layers"][0]["h0"]["total_persistence"] == pytest.approx(lifetimes.sum())
    assert len(entry.sample.texts) == 24
    with (stored.folder / "tables" / "layers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) >= len(entry.topology.layers)
    again, out, _ = _run(capsys, "tda", "-c", str(stored.folder / "config.yaml"), "--json")
    assert again == 0
    repeated = Path(_strict(out)["run"])
    assert (repeated / "results.json").read_bytes() == (stored.folder / "results.json").read_bytes()


def test_the_options_of_todacomm_work_under_their_names(capsys, tmp_path: Path) -> None:
    code, out, err = _run(
        capsys, "run", "--models", "tiny-gpt,tiny-bert", "-n", "12", "-l", "all", "--pca", "8", "--max-length", "32",
        *SKETCH, "-d", "builtin", "--device", "cpu", "-o", "my_tda", "--num-layers", "12", "--no-plots", "--no-html",
        "--output-dir", str(tmp_path), "--json",
    )  # fmt: skip
    assert code == 0
    assert "--num-layers is ignored" in err
    document = _strict(out)
    assert "my_tda" in Path(document["run"]).name
    assert {layer["pca_dim"] for entry in document["models"] for layer in entry["topology"]["layers"]} <= {*range(9)}


def test_several_data_sets_and_layers_and_sites(capsys, tmp_path: Path) -> None:
    texts = tmp_path / "mine.jsonl"
    texts.write_text("".join(json.dumps({"text": f"The number {k} is followed by {k + 1}."}) + "\n" for k in range(40)))
    code, out, _ = _run(
        capsys, "tda", *FAST, "-d", "builtin", "-d", str(texts), "--layers", "embedding,-1", "--sites", "block,mlp",
        "--output-dir", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert code == 0
    document = _strict(out)
    assert [entry["dataset"] for entry in document["models"]] == ["builtin", "mine"]
    names = [layer["name"] for layer in document["models"][0]["topology"]["layers"]]
    assert names == ["embedding", "layer_5", "layer_5.mlp"] or set(names) == {"embedding", "layer_5", "layer_5.mlp"}


def test_human_output_names_every_layer_and_the_report(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "run", "--samples", "24", "--output-dir", str(tmp_path), "--quiet")
    assert code == 0
    assert all(name in out for name in ["embedding", "layer_5", "final_norm", "perplexity", "report.html"])
    assert (
        max(len(line) for line in out.splitlines()) > 80
    )  # nothing is cut at the width of a terminal that is not there
    (folder,) = [path for path in tmp_path.iterdir() if not path.is_symlink()]
    assert (folder / "report.md").stat().st_size > 1000
    assert (folder / "report.html").stat().st_size > 10_000
    assert len(list((folder / "plots").glob("*.png"))) >= 5


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--model", "./nowhere"], 3, "nowhere"),
        (["--model", "no-such-org/no-such-model"], 3, "no-such-org/no-such-model"),
        (["--dataset", "/nonexistent/texts.txt"], 3, "texts.txt"),
        (["--samples", "100000"], 3, "--samples"),
        (["--layers", "layer_99"], 2, "layer_99"),
        (["--set", "topology.colour=red"], 2, "topology.colour"),
        (["--metric", "euklid"], 2, "euclidean"),
        (["--engine", "ripsr"], 2, "ripser"),
        (["--device", "tpu9"], 2, "device"),
        (["--split", "dev"], 2, "split"),
        (["--pooling", "max"], 2, "pooling"),
        (["--frobnicate"], 2, "--frobnicate"),
        (["--config", "/nonexistent.yaml"], 3, "nonexistent.yaml"),
    ],
)
def test_bad_input_is_one_line_with_its_code_and_no_folder(
    capsys, tmp_path: Path, arguments: list[str], code: int, fragment: str
) -> None:
    out_dir = tmp_path / "out"
    extra = [] if "--samples" in arguments else ["--samples", "12"]
    got, out, err = _run(capsys, "run", *arguments, *extra, "--output-dir", str(out_dir), "--quiet")
    assert (got, out) == (code, "")
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert [name for name in _folders(out_dir) if name != ".partial"] == []
    assert _folders(out_dir / ".partial") == []


def test_one_failing_model_fails_the_command_after_the_others_finish(capsys, tmp_path: Path) -> None:
    code, out, err = _run(
        capsys, "run", "-m", "./missing", "-m", "tiny-gpt", *RUN, "--output-dir", str(tmp_path), "--json"
    )
    assert code == 3
    document = _strict(out)
    assert [entry["status"] for entry in document["models"]] == ["failed", "ok"]
    assert document["status"] == "failed"
    assert "missing" in document["models"][0]["error"]
    assert "missing" in err
    assert "missing" in (Path(document["run"]) / "report.md").read_text()


def test_an_unusable_output_folder_is_refused(capsys, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    code, _, err = _run(capsys, "run", *FAST, "--output-dir", str(blocked))
    assert code == 2
    assert "--output-dir" in err


def test_a_full_disk_ends_with_code_4_and_nothing_half_written(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    process = _process(["run", *RUN, "--no-cache", "--output-dir", str(tmp_path)], preexec_fn=limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert out == ""
    assert "no space left" in err.splitlines()[-1]
    assert [name for name in _folders(tmp_path) if name != ".partial"] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_marked_and_resumes_to_the_same_results(tmp_path: Path, number: int, code: int) -> None:
    arguments = [
        "tda",
        "-m",
        "tiny-gpt",
        "-m",
        "tiny-bert",
        "--samples",
        "60",
        "--null",
        "none",
        "--no-plots",
        "--no-html",
        "--no-cache",
    ]
    arguments += ["--output-dir", str(tmp_path)]
    process = _process([*arguments, "--json"], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".partial/*/artifacts/tiny-gpt--builtin/entry.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert err.splitlines()[-1].startswith("cohom: error: ")
    (stage,) = (tmp_path / ".partial").iterdir()
    assert json.loads((stage / "manifest.json").read_text())["status"] == "interrupted"
    assert _folders(tmp_path) == [".partial"]
    assert main(["tda", "--resume", "latest", "--output-dir", str(tmp_path), "--quiet"]) == 0
    resumed = (tmp_path / "latest" / "results.json").read_bytes()
    assert main([*arguments, "--quiet"]) == 0
    assert (tmp_path / "latest" / "results.json").read_bytes() == resumed


def test_an_interrupt_inside_exec_still_ends_with_130(tmp_path: Path) -> None:
    # CPython remembers a KeyboardInterrupt that passed through exec of a string, and dies by SIGINT at the end.
    (tmp_path / "probe.py").write_text(
        "import os, signal, sys, time\n"
        "from cohomcli import __main__ as entry\n"
        "def interrupted(arguments):\n"
        "    exec('os.kill(os.getpid(), signal.SIGINT); time.sleep(5)')\n"
        "entry._run = interrupted\n"
        "sys.exit(entry.main(['run']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "probe"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "cohom: error: interrupted\n")


def test_dry_run_says_what_would_be_done_and_writes_nothing(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "run", "--dry-run", "--json", "--output-dir", str(tmp_path / "out"))
    assert code == 0
    document = _strict(out)
    (model,) = document["models"]
    assert model["n_layer"] == 6
    assert document["status"] == "dry-run"
    assert not (tmp_path / "out").exists()


def test_compare_reads_runs_and_needs_two(capsys, tmp_path: Path) -> None:
    code, _, err = _run(capsys, "compare", "--output-dir", str(tmp_path))
    assert code == 2
    assert "at least two" in err
    for model in ("tiny-gpt", "tiny-bert"):
        assert main(["run", "-m", model, *RUN, "--output-dir", str(tmp_path), "--quiet"]) == 0
    code, out, _ = _run(capsys, "compare", "--output-dir", str(tmp_path), "--json", "--no-plots")
    assert code == 0
    document = _strict(out)
    assert [entry["model"] for entry in document["models"]] == ["tiny-gpt", "tiny-bert"]
    assert len(document["comparison"]["rows"]) == 2
    code, out, _ = _run(capsys, "compare", "latest", "tiny-gpt", "--output-dir", str(tmp_path), "--json", "--no-plots")
    assert code == 0
    assert [entry["model"] for entry in _strict(out)["models"]] == ["tiny-gpt", "tiny-bert", "tiny-gpt (run 2)"]


def test_compare_refuses_a_damaged_run(capsys, tmp_path: Path) -> None:
    assert main(["tda", *FAST, "--output-dir", str(tmp_path), "--quiet"]) == 0
    diagrams = next((tmp_path / "latest").resolve().rglob("diagrams.safetensors"))
    diagrams.write_bytes(diagrams.read_bytes()[:100])
    code, _, err = _run(
        capsys, "compare", str((tmp_path / "latest").resolve()), "tiny-bert", "--output-dir", str(tmp_path)
    )
    assert code == 3
    assert "damaged" in err


def test_init_writes_a_config_that_runs_and_never_overwrites(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = _run(capsys, "init", "mine", "-m", "tiny-bert", "-n", "12")
    assert (code, out.strip()) == (0, "configs/mine.yaml")
    assert _run(capsys, "init", "mine")[0] == 2
    assert _run(capsys, "init", "mine", "--force", "-m", "tiny-bert", "-n", "12")[0] == 0
    code, out, _ = _run(capsys, "tda", "-c", "configs/mine.yaml", "--no-plots", "--no-html", "--json")
    assert code == 0
    assert _strict(out)["model"] == "tiny-bert"


def test_list_models_and_inspect_speak_json(capsys, tmp_path: Path) -> None:
    code, out, _ = _run(capsys, "list-models", "--json")
    assert code == 0
    rows = {row["name"]: row for row in _strict(out)["models"]}
    assert rows["tiny-gpt"]["n_layer"] == 6
    assert rows["smollm2-135m"]["n_layer"] == 30
    assert len(rows) >= 20
    code, out, _ = _run(capsys, "inspect", "tiny-bert", "--json")
    assert code == 0
    assert _strict(out)["kind"] == "model"
    assert main(["tda", *FAST, "--output-dir", str(tmp_path), "--quiet"]) == 0
    code, out, _ = _run(capsys, "inspect", str(tmp_path / "latest"), "--json")
    assert _strict(out)["kind"] == "run"
    texts = tmp_path / "t.txt"
    texts.write_text("one line\nanother line\nand a third\n")
    code, out, _ = _run(capsys, "inspect", str(texts), "--json")
    assert (_strict(out)["kind"], _strict(out)["n_texts"]) == ("texts", 3)


def test_a_reader_that_leaves_early_costs_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cohomcli list-models | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
