"""Model files as a user meets them: one model in every container, and hostile files of every kind, through `main()`."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
import tinymodels
import torch
from filemodels import WAYS, Logits, small_cnn
from hostile import Member, program
from safetensors.torch import save_file
from torch import nn

from cohomcli.__main__ import main

IDS = torch.arange(5, 13).reshape(1, 8)
FAST = ["--samples", "12", "--max-length", "24", "--threads", "1", "--no-plots", "--no-html", "--no-cache", "-q"]
# One payload for each way in which a pickle can call something; the tests of the reader go through all of them.
PAYLOADS = ("reduce", "stack-global", "inst", "obj", "newobj-ex", "setstate", "key-hash", "nested-storage",
            "persistent-call", "extension")  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Where payloads write; they must not have when the test ends."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()
    assert "/hostile" not in sys.path
    assert "COHOM_HOSTILE" not in os.environ


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico GPT-2 as Hugging Face saves it."""
    return shutil.copytree(tinymodels.saved("gpt2"), tmp_path_factory.mktemp("pico") / "gpt2")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a few texts."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"{k} times {sentence}" for k in range(4) for sentence in tinymodels.SENTENCES))
    return ["--dataset", str(path)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that ends with exit code 3."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (3, ""), err
    assert err.startswith("cohom: error: ")
    assert err.count("\n") == 1
    return err


def tda(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results and the manifest of an analysis that succeeds."""
    code, out, err = run(capsys, "tda", *FAST, "--json", *arguments)
    assert code == 0, err
    document = json.loads(out)
    return document, json.loads((Path(document["run"]) / "manifest.json").read_text())


def _bin_folder(model: nn.Module, path: Path) -> None:
    shutil.copytree(tinymodels.saved("gpt2"), path)
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")


def _nested(key: str) -> Callable[[nn.Module, Path], None]:
    return lambda model, path: torch.save({key: model.state_dict(), "step": 7, "optimizer": {"lr": 0.1}}, path)


def _program(way: str) -> Callable[[nn.Module, Path], None]:
    return lambda model, path: WAYS[way](Logits(model), (IDS,), path)


CONTAINERS: dict[str, Callable[[nn.Module, Path], object]] = {
    "bare": lambda model, path: torch.save(model.state_dict(), path),
    "under-model": _nested("model"),
    "under-state_dict": _nested("state_dict"),
    "module": lambda model, path: torch.save(model, path),
    "legacy": lambda model, path: torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False),
    "legacy-module": lambda model, path: torch.save(model, path, _use_new_zipfile_serialization=False),
    "pickle": lambda model, path: path.write_bytes(pickle.dumps(dict(model.state_dict()))),
    "torchscript": _program("torchscript"),
    "exported": _program("exported"),
    "safetensors": lambda model, path: save_file({k: v.clone() for k, v in model.state_dict().items()}, path),
    "folder-safetensors": lambda model, path: shutil.copytree(tinymodels.saved("gpt2"), path),
    "folder-bin": _bin_folder,
}


def test_one_model_in_every_container_gives_the_same_analysis(
    capsys, pico: Path, texts: list[str], tmp_path: Path
) -> None:
    common = [*texts, "--output-dir", tmp_path / "out", "--tokenizer", pico]
    truth, _ = tda(capsys, "--model", pico, *common)
    layers = [layer["name"] for layer in truth["topology"]["layers"]]
    assert layers == ["embedding", "layer_0", "layer_1", "layer_2", "final_norm"]
    for name, save in CONTAINERS.items():
        path = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(tinymodels.build("gpt2"), path)
        given = ["--model", path, *common]
        if not name.startswith("folder") and not name.endswith("module"):  # those bring their configuration
            given += ["--config-json", pico / "config.json"]
        document, manifest = tda(capsys, *given)
        assert document["topology"] == truth["topology"], name
        differ = {key for key, value in document["model_info"].items() if value != truth["model_info"][key]}
        assert differ <= {"name", "source", "location"}, name
        assert manifest["inputs"][0]["weights_sha256"] == truth["model_info"]["weights_sha256"], name
        assert manifest["trust"] == {}


def test_what_was_found_reaches_the_results_and_the_report(
    capsys, pico: Path, texts: list[str], tmp_path: Path
) -> None:
    state = {f"module.{name}": value for name, value in tinymodels.build("gpt2").state_dict().items()}
    torch.save({"model": state, "ema": dict(state)}, tmp_path / "last.ckpt")
    given = [*texts, "-m", tmp_path / "last.ckpt", "--tokenizer", pico, "--config-json", pico / "config.json"]
    document, _ = tda(capsys, *given, "--output-dir", tmp_path / "out")
    assert document["notes"][:4] == [
        "the model was built from the config.json given",
        "weights taken from 'model' inside the file",
        f"not used: {len(state)} tensors at 'ema'",
        "the prefix 'module.' was taken off every name",
    ]
    assert "the prefix 'module.'" in (Path(document["run"]) / "report.md").read_text()


def test_code_that_was_allowed_to_run_is_in_the_manifest(capsys, pico: Path, texts: list[str], tmp_path: Path) -> None:
    code = f"import transformers as t\ndef gpt(): return t.GPT2LMHeadModel(t.GPT2Config.from_pretrained({str(pico)!r}))"
    (tmp_path / "net.py").write_text(code)
    torch.save(tinymodels.build("gpt2").state_dict(), tmp_path / "w.pt")
    given = ["-m", tmp_path / "w.pt", "--tokenizer", pico, "--model-code", f"{tmp_path / 'net.py'}:gpt", "--trust"]
    given += [*texts, "--output-dir", tmp_path / "out"]
    document, manifest = tda(capsys, *given)
    trusted = manifest["trust"]["w"]
    sha256 = hashlib.sha256(code.encode()).hexdigest()
    assert trusted["model_code"] == {"file": str(tmp_path / "net.py"), "function": "gpt", "sha256": sha256}
    assert trusted["file"]["loader"] == "torch.load(weights_only=False)"
    assert trusted["file"]["memory_bytes"] > 0
    assert document["model_info"]["trust"] == trusted
    assert "the file was allowed to run its own code (--trust)" in document["notes"]
    _, manifest = tda(capsys, *given, "--no-trust")
    assert manifest["trust"].keys() == {"w"}
    assert manifest["trust"]["w"].keys() == {"model_code"}


def beside_a_weight(body: bytes) -> bytes:
    """A payload as one value of a state dict, its honest neighbour in another."""
    weight = hostile.claimed_tensor(3, (3,), (1,))
    return weight.removesuffix(b".") + hostile.text("evil") + body + b"s."


PLACES: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda body: program(body, 4),
    "torch-zip": lambda body: hostile.torch_zip(beside_a_weight(body), Member("m/data/0", bytes(12))),
    "legacy": lambda body: hostile.legacy(program(body)),
    "legacy-keys": lambda body: hostile.legacy(program(b"}"), program(body)),
    "torchscript": lambda body: hostile.torchscript(program(body)),
    "torchscript-constants": lambda body: hostile.torchscript(
        program(hostile.glob("__torch__.Net") + b")\x81"), program(body)
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_payload_runs_whatever_command_meets_it(
    capsys, place: str, texts: list[str], canary: Path, tmp_path: Path
) -> None:
    out = [*texts, "--output-dir", tmp_path / "out", "-n", "2", "-q"]
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    for name in PAYLOADS:
        (tmp_path / "model.pt").write_bytes(PLACES[place](hostile.payloads(canary)[name]))
        refused(capsys, "tda", "-m", tmp_path / "model.pt", *out)
        shutil.copy(tmp_path / "model.pt", folder / "pytorch_model.bin")
        refused(capsys, "tda", "-m", folder, *out)
        code, _, err = run(capsys, "inspect", tmp_path / "model.pt", "--json")
        assert (code, err.count("\n")) in ((0, 0), (3, 1)), name
    assert not any(path.name != ".partial" for path in (tmp_path / "out").iterdir())


def test_no_payload_in_an_exported_program_runs(capsys, texts: list[str], canary: Path, tmp_path: Path) -> None:
    out = [*texts, "--output-dir", tmp_path / "out", "-n", "2", "-q"]
    model, inputs = small_cnn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WAYS["exported"](model, inputs, tmp_path / "honest")
    for name in ("reduce", "inst", "setstate", "nested-storage", "persistent-call"):
        spiked = hostile.spiked_export((tmp_path / "honest").read_bytes(), hostile.payloads(canary)[name])
        for data in spiked.values():
            (tmp_path / "model.pt2").write_bytes(data)
            refused(capsys, "tda", "-m", tmp_path / "model.pt2", *out)
            code, _, err = run(capsys, "inspect", tmp_path / "model.pt2", "--json")
            assert (code, err.count("\n")) in ((0, 0), (3, 1)), name


def broken_files(folder: Path, canary: Path) -> dict[str, bytes]:
    """Files that are cut, lie about their size, unfold to far more than they are, or name what lies outside."""
    torch.save(tinymodels.build("gpt2").state_dict(), folder / "honest.zip")
    torch.save(tinymodels.build("gpt2").state_dict(), folder / "honest.old", _use_new_zipfile_serialization=False)
    whole, old = (folder / "honest.zip").read_bytes(), (folder / "honest.old").read_bytes()
    safe = (tinymodels.saved("gpt2") / "model.safetensors").read_bytes()
    weight, data = hostile.claimed_tensor(3, (3,), (1,)), Member("m/data/0", bytes(12))
    huge = hostile.claimed_tensor(10**12, (10**12,), (1,))
    zeros = bytes(70 * 2**20)
    bomb = hostile.claimed_tensor(len(zeros) // 4, (len(zeros) // 4,), (1,))
    evil = program(hostile.payloads(canary)["reduce"])
    return {
        **{f"zip cut at {part}/8": whole[: len(whole) * part // 8] for part in range(1, 8)},
        **{f"legacy cut at {part}/8": old[: len(old) * part // 8] for part in range(1, 8)},
        **{f"safetensors cut at {part}/8": safe[: len(safe) * part // 8] for part in range(1, 8)},
        "a damaged weight": whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:],
        "a trillion elements": hostile.torch_zip(huge, data),
        "a trillion by stride": hostile.torch_zip(hostile.claimed_tensor(3, (10**12,), (0,)), data),
        "more than its storage": hostile.torch_zip(hostile.claimed_tensor(3, (4,), (1,)), data),
        "deflated zeros": hostile.zip_archive([Member("m/data.pkl", bomb), Member("m/data/0", zeros, method=8)]),
        "members that overlap": hostile.zip_archive(
            [Member("m/0", b"x" * 2000), *(Member("m/0", b"", n_bytes=2000, n_stored=2000, header=0) for _ in "abcd")]
        ),
        "a name that leaves": hostile.torch_zip(weight, data, Member("m/../../evil.py", b"x")),
        "an absolute name": hostile.zip_archive([Member("/etc/data.pkl", weight), Member("/etc/data/0", bytes(12))]),
        "a name with backslashes": hostile.torch_zip(weight, data, Member("m\\..\\evil", b"x")),
        "a symbolic link": hostile.torch_zip(weight, data, Member("m/link", b"/etc/passwd", mode=0o120777)),
        "a member twice": hostile.torch_zip(weight, data, Member("m/data.pkl", evil)),
        "a program before the archive": b"#!/bin/sh\nexit\n" + hostile.torch_zip(evil),
        "a negative length": program(b"T" + (-5).to_bytes(4, "little", signed=True) + b"x"),
        "a text of 2^60 bytes": program(b"\x8d" + (2**60).to_bytes(8, "little") + b"x", 4),
        "nesting": program(b"(" * 100_000),
    }


def test_broken_and_oversized_files_are_one_line(capsys, texts: list[str], canary: Path, tmp_path: Path) -> None:
    for name, content in broken_files(tmp_path, canary).items():
        (tmp_path / "model.pt").write_bytes(content)
        for command in (["tda", *texts, "-n", "2", "--output-dir", tmp_path / "out", "--model"], ["inspect"]):
            line = refused(capsys, *command, tmp_path / "model.pt")
            assert str(tmp_path / "model.pt") in line, name
            assert len(line) < 500, name


def test_the_installed_command_refuses_as_the_tests_do(canary: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(hostile.torch_zip(program(hostile.payloads(canary)["reduce"])))
    command = [sys.executable, "-m", "cohomcli", "run", "-m", str(tmp_path / "model.pt"), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert "holds no tensors" in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file or folder"),
        (b"", "is empty; download it again"),
        (b"To be, or not to be\n" * 50, "is a text file, not a model; give the weight file"),
        (b'{"a": 1}', "is JSON text, not a model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "is an image, a sound or a document, not a model"),
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "is a web page, not a model; the download needs a login"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer, not the model itself"),
        (b"\x1f\x8b" + bytes(100), "is gzip-compressed; decompress it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
        (bytes(range(1, 255)), "is of no known kind; known: torch files"),
    ],
)
def test_files_that_are_no_model_say_what_they_are(capsys, content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    assert says in refused(capsys, "tda", "-m", path, "--output-dir", tmp_path / "out", "-q")
    assert says in refused(capsys, "inspect", path)
    assert says in refused(capsys, "tda", "--dry-run", "-m", path)


def test_a_folder_without_a_model_names_the_files_in_it(capsys, tmp_path: Path) -> None:
    hint = "give a folder written by `save_pretrained`, or a model file"
    assert hint in refused(capsys, "tda", "-m", tmp_path, "--output-dir", tmp_path / "out", "-q")
    torch.save({"w": torch.ones(1)}, tmp_path / "step1.ckpt")
    assert "name one of its files: step1.ckpt" in refused(capsys, "tda", "-m", tmp_path, "-q")


def test_a_file_that_lacks_something_says_what_to_add(capsys, pico: Path, tmp_path: Path) -> None:
    out = ["--output-dir", tmp_path / "out", "-q"]
    torch.save(tinymodels.build("gpt2").state_dict(), tmp_path / "w.pt")
    assert "give its config.json with --config-json" in refused(capsys, "tda", "-m", tmp_path / "w.pt", *out)
    config = ["--config-json", pico / "config.json"]
    line = refused(capsys, "tda", "-m", tmp_path / "w.pt", *config, *out)
    assert "has no tokenizer" in line
    assert "--tokenizer" in line
    assert "`cohom precision` with --input or --input-shape needs none" in line
    torch.save(small_cnn()[0].state_dict(), tmp_path / "cnn.pt")
    line = refused(capsys, "tda", "-m", tmp_path / "cnn.pt", *out)
    assert "belong to no architecture known here" in line
    assert "--model-code file.py:factory" in line
    code, _, err = run(capsys, "tda", "-m", tmp_path / "w.pt", "--model-code", "net.py", *out)
    assert (code, err.count("\n")) == (2, 1)
    assert "the form is --model-code path/to/file.py:factory" in err


def test_inspect_tells_what_a_file_holds(capsys, pico: Path, tmp_path: Path) -> None:
    state = tinymodels.build("gpt2").half().state_dict()
    torch.save({"model": state, "teacher": {"w": torch.ones(2)}}, tmp_path / "w.pt")
    code, out, err = run(capsys, "inspect", tmp_path / "w.pt", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["format"], found["n_tensors"], found["dtypes"]) == ("torch-zip", len(state), ["F16"])
    assert found["n_parameters"] == tinymodels.loaded("gpt2").info.n_parameters
    assert (found["architecture"], found["weights_at"]) == ("gpt2", "model")
    assert found["also_holds"] == [{"place": "teacher", "n_tensors": 1}]
    assert "number of attention heads" in found["weights_only"]
    code, out, _ = run(
        capsys, "inspect", tmp_path / "w.pt", "--json", "--config-json", pico / "config.json", "--tokenizer", pico
    )
    found = json.loads(out)
    assert (found["architecture"], found["n_layer"], found["kind_of_model"]) == ("GPT2LMHeadModel", 3, "decoder")
    assert found["forecast"]["load_bytes"] == 4 * found["n_parameters"]
    assert "weights_only" not in found
    code, out, _ = run(capsys, "inspect", tmp_path / "w.pt")
    assert code == 0
    assert all(text in out for text in ("torch-zip", "gpt2", "F16", "not used: 1 tensors at 'teacher'"))


def test_a_dry_run_of_a_file_says_what_would_be_done(capsys, pico: Path, tmp_path: Path) -> None:
    torch.save(tinymodels.build("gpt2"), tmp_path / "whole.pt")
    given = ["--model", tmp_path / "whole.pt", "--tokenizer", pico]
    code, out, _ = run(capsys, "tda", "--dry-run", "--json", *given, "--output-dir", tmp_path / "out")
    (model,) = json.loads(out)["models"]
    assert (code, model["source"], model["n_layer"]) == (0, "file", 3)
    assert not (tmp_path / "out").exists()


def test_quiet_silences_the_bars_of_the_hub_libraries(capsys, tmp_path: Path, monkeypatch) -> None:
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "0")
    run(capsys, "inspect", "tiny-gpt")
    assert [os.environ[name] for name in names] == ["0", "0"], "the user's own setting stands"
    run(capsys, "inspect", "tiny-gpt", "--quiet")
    assert [os.environ[name] for name in names] == ["1", "1"]
    for name in names:
        monkeypatch.delenv(name)
    run(capsys, "inspect", "tiny-gpt")
    assert [os.environ[name] for name in names] == ["1", "1"], "stderr is no terminal here"
