"""Training that keeps zeros: they are zero after every single step, whatever the optimiser holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinymodels
import torch
from safetensors.numpy import save_file

from cohomcli.errors import InputRefused
from cohomcli.models.masks import read_masks
from cohomcli.training.loop import adamw
from cohomcli.training.masks import masked
from cohomcli.training.options import TrainOptions

OPTIONS = TrainOptions(max_steps=8, warmup_steps=0, learning_rate=0.05, weight_decay=0.3)


def _write(folder: Path, **masks: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    packed = {name.replace("__", "."): np.packbits(mask, axis=1) for name, mask in masks.items()}
    save_file(packed, folder / "masks.safetensors")
    return folder


def _random(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).random(shape) < 0.5


@pytest.mark.parametrize("late", [False, True])
def test_masked_weights_are_zero_after_every_step(tmp_path: Path, late: bool) -> None:
    model = tinymodels.build("gpt2")
    mask = _random((16, 64))
    masks = read_masks(_write(tmp_path / "m", layer_1__mlp__c_fc=mask), model)
    name = "transformer.h.1.mlp.c_fc.weight"
    assert list(masks) == [name]
    weight = model.get_parameter(name)
    other = model.get_parameter("transformer.h.0.mlp.c_fc.weight")
    before, untouched = weight.detach().clone(), other.detach().clone()
    make = adamw
    if late:  # an optimiser whose moments already push the weights somewhere

        def make(model, options):
            optimizer = adamw(model, options)
            model(input_ids=torch.arange(20, 28)[None], labels=torch.arange(20, 28)[None]).loss.backward()
            optimizer.step()
            return optimizer

    optimizer = masked(make, masks)(model, OPTIONS)
    hidden = torch.from_numpy(~mask)
    assert not bool(weight[hidden].any())
    for step in range(5):
        model(input_ids=torch.arange(20, 28)[None], labels=torch.arange(21, 29)[None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not bool(weight[hidden].any()), step
    assert float((weight - before).detach()[~hidden].abs().min()) > 0
    assert not torch.equal(other, untouched)


def test_masks_are_found_in_a_file_a_folder_and_a_run(tmp_path: Path) -> None:
    model = tinymodels.build("llama")
    mask = _random((32, 16))
    run = tmp_path / "run"
    _write(run / "model", layer_2__mlp__up_proj=mask)
    for place in (run, run / "model", run / "model" / "masks.safetensors"):
        found = read_masks(place, model)
        assert torch.equal(found["model.layers.2.mlp.up_proj.weight"], torch.from_numpy(mask))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("layer_1__mlp__c_fc", (8, 64)), ("layer_9__mlp__c_fc", (16, 64)), ("layer_1__mlp__up", (16, 64)), ("x", (2, 8))],
)
def test_masks_of_another_model_are_refused(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputRefused, match="does not fit this model"):
        read_masks(_write(tmp_path / "m", **{name: _random(shape)}), tinymodels.build("gpt2"))


def test_missing_and_damaged_masks_are_refused(tmp_path: Path) -> None:
    model = tinymodels.build("gpt2")
    with pytest.raises(InputRefused, match=r"no masks\.safetensors"):
        read_masks(tmp_path, model)
    (tmp_path / "masks.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputRefused, match="no safetensors file"):
        read_masks(tmp_path, model)
