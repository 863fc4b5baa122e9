"""Masks of a pruned model, `masks.safetensors`: which weights of which maps are not zero, one bit each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.layout import find_stacks

MASKS_FILE = "masks.safetensors"


def read_masks(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Parameter name of `model` to a boolean tensor of its shape, True where the weight may differ from zero.

    `path` is the file, or the folder of a pruned model, or a run folder of `cohom prune`.

    Raises:
        InputRefused: no such file, damaged, or masks of another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    places = [path, path / MASKS_FILE, path / "model" / MASKS_FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputRefused(
            f"no {MASKS_FILE} at {str(path)!r}", "give a folder that `cohom prune` wrote with a pattern of zeros"
        )
    try:
        packed = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputRefused(f"{str(file)!r} is no safetensors file", "prune the model again") from error
    blocks = find_stacks(model).stacks[0].blocks
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for key, bits in packed.items():
        weight = _weight(blocks, key)
        if weight is None or bits.dtype != np.uint8 or bits.shape != (weight.shape[0], -(-weight.shape[1] // 8)):
            raise InputRefused(f"the mask of {key} does not fit this model", "name the model that was pruned")
        keep = np.unpackbits(bits, axis=1)[:, : weight.shape[1]].astype(bool)
        found[names[id(weight)]] = torch.from_numpy(keep).to(weight.device)
    if not found:
        raise InputRefused(f"{str(file)!r} holds no masks")
    return found


def _weight(blocks: tuple[nn.Module, ...], key: str) -> nn.Parameter | None:
    """The matrix `layer_0.mlp.c_fc` of the blocks, as it is stored, or None."""
    layer, _, path = key.partition(".")
    number = layer.removeprefix("layer_")
    if not number.isdigit() or int(number) >= len(blocks):
        return None
    try:
        weight = getattr(blocks[int(number)].get_submodule(path), "weight", None)
    except AttributeError:
        return None
    return weight if isinstance(weight, nn.Parameter) and weight.dim() == 2 else None
