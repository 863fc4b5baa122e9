"""Which tensors of a checkpoint are the model: the same choice every time, and the file says which."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.files.read import read_model_file

W = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}
OTHER = {name: value + 1 for name, value in W.items()}
OPTIMISER = {"state": {0: {"exp_avg": torch.ones(9)}, 1: {"exp_avg": torch.ones(9)}}, "param_groups": [{"lr": 0.1}]}


def saved(value: Any, tmp_path: Path, at: str = "") -> ModelFile:
    torch.save(value, tmp_path / "m")
    return read_model_file(tmp_path / "m", at=at)


def wrapped(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in W.items()}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (W, ""),
        (OrderedDict(W), ""),
        ({"state_dict": W}, "state_dict"),
        ({"model": W, "optimizer": OPTIMISER, "epoch": 3}, "model"),
        ({"model_state_dict": W, "optimizer_state_dict": OPTIMISER}, "model_state_dict"),
        ({"state_dict": W, "state_dict_ema": OTHER}, "state_dict"),
        ({"ema": OTHER, "model": W}, "model"),
        ({"model_ema": W}, "model_ema"),
        ({"net": W, "optimizer": OPTIMISER}, "net"),
        ({"checkpoint": {"model": W, "opt": OPTIMISER}}, "checkpoint.model"),
        ({"step": torch.tensor(7), "state_dict": W}, "state_dict"),
        ({"rng_state": torch.zeros(5000, dtype=torch.uint8), "model": W}, "model"),
        ((W, OPTIMISER, 5), "0"),
        ({"anything": W, "optim": OPTIMISER}, "anything"),
    ],
)
def test_the_weights_are_found(content: Any, place: str, tmp_path: Path) -> None:
    file = saved(content, tmp_path)
    assert file.place == place
    assert list(file.tensors) == list(W)
    assert all(torch.equal(file.tensors[name], W[name]) for name in W)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."],
)
def test_wrapper_prefixes_are_taken_off_and_reported(prefix: str, tmp_path: Path) -> None:
    file = saved({"model": wrapped(prefix)}, tmp_path)
    assert list(file.tensors) == list(W)
    assert file.stripped == prefix
    assert any(repr(prefix) in note for note in file.notes)


def test_inner_wrappers_are_taken_out_and_true_names_kept(tmp_path: Path) -> None:
    file = saved({"layers.0._fsdp_wrapped_module.a": W["a.bias"], "layers.1._orig_mod.a": W["a.bias"]}, tmp_path)
    assert list(file.tensors) == ["layers.0.a", "layers.1.a"]
    assert list(saved(wrapped("model."), tmp_path).tensors) == list(wrapped("model."))
    mixed = {"module.a": W["a.bias"], "b": W["a.bias"]}
    assert list(saved(mixed, tmp_path).tensors) == list(mixed)
    clash = {"a._orig_mod.b": W["a.bias"], "a.b": W["a.weight"]}
    assert list(saved(clash, tmp_path).tensors) == list(clash)


def test_several_parts_become_one_state_dict(tmp_path: Path) -> None:
    file = saved({"encoder": W, "decoder": OTHER, "optimizer": OPTIMISER}, tmp_path)
    assert set(file.tensors) == {f"{part}.{name}" for part in ("encoder", "decoder") for name in W}
    assert torch.equal(file.tensors["decoder.a.bias"], OTHER["a.bias"])


def test_nested_mappings_are_flattened(tmp_path: Path) -> None:
    nested = {"params": {"dense": {"kernel": W["a.weight"], "bias": W["a.bias"]}, "scale": W["a.bias"]}}
    file = saved(nested, tmp_path)
    assert file.place == "params"
    assert set(file.tensors) == {"dense.kernel", "dense.bias", "scale"}


def test_what_was_not_chosen_is_listed_and_can_be_asked_for(tmp_path: Path) -> None:
    content = {"state_dict": W, "ema": {"state_dict": OTHER}, "optimizer": OPTIMISER}
    file = saved(content, tmp_path)
    assert ("ema.state_dict", 2) in file.others
    averaged = saved(content, tmp_path, at="ema.state_dict")
    assert torch.equal(averaged.tensors["a.bias"], OTHER["a.bias"])
    with pytest.raises(UsageError, match=r"ema\.state_dict"):
        saved(content, tmp_path, at="nowhere")


def test_a_module_inside_a_checkpoint_is_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    file = saved({"epoch": 1, "model": model, "optimizer": OPTIMISER}, tmp_path)
    assert list(file.tensors) == ["0.weight", "0.bias"]
    assert file.module_tree["0"].endswith("Linear")


def test_single_tensors_and_lists_are_read(tmp_path: Path) -> None:
    assert list(saved(W["a.bias"], tmp_path).tensors) == ["tensor"]
    assert list(saved([W["a.bias"], W["a.weight"]], tmp_path).tensors) == ["0", "1"]


def test_plain_facts_are_kept_and_nothing_else(tmp_path: Path) -> None:
    content = {
        "model": W, "epoch": 3, "best": 0.5, "nan": float("nan"), "long": "x" * 10_000, "when": None,
        "args": argparse.Namespace(lr=0.1, layers=[1, 2], odd=object), "model_args": {"n_head": 4, "inner": {"k": "v"}},
    }  # fmt: skip
    facts = saved(content, tmp_path).facts
    assert facts == {
        "epoch": 3, "best": 0.5, "args": {"lr": 0.1, "layers": [1, 2]},
        "model_args": {"n_head": 4, "inner": {"k": "v"}},
    }  # fmt: skip


def test_the_choice_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    content = {"zeta": W, "alpha": OTHER, "weights": W, "net": OTHER, "ema_model": W}
    places = {saved(dict(order), tmp_path).place for order in (content.items(), reversed(content.items()))}
    assert places == {"net"}
