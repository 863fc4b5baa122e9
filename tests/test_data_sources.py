"""What `--dataset` means: the corpus, presets, files and folders, and the errors of each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.assets import corpus_dir
from cohomcli.data import DatasetSpec, load_texts
from cohomcli.data.hub import is_hub_id, request_of
from cohomcli.data.sources import open_source
from cohomcli.errors import CohomError, InputRefused, UsageError
from cohomcli.names import printable, safe_name

steady = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize("split", ["train", "calibration", "heldout"])
def test_builtin_corpus(split: str) -> None:
    """Independent count: the passages of a file are what blank lines part."""
    passages = {
        passage.strip()
        for path in corpus_dir(split).glob("*.txt")
        for passage in path.read_text(encoding="utf-8").split("\n\n")
    }
    sample = load_texts(DatasetSpec(split=split), 200, 0)
    assert sample.n_available == len(passages)
    assert set(sample.texts) <= passages
    assert (sample.name, sample.split, sample.unit, len(sample.texts)) == ("builtin", split, "paragraph", 200)


def test_builtin_defaults_to_heldout_and_seeds_matter() -> None:
    assert load_texts(DatasetSpec(), 50, 1) == load_texts(DatasetSpec(split="heldout"), 50, 1)
    assert load_texts(DatasetSpec(), 50, 1).texts != load_texts(DatasetSpec(), 50, 2).texts


def folder_of(path: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return str(path)


def test_folder_of_texts(tmp_path: Path) -> None:
    files = {
        "a.txt": "one\ntwo\n",
        "deep/b.TXT": "three\none\n",
        ".hidden/c.txt": "no",
        "deep/.d.txt": "no",
        "e.png": "?",
    }
    sample = load_texts(DatasetSpec(folder_of(tmp_path / "some data", files)), 3, 0)
    assert sorted(sample.texts) == ["one", "three", "two"]
    assert (sample.name, sample.n_duplicate) == ("some-data", 1)


def test_folder_of_shards(tmp_path: Path) -> None:
    shards = {f"part-{i}.jsonl": "".join(json.dumps({"text": f"{i} {j}"}) + "\n" for j in range(4)) for i in range(3)}
    shards["part-3.jsonl"] = ""
    sample = load_texts(DatasetSpec(folder_of(tmp_path, shards)), 12, 0)
    assert (len(sample.texts), sample.field) == (12, "text")


def test_layout_is_judged_file_by_file(tmp_path: Path) -> None:
    prose = "A line of verse,\nand its second.\n\nAnother stanza,\nno longer.\n"
    sample = load_texts(DatasetSpec(folder_of(tmp_path, {"a.txt": "one\ntwo\n", "b.txt": prose})), 4, 0)
    assert sample.unit == "line+paragraph"
    assert "A line of verse,\nand its second." in sample.texts


def test_renaming_and_reordering_files_changes_nothing(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "first", {"a.txt": "one\ntwo\nthree\n", "b.txt": "four\nfive\n"})
    second = folder_of(tmp_path / "second", {"z.txt": "two\none\none\nthree\n", "a.txt": "five\nfour\n"})
    assert load_texts(DatasetSpec(first), 3, 9).texts == load_texts(DatasetSpec(second), 3, 9).texts


def test_halves_of_a_file(tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"a.txt": "".join(f"text {i}\n" for i in range(100))}) + "/a.txt"
    sizes = {half: load_texts(DatasetSpec(path, split=half), 1, 0).n_available for half in ("calibration", "heldout")}
    assert sum(sizes.values()) == 100
    assert min(sizes.values()) > 30


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"reference": "wikitex2"}, UsageError, "'wikitex2' is neither a file, a known data set nor a hub id"),
        ({"reference": "wikitex2"}, UsageError, "did you mean wikitext2?"),
        ({"reference": " "}, UsageError, "no data set given"),
        ({"reference": "./no/such"}, InputRefused, "no such file or folder: ./no/such"),
        ({"reference": "org/data.csv"}, InputRefused, "no such file or folder: org/data.csv"),
        ({"reference": "~/no-such-file"}, InputRefused, "no such file or folder: ~/no-such-file"),
        ({"reference": "x" * 5000}, InputRefused, "File name too long"),
        ({"reference": "bad\x1b[31m\nname.txt"}, InputRefused, r"no such file or folder: bad\x1b[31m\nname.txt"),
        ({"reference": "builtin", "split": "test"}, UsageError, "the built-in corpus has no split 'test'"),
        ({"reference": "builtin", "field": "text"}, UsageError, "the built-in corpus has no configurations"),
        ({"reference": "wikitext2", "unit": "line"}, UsageError, "--unit line is for plain text files"),
        ({"reference": "a.txt", "split": "train"}, UsageError, "is a local file and has no split 'train'"),
        ({"reference": "a.txt", "config": "c"}, UsageError, "configurations and revisions exist only on the hub"),
        ({"reference": "a.txt", "field": "text"}, UsageError, "is plain text and has no field 'text'"),
        ({"reference": "a.csv", "unit": "line"}, UsageError, "--unit line is for plain text, and a.csv is csv"),
        ({"reference": "a.csv", "field": "txt"}, UsageError, "a.csv has no column 'txt'; did you mean text?"),
        ({"reference": "empty"}, InputRefused, "empty holds no texts; files are taken by suffix: .txt"),
        ({"reference": "pictures"}, InputRefused, "pictures holds no texts (1 other files)"),
        ({"reference": "mixed"}, InputRefused, "mixed holds files of several kinds (1 csv, 1 text)"),
        ({"reference": "pipe"}, InputRefused, "pipe is neither a file nor a folder"),
    ],
)
def test_errors_name_the_fault_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], error: type[CohomError], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, {"a.txt": "one\ntwo\n", "a.csv": "text,title\na,b\n", "mixed/a.txt": "a", "mixed/b.csv": "b"})
    folder_of(tmp_path, {"pictures/a.png": ""})
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error) as caught:
        load_texts(DatasetSpec(**spec), 1, 0)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_less_than_one_text() -> None:
    with pytest.raises(UsageError, match="--samples 0: at least one text is needed"):
        load_texts(DatasetSpec(), 0, 0)


def test_files_win_over_hub_ids_and_presets_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, {"org/name": "a local text\n", "builtin": "not the corpus\n"})
    assert load_texts(DatasetSpec("org/name"), 1, 0).texts == ("a local text",)
    assert open_source(DatasetSpec("builtin")).unit == "paragraph"
    assert load_texts(DatasetSpec("./builtin"), 1, 0).texts == ("not the corpus",)


def test_presets_know_their_halves_and_yield_to_options() -> None:
    assert request_of(DatasetSpec("wikitext2")).split == "test"
    assert request_of(DatasetSpec("wikitext2", split="calibration")).split == "validation"
    assert request_of(DatasetSpec("wikitext2", split="train")).split == "train"
    squad = request_of(DatasetSpec("squad", field="context", revision="main"))
    assert (squad.repo_id, squad.split, squad.fields, squad.revision) == (
        "rajpurkar/squad_v2",
        "validation",
        ("context",),
        "main",
    )
    assert request_of(DatasetSpec("org/name", config="c")).name == "org-name-c"


@pytest.mark.parametrize("reference", ["../a/b", "a", "a/b/c", "a/", "/a", "a b/c", "a/b\n", "-a/b", "a/../b"])
def test_what_is_no_hub_id(reference: str) -> None:
    assert not is_hub_id(reference)


@steady
@given(st.text())
def test_names_are_safe(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= 48
    assert name[0] not in ".-"
    assert name.isprintable()
    assert not set(name) & set("/\\[]<>&:*?\"'| \n")
    assert printable(text).isprintable()


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    path = folder_of(tmp_path, {"a.jsonl": '{"text": "a"}\n'}) + "/a.jsonl"
    code = (
        "import sys; from cohomcli.data import DatasetSpec, load_texts\n"
        f"load_texts(DatasetSpec({path!r}), 1, 0); load_texts(DatasetSpec(), 1, 0)\n"
        "print(sorted({'torch', 'datasets', 'huggingface_hub', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
