"""The run folder: whole or not at all, resumable, and equal bytes for equal input."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.spec import Activations, LanguageMetrics
from cohomcli.names import safe_name
from cohomcli.runs.cache import ActivationCache, content_key
from cohomcli.runs.files import read_json, sha256_file, to_json, write_atomic
from cohomcli.runs.folder import PARTIAL, RunFolder, interrupted, published


def test_a_finished_run_is_published_with_hashes_and_latest(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "run", "m", ["run"]) as run:
        run.write("results.json", "{}\n")
        assert published(tmp_path) == []
    assert published(tmp_path) == [run.final]
    assert (tmp_path / "latest").resolve() == run.final.resolve()
    assert not (tmp_path / PARTIAL).exists()
    manifest = read_json(run.final / "manifest.json")
    assert manifest["status"] == "complete"
    assert manifest["outputs"] == {"results.json": sha256_file(run.final / "results.json")}


def _create(parent: Path, count: int) -> list[str]:
    return [RunFolder.create(parent, "run", "m", []).name for _ in range(count)]


def test_runs_started_together_never_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = [name for some in pool.starmap(_create, [(tmp_path, 25)] * 4) for name in some]
    assert len(set(names)) == 100


def _interrupt(run: RunFolder) -> None:
    with run:
        run.write("a.txt", "a")
        run.finish_stage("one", 0.1)
        raise KeyboardInterrupt


def test_an_interrupted_run_is_hidden_and_resumed_from_its_stages(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", "m", ["run"])
    with pytest.raises(KeyboardInterrupt):
        _interrupt(run)
    assert published(tmp_path) == []
    assert read_json(run.stage / "manifest.json")["status"] == "interrupted"
    with RunFolder.reopen(tmp_path, "latest", ["run", "--resume"], "run") as again:
        assert again.has_stage("one")
        assert not again.has_stage("two")
        again.write("results.json", "{}")
    assert published(tmp_path) == [again.final]
    assert (again.final / "a.txt").read_text() == "a"


def test_a_failed_run_without_finished_stages_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputRefused), RunFolder.create(tmp_path, "run", "m", []):
        raise InputRefused("no such model")
    assert interrupted(tmp_path) == []


def test_resuming_what_is_not_there_lists_what_is(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="none"):
        RunFolder.reopen(tmp_path, "latest", [], "run")


def test_a_run_that_still_goes_on_is_not_taken_over(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run", "m", [])
    with pytest.raises(UsageError, match="still going on"):
        RunFolder.reopen(tmp_path, run.name, [], "run")
    with pytest.raises(UsageError, match="began with 'run'"):
        RunFolder.reopen(tmp_path, run.name, [], "train")


def test_a_run_whose_configuration_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "injected")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(AnalysisIncomplete, match="no space left"):
        RunFolder.create(tmp_path, "run", "m", [], config="models: [m]")
    assert list(tmp_path.iterdir()) == []


def _die(parent: Path) -> None:
    run = RunFolder.create(parent, "run", "m", [])
    (run.stage / ".results.json.abc").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_is_resumed_although_its_process_id_lives_again(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die, args=(tmp_path,))
    process.start()
    process.join()
    (stage,) = interrupted(tmp_path)
    manifest = read_json(stage / "manifest.json") | {"pid": 1}
    (stage / "manifest.json").write_text(json.dumps(manifest))
    assert RunFolder.reopen(tmp_path, "latest", [], "run").stage == stage
    assert [path.name for path in stage.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, AnalysisIncomplete), (errno.EROFS, UsageError)])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch, code: int, error: type) -> None:
    target = tmp_path / "f"
    write_atomic(target, "old")

    def fail(_: int) -> None:
        raise OSError(code, "injected")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(error, match="--output-dir"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"a": float("nan")})
    assert to_json({"b": 1, "a": 2}, None) == '{"a": 2, "b": 1}\n'


@given(st.text())
def test_safe_names_are_plain_file_names(text: str) -> None:
    name = safe_name(text)
    assert name
    assert not name.startswith((".", "-"))
    assert Path("x", name).name == name
    assert name.isascii()
    assert len(name) <= 60


def _activations(seed: int = 0) -> Activations:
    values = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
    metrics = LanguageMetrics("perplexity", 1.5, 4.48, 0.25, 17)
    return Activations({"z": values, "a": values.T.copy()}, "last", 17, 1, metrics, "", ("note",))


def test_cached_activations_come_back_bit_for_bit_and_in_order(tmp_path: Path) -> None:
    cache, stored = ActivationCache(tmp_path), _activations()
    cache.put("k", stored)
    found = cache.get("k")
    assert found is not None
    assert list(found.layers) == ["z", "a"]
    assert all(np.array_equal(found.layers[name], stored.layers[name]) for name in stored.layers)
    assert (found.metrics, found.notes, found.n_tokens) == (stored.metrics, stored.notes, stored.n_tokens)


def test_a_damaged_cache_entry_is_recomputed_not_trusted(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path)
    cache.put("k", _activations())
    path = tmp_path / "k.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert cache.get("k") is None
    path.write_bytes(b"")
    assert cache.get("k") is None


def test_the_cache_forgets_the_least_recently_used(tmp_path: Path) -> None:
    one = ActivationCache(tmp_path)
    one.put("a", _activations(1))
    size = (tmp_path / "a.safetensors").stat().st_size
    cache = ActivationCache(tmp_path, limit=int(2.5 * size))
    for key in "bcd":
        cache.put(key, _activations(1))
        for age, name in enumerate(reversed("abcd"[: "abcd".index(key) + 1])):
            path = tmp_path / f"{name}.safetensors"
            if path.exists():
                import os

                os.utime(path, (1000 - age, 1000 - age))
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["c", "d"]


def test_the_key_depends_on_every_part_and_on_text_boundaries() -> None:
    keys = {
        content_key({"w": 1}, ["ab", "c"]),
        content_key({"w": 1}, ["a", "bc"]),
        content_key({"w": 2}, ["ab", "c"]),
        content_key({"w": 1}, ["c", "ab"]),
    }
    assert len(keys) == 4
