"""Descriptions without weights, and memory forecasts."""

import json
import shutil
import subprocess
import sys
import weakref
from collections import Counter

import pytest
import tinymodels
import torch
from safetensors.torch import load_file, save_file
from tinymodels import PICO, SENTENCES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.models import inspect, memory
from cohomcli.models.activations import collect
from cohomcli.models.inspect import describe
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadOptions


@pytest.mark.parametrize("name", list(PICO))
def test_a_description_agrees_with_the_loaded_model(name):
    found, info = describe(resolve(str(tinymodels.saved(name))), LoadOptions()), tinymodels.loaded(name).info
    assert (found.architecture, found.kind, found.n_layer) == (info.architecture, info.kind, info.n_layer)
    assert (found.hidden_size, found.vocab_size, found.n_parameters) == (
        info.hidden_size, info.vocab_size, info.n_parameters,
    )  # fmt: skip
    assert found.dtypes == ("F32",)
    assert found.n_bytes == (tinymodels.saved(name) / "model.safetensors").stat().st_size
    assert found.load_bytes == 4 * info.n_parameters
    assert not found.notes


def test_a_description_reads_no_weights(tmp_path):
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value * float("nan") for key, value in tensors.items()}, folder / "model.safetensors")
    assert describe(resolve(str(folder)), LoadOptions()).n_layer == 3


def test_what_a_description_notes(tmp_path, monkeypatch):
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr(inspect, "available_bytes", lambda: 100)
    found = describe(resolve(str(folder)), LoadOptions())
    assert found.notes[0] == "no tokenizer: this model cannot be run on text"
    assert "does not fit" in found.notes[-1]


def test_code_is_not_run_to_describe_a_model(tmp_path):
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    config |= {"num_hidden_layers": 3, "hidden_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('the code ran')")
    found = describe(resolve(str(folder)), LoadOptions(trust_remote_code=True))
    assert found.needs_remote_code
    assert (found.n_layer, found.kind, found.hidden_size) == (3, "decoder", 16)
    assert found.n_parameters == tinymodels.loaded("gpt2").info.n_parameters


def test_corrupt_folders_are_refused(tmp_path):
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputRefused, match="corrupt"):
        describe(resolve(str(folder)), LoadOptions())


def needs(per_token):
    return memory.Forecast(weights=0, per_token=per_token, head=0)


def test_the_token_budget_is_the_same_on_every_machine_with_room(monkeypatch):
    for free in (2**30, 2**34, 2**40):
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
        assert memory.choose_token_budget(needs(1000), 128) == memory.DEFAULT_TOKEN_BUDGET
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000 * 1024)
    assert memory.choose_token_budget(needs(1000), 128) == 512, "halved until a batch takes half of what is free"
    assert memory.choose_token_budget(needs(1000), 900) == 900, "one text always fits a batch"
    assert memory.choose_token_budget(needs(1000), 128, requested=5000) == 5000
    with pytest.raises(AnalysisIncomplete, match="one text of 2000 tokens needs about 2 MiB and 1 MiB is free"):
        memory.choose_token_budget(needs(1000), 2000)


def test_no_memory_is_said_before_the_first_batch(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(AnalysisIncomplete, match="is free; lower --max-length"):
        collect(tinymodels.loaded("gpt2"), list(SENTENCES), ActivationOptions())


def test_available_memory_respects_the_process_limit():
    code = (
        "import resource\n"
        "from cohomcli.models.memory import available_bytes\n"
        "free = available_bytes()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "limited = available_bytes()\n"
        "assert 0 < limited < 2**31 and limited <= free, (free, limited)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_container_limits(tmp_path, monkeypatch):
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "usage").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    monkeypatch.setattr(memory, "_LIMIT_FILES", ((str(tmp_path / "limit"), str(tmp_path / "usage")),))
    assert memory.available_bytes() == 500_000
    (tmp_path / "limit").write_text("max\n")
    assert memory.available_bytes() > 500_000


class Peak(TorchDispatchMode):
    """The most bytes of tensors alive at once, counted operation by operation."""

    def __init__(self):
        super().__init__()
        self.holders, self.now, self.most = Counter(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.hold(value)
        return result

    def hold(self, value):
        storage = value.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not self.holders[key]:
            self.now += size
            self.most = max(self.most, self.now)
        self.holders[key] += 1
        weakref.finalize(value, self.release, key, size)

    def release(self, key, size):
        self.holders[key] -= 1
        if not self.holders[key]:
            self.now -= size


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama", "gemma2", "opt", "bert", "distilbert"])
def test_the_forecast_covers_what_a_batch_takes_and_not_far_more(name):
    """gpt_neo and gemma2 attend without a fused kernel, as the forecast assumes of all."""
    model = tinymodels.build(name).base_model
    ids = torch.zeros(16, 64, dtype=torch.int64)
    with Peak() as peak:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = memory.forecast(model.config, 0, 64, head=False).forward(ids.numel())
    assert peak.most < expected < 10 * peak.most
