"""Activations on disk: files that other tools read, equal results, the choice by forecast, and what is left behind."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from cohomcli.__main__ import main
from cohomcli.config import Config
from cohomcli.errors import InputRefused
from cohomcli.jobs import entry
from cohomcli.models.store import map_layers, on_disk, write_layers
from cohomcli.runs.cache import ActivationCache

TDA = ["tda", "-m", "tiny-gpt", "-n", "30", "--quiet", "--no-plots", "--no-html", "--json", "--no-bands"]
TDA += ["--null", "none", "--no-geometry"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COHOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def results(capsys, folder: Path, *options: str) -> bytes:
    capsys.readouterr()
    assert main([*TDA, "--output-dir", str(folder), *options]) == 0
    return (Path(json.loads(capsys.readouterr().out)["run"]) / "results.json").read_bytes()


def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("b", (9, 4)), ("a.mlp", (5, 7)))}


def test_files_are_safetensors_in_both_directions(tmp_path, monkeypatch):
    monkeypatch.setattr("cohomcli.models.store.COPY_BYTES", 40)  # several blocks of rows
    layers, stream = arrays(), io.BytesIO()
    write_layers(stream, layers, {"about": "naïve"})
    path = tmp_path / "x.safetensors"
    path.write_bytes(stream.getvalue())
    theirs = load(stream.getvalue())
    mapped, metadata = map_layers(path)
    assert metadata == {"about": "naïve"}
    for name, x in layers.items():
        np.testing.assert_array_equal(theirs[name], x)
        np.testing.assert_array_equal(mapped[name], x)
        assert isinstance(mapped[name], np.memmap)
        assert not mapped[name].flags.writeable


def test_an_allocated_array_is_a_file_that_safetensors_reads(tmp_path):
    allocate = on_disk(tmp_path)
    for name, x in arrays().items():
        rows = allocate(name, *x.shape)
        rows[::-1] = x[::-1]
        rows.flush()
    files = sorted(tmp_path.iterdir())
    for (name, x), path in zip(arrays().items(), files, strict=True):
        np.testing.assert_array_equal(load_file(path)[name], x)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        write_layers(stream, arrays(), {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputRefused, match="corrupt"):
        map_layers(path)


@pytest.mark.parametrize("caching", ["--cache", "--no-cache"])
def test_streamed_activations_give_the_same_bytes_and_leave_no_files(capsys, tmp_path, cache, caching):
    plain = results(capsys, tmp_path / "a", "--stream", "never", "--no-cache")
    assert results(capsys, tmp_path / "b", "--stream", "always", caching) == plain
    assert list((cache / "streams").iterdir()) == []
    if caching == "--cache":
        assert results(capsys, tmp_path / "c", "--stream", "never") == plain  # read from the cache


@pytest.mark.parametrize(("missing", "streamed"), [(0, False), (1, True)])
def test_the_forecast_decides_by_itself(monkeypatch, missing, streamed):
    needed = 4 * (6 + 2) * 30 * 128  # float32 of embedding, 6 blocks and final norm
    monkeypatch.setattr(entry, "memory_limit", lambda config: 2 * (needed - missing))
    loaded = SimpleNamespace(info=SimpleNamespace(n_layer=6, hidden_size=128))
    with entry.allocator(loaded, 30, Config()) as allocate:
        assert isinstance(allocate("layer_0", 30, 128), np.memmap) == streamed


def test_the_memory_that_may_be_used_is_configured(monkeypatch):
    monkeypatch.setattr("cohomcli.models.memory.available_bytes", lambda: 3 * 2**30)
    limits = [entry.memory_limit(Config(compute={"memory": gib})) for gib in (0.0, 0.5, 100.0)]
    assert limits == [3 * 2**30, 2**29, 3 * 2**30]


def test_too_little_memory_is_exit_code_4_with_advice(capsys, tmp_path):
    assert main([*TDA, "--output-dir", str(tmp_path), "--memory", "0.000001"]) == 4
    assert "--samples" in (error := capsys.readouterr().err) or "--maxdim" in error
    assert main([*TDA[:3], "-n", "200", "--maxdim", "2", "--output-dir", str(tmp_path), "--max-seconds", "0.01"]) == 4
    assert "the limit is 0.0 s; --samples" in capsys.readouterr().err


def test_what_exceeds_the_cache_is_not_stored(tmp_path):
    from cohomcli.models.spec import Activations

    cache = ActivationCache(tmp_path / "c", limit=100)
    cache.put("k", Activations(arrays(), "last", 1, 0))
    assert cache.get("k") is None
    assert not (tmp_path / "c").exists()


def test_asked_tables_reach_results_report_and_csv(capsys, tmp_path):
    document = json.loads(
        results(
            capsys,
            tmp_path,
            "--representatives",
            "2",
            "--landmarks",
            "25",
            "--threshold",
            "1.5",
            "--threshold-unit",
            "scale",
        )
    )
    layer = document["topology"]["layers"][2]
    assert layer["n_landmarks"] == 25
    assert layer["diagram_error"] == 2 * layer["covering_radius"] > 0
    assert layer["threshold"] == pytest.approx(1.5 * layer["scale"])
    loops = layer["loops"]
    assert loops[0]["death"] - loops[0]["birth"] == layer["h1"]["max_lifetime"]
    run = next(path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] == "2")
    report = (run / "report.md").read_text()
    for title in ("Texts of the longest loops", "Landmarks and their guaranteed error", "Classes at the threshold"):
        assert title in report
    texts = [json.loads(line)["text"] for line in next(run.glob("artifacts/*/texts.jsonl")).open()]
    import csv

    with (run / "tables" / "loops.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == layer["name"] and row["loop"] == "1"]
    assert [int(row["text_index"]) for row in rows] == loops[0]["points"]
    assert all(row["text"].lstrip("'") == texts[int(row["text_index"])].lstrip("'") for row in rows)
    assert f"{loops[0]['points'][0]}: " in report

    from cohomcli.runs.entries import load_run

    (entry_,) = load_run(run).entries
    assert [list(loop.points) for loop in entry_.topology.layers[2].loops] == [loop["points"] for loop in loops]
