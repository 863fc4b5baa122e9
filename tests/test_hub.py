"""Models and data sets by id, from a hub on 127.0.0.1: downloads that break off, ids that do not exist, no network.

Each program below runs with a fresh cache. Proxies point to a closed port, so that requests to other hosts fail.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hubserver import HubServer
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from cohomcli.data import DatasetSpec, load_texts
from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.hubaccess import ATTEMPTS, causes, explain, with_retries

Requests = dict[str, tuple[str, dict[str, Any]]]
Answers = dict[str, Any]
TEN_MIB = 10 << 20
ROOT = Path(__file__).parent.parent
README = """---
configs:
- config_name: one
  data_files: [{split: test, path: "one/*"}]
- config_name: two
  data_files: [{split: test, path: "two/*"}]
---
"""
WIKI = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files: [{split: test, path: "wikitext-2-raw-v1/test*"}, {split: validation, path: "wikitext-2-raw-v1/val*"}]
---
"""
WIKI_ROWS = ["", " = Title = \n", "", " First . \n", " Second . \n", "", " = = Part = = \n", "", " Third . \n"]

# Reads requests from stdin, answers each with what a user would see.
CLIENT = """
import json, sys
from dataclasses import asdict
from cohomcli.errors import CohomError

def model(reference):
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions
    return asdict(load(resolve(reference), LoadOptions()).info)

def folder(reference):  # what `load` does first, without importing torch
    from cohomcli.models.hub import fetch
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions
    return str(fetch(resolve(reference).location, LoadOptions()))

def dataset(samples=3, **spec):
    from cohomcli.data import DatasetSpec, load_texts
    return asdict(load_texts(DatasetSpec(**spec), samples, 0))

answers = {}
for label, (what, options) in json.load(sys.stdin).items():
    try:
        answers[label] = {"model": model, "folder": folder, "dataset": dataset}[what](**options)
    except CohomError as error:
        answers[label] = f"exit {error.exit_code}: {error}"
print(json.dumps(answers))
"""


def ask(url: str, home: Path, requests: Requests, **environment: str) -> Answers:
    """Answers of a fresh process to `requests` (label -> (what, options))."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("HF_", "COHOM_"))}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), closed_port())
    ours = {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input=json.dumps(requests),
        env=kept | proxies | ours | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers: Answers = json.loads(done.stdout.splitlines()[-1])
    return answers


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def gpt2_shapes(vocabulary: int, positions: int, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a GPT-2 with a tied head, as Hugging Face stores it."""
    block: dict[str, tuple[int, ...]] = {
        "ln_1": (width,),
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
    }
    block |= {"ln_2": (width,), "mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    modules = {f"h.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    modules["ln_f"] = (width,)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, width), "wpe.weight": (positions, width)}
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def write_model(folder: Path) -> None:
    """A GPT-2 written without transformers; 45,000 words make it larger than the 10 MiB at which downloads resume."""
    folder.mkdir(parents=True)
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
    config |= {"vocab_size": 45_000, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": 0, "eos_token_id": 0}))
    random = np.random.default_rng(0)
    shapes = gpt2_shapes(45_000, 32, 64, 2)
    weights = {name: random.standard_normal(shape, dtype=np.float32) / 8 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<eos>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_files(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            pq.write_table(pa.table(content), folder / name)
        else:
            (folder / name).write_text(content)


def as_jsonl(split: str) -> str:
    return "".join(json.dumps({"text": f"{split} text {i % 40}", "label": i}) + "\n" for i in range(50))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    datasets = root / "datasets"
    write_model(root / "models/org/tiny")
    write_files(datasets / "org/corpus", {"train.jsonl": as_jsonl("train"), "test.jsonl": as_jsonl("test")})
    tables = {
        f"{name}/part-0.parquet": {"text": [f"{name} {i}" for i in range(9)], "n": range(9)} for name in ("one", "two")
    }
    write_files(datasets / "org/configs", {"README.md": README, **tables})
    wiki = {f"wikitext-2-raw-v1/{split}.parquet": {"text": WIKI_ROWS} for split in ("test", "val")}
    write_files(datasets / "Salesforce/wikitext", {"README.md": WIKI, **wiki})
    squad = {"question": ["Why ?", "Who ?"], "context": ["Because .", None], "id": ["0", "1"]}
    write_files(datasets / "rajpurkar/squad_v2", {"validation.parquet": squad})
    write_files(datasets / "org/broken", {"train.jsonl": '{"text": "a"}\n{"text": \n'})
    write_files(datasets / "org/script", {"script.py": "raise SystemExit('this must not run')\n"})
    write_files(datasets / "org/unread", {"unread-test.jsonl": as_jsonl("test")})
    write_files(datasets / "org/gated", {"train.jsonl": as_jsonl("train")})
    write_files(datasets / "org/two-columns", {"train.jsonl": '{"a": "x", "b": "y", "n": 1}\n'})
    return root


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[HubServer]:
    with HubServer(root, gated={"org/gated"}) as server:
        yield server


CORPUS: dict[str, Any] = {"reference": "org/corpus", "samples": 20}
ONLINE: Requests = {
    "model": ("model", {"reference": "org/tiny"}),
    "folder": ("folder", {"reference": "org/tiny"}),
    "no model": ("model", {"reference": "org/tinny"}),
    "corpus": ("dataset", CORPUS),
    "configured": ("dataset", {"reference": "org/configs", "config": "two"}),
    "half": ("dataset", {"reference": "org/corpus", "split": "calibration"}),
    "train": ("dataset", {"reference": "org/corpus", "split": "train"}),
    "wikitext2": ("dataset", {"reference": "wikitext2"}),
    "squad": ("dataset", {"reference": "squad", "samples": 2}),
    "no data set": ("dataset", {"reference": "org/corpsu"}),
    "no configuration": ("dataset", {"reference": "org/configs", "config": "twoo"}),
    "which configuration": ("dataset", {"reference": "org/configs"}),
    "no split": ("dataset", {"reference": "org/unread", "split": "tset"}),
    "no field": ("dataset", {"reference": "org/corpus", "field": "txt"}),
    "no strings": ("dataset", {"reference": "org/corpus", "field": "label"}),
    "which field": ("dataset", {"reference": "org/two-columns"}),
    "no revision": ("dataset", {"reference": "org/corpus", "revision": "v9"}),
    "too many": ("dataset", {"reference": "org/corpus", "samples": 41}),
    "gated": ("dataset", {"reference": "org/gated"}),
    "broken": ("dataset", {"reference": "org/broken"}),
    "script": ("dataset", {"reference": "org/script"}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def online(hub: HubServer, home: Path) -> Answers:
    """Everything in one process, with three downloads that break off in the middle."""
    hub.cut_once("model.safetensors", after=TEN_MIB + 500_000, how="close")
    hub.cut_once("test.jsonl", after=100, how="reset")
    hub.cut_once("two/part-0.parquet", after=100, how="close")
    return ask(hub.url, home, ONLINE)


def test_model_resumes_where_the_connection_was_cut(online: Answers, hub: HubServer, home: Path, root: Path) -> None:
    source = root / "models/org/tiny/model.safetensors"
    first, second = hub.downloads("model.safetensors")
    assert (first.cut, first.sent) == (True, TEN_MIB + 500_000)
    # The client keeps whole pieces of 10 MiB.
    assert (second.range, second.status) == (f"bytes={TEN_MIB}-", 206)
    assert second.sent == source.stat().st_size - TEN_MIB
    (copy,) = home.glob("hub/models--org--tiny/snapshots/*/model.safetensors")
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert (online["model"]["n_layer"], online["model"]["name"]) == (2, "tiny")


@pytest.mark.parametrize("filename", ["test.jsonl", "two/part-0.parquet"])
def test_data_set_is_fetched_again_after_a_cut(
    online: Answers, hub: HubServer, home: Path, root: Path, filename: str
) -> None:
    """A reset connection ends the client's call; the second attempt is ours."""
    first, second = hub.downloads(filename)
    assert first.cut
    assert not second.cut
    (copy,) = home.glob(f"hub/datasets--org--*/snapshots/*/{filename}")
    (source,) = root.glob(f"datasets/org/*/{filename}")
    assert copy.read_bytes() == source.read_bytes()
    assert len(online["corpus"]["texts"]) == 20
    assert len(online["configured"]["texts"]) == 3


def test_hub_sample_is_that_of_the_file(online: Answers, root: Path) -> None:
    local = load_texts(DatasetSpec(str(root / "datasets/org/corpus/test.jsonl")), 20, 0)
    assert tuple(online["corpus"]["texts"]) == local.texts
    assert online["corpus"]["sha256"] == local.sha256
    assert (online["corpus"]["n_available"], online["corpus"]["n_duplicate"]) == (40, 10)


def test_what_is_recorded_of_a_hub_data_set(online: Answers, hub: HubServer) -> None:
    commit = hub.commit("datasets", "org/configs")
    assert online["configured"]["source"] == f"org/configs, configuration two, commit {commit}"
    assert online["configured"]["name"] == "org-configs-two"
    assert all(text.startswith("two ") for text in online["configured"]["texts"])
    assert (online["half"]["split"], online["train"]["split"]) == ("test/calibration", "train")
    assert online["corpus"]["field"] == "text"


def test_presets(online: Answers) -> None:
    wiki, squad = online["wikitext2"], online["squad"]
    assert sorted(wiki["texts"]) == ["First .", "Second .", "Third ."]
    assert (wiki["name"], wiki["split"], wiki["n_heading"]) == ("wikitext2", "test", 2)
    assert sorted(squad["texts"]) == ["Who ?", "Why ?\nBecause ."]
    assert (squad["split"], squad["field"]) == ("validation", "question+context")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("no data set", "exit 3: there is no data set 'org/corpsu' on the hub at http://127.0.0.1:"),
        ("no configuration", "exit 2: data set 'org/configs' has no configuration 'twoo'; did you mean two?"),
        ("which configuration", "exit 2: data set 'org/configs' has several configurations: one, two; choose one"),
        ("no split", "exit 2: data set 'org/unread' has no split 'tset'; did you mean test?"),
        ("no field", "exit 2: data set 'org/corpus' has no column 'txt'; did you mean text?"),
        ("no strings", "exit 2: column 'label' of data set 'org/corpus' holds no strings; columns of texts: text"),
        ("which field", "exit 2: data set 'org/two-columns' has several columns that could be the text: a, b;"),
        ("no revision", "exit 3: the hub has no data set 'org/corpus' at revision 'v9'"),
        ("too many", "(split test) holds 40 distinct texts and 41 were asked for; pass --samples 40 or fewer"),
        ("gated", "exit 3: data set 'org/gated' is gated on the hub; accept its terms on its page"),
        ("broken", "exit 3: cannot load data set 'org/broken': JSON parse error"),
        ("script", "exit 3: cannot load data set 'org/script': Dataset scripts are no longer supported"),
    ],
)
def test_refusals_of_data_sets(online: Answers, label: str, message: str) -> None:
    assert message in online[label]
    assert online[label].isprintable()


def test_a_model_that_does_not_exist(online: Answers) -> None:
    assert online["no model"].startswith("exit 3: ")
    assert "org/tinny" in online["no model"]
    assert online["no model"].isprintable()


def test_misspelt_split_costs_no_download(online: Answers, hub: HubServer) -> None:
    assert "org/unread" in online["no split"]
    assert not hub.downloads("unread-test.jsonl")


def test_client_code_does_not_turn_to_xet(online: Answers, hub: HubServer) -> None:
    assert hub.log
    assert not [exchange for exchange in hub.log if "xet" in exchange.path]


@pytest.fixture(scope="module")
def offline(online: Answers, hub: HubServer, home: Path) -> Answers:
    """The same cache, without network."""
    requests: Requests = {
        "folder": ("folder", {"reference": "org/tiny"}),
        "corpus": ("dataset", CORPUS),
        "commit": ("dataset", {"reference": "org/corpus", "revision": hub.commit("datasets", "org/corpus")}),
        "branch": ("dataset", {"reference": "org/corpus", "revision": "main"}),
        "no configuration": ("dataset", {"reference": "org/configs", "config": "one"}),
        "no model": ("folder", {"reference": "org/other"}),
        "no data set": ("dataset", {"reference": "org/other"}),
    }
    hub.log.clear()
    return ask(hub.url, home, requests, HF_HUB_OFFLINE="1")


def test_offline_with_a_cache_is_as_online(online: Answers, offline: Answers, hub: HubServer) -> None:
    assert offline["corpus"] == online["corpus"]
    assert offline["folder"] == online["folder"]
    assert len(offline["commit"]["texts"]) == 3
    assert not hub.log


def test_offline_takes_no_other_revision_for_the_one_asked_for(offline: Answers) -> None:
    assert "data set 'org/corpus' at revision 'main' is not in the local cache (commit" in offline["branch"]


@pytest.mark.parametrize("label", ["no model", "no data set"])
def test_offline_without_a_cache(offline: Answers, label: str) -> None:
    assert offline[label].startswith("exit 3: ")
    assert "'org/other' is not in the local cache and HF_HUB_OFFLINE is set" in offline[label]
    assert offline[label].isprintable()


def test_offline_without_the_configuration(offline: Answers) -> None:
    assert offline["no configuration"].startswith("exit 3: cannot load data set 'org/configs'")


def test_unreachable_hub(tmp_path: Path) -> None:
    url = closed_port()
    requests: Requests = {
        "model": ("folder", {"reference": "org/tiny"}),
        "data set": ("dataset", {"reference": "org/corpus"}),
    }
    answers = ask(url, tmp_path, requests)
    for answer in answers.values():
        assert answer.startswith("exit 3: cannot reach the hub")
        assert url in answer
        assert answer.isprintable()


class ReadError(Exception):
    """Named as the error of httpx when a connection is reset."""


def failing(times: int, error: Exception) -> tuple[Callable[[], int], list[int]]:
    calls = []

    def action() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise OSError("wrapped") from error
        return len(calls)

    return action, calls


def test_retries_are_bounded() -> None:
    action, calls = failing(ATTEMPTS - 1, ReadError())
    assert with_retries(action, pause=0.0) == ATTEMPTS
    action, calls = failing(99, ReadError())
    with pytest.raises(OSError, match="wrapped") as caught:
        with_retries(action, pause=0.0)
    assert len(calls) == ATTEMPTS
    assert "the connection broke off 4 times while downloading model 'a/b'" in str(explain(caught.value, "model 'a/b'"))


def test_other_errors_are_not_retried() -> None:
    action, calls = failing(99, ValueError())
    with pytest.raises(OSError, match="wrapped"):
        with_retries(action, pause=0.0)
    assert len(calls) == 1


def test_a_full_disk_is_not_the_fault_of_the_input() -> None:
    line = explain(OSError(28, "No space left on device"), "data set 'a/b'")
    assert isinstance(line, AnalysisIncomplete)
    assert isinstance(explain(ValueError("first line\nadvice"), "x"), InputRefused)
    assert str(explain(ValueError("first line\nadvice"), "x")) == "cannot load x: first line"


def test_causes_end_even_in_a_ring() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second]
